"""Evaluates the retrieval quality of an encoder bundle's SavedModels on held-out captions (`searchforge eval`)."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge import progress
from searchforge.artifacts.encoder import IMAGE_SAVED_MODEL, TEXT_SAVED_MODEL, TEXT_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.captions.dataset import CaptionedImage, Split, image_reader, load_captions, split_heldout
from searchforge.captions.image_reader import ImageReader
from searchforge.config import DEFAULT_MAX_PIXELS, Config
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id
from searchforge.image_decoding import RejectedInput
from searchforge.preprocessing import Preprocessing
from searchforge.reporting.intervals import median_interval, share_interval
from trainer.evaluation import report_html, retrieval
from trainer.evaluation.report import (
    EvaluationReport,
    FoundImage,
    Group,
    IntervalEstimate,
    QuantizationComparison,
    RejectedImage,
    RetrievalMetrics,
    WorstQuery,
)
from trainer.identity import IGNORED_SETTINGS

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of every evaluation's id; raise it whenever the same encoder and captions would give a different report."""

WORST = 20
"""Maximum number of worst queries in the report."""

HITS = 5
"""Number of hits that the report shows for each worst query."""

RESTORE_CHECK_TEXTS = 8
"""Number of captions for comparing the restored text encoder with the bundle's."""

HTML = "report.html"

_BATCH = 64
_LENGTHS = (5, 8, 11, 15)  # upper bounds of the length groups, in words; the last group is unbounded
_PACKAGES = ("searchforge", "tensorflow", "tensorflow-text", "numpy", "pillow")


def evaluate_bundle(config: Config, encoder: str | None = None, compare_forms: bool = False) -> EvaluationReport:
    """Evaluates an encoder on the held-out captions of `config.data`, and commits report.json and report.html.

    The id is derived from the encoder, the images, the captions and the options. If the report already exists, it is
    returned unchanged.

    Args:
      encoder: Id of a bundle in the workspace; see `choose_encoder` for the default.
      compare_forms: Also export the text encoder in every quantization and measure each (see
        trainer.export.quantization_comparison). This needs the text tower and the training captions.

    Raises:
      UsageError: The encoder does not exist or was imported, no image is held out or readable, or the text encoder
        cannot be restored for the comparison.
      JobError: The bundle cannot be loaded, or its embeddings are not finite.
    """
    workspace = Workspace(config.workspace)
    info = EncoderInfo.model_validate(workspace.marker("encoders", encoder or choose_encoder(workspace, config)))
    if not (info.has_saved_model("image") and info.has_saved_model("text")):
        raise UsageError(
            f"encoder {info.id} lacks the SavedModels of a trained encoder, which this command evaluates; `searchforge "
            "check` measures a searcher made with it on the same held-out captions"
        )
    split = split_heldout(load_captions(config), config, training=False)
    images = split.heldout
    if not images:
        raise UsageError(
            f"no captioned image is held out; data.heldout_splits is {', '.join(config.data.heldout_splits)} and "
            f"data.holdout is {config.data.holdout:g}; choose a split of the captions, for example "
            "--set 'data.heldout_splits=[dev]', or provide more images"
        )
    id = _evaluation_id(info, images, compare_forms)
    if workspace.committed("evaluations", id):
        logger.info(f"evaluations/{id} already exists")
        return EvaluationReport.model_validate(workspace.marker("evaluations", id))
    captions = sum(len(image.captions) for image in images)
    logger.info(
        f"evaluating encoder {info.id} on {captions} held-out captions of {len(images)} images; "
        f"about {10 + len(images) / 120 + captions / 350:.0f} s on 2 cores"
    )
    start = time.monotonic()
    bundle = workspace.local("encoders", info.id)
    comparison = _QuantizationBenchmark(bundle, info, split) if compare_forms else None  # fails early
    reader = image_reader(config)
    vectors, rejected = _embed_images(bundle, info, images, reader)
    rejected += [
        _rejected_image(image, RejectedInput("unreadable", detail))
        for image, detail in split.unreadable
        if image.split in config.data.heldout_splits
    ]
    image_seconds = time.monotonic() - start
    rejected_ids = {image.id for image in rejected}
    images = [image for image in images if image.id not in rejected_ids]
    if not images:
        raise UsageError(
            f"none of the {len(rejected)} held-out images can be read, for example {rejected[0].id!r} "
            f"({rejected[0].reason}: {rejected[0].detail}); check data.images (--images)"
        )
    texts = [text for image in images for text in image.captions]
    owners = np.repeat(np.arange(len(images)), [len(image.captions) for image in images])
    text_start = time.monotonic()
    queries = _embed_texts(bundle, info, texts)
    seconds = {"images": image_seconds, "captions": time.monotonic() - text_start}
    forms_start = time.monotonic()
    forms = comparison.measure(texts, owners, queries, vectors) if comparison else None
    if forms:
        seconds["forms"] = time.monotonic() - forms_start
    seconds["total"] = time.monotonic() - start

    ranks = retrieval.text_ranks(queries, vectors, owners)
    image_ranks = retrieval.image_ranks(queries, vectors, owners)
    report = EvaluationReport(
        id=id,
        encoder=info,
        data={
            "captions": list(config.data.captions),
            "images": config.data.images,
            "heldout_splits": list(config.data.heldout_splits),
        },
        text_to_image=retrieval_metrics(ranks, owners, len(images)),
        image_to_text=retrieval_metrics(image_ranks, np.arange(len(images)), len(texts)),
        by_length=_by_length(texts, ranks, owners, len(images)),
        by_category=_by_category(images, ranks, owners),
        worst=_worst(images, texts, queries, vectors, ranks, owners),
        rejected=tuple(rejected),
        forms=forms,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        seconds=seconds,
    )
    pictures = {image.id: functools.partial(reader.read, image.uri, image.content_hash) for image in images}
    with workspace.create("evaluations", id) as staging:
        (staging.path / HTML).write_text(report_html.render(report, pictures), encoding="utf-8")
        staging.commit(report.model_dump(mode="json"))
    return report


