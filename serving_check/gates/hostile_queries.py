"""Hostile queries: malformed and extreme texts and images, which must be answered or refused, but never crash."""

from __future__ import annotations

import io
import math
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from searchforge.errors import SearchforgeError
from searchforge.processes.isolated import ChildCrash
from serving_check.measurement.corpus import Corpus
from serving_check.measurement.retrieval import K
from serving_check.measurement.search import Searcher
from serving_check.schema import HostileQuery


def hostile_texts() -> Iterator[tuple[str, str]]:
    """Yields (name, text)."""
    yield "empty", ""
    yield "blanks", " \t\n\u00a0\u2003"
    yield "10,000 characters", "a dog on a beach " * 589
    yield "10,000 characters in one word", "a" * 10_000
    yield "control characters", "".join(map(chr, range(32))) + "\x7f\x85"
    yield "right to left", "\u05db\u05dc\u05d1 \u0639\u0644\u0649 \u0627\u0644\u0634\u0627\u0637\u0626 \u202eabc\u202c"
    yield "emoji", "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f"
    yield "combining marks", "Z" + "\u0301\u0327\u0489" * 200
    yield "scripts without spaces", "\u72ac\u304c\u6d77\u8fba\u3092\u8d70\u308b \u0e2b\u0e21\u0e32"
    yield "markup", "<script>alert(1)</script> ' OR 1=1 -- %s%n {0} ${x} ../../etc/passwd"
    yield "special tokens", "[CLS] [SEP] [PAD] [UNK] [MASK] ##ing"
    yield "lone surrogate", "a dog \ud800 on a beach"
    yield "byte order mark and non-characters", "\ufeff\ufffe\uffff\ufdd0"
    for plane in range(17):
        points = np.linspace(plane << 16, min((plane + 1) << 16, sys.maxunicode + 1) - 1, 64).astype(int).tolist()
        text = "".join(chr(point) for point in points if unicodedata.category(chr(point)) != "Cs")
        yield f"Unicode plane {plane}", text


def hostile_images(folder: Path, megapixels: float) -> Iterator[tuple[str, Path]]:
    """Yields (name, file), written into `folder`.

    Args:
      megapixels: Size of the largest images.
    """
    large, small = _size(megapixels), (64, 48)
    drawn: tuple[tuple[str, str, tuple[int, int], Any, str], ...] = (
        ("1 x 1 pixel", "RGB", (1, 1), "red", "PNG"),
        (f"{megapixels:g} megapixels, JPEG", "RGB", large, "teal", "JPEG"),
        (f"{megapixels:g} megapixels, PNG", "L", large, 99, "PNG"),
        ("10,000 x 1 pixels", "RGB", (10_000, 1), "blue", "PNG"),
        ("CMYK", "CMYK", small, (10, 200, 30, 0), "JPEG"),
        ("16 bits", "I;16", small, 40_000, "PNG"),
        ("one bit", "1", small, 1, "PNG"),
        ("transparent", "RGBA", small, (255, 0, 0, 0), "PNG"),
    )
    for number, (name, mode, size, colour, kind) in enumerate(drawn):
        path = folder / f"hostile-{number}.{kind.lower()}"
        Image.new(mode, size, colour).save(path, kind, compress_level=1)
        yield name, path
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    encoded = io.BytesIO()
    noise.save(encoded, "JPEG")
    huge = bytearray(_encoded(Image.new("L", (1, 1)), "PNG"))
    huge[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height in the IHDR chunk, followed by its checksum
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    for name, data in (
        ("truncated", encoded.getvalue()[: len(encoded.getvalue()) // 2]),
        ("no image", b"GIF89a but no more than that"),
        ("no bytes", b""),
        ("claims 10 gigapixels", bytes(huge)),
    ):
        path = folder / f"hostile-{name.replace(' ', '-')}"
        path.write_bytes(data)
        yield name, path


def run_hostile_queries(searcher: Searcher, corpus: Corpus, folder: Path, megapixels: float) -> list[HostileQuery]:
    """Runs every hostile query of the searcher's kind, and opens the searcher again after each failure.

    Args:
      folder, megapixels: See `hostile_images`.

    Raises:
      SearchforgeError: The searcher cannot be opened again.
    """
    images = ((name, str(image)) for name, image in hostile_images(folder, megapixels))
    outcomes = []
    for name, query in hostile_texts() if searcher.kind == "text" else images:
        outcome, detail = _run(searcher, query, corpus)
        outcomes.append(HostileQuery(searcher=searcher.path.name, name=name, outcome=outcome, detail=detail))
        if outcome == "failed":
            searcher.reopen()
    return outcomes


def _run(searcher: Searcher, query: str, corpus: Corpus) -> tuple[Literal["answered", "refused", "failed"], str]:
    try:
        hits, _ = searcher.timed_search(query, K)
    except ChildCrash as error:
        return "failed", str(error)
    except SearchforgeError as error:
        return "refused", str(error).replace(query, Path(query).name) if searcher.kind == "image" else str(error)
    unknown = [hit.id for hit in hits if hit.id not in corpus.row_of]
    return ("failed", f"it returned {unknown[0]!r}, which is not in the corpus") if unknown else ("answered", "")


def _size(megapixels: float) -> tuple[int, int]:
    """Returns width and height of an image in the ratio 4:3."""
    unit = math.sqrt(megapixels * 1e6 / 12)
    return max(1, round(4 * unit)), max(1, round(3 * unit))


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
