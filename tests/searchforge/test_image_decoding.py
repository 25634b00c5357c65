"""Only pixels decide whether an image is decoded: odd metadata and a missing end marker never reject it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from searchforge.image_decoding import RejectedInput, decode

MAX_PIXELS = 1_000_000
SHORT, ASCII, LONG, RATIONAL, FLOAT = 3, 2, 4, 5, 11


def _photo(width: int = 40, height: int = 24) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def _pixels(data: bytes, enough: int | None = None) -> np.ndarray:
    return np.asarray(decode(data, MAX_PIXELS, enough))


def _encode(format: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or _photo()).save(buffer, format, **options)
    return buffer.getvalue()


def _exif(entries: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    """Returns EXIF data of little-endian entries: tag, type, count and the four bytes of the value."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


ROTATED = (0x0112, SHORT, 1, b"\x06\0\0\0")
ODD_EXIF = {
    "a float of the wrong type": _exif([ROTATED, (0x0213, FLOAT, 1, struct.pack("<f", 0.5))]),
    "a fraction divided by zero": _exif([ROTATED, (0x011A, RATIONAL, 1, bytes(4))]),
    "a resolution without values": _exif([ROTATED, (0x011A, RATIONAL, 0, bytes(4)), (0x0128, SHORT, 1, b"\x02\0\0\0")]),
    "a text in place of a number": _exif([ROTATED, (0x0100, ASCII, 4, b"abc\0")]),
    "a pointer outside the data": _exif([ROTATED, (0x8769, LONG, 1, b"\xff\xff\xff\x7f")]),
    "a pointer to itself": _exif([ROTATED, (0x8769, LONG, 1, b"\x08\0\0\0")]),
    "an unknown type": _exif([ROTATED, (0x9999, 99, 7, b"\1\2\3\4")]),
    "an entry that is cut off": _exif([ROTATED, (0x010E, ASCII, 9999, b"\xff\xff\0\0")])[:-6],
}


def _with_exif(format: str, exif: bytes) -> bytes:
    return _encode(format, exif=b"Exif\0\0" + exif)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", ODD_EXIF.values(), ids=list(ODD_EXIF))
def test_odd_exif_data_leave_the_orientation_applied(format: str, exif: bytes) -> None:
    assert np.array_equal(_pixels(_with_exif(format, exif)), np.rot90(_pixels(_encode(format)), -1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"nothing of the kind",
        _exif([])[:9],
        _exif([(0x0112, SHORT, 1, b"\x63\0\0\0")]),
        _exif([(0x0112, ASCII, 4, b"six\0")]),
        _exif([(0x0112, FLOAT, 1, struct.pack("<f", float("nan")))]),
    ],
)
def test_an_image_with_an_unreadable_orientation_is_left_as_it_is(format: str, exif: bytes) -> None:
    assert np.array_equal(_pixels(_with_exif(format, exif)), _pixels(_encode(format)))


