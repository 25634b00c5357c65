"""Contact sheets: PNG images of queries with the images found for them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.image_decoding import RejectedInput, decode

_THUMBNAIL = 150
_GAP = 10
_TEXT_WIDTH = 260
_FOOTER = 18
_INK, _FAINT, _PAPER, _MARK = (28, 30, 36), (110, 114, 124), (250, 250, 248), (24, 140, 80)


@dataclass(frozen=True)
class Tile:
    """One hit: its image file (None if not available), its score, and whether it is the expected one."""

    image: Path | None
    score: float
    expected: bool = False


@dataclass(frozen=True)
class QueryRow:
    """One query with its hits, best first."""

    query: str
    hits: Sequence[Tile]


def draw_contact_sheet(title: str, rows: Sequence[QueryRow], path: Path) -> None:
    """Writes a PNG with one row per query; expected images are framed in green."""
    columns = max((len(row.hits) for row in rows), default=0)
    width = _GAP + _TEXT_WIDTH + columns * (_THUMBNAIL + _GAP) + _GAP
    row_height = _THUMBNAIL + _FOOTER + _GAP
    top = 48
    sheet = Image.new("RGB", (width, top + len(rows) * row_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP * 2, 14), title, fill=_INK, font=ImageFont.load_default(18))
    for index, row in enumerate(rows):
        y = top + index * row_height
        lines = textwrap.wrap(row.query, 28)[:7]
        draw.multiline_text((_GAP * 2, y + 4), "\n".join(lines), fill=_INK, font=ImageFont.load_default(16), spacing=5)
        for column, hit in enumerate(row.hits):
            x = _GAP + _TEXT_WIDTH + column * (_THUMBNAIL + _GAP)
            sheet.paste(_thumbnail(hit.image), (x, y))
            if hit.expected:
                draw.rectangle((x - 3, y - 3, x + _THUMBNAIL + 2, y + _THUMBNAIL + 2), outline=_MARK, width=4)
            label = f"{hit.score:.3f}"
            draw.text((x + 2, y + _THUMBNAIL + 1), label, fill=_FAINT, font=ImageFont.load_default(12))
    sheet.save(path)


def _thumbnail(path: Path | None) -> Image.Image:
    empty = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), (225, 225, 225))
    if path is None:
        return empty
    try:
        image = decode(path.read_bytes(), DEFAULT_MAX_PIXELS, 2 * _THUMBNAIL)
    except (OSError, RejectedInput):
        return empty
    return ImageOps.fit(image, (_THUMBNAIL, _THUMBNAIL))
