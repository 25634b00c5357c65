"""Loads image towers from Keras Applications by name and weights file: `keras:MobileNetV3Small@<weights.h5>`.

The weights file must be for the network without its classifier (`include_top=False`; Keras publishes these as
`..._no_top.h5`). Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.preprocessing import Preprocessing
from trainer.towers.base import DEFAULT_SIZE, ImageTower
from trainer.towers.saved_models import model_tunable_variables


def image_tower(name: str) -> ImageTower:
    """Returns the tower with the given name, without the prefix `keras:`."""
    return _KerasTower(name)


class _KerasTower(ImageTower):
    def __init__(self, name: str) -> None:
        super().__init__(name="image_tower")
        network, _, weights = name.partition("@")
        module, build = _application(network)
        path = Path(weights)
        if not weights or not path.is_file():
            raise UsageError(
                f"tower 'keras:{name}' names no weights file; expected keras:{network}@<file>, for example the "
                "..._no_top.h5 file that Keras publishes"
            )
        height, width = build(weights=None).input_shape[1:3]
        height, width = height or DEFAULT_SIZE, width or DEFAULT_SIZE
        self._model = build(weights=None, include_top=False, pooling="avg", input_shape=(height, width, 3))
        try:
            self._model.load_weights(str(path))
        except Exception as error:  # h5py and Keras raise many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"{path} does not contain the weights of {network} without its classifier (include_top=False): {reason}"
            ) from error
        self._model.trainable = False
        self.preprocessing, self._prepare = _preprocessing(module, height, width)
        self.width = int(self._model.output_shape[-1])
        self.fingerprint = sha256_bytes(f"keras {network} {sha256_file(path)}".encode())

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        self._model.trainable = True
        try:
            return model_tunable_variables(self._model, last)
        finally:
            self._model.trainable = False

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return self._model(self._prepare(images), training=False)


def _application(name: str) -> tuple[ModuleType, Any]:
    """Returns a network's module, which defines `preprocess_input`, and the function that builds the network."""
    from tf_keras import applications

    names = [n for n in dir(applications) if n[0].isupper() and callable(getattr(applications, n))]
    if name not in names:
        raise UsageError(f"Keras Applications has no {name!r}; expected one of {', '.join(names)}")
    build = getattr(applications, name)
    return importlib.import_module(build.__module__), build


def _preprocessing(module: ModuleType, height: int, width: int) -> tuple[Preprocessing, Any]:
    """Splits a network's preprocessing into a Preprocessing and a function for the rest.

    The function is the identity if the network only scales its input.
    """
    black, middle, white = (
        np.ravel(module.preprocess_input(np.full((1, 1, 1, 3), value, np.float32))) for value in (0, 102, 255)
    )
    low, high = float(black[0]), float(white[0])
    linear = np.allclose(black + (white - black) * 0.4, middle, atol=1e-4)
    if linear and np.ptp(black) == np.ptp(white) == 0:
        return Preprocessing(height, width, low=low, high=high), lambda images: images
    return Preprocessing(height, width, low=0.0, high=255.0), module.preprocess_input
