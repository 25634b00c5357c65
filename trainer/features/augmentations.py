"""Views of an image: what of its pixels a tower sees. Features of each view are cached by themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from searchforge.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8]

UNAUGMENTED = "plain"
"""The whole image, as searches see it."""


CROP = 0.8
"""Width and height of a crop, as a share of the image's."""


def _view(image: Image.Image, preprocessing: Preprocessing, corner: tuple[int, int] | None, mirrored: bool) -> Pixels:
    if corner:
        width, height = max(1, round(CROP * image.width)), max(1, round(CROP * image.height))
        left, top = corner[0] * (image.width - width), corner[1] * (image.height - height)
        image = image.crop((left, top, left + width, top + height))
    pixels = preprocessing.resize(image)
    return pixels[:, ::-1] if mirrored else pixels


AUGMENTATIONS: Mapping[str, Callable[[Image.Image, Preprocessing], Pixels]] = {
    UNAUGMENTED: functools.partial(_view, corner=None, mirrored=False),
    "mirrored": functools.partial(_view, corner=None, mirrored=True),
    "top-left": functools.partial(_view, corner=(0, 0), mirrored=False),
    "top-right-mirrored": functools.partial(_view, corner=(1, 0), mirrored=True),
    "bottom-left-mirrored": functools.partial(_view, corner=(0, 1), mirrored=True),
    "bottom-right": functools.partial(_view, corner=(1, 1), mirrored=False),
}
"""By name: a decoded RGB image at its own size -> uint8 [height, width, 3], the tower's input before scaling.

In the order in which training takes more of them. A view is deterministic, since its features are cached under its
name: one that changes gets another name.
"""
