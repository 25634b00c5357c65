"""Turns decoded images into the input of an image encoder, as the batch pipeline does."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from searchforge_reader.library import RawPreprocessing, check, load


class Preprocessing:
    """Image preprocessing that a string such as `decode|resize(224,224,bilinear)|scale(-1,1)` describes.

    Raises:
      ValueError: The string is not a preprocessing string.
      UnsupportedFile: The input would be too large.
    """

    def __init__(self, text: str) -> None:
        self._parsed = RawPreprocessing()
        check(load().sf_parse_preprocessing(text.encode(), ctypes.byref(self._parsed)))
        self.height: int = self._parsed.height
        self.width: int = self._parsed.width

    def resize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Stretches an image, [h, w, 3] RGB, to [height, width, 3]. Raises ValueError for an array of another form."""
        resized = np.empty((self.height, self.width, 3), np.uint8)
        self._call(load().sf_resize_image, pixels, resized)
        return resized

    def tensor(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Resizes an image and scales it to the encoder's input, [height, width, 3]; see `resize`."""
        tensor = np.empty((self.height, self.width, 3), np.float32)
        self._call(load().sf_preprocess_image, pixels, tensor)
        return tensor

    def _call(
        self, function: ctypes._NamedFuncPointer, pixels: npt.NDArray[np.uint8], output: npt.NDArray[np.generic]
    ) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"pixels of type {pixels.dtype} and shape {pixels.shape}; expected uint8, [h, w, 3]")
        pixels = np.ascontiguousarray(pixels)
        height, width, _ = pixels.shape
        check(function(ctypes.byref(self._parsed), pixels.ctypes.data, width, height, 3 * width, output.ctypes.data))
