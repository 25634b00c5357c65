"""From captioned images to a committed encoder bundle: features, heads, evaluation, export, proof, commit."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge import progress
from searchforge.captions import CaptionedImage, load_captions, split_heldout
from searchforge.config import DEFAULT_MAX_PIXELS, Config, TrainConfig
from searchforge.encoder import EncoderInfo
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id, sha256_bytes, sha256_file
from searchforge.preprocessing import RejectedInput
from searchforge.workspace import Workspace
from trainer import agreement, evaluate
from trainer.batches import TrainingSet, batch_plan
from trainer.cluster import ray_cluster, threads_per_worker
from trainer.dual_encoder import DualEncoder
from trainer.export import ImageEncoder, TextEncoder, export
from trainer.features import Features, extract
from trainer.loop import train_heads
from trainer.towers import ImageTower, Layers, TextTower, TowerSpec, load_image_tower, load_text_tower

VERSION = 1
"""Part of every encoder's id: raise it when the same settings train or export something else."""


@dataclass(frozen=True)
class _Data:
    """Captioned images of both sides, and the content hashes of all images by id."""

    train: list[CaptionedImage]
    heldout: list[CaptionedImage]
    hashes: dict[str, str]

    @property
    def images(self) -> list[CaptionedImage]:
        return self.train + self.heldout


def train(config: Config) -> EncoderInfo:
    """Trains a dual encoder on `config.data` and commits its bundle to the configured workspace.

    The id is derived from the data, the settings and the towers' weights: the same inputs give the same bundle,
    and one that is there already is returned as it is.

    Returns:
      The bundle's description; its report has the settings, the losses, the retrieval of held-out captions, the
      agreement of the TFLite forms, sizes and times.

    Raises:
      UsageError: the captions, the images or a tower are not usable.
      JobError: training failed, or the TFLite encoders disagree with the TensorFlow ones.
    """
    settings, workspace = config.train, Workspace(config.workspace)
    captioned = load_captions(config.data)
    train_images, heldout = split_heldout(captioned, config.data)
    unused = len(captioned) - len(train_images) - len(heldout)
    _check(settings, train_images)
    data = _Data(train_images, heldout, {image.id: _image_hash(image) for image in train_images + heldout})
    image_spec, text_spec = _specs(settings)
    image_tower, text_tower = load_image_tower(image_spec), load_text_tower(text_spec)
    bundle = _bundle_id(settings, data, image_tower, text_tower)
    if workspace.committed("encoders", bundle):
        progress.say(f"train: encoder {bundle} is already there")
        return EncoderInfo(**workspace.marker("encoders", bundle))

    _announce(settings, data, bundle)
    if unused:
        progress.say(f"  {unused} images are of other splits and not used (data.train_splits, data.heldout_splits)")
    start = time.monotonic()
    cache = workspace.cache("features")
    threads = threads_per_worker(settings)
    paths = {data.hashes[image.id]: str(image.path) for image in data.images}
    texts = {_key(text): text for image in data.images for text in image.captions}
    with ray_cluster(settings):
        image_key = f"{image_tower.fingerprint} {image_tower.preprocessing}"
        images = extract(image_spec, image_key, paths, cache, settings.workers, threads)
        captions = extract(text_spec, text_tower.fingerprint, texts, cache, settings.workers, threads)
        data, rejected = _without_rejected(data, images)
        _check(settings, data.train)
        training_set = _training_set(data, images, captions)
        heads_start = time.monotonic()
        trained = train_heads(settings, training_set, workspace.cache("training"), bundle, threads)
    heads_seconds = time.monotonic() - heads_start

    model = DualEncoder(settings, image_tower.width, text_tower.width)
    model.load(trained.weights)
    retrieval = _retrieval(model, data, images, captions)
    if retrieval:
        progress.say(
            f"  R@1/5/10 of {retrieval['captions']} held-out captions among {retrieval['gallery']} images: "
            + " / ".join(f"{retrieval[f'r_at_{k}']:.3f}" for k in evaluate.KS)
        )

    export_start = time.monotonic()
    with workspace.create("encoders", bundle) as staging:
        image_encoder = ImageEncoder(image_tower, model.image_head)
        text_encoder = TextEncoder(text_tower, model.text_head)
        sizes = export(staging.path, image_encoder, text_encoder, settings.text_quantization)
        agreed = _agreement(staging.path, data, image_tower)
        export_seconds = time.monotonic() - export_start
        report: dict[str, Any] = {
            "settings": settings.model_dump(),
            "images": {"train": len(data.train), "heldout": len(data.heldout), "unused": unused, "rejected": rejected},
            "captions": len(texts),
            "losses": trained.losses,
            "temperature": float(model.temperature),
            "heldout": retrieval,
            "agreement": agreed,
            "tflite_bytes": sizes,
            "seconds": {
                "image_features": images.seconds,
                "text_features": captions.seconds,
                "heads": heads_seconds,
                "export": export_seconds,
                "total": time.monotonic() - start,
            },
            "images_per_second": images.computed / images.seconds if images.computed else None,
            "captions_per_second": captions.computed / captions.seconds if captions.computed else None,
        }
        info = EncoderInfo(
            id=bundle,
            fingerprint=_fingerprint(image_tower, text_tower, trained.weights),
            preprocessing=str(image_tower.preprocessing),
            dim=settings.dim,
            image_tower=settings.image_tower,
            text_tower=settings.text_tower,
            sequence_length=text_tower.sequence_length,
            files=_hashes(staging.path),
            report=report,
        )
        staging.commit(info.model_dump())
    shutil.rmtree(workspace.cache("training") / bundle, ignore_errors=True)  # checkpoints have done their work
    return info


