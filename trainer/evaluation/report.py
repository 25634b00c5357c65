"""Defines the versioned schema of an evaluation's `report.json`, and summarises a report as text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from searchforge.artifacts.encoder import EncoderInfo
from trainer.evaluation.retrieval import KS


class _EvaluationModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IntervalEstimate(_EvaluationModel):
    """A measured value with its 95 percent confidence interval (see searchforge.reporting.intervals)."""

    value: float
    low: float
    high: float


class RetrievalMetrics(_EvaluationModel):
    """Retrieval metrics of a set of queries, by exact search.

    Attributes:
      queries: Number of queries.
      images: Number of distinct images that the queries belong to.
      gallery: Number of ranked items: images for caption queries, captions for image queries.
      r_at_1, r_at_5, r_at_10: Recall at k, the fraction in 0..1 of queries whose match is among the first k hits.
      median_rank: Median rank of the match; 1 is best.
    """

    queries: int
    images: int
    gallery: int
    r_at_1: IntervalEstimate
    r_at_5: IntervalEstimate
    r_at_10: IntervalEstimate
    median_rank: IntervalEstimate

    @property
    def r_at(self) -> dict[int, IntervalEstimate]:
        """Recall at k, by k."""
        return {k: getattr(self, f"r_at_{k}") for k in KS}


class Group(_EvaluationModel):
    """Metrics of the captions of one length or one category, searched among all images."""

    name: str
    text_to_image: RetrievalMetrics


class FoundImage(_EvaluationModel):
    """An image of the gallery: its id and its cosine similarity to the query."""

    id: str
    score: float


class WorstQuery(_EvaluationModel):
    """A caption that ranks other images before its own.

    Attributes:
      caption: The query.
      own: The image that the caption belongs to.
      rank: Rank of that image; 1 is best.
      hits: The highest-ranked images, best first.
    """

    caption: str
    own: FoundImage
    rank: int
    hits: tuple[FoundImage, ...]


class RejectedImage(_EvaluationModel):
    """A held-out image that could not be read; the metrics leave out the image and its captions.

    Attributes:
      reason, detail: See searchforge.preprocessing.RejectedInput.
      captions: Number of the image's captions.
    """

    id: str
    reason: str
    detail: str
    captions: int


class QuantizedTextEncoder(_EvaluationModel):
    """The text encoder in one TFLite quantization (see trainer.export.encoders), run by the Task Library.

    Attributes:
      bytes: Size of the file.
      ms: Median milliseconds per query on one thread.
      r_at_10: Recall at 10, a fraction.
      mean_cosine: Mean cosine similarity to TensorFlow's embeddings.
      error: Reason why the quantization cannot be exported or run; the other fields are then None.
    """

    bytes: int | None = None
    ms: float | None = None
    r_at_10: float | None = None
    mean_cosine: float | None = None
    error: str = ""


class QuantizationComparison(_EvaluationModel):
    """Comparison of the text encoder's TFLite quantizations on the same held-out captions.

    Attributes:
      queries: Number of captions.
      gallery: Number of images that are searched.
      tensorflow: R@10 of the SavedModel on the same captions, a fraction.
      chosen: Quantization of the bundle's TFLite model.
      forms: Results by quantization.
    """

    queries: int
    gallery: int
    tensorflow: float
    chosen: str
    forms: dict[str, QuantizedTextEncoder]


class EvaluationReport(_EvaluationModel):
    """Contents of evaluations/<id>/report.json.

    Attributes:
      version: Schema version, incremented when a field is removed or changes its meaning.
      id: Hash of the encoder, the held-out images and captions, and whether quantizations were compared.
      encoder: Contents of the bundle's encoder.json, including the report of its training.
      data: Origin of the images: `captions` files, `images` folder, `heldout_splits`.
      text_to_image: Metrics with captions as queries and images as the gallery.
      image_to_text: Metrics with images as queries and captions as the gallery; each image's best caption counts.
      by_length: Metrics by the captions' number of whitespace-separated words.
      by_category: Metrics by the images' categories, most captions first; empty without categories.
      worst: Captions with the worst ranks, at most one per image, worst first.
      rejected: Images that could not be read.
      forms: Comparison of the text encoder's quantizations; None if it was not requested.
      versions: Versions of Python and of the packages that affect the metrics.
      seconds: Wall time of embedding `images` and `captions`, of comparing `forms` if requested, and in `total`.
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
    """Returns the metrics as a few lines of text."""
    lines = [f"encoder {report.encoder.id} on held-out captions (95 percent confidence intervals in parentheses)"]
    for label, metrics in (("text to image", report.text_to_image), ("image to text", report.image_to_text)):
        lines.append(f"  {label}, {metrics.queries} queries among {metrics.gallery}: {_format_metrics(metrics)}")
    for title, groups in (("by length", report.by_length), ("by category", report.by_category[:_MAX_CATEGORIES])):
        if groups:
            lines.append(f"  text to image {title}:")
            width = min(24, max(len(group.name) for group in groups))
            for group in groups:
                metrics = group.text_to_image
                name = _printable(group.name)[:24]
                lines.append(f"    {name:<{width}} {metrics.queries:>6} captions  R@10 {_percent(metrics.r_at_10)}")
    if len(report.by_category) > _MAX_CATEGORIES:
        lines.append(f"    and {len(report.by_category) - _MAX_CATEGORIES} more categories")
    if report.forms:
        lines += _quantization_lines(report.forms)
    if report.rejected:
        captions = sum(image.captions for image in report.rejected)
        lines.append(f"  skipped {len(report.rejected)} unreadable images with {captions} captions")
    return "\n".join(lines)


def _quantization_lines(comparison: QuantizationComparison) -> list[str]:
    lines = [
        f"  quantizations of the text encoder, {comparison.queries} captions among {comparison.gallery} images "
        f"(TensorFlow: R@10 {100 * comparison.tensorflow:.1f}):"
    ]
    for name, model in comparison.forms.items():
        label = _printable(name) + (" (chosen)" if name == comparison.chosen else "")
        if model.bytes is None or model.ms is None or model.r_at_10 is None:
            result = _printable(model.error)
        else:
            result = f"{model.bytes / 1e6:6.1f} MB  {model.ms:5.1f} ms  R@10 {100 * model.r_at_10:.1f}"
        lines.append(f"    {label:<22} {result}")
    return lines


_MAX_CATEGORIES = 10
"""Maximum number of categories in the summary."""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _format_metrics(metrics: RetrievalMetrics) -> str:
    recalls = ", ".join(f"R@{k} {_percent(recall)}" for k, recall in metrics.r_at.items())
    median = metrics.median_rank
    return f"{recalls}, median rank {median.value:g} ({median.low:g} to {median.high:g})"


def _percent(fraction: IntervalEstimate) -> str:
    return f"{100 * fraction.value:.1f} ({100 * fraction.low:.1f} to {100 * fraction.high:.1f})"