def choose_encoder(workspace: Workspace, config: Config) -> str:
    """Returns the id of the workspace's only encoder, or else of the only one trained with `config.train`.

    Raises:
      UsageError: There is no such encoder, or more than one.
    """
    ids = workspace.ids("encoders")
    if not ids:
        raise UsageError(
            f"workspace {workspace.root} holds no encoder; run `searchforge train` with the same configuration first"
        )
    if len(ids) == 1:
        return ids[0]
    settings = {id: workspace.marker("encoders", id)["report"].get("settings") for id in ids}
    trained = [id for id in ids if not config.train.changed_since(settings[id], IGNORED_SETTINGS)]
    if len(trained) == 1:
        return trained[0]
    raise UsageError(
        f"workspace {workspace.root} holds {len(ids)} encoders ({', '.join(ids)}), of which {len(trained) or 'none'} "
        "match this configuration; choose one with --encoder, or run `searchforge train` with this configuration first"
    )


def retrieval_metrics(ranks: retrieval.Ints, images: retrieval.Ints, gallery: int) -> RetrievalMetrics:
    """Returns the retrieval metrics of a set of queries.

    Args:
      ranks: int64 [m], rank of each query's match.
      images: int64 [m], index of the image that each query belongs to.
      gallery: Number of ranked items.
    """
    recalls = {
        f"r_at_{k}": _estimate(float((ranks <= k).mean()), share_interval(ranks <= k, images)) for k in retrieval.KS
    }
    return RetrievalMetrics(
        queries=len(ranks),
        images=len(np.unique(images)),
        gallery=gallery,
        median_rank=_estimate(float(np.median(ranks)), median_interval(ranks, images)),
        **recalls,
    )


def _estimate(value: float, interval: tuple[float, float]) -> IntervalEstimate:
    return IntervalEstimate(value=value, low=interval[0], high=interval[1])