def summary(info: EncoderInfo) -> str:
    """Returns what training gave, in a few lines for people."""
    report = info.report
    lines = [f"encoder {info.id}: {info.image_tower} and {info.text_tower} into {info.dim} dimensions"]
    if retrieval := report["heldout"]:
        shares = ", ".join(f"R@{k} {100 * retrieval[f'r_at_{k}']:.1f}" for k in evaluate.KS)
        lines.append(f"  held-out captions: {shares} (gallery of {retrieval['gallery']} images)")
    for name, agreed in report["agreement"].items():
        size = report["tflite_bytes"][f"{name}_encoder.tflite"] / 1e6
        lines.append(
            f"  {name}_encoder.tflite: {size:.1f} MB, {agreed['ms']:.1f} ms on one thread, "
            f"cosine to TensorFlow {agreed['mean_cosine']:.4f} (least {agreed['min_cosine']:.4f})"
        )
    lines.append(f"  {report['seconds']['total']:.0f} s in all")
    return "\n".join(lines)


def _image_hash(image: CaptionedImage) -> str:
    try:
        return sha256_file(image.path)
    except OSError as error:
        raise UsageError(f"image {image.path} cannot be read: {error.strerror}; change it or its permissions") from None


def _specs(settings: TrainConfig) -> tuple[TowerSpec, TowerSpec]:
    layers: Layers = "last" if settings.preset == "recipe2022" else "several"
    return (
        TowerSpec("image", settings.image_tower, layers),
        TowerSpec("text", settings.text_tower, layers, settings.sequence_length),
    )


def _check(settings: TrainConfig, images: Sequence[CaptionedImage]) -> None:
    if len(images) < 2 * settings.workers:
        raise UsageError(
            f"{len(images)} readable training images are too few for {settings.workers} workers, "
            "each of which compares at least 2; "
            "give more captioned images or fewer workers (train.workers)"
        )
    if settings.batch_size < 2 * settings.workers:
        raise UsageError(
            f"train.batch_size is {settings.batch_size}, but each of {settings.workers} workers compares at least 2 "
            f"images; set it to at least {2 * settings.workers}"
        )
    if settings.preset == "recipe2022" and settings.captions_per_image != 1:
        raise UsageError(
            f"train.captions_per_image is {settings.captions_per_image}, but preset recipe2022 compares 1 caption an "
            "image; leave it out, or use preset best"
        )


def _bundle_id(settings: TrainConfig, data: _Data, image_tower: ImageTower, text_tower: TextTower) -> str:
    sides = {"train": data.train, "heldout": data.heldout}
    return content_id(
        {
            "version": VERSION,
            "settings": settings.model_dump(exclude={"ray_address", "image_tower", "text_tower"}),
            "towers": [image_tower.fingerprint, str(image_tower.preprocessing), text_tower.fingerprint],
            "data": {
                side: [[image.id, data.hashes[image.id], list(image.captions)] for image in images]
                for side, images in sides.items()
            },
        }
    )


