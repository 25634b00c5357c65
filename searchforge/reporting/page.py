"""Building blocks of the HTML reports: whole pages that open offline, without script, and load nothing from elsewhere.

Whatever comes from data (captions, ids, file names, reasons, settings) is foreign text: it goes through `text` or
`attribute`, and the page's policy forbids scripts and loading should anything get past them.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import ImageOps

from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.preprocessing import RejectedInput, decode
from searchforge.reporting.thumbnails import encode_jpeg

ROWS = 100
"""Of a table, at most; `more` says how many there are besides."""

_THUMBNAIL = 160  # pixels; shown at about half of it, for dense displays
_QUALITY = 65
_CLIP = 300  # characters of a text that are shown at once
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, sections: Iterable[str], style: str) -> str:
    """Returns a page.

    Args:
      title: foreign text.
      sections: HTML; empty ones are left out.
      style: rules after those that all pages share.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{attribute(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value: object, fold: bool = True) -> str:
    """Foreign text as HTML: escaped, its direction kept to itself, control characters replaced.

    Args:
      fold: whether the end of a long text is folded away, which takes an element that may hold blocks; else it is cut.
    """
    found = _clean(value)
    if len(found) <= _CLIP:
        return f"<bdi>{escape(found)}</bdi>"
    start = f"<bdi>{escape(found[:_CLIP])}…</bdi> ({len(found):,} characters)"
    if not fold:
        return start
    return f"<details><summary>{start}</summary><bdi>{escape(found)}</bdi></details>"


def attribute(value: object) -> str:
    """Foreign text as the value of an attribute, in double quotes; a long end is cut."""
    found = _clean(value)
    return escape(found if len(found) <= _CLIP else f"{found[:_CLIP]}…")


def shown(value: Any) -> str:
    """A setting as foreign text; a dash where it has no value."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        value = [f"{key}: {one}" for key, one in value.items()]
    return text(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)


def number(value: Any, scale: float, digits: int) -> str:
    """A number times `scale`, or a dash."""
    return f"{scale * value:.{digits}f}" if isinstance(value, (int, float)) else "–"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself where it is too wide; heads and cells are HTML.

    Args:
      kind: class of the table; `figures` aligns all columns but the first to the right.
    """
    head = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    start = f'<table class="{kind}">' if kind else "<table>"
    thead = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f"<div class=scroll>{start}{thead}<tbody>{body}</tbody></table></div>"


def more(count: int, what: str) -> str:
    """Says how many rows there are beyond ROWS."""
    return f"<p>and {count - ROWS:,} more {what}</p>" if count > ROWS else ""


def cards(figures: Iterable[tuple[str, str, str]]) -> str:
    """Figures as cards: name, value, and what is to be said about it, all HTML."""
    return (
        "<dl class=cards>"
        + "".join(f"<div><dt>{name}</dt><dd><b>{value}</b> {about}</dd></div>" for name, value, about in figures)
        + "</dl>"
    )


def charts(drawn: Iterable[tuple[str, str, str]]) -> str:
    """Charts side by side: title and description, which are foreign text, and SVG."""
    return (
        "<div class=charts>"
        + "".join(
            f"<figure><figcaption>{text(title, fold=False)}</figcaption>"
            f'<div role="img" aria-label="{attribute(description)}">{svg}</div></figure>'
            for title, description, svg in drawn
        )
        + "</div>"
    )


class Thumbnails:
    """Small JPEGs within the page, each of them once however often it is shown."""

    def __init__(self, pictures: Callable[[str], bytes | None]) -> None:
        """`pictures` returns the encoded image of an item, or None where there is none to be had."""
        self._pictures = pictures
        self._place_of: dict[str, int | None] = {}
        self._made: dict[str, int] = {}

    def has(self, id: str) -> bool:
        """Whether there is a picture of the item."""
        return self._place(id) is not None

    def element(self, id: str, label: str) -> str:
        """Returns the picture, or an empty frame; `label` is foreign text for those who do not see it."""
        place = self._place(id)
        kind = "empty" if place is None else f"p{place}"
        return f'<span class="picture {kind}" role="img" aria-label="{attribute(label)}"></span>'

    def style(self) -> str:
        """Returns the rules that hold the pictures of all elements made so far."""
        return "".join(f".p{place}{{background-image:url({uri})}}\n" for uri, place in self._made.items())

    def _place(self, id: str) -> int | None:
        if id not in self._place_of:
            uri = self._uri(id)
            self._place_of[id] = self._made.setdefault(uri, len(self._made)) if uri else None
        return self._place_of[id]

    def _uri(self, id: str) -> str:
        data = self._pictures(id)
        if data is None:
            return ""
        try:
            image = ImageOps.fit(decode(data, DEFAULT_MAX_PIXELS, 2 * _THUMBNAIL), (_THUMBNAIL, _THUMBNAIL))
        except RejectedInput:
            return ""
        jpeg = encode_jpeg(image, _QUALITY, smallest=True)
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _clean(value: object) -> str:
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in str(value))


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f25; --faint: #5d6470; --paper: #f7f7f4; --card: #fff; --line: #e0e1dd;
  --good: #15803d; --bad: #b91c1c; --warn: #b45309; --bar: #3b82d0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --faint: #a2a9b4; --paper: #121418; --card: #1b1e24;
  --line: #333840; --good: #4ade80; --bad: #f87171; --warn: #fbbf24; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .25rem 0 .75rem; }
.note, small, figcaption, th { color: var(--faint); font-size: .85rem; }
th { font-weight: 500; overflow-wrap: break-word; }
small { white-space: nowrap; }
code { font: .92em ui-monospace, monospace; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: .5rem 0; }
.cards > div, article { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: .8rem 1rem; }
.cards dt { color: var(--faint); font-size: .9rem; }
.cards dd { margin: 0; }
.cards b { font-size: 1.7rem; font-weight: 650; display: block; line-height: 1.25; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); }
td { min-width: 4rem; }
.figures th + th, .figures td + td { text-align: right; padding: .4rem 0 .4rem .9rem;
  white-space: nowrap; min-width: 0; }
.figures th + th { white-space: normal; }
.figures td:first-child { min-width: 8rem; }
article { margin: .75rem 0; }
.picture { display: block; aspect-ratio: 1; border-radius: .35rem; background: var(--line) center / cover; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); gap: 1rem; }
.charts figure { margin: 0; }
svg { display: block; max-width: 100%; height: auto; }
.charts svg { width: 100%; }
svg text { font-family: system-ui, sans-serif !important; }
summary { cursor: pointer; }
"""
