"""Deterministic augmentations of an image. The features of each one are cached separately, under its name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from searchforge.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8]

UNAUGMENTED = "plain"
"""Name of the identity: the whole image, as in search."""


CROP = 0.8
"""Width and height of a crop, relative to the image."""


def _augment(image: Image.Image, preprocessing: Preprocessing, corner: tuple[int, int] | None, mirror: bool) -> Pixels:
    if corner:
        width, height = max(1, round(CROP * image.width)), max(1, round(CROP * image.height))
        left, top = corner[0] * (image.width - width), corner[1] * (image.height - height)
        image = image.crop((left, top, left + width, top + height))
    pixels = preprocessing.resize(image)
    return pixels[:, ::-1] if mirror else pixels


AUGMENTATIONS: Mapping[str, Callable[[Image.Image, Preprocessing], Pixels]] = {
    UNAUGMENTED: functools.partial(_augment, corner=None, mirror=False),
    "mirrored": functools.partial(_augment, corner=None, mirror=True),
    "top-left": functools.partial(_augment, corner=(0, 0), mirror=False),
    "top-right-mirrored": functools.partial(_augment, corner=(1, 0), mirror=True),
    "bottom-left-mirrored": functools.partial(_augment, corner=(0, 1), mirror=True),
    "bottom-right": functools.partial(_augment, corner=(1, 1), mirror=False),
}
"""Augmentations by name, in the order in which `train.views` enables them.

Each maps a decoded RGB image of any size to uint8 [height, width, 3], the tower's input before scaling. Features are
cached by name, so an augmentation whose result changes must be renamed.
"""
