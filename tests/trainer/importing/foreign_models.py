"""TFLite encoders as other people make them: straight from TensorFlow and tflite-support's metadata writers.

The text encoders add up a random vector for each word of VOCABULARY; the image encoders project a small image. `files`
returns all of them, and `text_vector` and `image_vector` predict their embeddings.

Run as a program, this module writes the metadata in a process without TensorFlow:
`python -m tests.trainer.importing.foreign_models FOLDER`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from searchforge.processes.fork_server import python_path
from searchforge.processes.tflite_support import prepare
from tests.cached import cached, source, versions

DIM, SIDE, TOKENS = 96, 24, 16
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (230, 220, 40)}
WORDS = (*COLOURS, "a", "dog", "on", "beach", "two", "children", "playing", "in", "the", "snow", "an", "old", "car")
WORDS += ("front", "of", "house", "people", "at", "table", "with", "food", "flowers", "boat", "sunset", "man", "riding")
WORDS += ("bicycle", "down", "street")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def files() -> Path:
    """Returns the cached folder with these files:

    bert.tflite, bert_vocab.txt    inputs of a BERT model with the names of the Hugging Face hub; no metadata; not
                                   normalised
    regex.tflite                   token ids; metadata with a regular expression tokenizer
    regex_plain.tflite, regex_vocab.txt  the same model without metadata
    string.tflite                  a string, with a SentencePiece tokenizer in the graph; no metadata
    two_outputs.tflite             outputs `pooled` and `tokens`; no metadata
    image.tflite                   float32, metadata with a mean and a standard deviation of each channel
    image_plain.tflite             the same model without metadata
    image_uint8.tflite             quantized input and output [1, 1, 1, dim]; no metadata
    nan.tflite, zeros.tflite, constant.tflite, narrow.tflite  image encoders that are useless, or of 32 dimensions
    """
    key = [source(__file__), versions("tensorflow", "tensorflow-text", "tflite-support")]

    def make(folder: Path) -> None:
        _convert(folder)
        (folder / "bert_vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
        regex = ["<PAD>", "<START>", "<UNKNOWN>", *WORDS]
        (folder / "regex_vocab.txt").write_text("".join(f"{word} {index}\n" for index, word in enumerate(regex)))
        command = [sys.executable, "-m", "tests.trainer.importing.foreign_models", str(folder)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": python_path()})

    return cached("foreign-models", key, make)


MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of ImageNet's pixel values, by which many published encoders scale."""


def _projection() -> np.ndarray:
    """Returns [3, DIM]: the image encoder projects the mean colour."""
    return np.random.default_rng(3).normal(size=(3, DIM)).astype(np.float32)


def word_vector(word: str) -> np.ndarray:
    """Returns the vector of a word: for a colour, that of an image of this colour, so that texts find images."""
    if word in COLOURS:
        return image_vector(np.full((SIDE, SIDE, 3), COLOURS[word], np.uint8))
    return np.random.default_rng(WORDS.index(word)).normal(size=DIM).astype(np.float32) * 0.02


def text_vector(text: str) -> np.ndarray:
    """Returns the embedding of a text of known words by bert.tflite and regex.tflite, L2-normalised."""
    return _unit(sum(word_vector(word) for word in text.split()))


