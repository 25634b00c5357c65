"""A tiny image encoder bundle, for tests of the stages after training: a random projection of the pixels."""

from __future__ import annotations

from pathlib import Path

from searchforge.encoder import IMAGE_SAVED_MODEL, EncoderInfo
from searchforge.workspace import Workspace

PREPROCESSING = "decode|resize(8,8,bilinear)|scale(-1,1)"
DIM = 16


def write_bundle(workspace: Workspace, encoder: str = "tiny", seed: int = 0) -> EncoderInfo:
    """Commits a bundle with an image encoder only; another seed is another embedding space."""
    info = EncoderInfo(
        id=encoder,
        fingerprint=f"fingerprint-{seed}",
        preprocessing=PREPROCESSING,
        dim=DIM,
        image_tower="random",
        text_tower="none",
        sequence_length=0,
        files={},
        report={},
    )
    with workspace.create("encoders", encoder) as staging:
        _save_image_encoder(staging.path / IMAGE_SAVED_MODEL, seed)
        staging.commit(info.model_dump())
    return info


def _save_image_encoder(path: Path, seed: int) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.weights = tf.Variable(tf.random.stateless_normal([8 * 8 * 3, DIM], [seed, 1]))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8, "images")])
    def encode(images: tf.Tensor) -> dict[str, tf.Tensor]:
        flat = tf.reshape(tf.cast(images, tf.float32) / 127.5 - 1.0, [-1, 8 * 8 * 3])
        return {"embedding": tf.math.l2_normalize(flat @ module.weights, axis=-1)}

    tf.saved_model.save(module, str(path), signatures={"serving_default": encode})
