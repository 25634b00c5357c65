"""Loads text towers that take the token ids of a SentencePiece model, such as Universal Sentence Encoder Lite.

Such a model (https://tfhub.dev/google/universal-sentence-encoder-lite/2) has TensorFlow 1's format. Its signature
`default` takes a batch of token ids as the parts of a sparse tensor (`values` [k], `indices` [k, 2], `dense_shape` [2],
int64), and its assets contain the SentencePiece model. The tower includes the tokenizer, so the exported text encoder
takes one string; the Task Library supports this (custom operation TFSentencepieceTokenizeOp).
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from searchforge.errors import UsageError
from trainer.towers.base import TextTower

_SIGNATURE = "default"
_INPUTS = ("values", "indices", "dense_shape")


def takes_token_ids(folder: Path) -> bool:
    """Returns whether a SavedModel takes token ids as the parts of a sparse tensor."""
    meta = _meta_graph(folder)
    return meta is not None and set(meta.signature_def[_SIGNATURE].inputs) == set(_INPUTS)


class SentencePieceTower(TextTower):
    """A text tower that combines a SentencePiece tokenizer with a frozen TensorFlow 1 model.

    Args:
      folder: Folder of the SavedModel.
      fingerprint: Hash of its files.

    Raises:
      UsageError: The folder has no valid SentencePiece model.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        super().__init__(name="text_tower")
        from tensorflow_text.python.ops.fast_sentencepiece_tokenizer import FastSentencepieceTokenizer

        self.fingerprint = fingerprint
        asset = _asset(folder)
        try:
            self._tokenizer = FastSentencepieceTokenizer(asset.read_bytes())  # the one with a TFLite operation
        except Exception as error:  # native code raises many types
            raise UsageError(f"{asset} is not a SentencePiece model ({error})") from error
        self._encode = _frozen(folder)
        self.width = int(self(tf.constant(["text"])).shape[-1])

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        tokens = self._tokenizer.tokenize(texts)
        ids = tf.cast(tokens.flat_values, tf.int64)
        if texts.shape[0] == 1:  # as on the device, which supports few operations on ragged tensors
            columns = tf.range(tf.shape(ids, tf.int64)[0])
            indices = tf.stack([tf.zeros_like(columns), columns], 1)
            shape = tf.stack([tf.constant(1, tf.int64), tf.shape(ids, tf.int64)[0]])
        else:
            sparse = tokens.to_sparse()
            indices, shape = sparse.indices, sparse.dense_shape
        return tf.cast(self._encode(ids, indices, shape), tf.float32)


def _meta_graph(folder: Path) -> tf.compat.v1.MetaGraphDef | None:
    from tensorflow.python.saved_model import loader_impl

    try:
        return loader_impl.parse_saved_model(str(folder)).meta_graphs[0]
    except (OSError, IndexError):
        return None


def _asset(folder: Path) -> Path:
    files = sorted(path for path in (folder / "assets").glob("*") if path.is_file())
    models = [path for path in files if path.suffix == ".model"] or files
    if len(models) != 1:
        raise UsageError(
            f"{folder}/assets has {len(models)} candidates for the SentencePiece model, expected one *.model file"
        )
    return models[0]


def _frozen(folder: Path) -> tf.types.experimental.ConcreteFunction:
    """Returns a function of `_INPUTS` without variables, because those of TensorFlow 1 do not convert to TFLite."""
    meta = _meta_graph(folder)
    assert meta is not None
    graph = tf.Graph()
    logger, level = tf.get_logger(), tf.get_logger().level
    logger.setLevel("ERROR")  # silences deprecation warnings of TensorFlow 1's format
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        loaded = tf.compat.v1.saved_model.load(session, list(meta.meta_info_def.tags), str(folder))
        signature = loaded.signature_def[_SIGNATURE]
        inputs = [signature.inputs[name].name for name in _INPUTS]
        output = signature.outputs["default" if "default" in signature.outputs else next(iter(signature.outputs))].name
        definition = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), [output.partition(":")[0]]
        )
    logger.setLevel(level)
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(definition, name=""), [])
    return imported.prune(
        [imported.graph.get_tensor_by_name(name) for name in inputs], imported.graph.get_tensor_by_name(output)
    )
