"""A dual encoder of a few kilobytes in the form of trainer/'s bundles: TFLite files with metadata.

The text tower adds up a vector for each word of its vocabulary; the image tower is a random projection of an 8 x 8
image. NumPy implementations of both predict every embedding. Any vector can be a query: it only has to be the vector of
a word in the vocabulary.

Run as a program, this module performs the steps that need separate processes:
`python -m tests.indexer.tiny_encoder convert|describe FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from searchforge.hashing import sha256_bytes, sha256_file
from searchforge.processes.fork_server import python_path
from searchforge.processes.tflite_support import prepare
from tests.cached import cached, source, versions

SIDE = 8
SEQUENCE = 16
PREPROCESSING = f"decode|resize({SIDE},{SIDE},bilinear)|scale(-1,1)"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


class TinyEncoder:
    """NumPy implementation of the two towers; `bundle` returns their files."""

    def __init__(self, words: dict[str, np.ndarray]) -> None:
        self.words = words
        self.dim = len(next(iter(words.values())))
        self.projection = np.random.default_rng(7).normal(size=(SIDE * SIDE * 3, self.dim)).astype(np.float32)

    def text(self, text: str) -> np.ndarray:
        return unit(sum(self.words.get(word, np.zeros(self.dim)) for word in text.split()))

    def image(self, pixels: np.ndarray) -> np.ndarray:
        return unit((pixels.reshape(-1).astype(np.float32) - 127.5) / 127.5 @ self.projection)

    def bundle(self, fingerprint: str) -> Path:
        """Returns the cached folder of text_encoder.tflite, image_encoder.tflite and encoder.json."""
        table = np.concatenate([np.zeros((len(SPECIAL), self.dim)), np.stack(list(self.words.values()))])
        weights = {"table": table.astype(np.float32), "projection": self.projection}
        packages = versions("tensorflow", "tflite-support", "flatbuffers")
        digests = {name: sha256_bytes(array.tobytes()) for name, array in weights.items()}
        key = [source(__file__), packages, fingerprint, list(self.words), digests]

        def make(folder: Path) -> None:
            (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *self.words]) + "\n")
            np.savez(folder / "weights.npz", **weights)
            environment = {**os.environ, "PYTHONPATH": python_path()}
            for step in ("convert", "describe"):
                command = [sys.executable, "-m", "tests.indexer.tiny_encoder", step, str(folder)]
                subprocess.run(command, check=True, capture_output=True, env=environment)
            info = {
                "id": "tiny",
                "fingerprint": fingerprint,
                "preprocessing": PREPROCESSING,
                "dim": self.dim,
                "image_tower": "tiny",
                "text_tower": "tiny",
                "sequence_length": SEQUENCE,
                "files": {path.name: sha256_file(path) for path in folder.glob("*.tflite")},
                "report": {},
            }
            (folder / "encoder.json").write_text(json.dumps(info))

        return cached("tiny-encoder", key, make)


def random_images(count: int, seed: int = 0) -> np.ndarray:
    """Returns random images [count, 8, 8, 3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def save_images(images: np.ndarray, directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{i:05d}.png" for i in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def _convert(directory: Path) -> None:
    import tensorflow as tf

    with np.load(directory / "weights.npz") as weights:
        table, projection = tf.constant(weights["table"]), tf.constant(weights["projection"])

    class Towers(tf.Module):
        @tf.function(
            input_signature=[tf.TensorSpec([1, SEQUENCE], tf.int32, n) for n in ("ids", "mask", "segment_ids")],
            autograph=False,
        )
        def text(self, ids, mask, segment_ids):  # type: ignore[no-untyped-def]
            vectors = tf.gather(table, ids + 0 * segment_ids) * tf.cast(mask, tf.float32)[..., None]
            return {"embedding": tf.math.l2_normalize(tf.reduce_sum(vectors, 1), -1)}

        @tf.function(input_signature=[tf.TensorSpec([1, SIDE, SIDE, 3], tf.float32, "image")], autograph=False)
        def image(self, image):  # type: ignore[no-untyped-def]
            return {"embedding": tf.math.l2_normalize(tf.reshape(image, [1, -1]) @ projection, -1)}

    towers = Towers()
    for name, function in (("text", towers.text), ("image", towers.image)):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], towers)
        (directory / f"{name}_encoder.tflite").write_bytes(converter.convert())


def _describe(directory: Path) -> None:
    prepare()
    import flatbuffers
    from tensorflow_lite_support.metadata import metadata_schema_py_generated as schema
    from tensorflow_lite_support.metadata.python import metadata as tflite_metadata
    from tensorflow_lite_support.metadata.python.metadata_writers import metadata_info, writer_utils

    def tensor(name: str):  # type: ignore[no-untyped-def]
        described = schema.TensorMetadataT()
        described.name = name
        return described

    def write(path: Path, inputs, units, files) -> None:  # type: ignore[no-untyped-def]
        subgraph = schema.SubGraphMetadataT()
        subgraph.inputTensorMetadata = inputs
        subgraph.outputTensorMetadata = [tensor("embedding")]
        subgraph.inputProcessUnits = units
        metadata = schema.ModelMetadataT()
        metadata.name = path.stem
        metadata.subgraphMetadata = [subgraph]
        builder = flatbuffers.Builder(0)
        builder.Finish(metadata.Pack(builder), tflite_metadata.MetadataPopulator.METADATA_FILE_IDENTIFIER)
        populator = tflite_metadata.MetadataPopulator.with_model_buffer(path.read_bytes())
        populator.load_metadata_buffer(bytes(builder.Output()))
        if files:
            populator.load_associated_files(files)
        populator.populate()
        path.write_bytes(bytes(populator.get_model_buffer()))

    text = directory / "text_encoder.tflite"
    vocabulary = str(directory / "vocab.txt")
    names = ("ids", "mask", "segment_ids")
    order = [next(n for n in names if n in found) for found in writer_utils.get_input_tensor_names(text.read_bytes())]
    tokenizer = metadata_info.BertTokenizerMd(vocabulary).create_metadata()
    write(text, [tensor(name) for name in order], [tokenizer], [vocabulary])

    image = metadata_info.InputImageTensorMd(
        norm_mean=[127.5],
        norm_std=[127.5],
        color_space_type=schema.ColorSpaceType.RGB,
        tensor_type=writer_utils.get_input_tensor_types((directory / "image_encoder.tflite").read_bytes())[0],
    )
    write(directory / "image_encoder.tflite", [image.create_metadata()], None, [])


if __name__ == "__main__":
    {"convert": _convert, "describe": _describe}[sys.argv[1]](Path(sys.argv[2]))