def test_random_exif_data_never_reject_a_photo() -> None:
    generator = np.random.default_rng(0)
    rotated = np.rot90(_pixels(_encode("JPEG")), -1)
    for _ in range(400):
        others = [
            (
                int(generator.integers(0x0100, 0x0112)),
                int(generator.integers(0, 14)),
                int(generator.integers(0, 4)),
                generator.bytes(4),
            )
            for _ in range(3)
        ]
        assert np.array_equal(_pixels(_with_exif("JPEG", _exif([*others, ROTATED]))), rotated)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LONG_TEXT = zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"iCCP", b"profile\0\0" + LONG_TEXT),
        _chunk(b"iCCP", b"profile\0\x07" + LONG_TEXT),
        _chunk(b"zTXt", b"comment\0\0" + LONG_TEXT),
        _chunk(b"gAMA", b""),
        _chunk(b"pHYs", b"\1"),
        _chunk(b"tEXt", b"comment\0text")[:-4] + b"\0\0\0\0",
    ],
    ids=["long profile", "unknown compression", "long text", "empty gamma", "short size", "wrong checksum"],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_chunks_of_metadata_never_reject_a_png(chunk: bytes, place: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encode("PNG", image, exif=exif)
    at = data.index(b"IDAT" if place == "before" else b"IEND") - 4
    assert np.array_equal(_pixels(data[:at] + chunk + data[at:]), _pixels(data))


def test_segments_of_metadata_never_reject_a_jpeg() -> None:
    data = _encode("JPEG", _photo().convert("CMYK"), exif=b"Exif\0\0" + _exif([ROTATED]))
    jfif = b"\xff\xe0\0\x07JFIF\0"  # cut off after the name
    pictures = b"\xff\xe2\0\x20MPF\0II*\0\x08\0\0\0" + b"\xff" * 18
    assert np.array_equal(_pixels(data[:2] + jfif + pictures + data[2:]), _pixels(data))


JPEGS = {
    "baseline": {"quality": 90},
    "grey": {"quality": 90, "grey": True},
    "optimized": {"quality": 75, "optimize": True},
    "progressive": {"quality": 90, "progressive": True},
    "restart markers": {"quality": 90, "restart_marker_blocks": 1},
    "restart markers after rows": {"quality": 90, "restart_marker_rows": 1},
}


def _jpeg(options: dict[str, object]) -> bytes:
    options = dict(options)
    return _encode("JPEG", _photo().convert("L") if options.pop("grey", False) else _photo(), **options)


@pytest.mark.parametrize("padding", [b"", b"\xff", bytes(600), b"\xff" * 600], ids=["none", "half", "zeros", "ones"])
@pytest.mark.parametrize("options", JPEGS.values(), ids=list(JPEGS))
def test_a_jpeg_without_end_marker_is_decoded_if_it_has_every_pixel(options: dict[str, object], padding: bytes) -> None:
    data = _jpeg(options)
    whole = _pixels(data)
    assert np.array_equal(_pixels(data[:-2] + padding), whole)
    for length in range(200, len(data) - 4, 11):
        try:
            pixels = _pixels(data[:length] + padding)
        except RejectedInput as rejected:
            assert rejected.reason in ("truncated", "unreadable", "not_an_image")
        else:
            assert np.array_equal(pixels, whole), f"the first {length} of {len(data)} bytes"


def test_a_truncated_jpeg_is_rejected_when_it_is_scaled_down() -> None:
    data = _encode("JPEG", _photo(640, 480), quality=90)
    assert np.array_equal(_pixels(data[:-2], 80), _pixels(data, 80))
    for share in (0.2, 0.5, 0.9, 0.99):
        with pytest.raises(RejectedInput, match="truncated"):
            decode(data[: int(share * len(data))], MAX_PIXELS, 80)


@pytest.mark.parametrize(("format", "end"), [("PNG", 12), ("GIF", 1)])
def test_other_formats_need_no_end_marker(format: str, end: int) -> None:
    data = _encode(format)
    assert np.array_equal(_pixels(data[:-end]), _pixels(data))
    with pytest.raises(RejectedInput, match="truncated"):
        decode(data[: len(data) // 2], MAX_PIXELS)


def test_the_rotation_of_an_avif_is_applied_once() -> None:
    """Phones state it as a property of the image, which Pillow also reports as EXIF data."""
    exif = Image.Exif()
    exif[ROTATED[0]] = 6
    upright = np.asarray(_photo().transpose(Image.Transpose.ROTATE_270), int)
    found = _pixels(_encode("AVIF", exif=exif.tobytes(), quality=95, subsampling="4:4:4"))
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 5


def test_a_damaged_avif_is_rejected_or_decoded_but_never_crashes() -> None:
    random, data = np.random.default_rng(0), _encode("AVIF")
    rejected = 0
    for _ in range(300):
        damaged = bytearray(data[: random.integers(1, len(data) + 1)])
        for position in random.integers(0, len(damaged), 3):
            damaged[position] = random.integers(256)
        try:
            _pixels(bytes(damaged))
        except RejectedInput:
            rejected += 1
    assert rejected > 100


def test_a_heic_photo_is_rejected_with_advice() -> None:
    with pytest.raises(RejectedInput, match=r"not_an_image.*a HEIC photo; convert it to JPEG or AVIF"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), MAX_PIXELS)