def _evaluation_id(info: EncoderInfo, images: Sequence[CaptionedImage], compare_forms: bool) -> str:
    return content_id(
        {
            "version": VERSION,
            "encoder": [info.id, info.fingerprint],
            "heldout": [[image.id, image.content_hash, image.captions, image.categories] for image in images],
            **({"forms": True} if compare_forms else {}),
        }
    )


class _QuantizationBenchmark:
    """Restores a bundle's text encoder and measures it in every quantization; errors as for `evaluate_bundle`."""

    def __init__(self, bundle: Path, info: EncoderInfo, split: Split) -> None:
        from trainer.data import calibration_texts
        from trainer.export.restore import restore_text_encoder

        self._encoder = restore_text_encoder(info, bundle)
        try:
            self._chosen = info.report["text_form"], bundle / TEXT_TFLITE
            rejected = {item["id"] for item in info.report["images"]["rejected"]}
        except KeyError as error:
            raise UsageError(
                f"the report of encoder {info.id} lacks {error}, so its quantizations cannot be compared; "
                "train it again, or run without --compare-forms"
            ) from None
        self._calibration = calibration_texts([image for image in split.train if image.id not in rejected])
        if "int8" in self._encoder.quantizations and not self._calibration:
            raise UsageError(
                "the captions contain no training image, but int8 needs training captions for calibration; provide the "
                "captions that the encoder was trained with (--captions), or run without --compare-forms"
            )

    def measure(
        self,
        texts: Sequence[str],
        owners: retrieval.Ints,
        queries: npt.NDArray[np.float32],
        vectors: npt.NDArray[np.float32],
    ) -> QuantizationComparison:
        from trainer.export import quantization_comparison

        restored = self._encoder(texts[:RESTORE_CHECK_TEXTS]).numpy()
        # A tower without variables is restored without an error even if it is the wrong one.
        if not np.allclose(restored, queries[:RESTORE_CHECK_TEXTS], atol=1e-3):
            raise JobError(
                f"the embeddings of the restored text encoder differ from those of the bundle's {TEXT_SAVED_MODEL}; "
                "provide the text tower that the encoder was trained with, or run without --compare-forms"
            )
        count = min(len(texts), quantization_comparison.QUERIES)
        logger.info(f"  comparing the quantizations of the text encoder on {count} held-out captions")
        return quantization_comparison.compare_texts(
            self._encoder, self._chosen, self._calibration, texts, owners, queries, vectors
        )


def _rejected_image(image: CaptionedImage, error: RejectedInput) -> RejectedImage:
    return RejectedImage(id=image.id, reason=error.reason, detail=error.detail, captions=len(image.captions))


