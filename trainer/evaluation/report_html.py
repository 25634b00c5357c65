"""Renders the report of an evaluation as one HTML page; see searchforge.reporting.page for what all pages promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from searchforge.reporting.charts import training_curves
from searchforge.reporting.page import Thumbnails, render_page
from trainer.evaluation.report import EvaluationReport


def render(report: EvaluationReport, pictures: Mapping[str, Callable[[], bytes]]) -> str:
    """Returns the page.

    Args:
      pictures: Functions that read the images, by id; an image that is absent or cannot be decoded is shown as an
        empty frame.
    """
    return render_page(
        "trainer.evaluation",
        "evaluation.html",
        report=report,
        thumbnails=Thumbnails(lambda id: _read(pictures, id)),
        r_at_10_before_export=_r_at_10_before_export(report),
        curves=training_curves(report.encoder.report.get("history")),
        provenance=_provenance(report),
        settings=report.encoder.report.get("settings") or {},
    )


def _r_at_10_before_export(report: EvaluationReport) -> float | None:
    """Returns what training measured before it exported the model; None if it used other captions or images."""
    measured, found = report.encoder.report.get("heldout"), report.text_to_image
    if not isinstance(measured, dict):
        return None
    same = (measured.get("captions"), measured.get("gallery")) == (found.queries, found.gallery)
    return measured["r_at_10"] if same else None


def _provenance(report: EvaluationReport) -> dict[str, Any]:
    encoder = report.encoder
    return {
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


def _read(pictures: Mapping[str, Callable[[], bytes]], id: str) -> bytes | None:
    try:
        return pictures[id]()
    except (KeyError, OSError):
        return None
