"""`searchforge eval`: measures an encoder bundle on the held-out captions, with its SavedModels."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import IMAGE_SAVED_MODEL, TEXT_SAVED_MODEL, TEXT_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.captions.dataset import CaptionedImage, Split, load_captions, split_heldout
from searchforge.config import DEFAULT_MAX_PIXELS, Config
from searchforge.console import progress
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id
from searchforge.preprocessing import Preprocessing, RejectedInput
from searchforge.reporting.intervals import median_interval, share_interval
from trainer.evaluation import report_html, retrieval
from trainer.evaluation.report import (
    Estimate,
    EvaluationReport,
    FoundImage,
    Group,
    QuantizationComparison,
    RejectedImage,
    RetrievalMetrics,
    WorstQuery,
)
from trainer.identity import IGNORED_SETTINGS

VERSION = 1
"""Part of every evaluation's id: raise it when the same encoder and captions give another report."""

WORST = 20
"""Queries that are shown with what they find."""

HITS = 5
"""Hits that are shown of each."""

RESTORE_CHECK_TEXTS = 8
"""Captions on which a rebuilt text encoder is compared with the bundle's."""

HTML = "report.html"

_BATCH = 64
_LENGTHS = (5, 8, 11, 15)  # words: the upper ends of the groups; the last group is open
_PACKAGES = ("searchforge", "tensorflow", "tensorflow-text", "numpy", "pillow")


def evaluate_bundle(config: Config, encoder: str | None = None, compare_forms: bool = False) -> EvaluationReport:
    """Measures an encoder on the held-out captions of `config.data`, and commits report.json and report.html.

    The same encoder, images, captions and options give the same id; a report that is there already is returned as it
    is.

    Args:
      encoder: id of a bundle in the workspace; by default see `choose_encoder`.
      compare_forms: also export the text encoder in every TFLite form, and measure each (see
        trainer.export.quantization_comparison). The towers must be there as they were for training, and `config.data`
        must have the training captions.

    Raises:
      UsageError: there is no such encoder, no image is held out, none of them can be read, or forms are to be compared
        and the text encoder cannot be rebuilt.
      JobError: the bundle cannot be loaded, or does not give embeddings.
    """
    workspace = Workspace(config.workspace)
    info = EncoderInfo.model_validate(workspace.marker("encoders", encoder or choose_encoder(workspace, config)))
    split = split_heldout(load_captions(config), config, training=False)
    images = split.heldout
    if not images:
        raise UsageError(
            f"no captioned image is held out; data.heldout_splits is {', '.join(config.data.heldout_splits)} and "
            f"data.holdout {config.data.holdout:g}: name a split of the captions, as in "
            "--set 'data.heldout_splits=[dev]', or give more images"
        )
    id = _evaluation_id(info, images, compare_forms)
    if workspace.committed("evaluations", id):
        progress.say(f"evaluations/{id} is already there")
        return EvaluationReport.model_validate(workspace.marker("evaluations", id))
    captions = sum(len(image.captions) for image in images)
    progress.say(
        f"evaluating encoder {info.id} on {captions} held-out captions of {len(images)} images; "
        f"about {10 + len(images) / 120 + captions / 350:.0f} s on 2 cores"
    )
    start = time.monotonic()
    bundle = workspace.local("encoders", info.id)
    compared = _QuantizationBenchmark(bundle, info, split) if compare_forms else None  # what is missing shows at once
    vectors, rejected = _embed_images(bundle, info, images)
    rejected += [
        _rejected(image, RejectedInput("unreadable", detail))
        for image, detail in split.unreadable
        if image.split in config.data.heldout_splits
    ]
    image_seconds = time.monotonic() - start
    lost = {image.id for image in rejected}
    images = [image for image in images if image.id not in lost]
    if not images:
        raise UsageError(
            f"none of the {len(rejected)} held-out images can be read, such as {rejected[0].id!r} "
            f"({rejected[0].reason}: {rejected[0].detail}); check data.images (--images)"
        )
    texts = [text for image in images for text in image.captions]
    owners = np.repeat(np.arange(len(images)), [len(image.captions) for image in images])
    text_start = time.monotonic()
    queries = _embed_texts(bundle, info, texts)
    seconds = {"images": image_seconds, "captions": time.monotonic() - text_start}
    forms_start = time.monotonic()
    forms = compared.measure(texts, owners, queries, vectors) if compared else None
    if forms:
        seconds["forms"] = time.monotonic() - forms_start
    seconds["total"] = time.monotonic() - start

    ranks = retrieval.text_ranks(queries, vectors, owners)
    everyone = np.arange(len(images))
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
        image_to_text=retrieval_metrics(image_ranks, everyone, len(texts)),
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
    pictures = {image.id: image.path for image in images}
    with workspace.create("evaluations", id) as staging:
        (staging.path / HTML).write_text(report_html.render(report, pictures), encoding="utf-8")
        staging.commit(report.model_dump(mode="json"))
    return report


