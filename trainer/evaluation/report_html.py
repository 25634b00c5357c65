"""The report of an evaluation as one HTML page; see searchforge.reporting.page for what all pages promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from searchforge.reporting.charts import training_curves
from searchforge.reporting.page import (
    ROWS,
    Thumbnails,
    attribute,
    cards,
    charts,
    document,
    more,
    number,
    shown,
    table,
    text,
)
from trainer.evaluation.report import (
    Estimate,
    EvaluationReport,
    FoundImage,
    Group,
    QuantizationComparison,
    RetrievalMetrics,
    WorstQuery,
)
from trainer.evaluation.retrieval import KS


def render(report: EvaluationReport, pictures: Mapping[str, Path]) -> str:
    """Returns the page.

    Args:
      pictures: image files by id; one that is absent or cannot be read is shown as an empty frame.
    """
    encoder = report.encoder
    thumbnails = Thumbnails(lambda id: _read(pictures, id))
    sections = (
        _headline(report),
        _groups("By length of caption", "Length", report.by_length),
        _groups("By category", "Category", report.by_category),
        _worst(report.worst, thumbnails),
        _curves(encoder.report),
        _forms(report.forms),
        _rejected(report),
        _provenance(report),
    )
    return document(f"Evaluation of encoder {encoder.id}", sections, _STYLE + thumbnails.style())


def _headline(report: EvaluationReport) -> str:
    found, back, encoder = report.text_to_image, report.image_to_text, report.encoder
    share = 100 * found.r_at_10.value
    lead = (
        f"{share:.1f} of 100 captions find their own image among the first 10 of {found.gallery:,} images. "
        f"Chance would find {100 * min(1.0, 10 / found.gallery):.1f}."
    )
    towers = " and ".join(text(tower, fold=False) for tower in (encoder.image_tower, encoder.text_tower))
    return (
        f"<header><h1>Evaluation of encoder <code>{text(encoder.id, fold=False)}</code></h1>"
        f'<p class="lead">{lead}</p>'
        f"<p>{towers}, {encoder.dim} dimensions; the exported SavedModels, searched exactly."
        f"{_training(report)}</p></header>"
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


def _cards(title: str, subject: str, found: RetrievalMetrics) -> str:
    figures = [(f"R@{k}", f"{100 * share.value:.1f}", _interval(share, 100)) for k, share in found.r_at.items()]
    figures.append(("Median rank", f"{found.median_rank.value:g}", _interval(found.median_rank)))
    shown_as = cards((name, value, f"<small>{about}</small>") for name, value, about in figures)
    return f"<section><h2>{title}</h2><p>{subject}</p>{shown_as}</section>"


def _groups(title: str, label: str, groups: Sequence[Group]) -> str:
    if not groups:
        return ""
    rows = [
        [
            text(group.name),
            f"{group.text_to_image.queries:,}",
            f"{group.text_to_image.images:,}",
            *(_bar(share) for share in group.text_to_image.r_at.values()),
            f"{group.text_to_image.median_rank.value:g}",
        ]
        for group in groups[:ROWS]
    ]
    gallery = groups[0].text_to_image.gallery
    heads = [label, "Captions", "Images", *(f"R@{k}" for k in KS), "Median rank"]
    return (
        f"<section><h2>{title}</h2><p>Text to image; the gallery is all {gallery:,} images.</p>"
        f"{table(heads, rows)}{more(len(groups), 'categories, see report.json')}</section>"
    )


def _worst(queries: Sequence[WorstQuery], thumbnails: Thumbnails) -> str:
    if not queries:
        return ""
    items = []
    for query in queries:
        hits = "".join(
            _picture(hit, f"{place}.", thumbnails, hit.id == query.own.id)
            for place, hit in enumerate(query.hits, start=1)
        )
        items.append(
            f"<article><div>{text(query.caption)}</div><div class=row>"
            f"{_picture(query.own, f'own, rank {query.rank:,}', thumbnails, True)}{hits}</div></article>"
        )
    return (
        "<section><h2>Worst queries</h2><p>Captions whose own image (framed) ranks last, at most one of an image, and "
        f"what they find instead; with cosines.</p>{''.join(items)}</section>"
    )


def _picture(image: FoundImage, label: str, thumbnails: Thumbnails, own: bool) -> str:
    return (
        f'<figure{" class=own" if own else ""} title="{attribute(image.id)}">{thumbnails.element(image.id, image.id)}'
        f"<figcaption>{label} <small>{image.score:.3f}</small></figcaption></figure>"
    )


def _curves(training: Mapping[str, Any]) -> str:
    drawn = [(title, f"{title} by epoch", svg) for title, svg in training_curves(training.get("history")).items()]
    return f"<section><h2>Training</h2>{charts(drawn)}</section>" if drawn else ""


def _forms(compared: QuantizationComparison | None) -> str:
    if compared is None:
        return ""
    rows = [
        [
            text(name) + (" (chosen)" if name == compared.chosen else ""),
            number(form.bytes, 1e-6, 1),
            number(form.ms, 1, 1),
            number(form.r_at_10, 100, 1),
            text(form.error),
        ]
        for name, form in compared.forms.items()
    ]
    about = (
        f"<p>R@10 of {compared.queries:,} held-out captions among {compared.gallery:,} images; TensorFlow's float "
        f"model: {number(compared.tensorflow, 100, 1)}.</p>"
    )
    return (
        f"<section><h2>Forms of the text encoder</h2>{about}"
        f"{table(['Form', 'MB', 'ms, one thread', 'R@10', ''], rows)}</section>"
    )


def _rejected(report: EvaluationReport) -> str:
    if not report.rejected:
        return ""
    rows = [[text(image.id), str(image.captions), text(image.reason), text(image.detail)] for image in report.rejected]
    captions = sum(image.captions for image in report.rejected)
    return (
        f"<section><h2>Rejects</h2><p>{len(rows):,} held-out images could not be read; they and their {captions:,} "
        f"captions are not in the figures.</p>{table(['Image', 'Captions', 'Reason', 'Detail'], rows[:ROWS])}"
        f"{more(len(rows), 'images, see report.json')}</section>"
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
        f"<section><h2>Provenance</h2>{table(['', ''], [[text(k), shown(v)] for k, v in facts.items()])}"
        + (
            "<details><summary>Settings of the training</summary>"
            f"{table(['Key', 'Value'], [[text(k), shown(v)] for k, v in settings.items()])}</details>"
            if settings
            else ""
        )
        + "</section>"
    )


def _bar(share: Estimate) -> str:
    """A share with its interval; the bar is its length."""
    return (
        f"<b>{100 * share.value:.1f}</b> <small>{_interval(share, 100)}</small>"
        f'<span class=bar><span style="width:{100 * share.value:.1f}%"></span></span>'
    )


def _interval(estimate: Estimate, scale: float = 1) -> str:
    low, high = (f"{scale * end:.1f}" if scale != 1 else f"{end:g}" for end in (estimate.low, estimate.high))
    return f"({low} to {high})"


def _read(pictures: Mapping[str, Path], id: str) -> bytes | None:
    try:
        return pictures[id].read_bytes()
    except (KeyError, OSError):
        return None


_STYLE = """
.lead { font-size: 1.2rem; }
.bar { display: block; height: .3rem; border-radius: .2rem; background: var(--line); min-width: 6rem; }
.bar span { display: block; height: 100%; border-radius: .2rem; background: var(--bar); }
article > div:first-child { margin-bottom: .5rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
.row figure { margin: 0; width: 96px; padding: 6px; border: 2px solid transparent; border-radius: .4rem; }
.row .own { border-color: var(--good); }
.row figcaption { font-size: .8rem; line-height: 1.2; }
"""