def image_vector(pixels: np.ndarray) -> np.ndarray:
    """Returns the embedding of an image, uint8 [SIDE, SIDE, 3], by image.tflite, L2-normalised."""
    scaled = (pixels.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    return _unit(scaled.mean((0, 1)) @ _projection())


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _convert(folder: Path) -> None:
    import tensorflow as tf
    import tensorflow_text as tf_text

    from tests.trainer.towers.tiny_hub import sentence_piece_model

    vectors = np.stack([word_vector(word) for word in WORDS])
    bert_table = tf.constant(np.concatenate([np.zeros((len(SPECIAL), DIM), np.float32), 3 * vectors]))
    regex_table = tf.constant(np.concatenate([np.zeros((3, DIM), np.float32), 3 * vectors]))
    projection = tf.constant(_projection())
    tokenizer = tf_text.FastSentencepieceTokenizer(sentence_piece_model(), reverse=False)

    def save(name: str, function, specs, **settings) -> None:  # type: ignore[no-untyped-def]
        traced = tf.function(function, input_signature=specs, autograph=False)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
        for key, value in settings.items():
            setattr(converter, key, value)
        (folder / f"{name}.tflite").write_bytes(converter.convert())

    def bert(input_ids, attention_mask, token_type_ids):  # type: ignore[no-untyped-def]
        rows = tf.gather(bert_table, input_ids + 0 * token_type_ids)
        return {"sentence": tf.reduce_sum(rows * tf.cast(attention_mask, tf.float32)[..., None], 1)}

    def regex(ids):  # type: ignore[no-untyped-def]
        return {"sentence": tf.reduce_sum(tf.gather(regex_table, ids), 1)}

    def two_outputs(ids):  # type: ignore[no-untyped-def]
        rows = tf.gather(regex_table, ids)
        return {"pooled": tf.reduce_sum(rows, 1), "tokens": rows}

    def string(text):  # type: ignore[no-untyped-def]
        ids = tokenizer.tokenize(text).to_tensor()
        return {"sentence": tf.reduce_sum(tf.gather(regex_table, ids), 1)}

    names = ("input_ids", "attention_mask", "token_type_ids")
    save("bert", bert, [tf.TensorSpec([1, TOKENS], tf.int32, name) for name in names])
    token_ids = [tf.TensorSpec([1, TOKENS], tf.int32, "ids")]
    save("regex_plain", regex, token_ids)
    save("two_outputs", two_outputs, token_ids)
    save("string", string, [tf.TensorSpec([1], tf.string, "text")], allow_custom_ops=True)

    def project(image):  # type: ignore[no-untyped-def]
        return tf.reduce_mean(image, (1, 2)) @ projection

    image = [tf.TensorSpec([1, SIDE, SIDE, 3], tf.float32, "image")]
    save("image_plain", lambda image: {"features": project(image)}, image)
    save("nan", lambda image: {"features": tf.sqrt(-1 - project(image) ** 2)}, image)
    save("zeros", lambda image: {"features": 0 * project(image)}, image)
    save("constant", lambda image: {"features": 0 * project(image) + 1}, image)
    save("narrow", lambda image: {"features": project(image)[:, :32]}, image)
    random = np.random.default_rng(0)
    save(
        "image_uint8",
        lambda image: {"features": tf.reshape(project(image / 128 - 1), [1, 1, 1, DIM])},
        image,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: (
            [random.uniform(0, 255, (1, 1, 1, 3)).astype(np.float32) + np.zeros((1, SIDE, SIDE, 3), np.float32)]
            for _ in range(200)
        ),
        inference_input_type=tf.uint8,
        inference_output_type=tf.uint8,
    )


def _describe(folder: Path) -> None:
    prepare()
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema
    from tensorflow_lite_support.metadata import schema_py_generated as model_schema
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info, metadata_writer

    output = metadata_info.TensorMd("features", "Embedding.")

    def write(source: str, target: str, inputs, files=()) -> None:  # type: ignore[no-untyped-def]
        general = metadata_info.GeneralMd(name=target, licenses="Apache-2.0")
        writer = metadata_writer.MetadataWriter.create_from_metadata_info(
            bytearray((folder / source).read_bytes()), general, inputs, [output], [str(path) for path in files]
        )
        (folder / target).write_bytes(writer.populate())

    vocabulary = folder / "regex_vocab.txt"
    tokenizer = metadata_info.RegexTokenizerMd(r"[^\w\']+", str(vocabulary))
    write("regex_plain.tflite", "regex.tflite", [metadata_info.InputTextTensorMd("ids", "", tokenizer)], [vocabulary])
    image = metadata_info.InputImageTensorMd(
        "image", "", list(MEAN), list(STD), schema.ColorSpaceType.RGB, model_schema.TensorType.FLOAT32
    )
    write("image_plain.tflite", "image.tflite", [image])


if __name__ == "__main__":
    _describe(Path(sys.argv[1]))
