"""Queries that nobody should ask, but somebody will: an answer or a clean error is right, a crash never is."""

from __future__ import annotations

import io
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from searchforge.errors import SearchforgeError
from searchforge.isolated import ChildCrash
from serving_check.corpus import Corpus
from serving_check.measure import K
from serving_check.report import HostileQuery
from serving_check.search import Searcher

_MEGAPIXELS = (8_192, 6_144)
"""50 megapixels."""


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


def hostile_images(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name, file), written into `folder`."""
    pictures = {
        "1 x 1 pixel": (Image.new("RGB", (1, 1), "red"), "PNG"),
        "50 megapixels, JPEG": (Image.new("RGB", _MEGAPIXELS, "teal"), "JPEG"),
        "50 megapixels, PNG": (Image.new("L", _MEGAPIXELS, 99), "PNG"),
        "10,000 x 1 pixels": (Image.new("RGB", (10_000, 1), "blue"), "PNG"),
        "CMYK": (Image.new("CMYK", (64, 48), (10, 200, 30, 0)), "JPEG"),
        "16 bits": (Image.new("I;16", (64, 48), 40_000), "PNG"),
        "one bit": (Image.new("1", (64, 48), 1), "PNG"),
        "transparent": (Image.new("RGBA", (64, 48), (255, 0, 0, 0)), "PNG"),
    }
    for name, (picture, kind) in pictures.items():
        path = folder / f"hostile-{len(name)}-{kind}"
        picture.save(path, kind)
        yield name, path
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    encoded = io.BytesIO()
    noise.save(encoded, "JPEG")
    huge = bytearray(_encoded(Image.new("L", (1, 1)), "PNG"))
    huge[16:24] = (100_000).to_bytes(4, "big") * 2  # IHDR's width and height, then its checksum
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


def ask_hostile(path: Path, kind: Literal["text", "image"], corpus: Corpus, folder: Path) -> list[HostileQuery]:
    """Asks a searcher every hostile query of its kind; one that was killed by a query is opened again for the next.

    Raises:
      SearchforgeError: the searcher cannot be opened.
    """
    queries: Iterator[tuple[str, str]] = (
        hostile_texts() if kind == "text" else ((name, str(image)) for name, image in hostile_images(folder))
    )
    taken = []
    searcher = Searcher(path, kind)
    try:
        for name, query in queries:
            outcome, detail = _ask(searcher, query, corpus)
            taken.append(HostileQuery(searcher=path.name, name=name, outcome=outcome, detail=detail))
            if outcome == "failed":
                searcher.close()
                searcher = Searcher(path, kind)
    finally:
        searcher.close()
    return taken


def _ask(searcher: Searcher, query: str, corpus: Corpus) -> tuple[Literal["answered", "refused", "failed"], str]:
    try:
        hits, _ = searcher.timed_search(query, K)
    except ChildCrash as error:
        return "failed", str(error)
    except SearchforgeError as error:
        return "refused", str(error).replace(query, Path(query).name) if searcher.kind == "image" else str(error)
    unknown = [hit.id for hit in hits if hit.id not in corpus.row_of]
    return ("failed", f"it found {unknown[0]!r}, which is not in the corpus") if unknown else ("answered", "")


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
