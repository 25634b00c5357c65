"""Trains a dual encoder: extracts features, trains heads, evaluates, exports, checks parity, commits the bundle."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.captions.dataset import CaptionedImage
from searchforge.config import Config, TrainConfig
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id, sha256_file
from trainer import estimate
from trainer.data import (
    TrainingData,
    calibration_texts,
    drop_rejected,
    load_data,
    log_unused_images,
    reread_pixels,
    subsample,
)
from trainer.evaluation import curves, retrieval
from trainer.export import tflite_parity
from trainer.export.encoders import ImageEncoder, Quantization, TextEncoder, export
from trainer.features.batches import TrainingSet, batch_plan
from trainer.features.cache import FeatureCache
from trainer.features.sets import FeatureSets, extract_all, extraction_requests
from trainer.fit import finetuning
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.head_training import train_heads
from trainer.identity import IGNORED_SETTINGS, VERSION
from trainer.model.dual_encoder import DualEncoder
from trainer.model.ensemble import EnsembleHead, combine_heads
from trainer.ray_cluster import allocate_in_cluster, cluster_address, ray_cluster
from trainer.towers import ImageTower, TextTower, TowerSpec, load_image_tower, load_text_tower, tower_specs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TrainedEncoders:
    """Trained encoders before export.

    Attributes:
      data: The images that were usable.
      fingerprint: SHA-256 of both towers, both heads and the preprocessing.
      report: Training's part of the bundle's report.
    """

    data: TrainingData
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    fingerprint: str
    report: dict[str, Any]


def train(config: Config) -> EncoderInfo:
    """Trains a dual encoder on `config.data` and commits its bundle to the configured workspace.

    The id is derived from the data, the settings and the towers' weights. If the bundle already exists, it is returned
    unchanged.

    Returns:
      The bundle's description. Its report has the settings, the losses, retrieval metrics on held-out captions, the
      parity of the TFLite models with TensorFlow, sizes and times.

    Raises:
      UsageError: The captions, the images or a tower are unusable.
      JobError: Training failed, or a TFLite encoder deviates from its SavedModel.
    """
    # This process and the workers of a local cluster share GPUs, whose whole memory TensorFlow reserves by default.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    settings, workspace = config.train, Workspace(config.workspace)
    data, specs, towers = _load_inputs(config)
    bundle = _bundle_id(settings, data, *towers)
    store = CheckpointStore(workspace.root)
    if workspace.committed("encoders", bundle):
        logger.info(f"train: encoder {bundle} already exists")
        _delete_checkpoints(store, bundle)
        return EncoderInfo(**workspace.marker("encoders", bundle))

    _log_plan(config, data, specs, towers, bundle)
    log_unused_images(data)
    start = time.monotonic()
    trained = _train_encoders(config, data, specs, towers, workspace.cache("features"), store, bundle)
    export_start = time.monotonic()
    with workspace.create("encoders", bundle) as staging:
        exported = _export(staging.path, settings, trained, towers[0])
        curves.write(staging.path, trained.report["history"])
        report = {
            "version": VERSION,
            "settings": settings.model_dump(),
            **trained.data.report(),
            **trained.report,
            **exported,
        }
        report["seconds"]["export"] = time.monotonic() - export_start
        report["seconds"]["total"] = time.monotonic() - start
        info = EncoderInfo(
            id=bundle,
            fingerprint=trained.fingerprint,
            preprocessing=str(towers[0].preprocessing),
            dim=settings.dim,
            image_tower=settings.image_tower,
            text_tower=settings.text_tower,
            sequence_length=towers[1].sequence_length,
            files=_file_hashes(staging.path),
            report=report,
        )
        staging.commit(info.model_dump())
    _delete_checkpoints(store, bundle)
    return info


def planned_id(config: Config) -> str:
    """Returns the id of the bundle that `train` would create or return; raises the same errors for unusable inputs."""
    data, _, towers = _load_inputs(config)
    return _bundle_id(config.train, data, *towers)


def _load_inputs(config: Config) -> tuple[TrainingData, tuple[TowerSpec, TowerSpec], tuple[ImageTower, TextTower]]:
    settings, data = config.train, load_data(config)
    _check_settings(settings, data.train)
    specs = tower_specs(settings, [text for image in data.images for text in image.captions])
    towers = load_image_tower(specs[0]), load_text_tower(specs[1])
    finetuning.check_settings(settings, *towers)
    return data, specs, towers


def _delete_checkpoints(store: CheckpointStore, bundle: str) -> None:
    """Deletes the checkpoints of a committed bundle."""
    for run in (f"{bundle}-heads", f"{bundle}-towers"):
        store.delete(run)


def _train_encoders(
    config: Config,
    data: TrainingData,
    specs: tuple[TowerSpec, TowerSpec],
    towers: tuple[ImageTower, TextTower],
    cache: Path,
    store: CheckpointStore,
    bundle: str,
) -> _TrainedEncoders:
    """Extracts features, trains the heads, and fine-tunes the towers if configured."""
    settings = config.train
    seconds: dict[str, float] = {}
    tuned_report = None
    with ray_cluster(settings):
        allocation = allocate_in_cluster(settings.workers)
        logger.info(f"  {allocation.describe(settings.workers)}")
        settings = settings.model_copy(update={"workers": allocation.workers})
        start = time.monotonic()
        features = extract_all(allocation, data, towers, specs, cache, settings.views)
        seconds["features"] = time.monotonic() - start
        seconds |= {"image_features": features.image_seconds, "text_features": features.captions.seconds}
        computed = features.train.computed + features.heldout.computed, features.captions.computed
        data = drop_rejected(data, features.rejected, config.data.max_reject_fraction)
        _check_settings(settings, data.train)
        training_set = features.training_set(data)
        start = time.monotonic()
        trained = train_heads(settings, training_set, store, bundle, allocation)
        seconds["heads"] = time.monotonic() - start
        model = DualEncoder(settings, towers[0].width, towers[1].width)
        model.load(trained.weights)
        heads = ensemble_heads(settings, model, training_set)
        heldout = heldout_retrieval(heads, data, features)
        if finetuning.is_enabled(settings):
            start, before = time.monotonic(), heldout
            task = finetuning.FinetuningTask(
                settings,
                training_set,
                specs,
                [image.uri for image in data.train],
                features.training_texts(data),
                trained.weights,
                hashes={image.uri: image.content_hash for image in data.train},
                reader=data.reader,
            )
            tuned = finetuning.finetune(task, store, bundle, allocation)
            weights = tuned.towers["image"], tuned.towers["text"]
            for tower, tower_weights in zip(towers, weights, strict=True):
                tower.assign(tower_weights)
            features = extract_all(allocation, data, towers, specs, cache, 1, weights)
            model.load(tuned.heads)
            heads = ensemble_heads(settings, model, features.training_set(data))
            heldout = heldout_retrieval(heads, data, features)
            seconds["tuning"] = time.monotonic() - start
            tuned_report = {"history": tuned.history, "heldout_before": before}
    if heldout:
        logger.info(
            f"  R@1/5/10 of {heldout['captions']} held-out captions among {heldout['gallery']} images: "
            + " / ".join(f"{heldout[f'r_at_{k}']:.3f}" for k in retrieval.KS)
        )
    return _TrainedEncoders(
        data,
        ImageEncoder(towers[0], heads[0]),
        TextEncoder(towers[1], heads[1]),
        _fingerprint(*towers, *heads),
        {
            "history": trained.history,
            "tuning": tuned_report,
            "temperature": float(model.temperature),
            "heldout": heldout,
            "seconds": seconds,
            "images_per_second": computed[0] / seconds["image_features"] if computed[0] else None,
            "captions_per_second": computed[1] / seconds["text_features"] if computed[1] else None,
        },
    )


def _export(folder: Path, settings: TrainConfig, trained: _TrainedEncoders, image_tower: ImageTower) -> dict[str, Any]:
    """Writes the bundle's models, checks TFLite parity, and returns their part of the report."""
    data, encoder = trained.data, trained.text_encoder
    images = data.heldout or data.train
    export(folder, trained.image_encoder, encoder)
    quantization, parity = _export_text(folder, settings, encoder, calibration_texts(data.train), images)
    sample = subsample(images, tflite_parity.SAMPLES)
    preprocessing = image_tower.preprocessing
    pixels = np.stack([reread_pixels(image.uri, image.content_hash, data.reader, preprocessing) for image in sample])
    return {
        "agreement": {"text": parity, "image": tflite_parity.check_images(folder, pixels)},
        "tflite_bytes": {name: (folder / name).stat().st_size for name in (IMAGE_TFLITE, TEXT_TFLITE)},
        "text_form": quantization,
    }


