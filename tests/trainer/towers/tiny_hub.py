"""Tiny model in the format of Universal Sentence Encoder Lite on TensorFlow Hub."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf import descriptor_pb2, message_factory

PIECES = ("<unk>", "<s>", "</s>", "▁a", "▁red", "▁blue", "▁dog", "▁car", "▁on", "▁sand", "s", "▁")
WIDTH = 16

_STRING, _BYTES, _FLOAT, _INT32, _ENUM, _MESSAGE, _BOOL = 9, 12, 2, 5, 5, 11, 8
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3


def sentence_piece_model() -> bytes:
    """Returns a SentencePiece model of whole words, with the required fields of sentencepiece_model.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="tiny_sentencepiece.proto", package="tiny", syntax="proto2")

    def message(name: str, *fields: tuple[str, int, int, str, bool]) -> None:
        found = file.message_type.add(name=name)
        for field, number, kind, type_name, repeated in fields:
            found.field.add(
                name=field, number=number, type=kind, type_name=type_name or None, label=3 if repeated else 1
            )

    message("Piece", ("piece", 1, _STRING, "", False), ("score", 2, _FLOAT, "", False), ("type", 3, _ENUM, "", False))
    message("Trainer", ("model_type", 3, _INT32, "", False), ("vocab_size", 4, _INT32, "", False))
    message(
        "Normalizer",
        ("name", 1, _STRING, "", False),
        ("precompiled_charsmap", 2, _BYTES, "", False),
        ("add_dummy_prefix", 3, _BOOL, "", False),
    )
    message(
        "Model",
        ("pieces", 1, _MESSAGE, ".tiny.Piece", True),
        ("trainer_spec", 2, _MESSAGE, ".tiny.Trainer", False),
        ("normalizer_spec", 3, _MESSAGE, ".tiny.Normalizer", False),
    )
    model = message_factory.GetMessages([file])["tiny.Model"]()
    for index, piece in enumerate(PIECES):
        kind = _UNKNOWN if index == 0 else _CONTROL if index < 3 else _NORMAL
        model.pieces.add(piece=piece, score=-float(index), type=kind)
    model.trainer_spec.model_type = 1  # unigram
    model.trainer_spec.vocab_size = len(PIECES)
    model.normalizer_spec.name = "identity"
    # A map without replacements: the size of its trie, the trie, and the replacements.
    model.normalizer_spec.precompiled_charsmap = struct.pack("<I", 1024) + bytes(1024) + b"\0"
    model.normalizer_spec.add_dummy_prefix = True
    data: bytes = model.SerializeToString()
    return data


def save_sentence_encoder(folder: Path) -> Path:
    """Saves a TensorFlow 1 Hub module that takes ids as a sparse tensor, with its SentencePiece model as an asset."""
    asset = folder.parent / "tiny_8k_spm.model"
    asset.write_bytes(sentence_piece_model())
    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        values = v1.placeholder(tf.int64, [None], "values")
        indices = v1.placeholder(tf.int64, [None, 2], "indices")
        dense_shape = v1.placeholder(tf.int64, [2], "dense_shape")
        table = np.random.default_rng(0).normal(size=(len(PIECES), WIDTH)).astype(np.float32)
        table[0] = 0.0
        variable = v1.get_variable("embeddings", initializer=table, use_resource=False)
        ids = tf.sparse.to_dense(tf.SparseTensor(indices, values, dense_shape))
        summed = tf.reduce_sum(tf.gather(variable, ids), 1)
        path = tf.constant(str(asset))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, path)
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def(
            {"values": values, "indices": indices, "dense_shape": dense_shape}, {"default": summed}
        )
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session, [], {"default": signature}, assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS)
        )
        builder.save()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder
