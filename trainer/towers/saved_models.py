"""Loads towers from TensorFlow Hub (a handle or a folder) and from local SavedModels.

Models must follow TensorFlow Hub's common signatures: images are float32 [n, h, w, 3] in 0..1, texts are string [n].
Text models that take token ids (`values`, `indices`, `dense_shape`) are loaded by trainer.towers.sentencepiece.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.preprocessing import Preprocessing
from trainer.towers import sentencepiece
from trainer.towers.base import DEFAULT_SIZE, ImageTower, TextTower


def image_tower(name: str) -> ImageTower:
    """Returns the tower `hub:<handle or folder>` or `saved_model:<folder>`, optionally with `@<pixels>`."""
    return _SavedImageTower(name)


def text_tower(name: str) -> TextTower:
    """Returns the tower `hub:<handle or folder>` or `saved_model:<folder>`."""
    folder = _folder(name)
    if sentencepiece.takes_token_ids(folder):
        try:
            return sentencepiece.SentencePieceTower(folder, _hash(folder))
        except UsageError as error:
            raise UsageError(f"tower {name!r}: {error}") from error
    return _SavedTextTower(name)


def infer_width(name: str, run: Callable[[], tf.Tensor], expected: str) -> int:
    """Runs a tower and returns the length of its feature vectors.

    Args:
      name: Name of the tower, for errors.
      run: Calls the tower.
      expected: Dtype and shape of the input, for errors.

    Raises:
      UsageError: The tower does not accept the input, or does not return one vector per input.
    """
    try:
        shape = run().shape
    except Exception as error:
        raise UsageError(f"tower {name!r} does not take {expected}: {_first_line(error)}") from error
    if shape.rank != 2:
        raise UsageError(f"tower {name!r} returns {shape}, expected one vector per input: [n, d]")
    return int(shape[1])


def model_tunable_variables(model: Any, last: int | None) -> dict[str, tf.Variable]:
    """Implements Tower.tunable_variables for a model whose blocks and layers are unknown."""
    if last is not None:
        raise UsageError("the blocks and layers of this tower are unknown; fine-tune it in full, or leave it frozen")
    signatures = getattr(model, "signatures", {})
    parts = [model, *(signatures[key] for key in sorted(signatures))]
    trainable = next((variables for part in parts if (variables := getattr(part, "trainable_variables", ()))), ())
    if not trainable:
        raise UsageError("this tower has no trainable variables; leave it frozen")
    return {f"{index:04d} {variable.name}": variable for index, variable in enumerate(trainable)}


class _SavedImageTower(ImageTower):
    def __init__(self, name: str) -> None:
        super().__init__(name="image_tower")
        sized = re.fullmatch(r"(.+)@(\d+)", name)
        handle, size = (sized[1], int(sized[2])) if sized else (name, None)
        self._model, self._call, shape, self.fingerprint = _load(handle)
        model_size = shape[1:3] if len(shape) == 4 else [None, None]
        height, width = (size or model_size[0] or DEFAULT_SIZE), (size or model_size[1] or DEFAULT_SIZE)
        self.preprocessing = Preprocessing(height, width, low=0.0, high=1.0)
        self.width = infer_width(name, lambda: self(tf.zeros([1, height, width, 3])), "float32 [n, h, w, 3]")

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        return model_tunable_variables(self._model, last)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return self._call(images)


class _SavedTextTower(TextTower):
    def __init__(self, name: str) -> None:
        super().__init__(name="text_tower")
        self._model, self._call, _, self.fingerprint = _load(name)
        self.width = infer_width(name, lambda: self(tf.constant(["text"])), "string [n]")

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        return model_tunable_variables(self._model, last)

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        return self._call(texts)


def _folder(name: str) -> Path:
    """Returns the folder of a model, after downloading it to TensorFlow Hub's cache if needed."""
    import tensorflow_hub as hub

    scheme, _, place = name.partition(":")
    try:
        folder = Path(hub.resolve(place)) if scheme == "hub" else Path(place)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
    except Exception as error:  # TensorFlow Hub raises many types
        raise _load_error(name, error) from error
    return folder


def _load(name: str) -> tuple[Any, Callable[[tf.Tensor], tf.Tensor], list[int | None], str]:
    """Returns (loaded model, function that runs it, known input shape or [], fingerprint)."""
    import tensorflow_hub as hub
    import tensorflow_text  # noqa: F401  registers the operations of built-in tokenizers

    folder = _folder(name)
    try:
        model = hub.load(str(folder))
    except Exception as error:  # TensorFlow Hub raises many types
        raise _load_error(name, error) from error
    signature = next((s for key in ("serving_default", "default") if (s := model.signatures.get(key))), None)
    if callable(model):
        run = model
    elif signature is not None:
        run = _call_signature(name, signature)
    else:
        raise UsageError(f"tower {name!r} is not callable, and has no signature `serving_default` or `default`")
    specs = list(signature.structured_input_signature[1].values()) if signature else []
    shape = specs[0].shape.as_list() if len(specs) == 1 and specs[0].shape.rank else []

    def call(inputs: tf.Tensor) -> tf.Tensor:
        outputs = run(inputs)
        if isinstance(outputs, dict):
            if "default" not in outputs and len(outputs) > 1:
                raise UsageError(
                    f"tower {name!r} returns {', '.join(sorted(outputs))}; expected one output, or `default`"
                )
            outputs = outputs["default"] if "default" in outputs else next(iter(outputs.values()))
        return tf.cast(outputs, tf.float32)

    return model, call, shape, _hash(folder)


def _hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in files]
    return sha256_bytes("\n".join(listing).encode())


def _call_signature(name: str, signature: Any) -> Callable[[tf.Tensor], Any]:
    arguments = list(signature.structured_input_signature[1])
    if len(arguments) != 1:
        raise UsageError(f"tower {name!r} takes {', '.join(arguments) or 'nothing'}; expected one input")
    return lambda inputs: signature(**{arguments[0]: inputs})


def _load_error(name: str, error: Exception) -> UsageError:
    return UsageError(
        f"tower {name!r} cannot be loaded ({_first_line(error)}); "
        "provide a TensorFlow Hub handle that this machine can reach, or the folder of a SavedModel"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
