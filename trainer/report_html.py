"""The report of an evaluation as one HTML page that opens offline: no script, and nothing is loaded from elsewhere.

Captions, file names and categories are foreign text: each goes through `_text`, and the page's policy forbids scripts
and loading should anything get past it.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import ImageOps

from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.preprocessing import RejectedInput, decode
from trainer import curves
from trainer.evaluate import KS
from trainer.report import Estimate, EvaluationReport, FoundImage, Group, Retrieval, WorstQuery

_THUMBNAIL = 160  # pixels; shown at half of it, for dense displays
_CLIP = 300  # characters of a text that are shown at once
_ROWS = 100  # of categories and rejects

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(report: EvaluationReport, pictures: Mapping[str, Path]) -> str:
    """Returns the page.

    Args:
      pictures: image files by id; one that is absent or cannot be read is shown as an empty frame.
    """
    encoder = report.encoder
    thumbnails = _Thumbnails(pictures)
    sections = (
        _headline(report),
        _groups("By length of caption", "Length", report.by_length),
        _groups("By category", "Category", report.by_category),
        _worst(report.worst, thumbnails),
        _curves(encoder.report),
        _forms(encoder.report.get("forms")),
        _rejected(report),
        _provenance(report),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>Evaluation of encoder {escape(encoder.id)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _headline(report: EvaluationReport) -> str:
    found, back, encoder = report.text_to_image, report.image_to_text, report.encoder
    share = 100 * found.r_at_10.value
    lead = (
        f"{share:.1f} of 100 captions find their own image among the first 10 of {found.gallery:,} images. "
        f"Chance would find {100 * min(1.0, 10 / found.gallery):.1f}."
    )
    return (
        f"<header><h1>Evaluation of encoder <code>{escape(encoder.id)}</code></h1>"
        f'<p class="lead">{lead}</p>'
        f"<p>{_text(encoder.image_tower)} and {_text(encoder.text_tower)}, {encoder.dim} dimensions; "
        f"the exported SavedModels, searched exactly.{_training(report)}</p></header>"
        + _cards("Text to image", f"{found.queries:,} captions, gallery of {found.gallery:,} images", found)
        + _cards("Image to text", f"{back.queries:,} images, gallery of {back.gallery:,} captions", back)
        + '<p class="note">In brackets: 95 percent intervals (Wilson), for other images of the same kind in a gallery '
        "of the same size; captions of one image are not counted as independent. Ties count against the query.</p>"
    )


def _training(report: EvaluationReport) -> str:
    """What training measured on the same captions, before export."""
    before = report.encoder.report.get("heldout")
    found = report.text_to_image
    if not isinstance(before, dict) or (before.get("captions"), before.get("gallery")) != (
        found.queries,
        found.gallery,
    ):
        return ""
    return f" Training measured R@10 {100 * before['r_at_10']:.1f} before it exported them."


def _cards(title: str, subject: str, found: Retrieval) -> str:
    cards = [(f"R@{k}", f"{100 * share.value:.1f}", _interval(share, 100)) for k, share in found.r_at.items()]
    cards.append(("Median rank", f"{found.median_rank.value:g}", _interval(found.median_rank)))
    return (
        f"<section><h2>{title}</h2><p>{subject}</p><dl>"
        + "".join(
            f"<div><dt>{name}</dt><dd><b>{value}</b> <small>{about}</small></dd></div>" for name, value, about in cards
        )
        + "</dl></section>"
    )


def _groups(title: str, label: str, groups: Sequence[Group]) -> str:
    if not groups:
        return ""
    rows = [
        [
            _text(group.name),
            f"{group.text_to_image.queries:,}",
            f"{group.text_to_image.images:,}",
            *(_bar(share) for share in group.text_to_image.r_at.values()),
            f"{group.text_to_image.median_rank.value:g}",
        ]
        for group in groups[:_ROWS]
    ]
    gallery = groups[0].text_to_image.gallery
    heads = [label, "Captions", "Images", *(f"R@{k}" for k in KS), "Median rank"]
    return (
        f"<section><h2>{title}</h2><p>Text to image; the gallery is all {gallery:,} images.</p>"
        f"{_table(heads, rows)}{_more(len(groups), 'categories, see report.json')}</section>"
    )


def _worst(queries: Sequence[WorstQuery], thumbnails: _Thumbnails) -> str:
    if not queries:
        return ""
    items = []
    for query in queries:
        hits = "".join(
            _picture(hit, f"{place}.", thumbnails, hit.id == query.own.id)
            for place, hit in enumerate(query.hits, start=1)
        )
        items.append(
            f"<article><div>{_text(query.caption)}</div><div class=row>"
            f"{_picture(query.own, f'own, rank {query.rank:,}', thumbnails, True)}{hits}</div></article>"
        )
    return (
        "<section><h2>Worst queries</h2><p>Captions whose own image (framed) ranks last, at most one of an image, and "
        f"what they find instead; with cosines.</p>{''.join(items)}</section>"
    )


def _picture(image: FoundImage, label: str, thumbnails: _Thumbnails, own: bool) -> str:
    name = _text(image.id, clip=False)
    return (
        f"<figure{' class=own' if own else ''}>{thumbnails.element(image.id, name)}"
        f'<figcaption title="{name}">{label} <small>{image.score:.3f}</small></figcaption></figure>'
    )


def _curves(training: Mapping[str, Any]) -> str:
    drawn = curves.svgs(training.get("history") or ())
    if not drawn:
        return ""
    figures = (
        f'<figure role="img" aria-label="{title} by epoch"><figcaption>{title}</figcaption>{svg}</figure>'
        for title, svg in drawn.items()
    )
    return f"<section><h2>Training</h2><div class=curves>{''.join(figures)}</div></section>"


def _forms(forms: Any) -> str:
    """The forms of the text encoder, as `trainer.forms.compare_texts` gives them."""
    if not isinstance(forms, Mapping) or not forms.get("forms"):
        return ""
    rows = [
        [
            _text(name),
            _number(form.get("bytes"), 1e-6, 1),
            _number(form.get("ms"), 1, 1),
            _number(form.get("r_at_10"), 100, 1),
            _text(form.get("error", "")),
        ]
        for name, form in forms["forms"].items()
    ]
    about = (
        f"<p>R@10 of {_number(forms.get('queries'), 1, 0)} held-out captions among "
        f"{_number(forms.get('gallery'), 1, 0)} images; TensorFlow's float model: "
        f"{_number(forms.get('tensorflow'), 100, 1)}.</p>"
    )
    table = _table(["Form", "MB", "ms, one thread", "R@10", ""], rows)
    return f"<section><h2>Forms of the text encoder</h2>{about}{table}</section>"


def _rejected(report: EvaluationReport) -> str:
    if not report.rejected:
        return ""
    rows = [
        [_text(image.id), str(image.captions), _text(image.reason), _text(image.detail)] for image in report.rejected
    ]
    captions = sum(image.captions for image in report.rejected)
    return (
        f"<section><h2>Rejects</h2><p>{len(rows):,} held-out images could not be read; they and their {captions:,} "
        f"captions are not in the figures.</p>{_table(['Image', 'Captions', 'Reason', 'Detail'], rows[:_ROWS])}"
        f"{_more(len(rows), 'images, see report.json')}</section>"
    )


def _provenance(report: EvaluationReport) -> str:
    encoder = report.encoder
    facts = {
        "evaluation": report.id,
        "encoder": encoder.id,
        "fingerprint": encoder.fingerprint,
        "image tower": encoder.image_tower,
        "text tower": encoder.text_tower,
        "preprocessing": encoder.preprocessing,
        "tokens read": encoder.sequence_length or "by the model",
        **report.data,
        **{f"{name} (version)": version for name, version in report.versions.items()},
        **{f"seconds: {name}": f"{seconds:.1f}" for name, seconds in report.seconds.items()},
    }
    settings = encoder.report.get("settings") or {}
    return (
        f"<section><h2>Provenance</h2>{_table(['', ''], [[_text(k), _text(_shown(v))] for k, v in facts.items()])}"
        + (
            "<details><summary>Settings of the training</summary>"
            f"{_table(['Key', 'Value'], [[_text(k), _text(_shown(v))] for k, v in settings.items()])}</details>"
            if settings
            else ""
        )
        + "</section>"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table>{f'<thead><tr>{head}</tr></thead>' if any(heads) else ''}{body}</table></div>"


def _more(count: int, what: str) -> str:
    return f"<p>and {count - _ROWS:,} more {what}</p>" if count > _ROWS else ""


def _bar(share: Estimate) -> str:
    """A share with its interval; the bar is its length."""
    return (
        f"<b>{100 * share.value:.1f}</b> <small>{_interval(share, 100)}</small>"
        f'<span class=bar><span style="width:{100 * share.value:.1f}%"></span></span>'
    )


def _interval(estimate: Estimate, scale: float = 1) -> str:
    low, high = (f"{scale * end:.1f}" if scale != 1 else f"{end:g}" for end in (estimate.low, estimate.high))
    return f"({low} to {high})"


def _number(value: Any, scale: float, digits: int) -> str:
    return f"{scale * value:.{digits}f}" if isinstance(value, (int, float)) else "–"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _text(text: object, clip: bool = True) -> str:
    """Foreign text as HTML: escaped, direction kept to itself, control characters replaced, a long end folded away."""
    found = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in str(text))
    if not clip:
        return escape(found)
    if len(found) <= _CLIP:
        return f"<bdi>{escape(found)}</bdi>"
    return (
        f"<details><summary><bdi>{escape(found[:_CLIP])}…</bdi> ({len(found):,} characters)</summary>"
        f"<bdi>{escape(found)}</bdi></details>"
    )


class _Thumbnails:
    """Small JPEGs as data: URIs; each picture is made once."""

    def __init__(self, pictures: Mapping[str, Path]) -> None:
        self._pictures = pictures
        self._made: dict[str, str] = {}

    def element(self, id: str, alt: str) -> str:
        """Returns an `<img>`, or an empty frame; `alt` is HTML."""
        if id not in self._made:
            self._made[id] = self._uri(id)
        if not self._made[id]:
            return f'<span class=empty role="img" aria-label="{alt}"></span>'
        return f'<img alt="{alt}" width={_THUMBNAIL // 2} height={_THUMBNAIL // 2} src="{self._made[id]}">'

    def _uri(self, id: str) -> str:
        try:
            image = decode(self._pictures[id].read_bytes(), DEFAULT_MAX_PIXELS)
        except (KeyError, OSError, RejectedInput):
            return ""
        file = io.BytesIO()
        ImageOps.fit(image, (_THUMBNAIL, _THUMBNAIL)).save(file, "JPEG", quality=70)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2026; --faint: #626873; --paper: #fbfbf9; --card: #fff; --line: #dcdfe4;
  --mark: #15803d; --bar: #3b82d0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --faint: #a0a7b2; --paper: #14161a; --card: #1d2025;
  --line: #353a42; --mark: #4ade80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; overflow-wrap: anywhere; }
.lead { font-size: 1.2rem; }
.note, small, figcaption, th { color: var(--faint); font-size: .85rem; }
small { white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0; }
dl div, article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
dt { color: var(--faint); }
dd { margin: 0; }
dd b { font-size: 1.7rem; display: block; line-height: 1.2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; min-width: 4rem; }
.bar { display: block; height: .3rem; border-radius: .2rem; background: var(--line); min-width: 6rem; }
.bar span { display: block; height: 100%; border-radius: .2rem; background: var(--bar); }
article { margin: .75rem 0; overflow-wrap: anywhere; }
article > div:first-child { margin-bottom: .5rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
.row figure { margin: 0; width: 96px; padding: 6px; border: 2px solid transparent; border-radius: .4rem; }
.row .own { border-color: var(--mark); }
.row figcaption { font-size: .8rem; line-height: 1.2; }
img, .empty { display: block; width: 80px; height: 80px; border-radius: .3rem; background: var(--line); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
.curves figure { margin: 0; }
.curves svg { width: 100%; height: auto; }
code { font-size: .95em; }
summary { cursor: pointer; }
@media print { details { display: block; } }
"""