def _announce(settings: TrainConfig, data: _Data, bundle: str) -> None:
    captions = sum(len(image.captions) for image in data.images)
    share, steps = batch_plan(settings, len(data.train))
    progress.say(
        f"train: encoder {bundle}, preset {settings.preset}, {settings.workers} workers: features of "
        f"{len(data.images)} images and {captions} captions, then {settings.epochs} epochs of {steps} steps of "
        f"{share * settings.workers} images, export and proof; "
        f"about {_minutes(settings, data, captions, steps)} on 2 cores"
    )


def _minutes(settings: TrainConfig, data: _Data, captions: int, steps: int) -> str:
    """A rough guess for the default towers: images and captions a second, seconds a step, and the fixed rest."""
    step = 0.15 if settings.preset == "best" else 0.03
    seconds = len(data.images) / 100 + captions / 400 + settings.epochs * (steps * step + 0.3) + 60
    return f"{max(1, round(seconds / 60))} min"


def _without_rejected(data: _Data, images: Features) -> tuple[_Data, list[dict[str, str]]]:
    """Returns the data without images that have no features, and the list of those for the report."""
    by_key = {item.key: item for item in images.rejected}
    rejected = [
        {"id": image.id, "reason": by_key[key].reason, "detail": by_key[key].detail}
        for image in data.images
        if (key := data.hashes[image.id]) in by_key
    ]
    if not rejected:
        return data, []
    reasons = sorted({item["reason"] for item in rejected})
    progress.say(f"  {len(rejected)} images are left out ({', '.join(reasons)}), such as {rejected[0]['id']!r}")
    usable = [[image for image in side if data.hashes[image.id] in images.rows] for side in (data.train, data.heldout)]
    return _Data(usable[0], usable[1], data.hashes), rejected


def _training_set(data: _Data, images: Features, captions: Features) -> TrainingSet:
    rows = [[captions.rows[_key(text)] for text in dict.fromkeys(image.captions)] for image in data.train]
    used = sorted({row for caption_rows in rows for row in caption_rows})
    position = {row: i for i, row in enumerate(used)}
    table = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, caption_rows in enumerate(rows):
        table[i, : len(caption_rows)] = [position[row] for row in caption_rows]
    return TrainingSet(
        images=images.values[[images.rows[data.hashes[image.id]] for image in data.train]],
        texts=captions.values[used],
        captions=table,
        caption_counts=np.array([len(caption_rows) for caption_rows in rows], np.int32),
    )


def _retrieval(model: DualEncoder, data: _Data, images: Features, captions: Features) -> dict[str, Any] | None:
    if not data.heldout:
        return None
    image_rows = [images.rows[data.hashes[image.id]] for image in data.heldout]
    pairs = [(i, captions.rows[_key(text)]) for i, image in enumerate(data.heldout) for text in image.captions]
    return evaluate.text_to_image(
        model.text_head(captions.values[[row for _, row in pairs]]).numpy(),
        model.image_head(images.values[image_rows]).numpy(),
        np.array([owner for owner, _ in pairs]),
    )


def _agreement(bundle: Path, data: _Data, tower: ImageTower) -> dict[str, Any]:
    """Checks both TFLite forms on held-out captions and images, or on those of training where none is held out."""
    images = data.heldout or data.train
    texts = [text for image in images for text in image.captions]
    stride = max(1, len(texts) // agreement.SAMPLES)
    sampled = images[:: max(1, len(images) // agreement.SAMPLES)][: agreement.SAMPLES]
    return {
        "text": agreement.check_texts(bundle, texts[::stride][: agreement.SAMPLES]),
        "image": agreement.check_images(bundle, _pixels(sampled, tower)),
    }


def _pixels(images: Sequence[CaptionedImage], tower: ImageTower) -> npt.NDArray[np.uint8]:
    found = []
    for image in images:
        try:
            found.append(tower.preprocessing.pixels(image.path.read_bytes(), DEFAULT_MAX_PIXELS))
        except RejectedInput as error:  # its features are cached, so it could be read before
            raise JobError(f"{image.path} changed while training ran: {error}; start again") from error
    return np.stack(found)


def _fingerprint(image_tower: ImageTower, text_tower: TextTower, weights: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for part in (image_tower.fingerprint, text_tower.fingerprint, str(image_tower.preprocessing)):
        digest.update(part.encode())
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode())
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _key(text: str) -> str:
    return sha256_bytes(text.encode())