def _export_text(
    folder: Path,
    settings: TrainConfig,
    encoder: TextEncoder,
    calibration: Sequence[str],
    images: Sequence[CaptionedImage],
) -> tuple[Quantization, dict[str, Any]]:
    """Writes the text encoder as TFLite and returns its quantization and its parity with TensorFlow.

    Without `train.text_quantization`, chooses the fastest quantization that passes the parity check.
    """
    sample = subsample([text for image in images for text in image.captions], tflite_parity.SAMPLES)
    candidates = (settings.text_quantization,) if settings.text_quantization else encoder.quantizations[:-1]
    for quantization in candidates:
        try:
            encoder.save_tflite(folder / TEXT_TFLITE, quantization, calibration)
            return quantization, tflite_parity.check_texts(folder, sample)
        except JobError as error:
            if quantization == candidates[-1]:
                raise
            logger.info(f"  rejected {quantization} for the text encoder: {str(error).split(';')[0]}")
    raise AssertionError("unreachable: the last candidate returns or raises")


def summary(info: EncoderInfo) -> str:
    """Returns a readable summary of a few lines."""
    report = info.report
    lines = [f"encoder {info.id}: {info.image_tower} and {info.text_tower} into {info.dim} dimensions"]
    if heldout := report["heldout"]:
        shares = ", ".join(f"R@{k} {100 * heldout[f'r_at_{k}']:.1f}" for k in retrieval.KS)
        lines.append(f"  held-out captions: {shares} (gallery of {heldout['gallery']} images)")
    for name, parity in report["agreement"].items():
        size = report["tflite_bytes"][f"{name}_encoder.tflite"] / 1e6
        lines.append(
            f"  {name}_encoder.tflite: {size:.1f} MB, {parity['ms']:.1f} ms on one thread, "
            f"cosine to TensorFlow {parity['mean_cosine']:.4f} (minimum {parity['min_cosine']:.4f})"
        )
    lines.append(f"  total time {report['seconds']['total']:.0f} s")
    return "\n".join(lines)


