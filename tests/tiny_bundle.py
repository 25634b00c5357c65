"""Tiny encoder bundles for tests of the stages after training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from searchforge.artifacts.encoder import IMAGE_SAVED_MODEL, IMAGE_TFLITE, TEXT_SAVED_MODEL, EncoderInfo
from searchforge.artifacts.workspace import Staging, Workspace
from searchforge.hashing import sha256_file
from tests.cached import cached, source, versions

PREPROCESSING = "decode|resize(8,8,bilinear)|scale(-1,1)"
DIM = 16


def write_bundle(workspace: Workspace, encoder: str = "tiny", seed: int = 0, tflite: bool = True) -> EncoderInfo:
    """Commits a bundle with only an image encoder, a random projection that depends on the seed.

    Args:
      tflite: Whether to include the TFLite encoder, and a report that it agrees with the SavedModel.
    """
    info = EncoderInfo(
        id=encoder,
        fingerprint=f"fingerprint-{seed}",
        preprocessing=PREPROCESSING,
        dim=DIM,
        image_tower="random",
        text_tower="none",
        sequence_length=0,
        files={},
        report={"agreement": {"image": {"min_cosine": 1.0}}} if tflite else {},
    )
    with workspace.create("encoders", encoder) as staging:
        folder = cached("image-encoder", [*_key(), seed], lambda folder: _save_image_encoder(folder, seed))
        shutil.copytree(folder / IMAGE_SAVED_MODEL, staging.path / IMAGE_SAVED_MODEL)
        if tflite:
            shutil.copy(folder / IMAGE_TFLITE, staging.path)
        return _commit(staging, info)


def write_colour_bundle(
    workspace: Workspace, encoder: str = "colours", report: dict[str, Any] | None = None
) -> EncoderInfo:
    """Commits a bundle that embeds an image as its mean colour, and a text by which of red, green and blue it names."""
    info = EncoderInfo(
        id=encoder,
        fingerprint="colours",
        preprocessing=PREPROCESSING,
        dim=3,
        image_tower="mean",
        text_tower="names",
        sequence_length=0,
        files={},
        report=report or {},
    )
    with workspace.create("encoders", encoder) as staging:
        shutil.copytree(cached("colour-encoders", _key(), _save_colour_encoders), staging.path, dirs_exist_ok=True)
        return _commit(staging, info)


def _commit(staging: Staging, info: EncoderInfo) -> EncoderInfo:
    paths = (path for path in staging.path.rglob("*") if path.is_file())
    files = {path.relative_to(staging.path).as_posix(): sha256_file(path) for path in paths}
    info = info.model_copy(update={"files": files})
    staging.commit(info.model_dump())
    return info


def _key() -> list[Any]:
    return [source(__file__), versions("tensorflow")]


def _save_colour_encoders(folder: Path) -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8, "images")])
    def image(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": tf.math.l2_normalize(tf.reduce_mean(tf.cast(images, tf.float32), [1, 2]), -1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "texts")])
    def text(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        named = [tf.strings.regex_full_match(texts, f".*{name}.*") for name in ("red", "green", "blue")]
        return {"embedding": tf.math.l2_normalize(tf.cast(tf.stack(named, 1), tf.float32), -1)}

    for name, function in ((IMAGE_SAVED_MODEL, image), (TEXT_SAVED_MODEL, text)):
        tf.saved_model.save(tf.Module(), str(folder / name), signatures={"serving_default": function})


def _save_image_encoder(folder: Path, seed: int) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.weights = tf.Variable(tf.random.stateless_normal([8 * 8 * 3, DIM], [seed, 1]))

    def project(scaled: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(tf.reshape(scaled, [-1, 8 * 8 * 3]) @ module.weights, axis=-1)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8, "images")])
    def encode(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": project(tf.cast(images, tf.float32) / 127.5 - 1.0)}

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32, "image")])
    def encode_scaled(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": project(image)}

    tf.saved_model.save(module, str(folder / IMAGE_SAVED_MODEL), signatures={"serving_default": encode})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([encode_scaled.get_concrete_function()], module)
    (folder / IMAGE_TFLITE).write_bytes(converter.convert())
