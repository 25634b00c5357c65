"""Image preprocessing described by one string, such as `decode|resize(224,224,bilinear)|scale(-1,1)`.

Values of `scale` that differ between red, green and blue are lists: `scale([-2.12,-2.04,-1.8],[2.25,2.43,2.64])`.

Training, batch embedding and the device use the same string. `Preprocessing.pixels` decodes and resizes, ignoring the
aspect ratio as the Task Library does; the exported encoders scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from searchforge.errors import UsageError
from searchforge.image_decoding import decode

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_NUMBER = r"-?\d+(?:\.\d+)?"
_VALUES = rf"({_NUMBER}|\[{_NUMBER},{_NUMBER},{_NUMBER}\])"
_PATTERN = re.compile(rf"decode\|resize\((\d+),(\d+),({'|'.join(_FILTERS)})\)\|scale\({_VALUES},{_VALUES}\)")

Channels = float | tuple[float, ...]
"""One value for all channels, or one each for red, green and blue."""


@dataclass(frozen=True)
class Preprocessing:
    """A parsed preprocessing string; `str()` is the inverse.

    Attributes:
      height, width: Input size of the image tower, in pixels.
      filter: Resampling filter, `bilinear` or `bicubic`.
      low, high: Values that the pixel values 0 and 255 are scaled to.
    """

    height: int
    width: int
    filter: str = "bilinear"
    low: Channels = -1.0
    high: Channels = 1.0

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """Parses a preprocessing string.

        Raises:
          UsageError: `text` is not a preprocessing string.
        """
        match = _PATTERN.fullmatch(text)
        if not match:
            raise UsageError(
                f"invalid preprocessing {text!r}; expected the form decode|resize(224,224,bilinear)|scale(-1,1)"
            )
        height, width, filter_name, low, high = match.groups()
        parsed = cls(int(height), int(width), filter_name, _parse_channels(low), _parse_channels(high))
        if not (min(parsed.height, parsed.width) > 0 and np.all(np.not_equal(parsed.low, parsed.high))):
            raise UsageError(
                f"invalid preprocessing {text!r}; expected a size of at least 1 x 1, and two different values in scale"
            )
        return parsed

    @classmethod
    def standardizing(cls, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
        """Returns the preprocessing that computes (value - mean) / std, given one value or one per channel of each."""
        means, stds = (np.ravel(np.asarray(values, np.float64)) for values in (mean, std))
        low, high = (_simplified((value - means) / stds) for value in (0, 255))
        return cls.parse(str(cls(height, width, "bilinear", low, high)))  # with the precision of the string

    def __str__(self) -> str:
        low, high = _format_channels(self.low), _format_channels(self.high)
        return f"decode|resize({self.height},{self.width},{self.filter})|scale({low},{high})"

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """Pixel values that are scaled to 0, [1] or [3] float32; the Task Library computes (value - mean) / std."""
        return np.atleast_1d(np.negative(self.low) * (255.0 / np.subtract(self.high, self.low))).astype(np.float32)

    @property
    def std(self) -> npt.NDArray[np.float32]:
        """Differences of pixel values that are scaled to 1, [1] or [3] float32."""
        return np.atleast_1d(255.0 / np.subtract(self.high, self.low)).astype(np.float32)

    def pixels(self, data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
        """Decodes and resizes an image, applies its EXIF orientation and replaces transparency with white.

        Args:
          data: Encoded image; of an animation, the first frame is used.
          max_pixels: Limit above which images are rejected before they are decoded.

        Returns:
          [height, width, 3] uint8, RGB.

        Raises:
          RejectedInput: The image cannot be decoded.
        """
        return self.resize(self.decode(data, max_pixels))

    def decode(self, data: bytes, max_pixels: int) -> Image.Image:
        """Decodes an image to RGB at a size sufficient for `resize`; arguments and errors as in `pixels`.

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is at least twice the input size: a photo of 5
        megapixels takes a sixth of the time, and the cosine similarity of the embeddings is at least 0.999.
        """
        return decode(data, max_pixels, 2 * max(self.height, self.width))

    def resize(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Resizes a decoded RGB image to [height, width, 3] uint8."""
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), _FILTERS[self.filter])
        return np.asarray(image, np.uint8)

    def scale(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Scales pixel values to float32 from `low` to `high`, the input range of the image tower."""
        return (pixels.astype(np.float32) - self.mean) / self.std


def _parse_channels(text: str) -> Channels:
    return tuple(map(float, text[1:-1].split(","))) if text.startswith("[") else float(text)


def _format_channels(values: Channels) -> str:
    return f"{values:g}" if isinstance(values, float | int) else f"[{','.join(f'{value:g}' for value in values)}]"


def _simplified(values: npt.NDArray[np.float64]) -> Channels:
    """Returns one value if all channels have the same."""
    return float(values[0]) if (values == values[0]).all() else tuple(values.tolist())