def _load_encoder(bundle: Path, name: str, input_name: str) -> Callable[[Any], npt.NDArray[np.float32]]:
    """Loads a SavedModel and returns a function from a batch to float32 [n, dim]."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the tokenizer's operations

    try:
        model = tf.saved_model.load(str(bundle / name))
        signature = model.signatures["serving_default"]
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"{name} of encoder {bundle.name} cannot be loaded: {error}; train it again") from None

    def encode(batch: Any, _model: Any = model) -> npt.NDArray[np.float32]:  # a signature does not keep its model alive
        embeddings: npt.NDArray[np.float32] = signature(**{input_name: tf.constant(batch)})["embedding"].numpy()
        if not np.isfinite(embeddings).all():
            raise JobError(f"{name} of encoder {bundle.name} returns embeddings that are not finite; train it again")
        return embeddings

    return encode


def _embed_images(
    bundle: Path, info: EncoderInfo, images: Sequence[CaptionedImage], reader: ImageReader
) -> tuple[npt.NDArray[np.float32], list[RejectedImage]]:
    encode = _load_encoder(bundle, IMAGE_SAVED_MODEL, "images")
    preprocessing = Preprocessing.parse(info.preprocessing)
    vectors, rejected = [np.empty((0, info.dim), np.float32)], []
    with progress.track("embedding held-out images", len(images), "image") as advance:
        for batch in _decode_batches(images, reader, preprocessing):
            pixels = [result for _, result in batch if not isinstance(result, RejectedInput)]
            rejected += [_rejected_image(image, result) for image, result in batch if isinstance(result, RejectedInput)]
            if pixels:
                vectors.append(encode(np.stack(pixels)))
            advance(len(batch))
    return np.concatenate(vectors), rejected


_Decoded = tuple[CaptionedImage, npt.NDArray[np.uint8] | RejectedInput]


def _decode_batches(
    images: Sequence[CaptionedImage], reader: ImageReader, preprocessing: Preprocessing
) -> Iterator[list[_Decoded]]:
    """Yields batches in order; threads decode the next batch while the model runs on the current one."""

    def decode(image: CaptionedImage) -> _Decoded:
        try:
            return image, preprocessing.pixels(reader.read(image.uri, image.content_hash), DEFAULT_MAX_PIXELS)
        except OSError as error:
            return image, RejectedInput("unreadable", str(error.strerror))
        except RejectedInput as error:
            return image, error

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        pending = threads.map(decode, batches[0])
        for following in [*batches[1:], []]:
            batch = list(pending)
            pending = threads.map(decode, following)
            yield batch


def _embed_texts(bundle: Path, info: EncoderInfo, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    encode = _load_encoder(bundle, TEXT_SAVED_MODEL, "texts")
    vectors = np.empty((len(texts), info.dim), np.float32)
    with progress.track("embedding held-out captions", len(texts), "caption") as advance:
        for i in range(0, len(texts), _BATCH):
            batch = [text.encode() for text in texts[i : i + _BATCH]]
            vectors[i : i + _BATCH] = encode(batch)
            advance(len(batch))
    return vectors


def _by_length(texts: Sequence[str], ranks: retrieval.Ints, owners: retrieval.Ints, gallery: int) -> tuple[Group, ...]:
    group = np.searchsorted(_LENGTHS, [len(text.split()) for text in texts])
    names = [f"{low + 1} to {high} words" for low, high in zip((0, *_LENGTHS[:-1]), _LENGTHS, strict=True)]
    names.append(f"{_LENGTHS[-1] + 1} words or more")
    return tuple(
        Group(name=name, text_to_image=retrieval_metrics(ranks[group == i], owners[group == i], gallery))
        for i, name in enumerate(names)
        if (group == i).any()
    )


def _by_category(images: Sequence[CaptionedImage], ranks: retrieval.Ints, owners: retrieval.Ints) -> tuple[Group, ...]:
    members: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        for category in image.categories:
            members.setdefault(category, []).append(row)
    groups = []
    for name, rows in members.items():
        inside = np.isin(owners, rows)
        groups.append(Group(name=name, text_to_image=retrieval_metrics(ranks[inside], owners[inside], len(images))))
    return tuple(sorted(groups, key=lambda group: (-group.text_to_image.queries, group.name)))


def _worst(
    images: Sequence[CaptionedImage],
    texts: Sequence[str],
    queries: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    ranks: retrieval.Ints,
    owners: retrieval.Ints,
) -> tuple[WorstQuery, ...]:
    """Returns the captions with the worst ranks above 1, at most one per image so that no image fills the list."""
    chosen: dict[int, int] = {}
    for row in np.argsort(-ranks, kind="stable"):
        if ranks[row] == 1 or len(chosen) == WORST:
            break
        chosen.setdefault(int(owners[row]), int(row))
    worst = []
    for owner, row in chosen.items():
        scores = vectors @ queries[row]
        hits = [FoundImage(id=images[i].id, score=float(scores[i])) for i in np.argsort(-scores, kind="stable")[:HITS]]
        own = FoundImage(id=images[owner].id, score=float(scores[owner]))
        worst.append(WorstQuery(caption=texts[row], own=own, rank=int(ranks[row]), hits=tuple(hits)))
    return tuple(worst)