def _check_settings(settings: TrainConfig, images: Sequence[CaptionedImage]) -> None:
    if len(images) < 2 * settings.workers:
        raise UsageError(
            f"{len(images)} readable training images are too few for {settings.workers} workers, which need at least "
            "2 each; provide more captioned images or use fewer workers (train.workers)"
        )
    if settings.batch_size < 2 * settings.workers:
        raise UsageError(
            f"train.batch_size is {settings.batch_size}, but each of {settings.workers} workers needs at least 2 "
            f"images; set it to at least {2 * settings.workers}"
        )
    if settings.preset == "recipe2022" and settings.captions_per_image != 1:
        raise UsageError(
            f"train.captions_per_image is {settings.captions_per_image}, but preset recipe2022 supports only 1 caption "
            "per image; omit the setting, or use preset best"
        )


def _bundle_id(settings: TrainConfig, data: TrainingData, image_tower: ImageTower, text_tower: TextTower) -> str:
    sides = {"train": data.train, "heldout": data.heldout}
    return content_id(
        {
            "version": VERSION,
            "settings": settings.changed({*IGNORED_SETTINGS, "image_tower", "text_tower"}),
            "towers": [image_tower.fingerprint, str(image_tower.preprocessing), text_tower.fingerprint],
            "data": {
                side: [[image.id, image.content_hash, list(image.captions)] for image in images]
                for side, images in sides.items()
            },
        }
    )


def _log_plan(
    config: Config,
    data: TrainingData,
    specs: tuple[TowerSpec, TowerSpec],
    towers: tuple[ImageTower, TextTower],
    bundle: str,
) -> None:
    """Logs the planned work and an estimate of its duration."""
    settings = config.train
    share, steps = batch_plan(settings, len(data.train))
    cache = FeatureCache(Workspace(config.workspace).cache("features"))
    requests = extraction_requests(data, towers, specs, settings.views)
    train, heldout, captions = (request.passes(cache) for request in requests)
    work = estimate.Workload(train + heldout, captions, len(data.train), share * settings.workers, steps)
    texts = [text for image in subsample(data.train, estimate.INPUTS) for text in image.captions]
    first = data.train[0]
    read_image = functools.partial(data.reader.read, first.uri, first.content_hash)
    try:
        speed = estimate.measure_speed(towers, read_image, texts, settings.workers)
    except (tf.errors.OpError, ValueError):
        duration = "the duration cannot be estimated with these towers"
    else:
        seconds = estimate.estimate_seconds(settings, work, (towers[0].width, towers[1].width), speed)
        duration = f"about {estimate.format_duration(seconds)} at this machine's current speed"
        if cluster_address(settings):
            duration += ", assuming that the cluster's nodes are as fast"
    fine_tuning = f"{settings.tune_epochs} epochs of fine-tuning, " if finetuning.is_enabled(settings) else ""
    logger.info(
        f"train: encoder {bundle}, preset {settings.preset}, {settings.workers} workers: {work.image_passes} image "
        f"tower passes for {len(data.images)} images, {captions} captions to embed, {settings.epochs} epochs of "
        f"{steps} steps with {work.batch} images each, {fine_tuning}export and parity check; {duration}"
    )


def ensemble_heads(
    settings: TrainConfig, model: DualEncoder, training_set: TrainingSet
) -> tuple[EnsembleHead, EnsembleHead]:
    """Returns the combined image head and text head of a trained model; see trainer.model.ensemble."""
    images, texts = training_set.images[0], training_set.texts  # unaugmented images
    return combine_heads(model, images, texts, settings.dim, settings.hubness_correction, settings.seed)


def heldout_retrieval(
    heads: tuple[EnsembleHead, EnsembleHead], data: TrainingData, features: FeatureSets
) -> dict[str, Any] | None:
    """Returns the retrieval metrics of the held-out captions, or None if nothing is held out."""
    if not data.heldout:
        return None
    _, captions, owners = features.heldout_captions(data)
    return retrieval.text_to_image(heads[1](captions).numpy(), heads[0](features.heldout_images(data)).numpy(), owners)


def _fingerprint(image_tower: ImageTower, text_tower: TextTower, *heads: EnsembleHead) -> str:
    digest = hashlib.sha256()
    for part in (image_tower.fingerprint, text_tower.fingerprint, str(image_tower.preprocessing)):
        digest.update(part.encode())
    for head in heads:
        for variable in head.variables:
            value = variable.numpy()
            digest.update(f"{variable.name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