def choose_encoder(workspace: Workspace, config: Config) -> str:
    """Returns the id of the one encoder that was trained with `config.train`, or of the workspace's only one.

    Raises:
      UsageError: there is none, or more than one.
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
    fitting = f"{len(trained)} of them" if trained else "none of them"
    raise UsageError(
        f"workspace {workspace.root} holds {len(ids)} encoders ({', '.join(ids)}), {fitting} with the settings of this "
        "configuration; choose one with --encoder, or run `searchforge train` with this configuration first"
    )


def retrieval_metrics(ranks: retrieval.Ints, images: retrieval.Ints, gallery: int) -> RetrievalMetrics:
    """Returns the figures of queries.

    Args:
      ranks: int64 [m], of each query's own counterpart.
      images: int64 [m], the image that each query belongs to.
      gallery: number of items that were ranked.
    """
    shares = {
        f"r_at_{k}": _estimate(float((ranks <= k).mean()), share_interval(ranks <= k, images)) for k in retrieval.KS
    }
    return RetrievalMetrics(
        queries=len(ranks),
        images=len(np.unique(images)),
        gallery=gallery,
        median_rank=_estimate(float(np.median(ranks)), median_interval(ranks, images)),
        **shares,
    )


def _estimate(value: float, interval: tuple[float, float]) -> Estimate:
    return Estimate(value=value, low=interval[0], high=interval[1])


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
    """The text encoder of a bundle, ready to be exported in every form; raises as `evaluate_bundle` says."""

    def __init__(self, bundle: Path, info: EncoderInfo, split: Split) -> None:
        from trainer.data import calibration_texts
        from trainer.export.restore import restore_text_encoder

        self._encoder = restore_text_encoder(info, bundle)
        try:
            self._chosen = info.report["text_form"], bundle / TEXT_TFLITE
            rejected = {item["id"] for item in info.report["images"]["rejected"]}
        except KeyError as error:
            raise UsageError(
                f"the report of encoder {info.id} lacks {error}, so its forms cannot be compared; "
                "train it again, or run without --compare-forms"
            ) from None
        self._calibration = calibration_texts([image for image in split.train if image.id not in rejected])
        if "int8" in self._encoder.forms and not self._calibration:
            raise UsageError(
                "the captions hold no training image, and the form int8 needs training captions to observe its ranges "
                "on; give the captions that the encoder was trained with (--captions), or run without --compare-forms"
            )

    def measure(
        self,
        texts: Sequence[str],
        owners: retrieval.Ints,
        queries: npt.NDArray[np.float32],
        vectors: npt.NDArray[np.float32],
    ) -> QuantizationComparison:
        from trainer.export import quantization_comparison

        rebuilt = self._encoder(texts[:RESTORE_CHECK_TEXTS]).numpy()
        # A tower without variables restores without an error even if it is another one.
        if not np.allclose(rebuilt, queries[:RESTORE_CHECK_TEXTS], atol=1e-3):
            raise JobError(
                "the text encoder that was rebuilt to compare its forms gives other embeddings than the bundle's "
                f"{TEXT_SAVED_MODEL}; give the text tower that it was trained with, or run without --compare-forms"
            )
        count = min(len(texts), quantization_comparison.QUERIES)
        progress.say(f"  comparing forms of the text encoder on {count} held-out captions")
        return quantization_comparison.compare_texts(
            self._encoder, self._chosen, self._calibration, texts, owners, queries, vectors
        )


def _rejected(image: CaptionedImage, error: RejectedInput) -> RejectedImage:
    return RejectedImage(id=image.id, reason=error.reason, detail=error.detail, captions=len(image.captions))


def _encoder(bundle: Path, name: str, input_name: str) -> Callable[[Any], npt.NDArray[np.float32]]:
    """Loads an exported model; the function takes a batch and returns float32 [n, dim]."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the tokenizer's operations

    try:
        model = tf.saved_model.load(str(bundle / name))
        signature = model.signatures["serving_default"]
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"{name} of encoder {bundle.name} cannot be loaded: {error}; train it again") from None

    def encode(batch: Any, _model: Any = model) -> npt.NDArray[np.float32]:  # a signature does not keep its model
        found: npt.NDArray[np.float32] = signature(**{input_name: tf.constant(batch)})["embedding"].numpy()
        if not np.isfinite(found).all():
            raise JobError(f"{name} of encoder {bundle.name} gives embeddings that are not numbers; train it again")
        return found

    return encode


