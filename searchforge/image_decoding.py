"""Decodes images to RGB, or rejects them with a reason. Only pixels decide: odd metadata never rejects an image."""

from __future__ import annotations

import io
import random
import re
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF")
"""Image formats to decode; everything else is rejected as `not_an_image`."""

# Warnings about large or damaged images are redundant: such images are rejected or decoded in part. The filter is set
# once because all threads share it.
warnings.filterwarnings("ignore", module=r"PIL\.")

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_UPRIGHT = 1
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SHORT = 3  # the type of EXIF values of 16 bits
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_SEGMENT = re.compile(rb"\xff([\x02-\xcf\xda-\xfe])(..)", re.DOTALL)
_SOS, _APP0, _COMMENT = 0xDA, 0xE0, 0xFE
_PROGRESSIVE_FRAMES = (0xC2, 0xCA)
_FRAMES = (0xC0, 0xC1, 0xC9, *_PROGRESSIVE_FRAMES)


class RejectedInput(Exception):
    """An input that cannot be embedded.

    Attributes:
      reason: Kind of the fault, for example `empty`, `too_large`, `not_an_image`, `truncated`, `unreadable` or
        `too_many_pixels`.
      detail: Description of the fault.
      may_pass: Whether the fault is not one of the content, and another attempt may succeed: a file that is missing, a
        storage that cannot be reached.
    """

    def __init__(self, reason: str, detail: str, may_pass: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.may_pass = may_pass


def decode(data: bytes, max_pixels: int, enough: int | None = None) -> Image.Image:
    """Decodes an image to RGB, applies its EXIF orientation and replaces transparency with white.

    An image that cannot be decoded as it is gets decoded without its metadata. A JPEG without an end marker is decoded
    if none of its pixels is missing.

    Args:
      data: Encoded image; of an animation, the first frame is used.
      max_pixels: Limit above which images are rejected before they are decoded.
      enough: Smallest size of each side, in pixels, to which decoding may scale a JPEG down; None for full size.

    Raises:
      RejectedInput: The image cannot be decoded.
    """
    if not data:
        raise RejectedInput("empty", "0 bytes")
    is_jpeg = data.startswith(_JPEG_START)
    if is_jpeg and data.rfind(_JPEG_END, len(data) // 2) < 0:
        return _decode_jpeg(data, max_pixels, enough)
    try:
        return _decode(data, max_pixels, enough)
    except RejectedInput as rejected:
        if rejected.reason == "too_many_pixels":
            raise
        if is_jpeg:
            return _decode_jpeg(data, max_pixels, enough)
        if data.startswith(_PNG_SIGNATURE):
            pixels, exif = _strip_png(data)
            return _decode(pixels, max_pixels, enough, exif)
        raise


def _is_heic(data: bytes) -> bool:
    """Returns whether the data begin as a HEIC file (ISO/IEC 23008-12), by the brand in their first box."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def _decode(data: bytes, max_pixels: int, enough: int | None, exif: bytes | None = None) -> Image.Image:
    """Decodes an image; `exif` replaces its EXIF data unless it is None, and the other arguments are as in `decode`."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        advice = ", but a HEIC photo; convert it to JPEG or AVIF" if _is_heic(data) else ""
        detail = f"{len(data)} bytes, not one of {', '.join(FORMATS)}{advice}"
        raise RejectedInput("not_an_image", detail) from error
    except Image.DecompressionBombError as error:
        raise RejectedInput("too_many_pixels", str(error)) from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on hostile bytes
        raise RejectedInput("unreadable", str(error)) from error
    if image.width * image.height > max_pixels:
        raise RejectedInput("too_many_pixels", f"{image.width} x {image.height}, limit {max_pixels} pixels")
    try:
        if enough:
            image.draft(None, (enough, enough))  # affects only JPEG
        image.load()  # the EXIF data of a PNG may follow its pixels
        return _to_rgb(_turn_upright(image, exif))
    except Exception as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise RejectedInput(reason, str(error)) from error


def _turn_upright(image: Image.Image, exif: bytes | None) -> Image.Image:
    orientation = _read_orientation(image.info.get("exif", b"") if exif is None else exif)
    if orientation is None:
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)  # XMP data may have it, or a PNG's text
        except Exception:  # Pillow raises many kinds of errors on damaged metadata
            return image
    method = _TRANSPOSE.get(orientation or _UPRIGHT)
    return image if method is None else image.transpose(method)


def _read_orientation(exif: bytes) -> int | None:
    """Returns the orientation in EXIF data, whatever their other entries are like; None if there is none."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if (tag, kind) == (ExifTags.Base.Orientation, _SHORT):
                return value
    except struct.error:  # the data ends here
        pass
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale: keep its range instead of clipping at 255
        values = np.asarray(image, np.float32)
        return Image.fromarray((values / 257.0).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Returns a PNG without the chunks that do not affect its pixels, and its EXIF data."""
    kept, exif, position = [_PNG_SIGNATURE], b"", len(_PNG_SIGNATURE)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind == b"tRNS" or kind[:1].isupper():  # transparency, or a critical chunk
            kept.append(data[position:end])
        position = end
    return b"".join(kept), exif


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Returns a JPEG without the segments that do not affect its pixels, and its EXIF data."""
    kept, exif = [_JPEG_START], b""
    for marker, start, end in _jpeg_segments(data):
        payload = data[start + 4 : end]
        if marker == _SOS:
            kept.append(data[start:])
            break
        if marker == _APP0 + 1 and payload.startswith(b"Exif\0\0"):
            exif += payload[6:]
        # Two application segments determine the color space: JFIF's and Adobe's, from these lengths on.
        is_metadata = marker == _COMMENT or marker & 0xF0 == _APP0
        is_jfif = marker == _APP0 and payload.startswith(b"JFIF\0") and len(payload) >= 14
        is_adobe = marker == _APP0 + 14 and payload.startswith(b"Adobe") and len(payload) >= 12
        if not is_metadata or is_jfif or is_adobe:
            kept.append(data[start:end])
    return b"".join(kept), exif


def _decode_jpeg(data: bytes, max_pixels: int, enough: int | None) -> Image.Image:
    """Decodes a JPEG without its metadata; its end marker may be missing, but no pixels. Arguments as in `decode`.

    Bytes after the last pixel do not affect an image. So all pixels are there if the image stays the same whatever
    follows the data.
    """
    pixels, exif = _strip_jpeg(data)
    if _JPEG_END in pixels:
        return _decode(pixels, max_pixels, enough, exif)
    end = len(pixels.rstrip(b"\0\xff"))  # what is left of a larger file may have been filled up
    if pixels[end : end + 2] == b"\xff\0":  # a data byte of 255
        end += 2
    image, other = (_decode(pixels[:end] + _filler(seed) + _JPEG_END, max_pixels, enough, exif) for seed in range(2))
    if image.tobytes() != other.tobytes() or not _has_every_scan(pixels):
        raise RejectedInput("truncated", "image data and the end marker are missing")
    return image


def _filler(seed: int) -> bytes:
    """Returns bytes that a decoder takes for image data if data are missing, whichever restart marker it expects."""
    generator = random.Random(seed)
    markers = [b"", *(bytes([0xFF, 0xD0 + (4 * seed + number) % 8]) for number in range(8))]
    return b"".join(marker + generator.randbytes(256).replace(b"\xff", b"") for marker in markers)


def _has_every_scan(data: bytes) -> bool:
    """Returns whether the scans of a JPEG, the last of which may be incomplete, hold every bit of all coefficients."""
    missing: set[tuple[int, int]] = set()
    progressive = False
    for marker, start, end in _jpeg_segments(data):
        payload = data[start + 4 : end]
        if marker in _FRAMES:
            progressive = marker in _PROGRESSIVE_FRAMES
            missing = {(component, coefficient) for component in payload[6::3] for coefficient in range(64)}
        elif marker == _SOS and len(payload) >= 4:
            first, last, bits = payload[-3:] if progressive else (0, 63, 0)
            if bits & 15 == 0:  # down to the lowest bit
                components = payload[1:-3:2]
                missing -= {
                    (component, coefficient) for component in components for coefficient in range(first, last + 1)
                }
    return not missing


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of each segment of a JPEG that has a length; image data is skipped."""
    position = len(_JPEG_START)
    while match := _JPEG_SEGMENT.search(data, position):
        position = match.start() + 2 + int.from_bytes(match[2], "big")
        yield match[1][0], match.start(), position
