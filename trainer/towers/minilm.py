"""MiniLM-L6, a BERT encoder with six layers (Devlin et al. 2018, arXiv:1810.04805; Wang et al. 2020, arXiv:2002.10957).

This is the default text tower, built from plain TensorFlow operations that convert to TensorFlow Lite builtins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_text as tf_text

from searchforge.errors import UsageError
from trainer.towers.layers import dense, embedding, gelu, layer_norm

_EPSILON = 1e-12  # for layer normalisation, as in the published configuration
_HEAD_SIZE = 32

_PUNCTUATION = r"[!-/]|[:-@]|[\[-`]|[{-~]|\p{P}"
_CJK = (
    r"[\x{4E00}-\x{9FFF}]|[\x{3400}-\x{4DBF}]|[\x{20000}-\x{2A6DF}]|[\x{2A700}-\x{2B73F}]"
    r"|[\x{2B740}-\x{2B81F}]|[\x{2B820}-\x{2CEAF}]|[\x{F900}-\x{FAFF}]|[\x{2F800}-\x{2FA1F}]"
)

Array = npt.NDArray[Any]


class MiniLM(tf.Module):
    """MiniLM without its pooler.

    Args:
      weights: Tensors by their names in the sentence-transformers package, with dense kernels as [out, in].
      layers: Number of layers to keep, starting with the first; all by default.

    Attributes:
      layers: Number of layers.

    Raises:
      UsageError: The weights have fewer layers.
    """

    def __init__(self, weights: Mapping[str, Array], layers: int | None = None) -> None:
        super().__init__(name="minilm")
        available = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
        self.layers = available if layers is None else layers
        if not 1 <= self.layers <= available:
            raise UsageError(f"{self.layers} layers were requested, expected 1 to {available}")
        self._weights: dict[str, tf.Variable] = {}
        for name, value in self._prepared(weights).items():
            self._weights[name] = tf.Variable(value, trainable=False, name=name)

    def _prepared(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Transposes dense kernels to [in, out], and joins those of query, key and value."""
        kept = {name: weights[name] for name in weights if name.startswith("embeddings.")}
        for index in range(self.layers):
            layer = f"encoder.layer.{index}"
            attention = f"{layer}.attention.self"
            for part, axis in (("weight", 1), ("bias", 0)):
                query, key, value = (weights[f"{attention}.{name}.{part}"].T for name in ("query", "key", "value"))
                # Scale the query by 1 / sqrt(head size) in advance.
                kept[f"{attention}.{part}"] = np.concatenate([query * _HEAD_SIZE**-0.5, key, value], axis)
            for name in ("attention.output.dense", "intermediate.dense", "output.dense"):
                kept[f"{layer}.{name}.weight"] = weights[f"{layer}.{name}.weight"].T
                kept[f"{layer}.{name}.bias"] = weights[f"{layer}.{name}.bias"]
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                kept |= {f"{layer}.{name}.{part}": weights[f"{layer}.{name}.{part}"] for part in ("weight", "bias")}
        return {name: np.ascontiguousarray(v, np.float32) for name, v in kept.items() if v.dtype == np.float32}

    def tunable_variables(self, last: int | None = None) -> dict[str, tf.Variable]:
        """Returns all weights by name, or those of the last layers."""
        if last is None:
            return dict(self._weights)
        if last > self.layers:
            raise UsageError(f"this MiniLM has {self.layers} layers, not {last}; choose fewer, or `full`")
        parts = tuple(f"encoder.layer.{index}." for index in range(self.layers - last, self.layers))
        return {name: variable for name, variable in self._weights.items() if name.startswith(parts)}

    def hidden_states(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> list[tf.Tensor]:
        """Returns the outputs of the embedding layer and of each encoder layer, float32 [n, length, 384] each.

        Args:
          ids, mask, segment_ids: int32 [n, length]; the mask is 1 for tokens and 0 for padding.
        """
        table = "embeddings.{}_embeddings.weight"
        x = embedding(self._weights[table.format("word")], ids)
        x += self._weights[table.format("position")][: tf.shape(ids)[1]]
        x += tf.gather(self._weights[table.format("token_type")], segment_ids)
        states = [self._layer_norm(x, "embeddings.LayerNorm")]
        # Attention logits of padding.
        bias = (1.0 - tf.cast(mask, tf.float32))[:, tf.newaxis, tf.newaxis, :] * -1e4
        for index in range(self.layers):
            states.append(self._layer(states[-1], bias, f"encoder.layer.{index}"))
        return states

    def _layer(self, x: tf.Tensor, bias: tf.Tensor, name: str) -> tf.Tensor:
        attended = self._dense(self._attention(x, bias, f"{name}.attention.self"), f"{name}.attention.output.dense")
        x = self._layer_norm(x + attended, f"{name}.attention.output.LayerNorm")
        hidden = gelu(self._dense(x, f"{name}.intermediate.dense"))
        return self._layer_norm(x + self._dense(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _attention(self, x: tf.Tensor, bias: tf.Tensor, name: str) -> tf.Tensor:
        length, width = tf.shape(x)[1], x.shape[-1]
        heads = width // _HEAD_SIZE
        joined = tf.reshape(self._dense(x, name), [-1, length, 3 * heads, _HEAD_SIZE])
        query, key, value = tf.split(tf.transpose(joined, [0, 2, 1, 3]), 3, 1)
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) + bias)
        return tf.reshape(tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3]), [-1, length, width])

    def _dense(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return dense(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _layer_norm(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], _EPSILON)


class BertTokenizer(tf.Module):
    """Tokenizes exactly as the Task Library does on the device: lower-cases ASCII, and keeps accents.

    Args:
      vocabulary: Path of vocab.txt, with one token per line.
    """

    def __init__(self, vocabulary: Path) -> None:
        super().__init__(name="bert_tokenizer")
        self.vocabulary = vocabulary
        tokens = vocabulary.read_text(encoding="utf-8").splitlines()
        self._cls, self._sep = tokens.index("[CLS]"), tokens.index("[SEP]")
        self._table = tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(tokens, tf.range(len(tokens), dtype=tf.int64)), num_oov_buckets=1
        )
        self._wordpiece = tf_text.WordpieceTokenizer(self._table, token_out_type=tf.int32)

    def __call__(self, texts: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns ids, mask and segment ids, each int32 [n, length].

        Args:
          texts: String [n], UTF-8.
          length: Number of tokens, including [CLS] and [SEP]; texts are truncated or padded with zeros.
        """
        # Unlike tf_text.BertTokenizer, the device keeps control characters.
        # tf.strings.lower with its default encoding affects only ASCII.
        words = tf_text.regex_split(
            tf.strings.lower(texts), rf"\s+|{_PUNCTUATION}|{_CJK}", keep_delim_regex_pattern=f"{_PUNCTUATION}|{_CJK}"
        )
        tokens = self._wordpiece.tokenize(words).merge_dims(1, 2)[:, : length - 2]
        ends = tf.ones([tf.shape(texts)[0], 1], tf.int32)
        framed = tf.concat([self._cls * ends, tokens, self._sep * ends], 1)
        ids = framed.to_tensor(shape=[None, length])
        mask = tf.sequence_mask(framed.row_lengths(), length, tf.int32)
        return ids, mask, tf.zeros_like(ids)
