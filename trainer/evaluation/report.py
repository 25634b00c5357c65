"""The report of an evaluation, `report.json`: what `searchforge eval` found, in a documented, versioned form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from searchforge.artifacts.encoder import EncoderInfo
from trainer.evaluation.retrieval import KS


class _ReportModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_ReportModel):
    """A measured value, and the 95 percent interval around it (see searchforge.reporting.intervals)."""

    value: float
    low: float
    high: float


class RetrievalMetrics(_ReportModel):
    """RetrievalMetrics by exact search for one set of queries.

    Attributes:
      queries: number of queries.
      images: number of different images that they belong to.
      gallery: number of items that are ranked for every query: images for captions, captions for images.
      r_at_1, r_at_5, r_at_10: shares in 0..1 of queries whose own counterpart is among the first k hits.
      median_rank: of the own counterpart; 1 is best.
    """

    queries: int
    images: int
    gallery: int
    r_at_1: Estimate
    r_at_5: Estimate
    r_at_10: Estimate
    median_rank: Estimate

    @property
    def r_at(self) -> dict[int, Estimate]:
        """The shares by k."""
        return {k: getattr(self, f"r_at_{k}") for k in KS}


class Group(_ReportModel):
    """The captions of one length or of one category, searched for among all images."""

    name: str
    text_to_image: RetrievalMetrics


class FoundImage(_ReportModel):
    """An image of the gallery: its id, and its cosine to the query."""

    id: str
    score: float


class WorstQuery(_ReportModel):
    """A caption that finds other images before its own.

    Attributes:
      caption: the query.
      own: its own image.
      rank: of the own image; 1 is best.
      hits: what was found, best first.
    """

    caption: str
    own: FoundImage
    rank: int
    hits: tuple[FoundImage, ...]


class RejectedImage(_ReportModel):
    """A held-out image that could not be read, and so is not part of the figures; its captions neither.

    Attributes:
      reason: see searchforge.preprocessing.RejectedInput.
    """

    id: str
    reason: str
    detail: str
    captions: int


class QuantizedTextEncoder(_ReportModel):
    """A TFLite form of the text encoder, run by the Task Library; see trainer.export.export for the forms.

    Attributes:
      bytes: of the file.
      ms: median time of a query on one thread.
      r_at_10: share of the captions whose own image is among the first 10 hits.
      mean_cosine: to TensorFlow's embeddings.
      error: why the form cannot be exported or run; the other fields are then None.
    """

    bytes: int | None = None
    ms: float | None = None
    r_at_10: float | None = None
    mean_cosine: float | None = None
    error: str = ""


class QuantizationComparison(_ReportModel):
    """The TFLite forms of the text encoder on the same held-out captions.

    Attributes:
      queries: number of captions.
      gallery: number of images that they search.
      tensorflow: R@10 of the SavedModel on these captions, a share.
      chosen: the form that the bundle holds.
      forms: by name.
    """

    queries: int
    gallery: int
    tensorflow: float
    chosen: str
    forms: dict[str, QuantizedTextEncoder]


class EvaluationReport(_ReportModel):
    """Contents of evaluations/<id>/report.json.

    Attributes:
      version: of this schema; raised when a field changes its meaning or goes.
      id: derived from the encoder, the held-out images and captions, and whether forms were compared.
      encoder: the bundle's description, encoder.json; the report of its training is within.
      data: where the images came from: `captions` files, `images` folder, `heldout_splits`.
      text_to_image: captions as queries, images as the gallery.
      image_to_text: images as queries, captions as the gallery; the best one of an image's captions counts.
      by_length: captions by their number of words, separated by spaces.
      by_category: captions by their image's categories, most captions first; empty where there are none.
      worst: captions with the worst ranks, at most one of an image, worst first.
      rejected: images that could not be read.
      forms: TFLite forms of the text encoder; None where they were not compared.
      versions: of Python and of the packages that the figures depend on.
      seconds: `images` and `captions` (embedding them), `forms` where they were compared, and `total`.
    """

    version: Literal[1] = 1
    id: str
    encoder: EncoderInfo
    data: dict[str, Any]
    text_to_image: RetrievalMetrics
    image_to_text: RetrievalMetrics
    by_length: tuple[Group, ...]
    by_category: tuple[Group, ...]
    worst: tuple[WorstQuery, ...]
    rejected: tuple[RejectedImage, ...]
    forms: QuantizationComparison | None = None
    versions: dict[str, str]
    seconds: dict[str, float] = Field(description="wall time")


def summary(report: EvaluationReport) -> str:
    """Returns the figures in a few lines for people."""
    lines = [f"encoder {report.encoder.id} on held-out captions, 95 percent intervals in brackets"]
    for label, found in (("text to image", report.text_to_image), ("image to text", report.image_to_text)):
        lines.append(f"  {label}, {found.queries} queries among {found.gallery}: {_figures(found)}")
    for title, groups in (("by length", report.by_length), ("by category", report.by_category[:_SHOWN])):
        if groups:
            lines.append(f"  text to image {title}:")
            width = min(24, max(len(group.name) for group in groups))
            for group in groups:
                found = group.text_to_image
                name = _printable(group.name)[:24]
                lines.append(f"    {name:<{width}} {found.queries:>6} captions  R@10 {_percent(found.r_at_10)}")
    if len(report.by_category) > _SHOWN:
        lines.append(f"    and {len(report.by_category) - _SHOWN} more categories")
    if report.forms:
        lines += _forms(report.forms)
    if report.rejected:
        captions = sum(image.captions for image in report.rejected)
        lines.append(
            f"  left out, because they could not be read: {len(report.rejected)} images with {captions} captions"
        )
    return "\n".join(lines)


def _forms(compared: QuantizationComparison) -> list[str]:
    lines = [
        f"  forms of the text encoder, {compared.queries} captions among {compared.gallery} images "
        f"(TensorFlow: R@10 {100 * compared.tensorflow:.1f}):"
    ]
    for name, form in compared.forms.items():
        label = _printable(name) + (" (chosen)" if name == compared.chosen else "")
        if form.bytes is None or form.ms is None or form.r_at_10 is None:
            figures = _printable(form.error)
        else:
            figures = f"{form.bytes / 1e6:6.1f} MB  {form.ms:5.1f} ms  R@10 {100 * form.r_at_10:.1f}"
        lines.append(f"    {label:<22} {figures}")
    return lines


_SHOWN = 10
"""Categories in the summary."""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _figures(found: RetrievalMetrics) -> str:
    shares = ", ".join(f"R@{k} {_percent(share)}" for k, share in found.r_at.items())
    median = found.median_rank
    return f"{shares}, median rank {median.value:g} ({median.low:g} to {median.high:g})"


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"