def _embed_images(
    bundle: Path, info: EncoderInfo, images: Sequence[CaptionedImage]
) -> tuple[npt.NDArray[np.float32], list[RejectedImage]]:
    encode = _encoder(bundle, IMAGE_SAVED_MODEL, "images")
    preprocessing = Preprocessing.parse(info.preprocessing)
    vectors, rejected = [np.empty((0, info.dim), np.float32)], []
    with progress.track("held-out images", len(images)) as advance:
        for batch in _decoded(images, preprocessing):
            pixels = [found for _, found in batch if not isinstance(found, RejectedInput)]
            rejected += [_rejected(image, found) for image, found in batch if isinstance(found, RejectedInput)]
            if pixels:
                vectors.append(encode(np.stack(pixels)))
            advance(len(batch))
    return np.concatenate(vectors), rejected


_Decoded = tuple[CaptionedImage, npt.NDArray[np.uint8] | RejectedInput]


def _decoded(images: Sequence[CaptionedImage], preprocessing: Preprocessing) -> Iterator[list[_Decoded]]:
    """Yields batches in order; the next one is decoded in threads while the model works on this one."""

    def decode(image: CaptionedImage) -> _Decoded:
        try:
            return image, preprocessing.pixels(image.path.read_bytes(), DEFAULT_MAX_PIXELS)
        except OSError as error:
            return image, RejectedInput("unreadable", str(error.strerror))
        except RejectedInput as error:
            return image, error

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:
        batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        ahead = threads.map(decode, batches[0])
        for following in [*batches[1:], []]:
            batch = list(ahead)
            ahead = threads.map(decode, following)
            yield batch


def _embed_texts(bundle: Path, info: EncoderInfo, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    encode = _encoder(bundle, TEXT_SAVED_MODEL, "texts")
    vectors = np.empty((len(texts), info.dim), np.float32)
    with progress.track("held-out captions", len(texts)) as advance:
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
    """The captions with the worst ranks that are not 1; one of an image, or one bad image could be the whole list."""
    chosen: dict[int, int] = {}
    for row in np.argsort(-ranks, kind="stable"):
        if ranks[row] == 1 or len(chosen) == WORST:
            break
        chosen.setdefault(int(owners[row]), int(row))
    found = []
    for owner, row in chosen.items():
        scores = vectors @ queries[row]
        hits = [FoundImage(id=images[i].id, score=float(scores[i])) for i in np.argsort(-scores, kind="stable")[:HITS]]
        own = FoundImage(id=images[owner].id, score=float(scores[owner]))
        found.append(WorstQuery(caption=texts[row], own=own, rank=int(ranks[row]), hits=tuple(hits)))
    return tuple(found)
