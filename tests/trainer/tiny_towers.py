"""Tiny SavedModels in TensorFlow Hub's formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

IMAGE_SIZE = 16
IMAGE_WIDTH = 4 * 4 * 3


class _ImageModel(tf.Module):
    """Pools an image to 4 x 4 colours, and multiplies them by a random matrix."""

    def __init__(self) -> None:
        super().__init__()
        kernel = np.random.default_rng(0).normal(size=(IMAGE_WIDTH, IMAGE_WIDTH)).astype(np.float32)
        self.kernel = tf.Variable(kernel)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    def __call__(self, images: Any) -> Any:
        pooled = tf.nn.avg_pool2d(tf.image.resize(images, [16, 16]), 4, 4, "VALID")
        return tf.matmul(tf.reshape(pooled, [-1, IMAGE_WIDTH]), self.kernel)


class _TextModel(tf.Module):
    """Counts the words of raw strings in 32 hash buckets."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts: Any) -> Any:
        words = tf.strings.to_hash_bucket_fast(tf.strings.split(texts), 32)
        return tf.reduce_sum(tf.one_hot(words.to_tensor(default_value=-1), 32), 1)


def save_image_model(folder: Path) -> Path:
    """Saves a reusable SavedModel, like TensorFlow Hub's image feature vectors: callable, for images in 0..1."""
    tf.saved_model.save(_ImageModel(), str(folder))
    return folder


def save_fixed_image_model(folder: Path) -> Path:
    """Saves a model with a signature for a fixed image size, which is not callable itself."""
    module = _ImageModel()
    spec = tf.TensorSpec([None, IMAGE_SIZE, IMAGE_SIZE, 3], tf.float32, name="images")
    serve = tf.function(lambda images: {"default": module(images)}, input_signature=[spec])
    holder = tf.Module()
    holder.module = module
    tf.saved_model.save(holder, str(folder), signatures={"default": serve})
    return folder


def save_text_model(folder: Path) -> Path:
    """Saves a reusable SavedModel, like TensorFlow Hub's sentence encoders: callable, for strings."""
    tf.saved_model.save(_TextModel(), str(folder))
    return folder
