"""Preprocessing as one readable string, for instance `decode|resize(224,224,bilinear)|scale(-1,1)`.

Training, batch embedding and the device obey the same string: `Preprocessing.pixels` does the decoding and
the resizing (a stretch, as the Task Library does it), the exported encoders do the scaling.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from searchforge.errors import UsageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Image formats that are decoded; anything else is rejected as not an image."""

# Large or damaged images are no news: they are rejected, or decoded as far as they are whole. Set once, since filters
# are shared by all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_PATTERN = re.compile(rf"decode\|resize\((\d+),(\d+),({'|'.join(_FILTERS)})\)\|scale\({_NUMBER},{_NUMBER}\)")


class RejectedInput(Exception):
    """An input that cannot be embedded.

    Attributes:
      reason: one of `empty`, `too_large`, `not_an_image`, `truncated`, `unreadable`, `too_many_pixels`.
      detail: what was found, for the person who reads the rejects.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Preprocessing:
    """A parsed preprocessing string; `str()` gives it back.

    Attributes:
      height, width: input size of the image tower, in pixels.
      filter: `bilinear` or `bicubic`.
      low, high: what the pixel values 0 and 255 become.
    """

    height: int
    width: int
    filter: str = "bilinear"
    low: float = -1.0
    high: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """Raises UsageError where `text` is not a preprocessing string."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise UsageError(
                f"preprocessing {text!r} is not understood; "
                "expected the form decode|resize(224,224,bilinear)|scale(-1,1)"
            )
        height, width, filter_name, low, high = match.groups()
        return cls(int(height), int(width), filter_name, float(low), float(high))

    def __str__(self) -> str:
        return f"decode|resize({self.height},{self.width},{self.filter})|scale({self.low:g},{self.high:g})"

    @property
    def mean(self) -> float:
        """The pixel value that becomes 0: the Task Library computes (value - mean) / std."""
        return -self.low * self.std

    @property
    def std(self) -> float:
        """Pixel values per unit of the scaled range."""
        return 255.0 / (self.high - self.low)

    def pixels(self, data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
        """Decodes and resizes one image; EXIF orientation is honoured, transparency is laid on white.

        Args:
          data: an encoded image (first frame of an animation).
          max_pixels: larger images are refused before they are decoded.

        Returns:
          [height, width, 3] uint8, RGB.

        Raises:
          RejectedInput: the bytes cannot be turned into pixels.
        """
        return self.resize(self.decode(data, max_pixels))

    def decode(self, data: bytes, max_pixels: int) -> Image.Image:
        """Decodes one image to RGB, no larger than `resize` needs it; arguments and errors as of `pixels`.

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is at least twice the size of the input: photos of
        5 megapixels then take a sixth of the time, and embeddings stay within a cosine of 0.999.
        """
        return decode(data, max_pixels, 2 * max(self.height, self.width))

    def resize(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Returns a decoded RGB image as [height, width, 3] uint8."""
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), _FILTERS[self.filter])
        return np.asarray(image, np.uint8)

    def scale(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Returns pixel values as the image tower takes them, float32 from `low` to `high`."""
        return (pixels.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)


def decode(data: bytes, max_pixels: int, enough: int | None = None) -> Image.Image:
    """Decodes an image to RGB; arguments and errors as of `Preprocessing.pixels`.

    Args:
      enough: pixels of each side below which a JPEG is not scaled down while it is decoded; None: it never is.
    """
    if not data:
        raise RejectedInput("empty", "0 bytes")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise RejectedInput("not_an_image", f"{len(data)} bytes, not one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise RejectedInput("too_many_pixels", str(error)) from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on hostile bytes
        raise RejectedInput("unreadable", str(error)) from error
    if image.width * image.height > max_pixels:
        raise RejectedInput("too_many_pixels", f"{image.width} x {image.height}, limit {max_pixels} pixels")
    try:
        if enough:
            image.draft(None, (enough, enough))  # does nothing but for JPEG
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise RejectedInput(reason, str(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale: keep its range instead of clipping at 255
        values = np.asarray(image, np.float32)
        return Image.fromarray((values / 257.0).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
