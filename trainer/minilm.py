"""MiniLM-L6: a BERT encoder of six layers (Devlin et al. 2018, arXiv:1810.04805; Wang et al. 2020, arXiv:2002.10957).

The text tower of the default encoders, in plain TensorFlow operations that convert to TensorFlow Lite builtins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_text as tf_text

from trainer.layers import dense

_EPSILON = 1e-12  # of layer normalisation, as in the published configuration
_HEAD_SIZE = 32

_PUNCTUATION = r"[!-/]|[:-@]|[\[-`]|[{-~]|\p{P}"
_CJK = (
    r"[\x{4E00}-\x{9FFF}]|[\x{3400}-\x{4DBF}]|[\x{20000}-\x{2A6DF}]|[\x{2A700}-\x{2B73F}]"
    r"|[\x{2B740}-\x{2B81F}]|[\x{2B820}-\x{2CEAF}]|[\x{F900}-\x{FAFF}]|[\x{2F800}-\x{2FA1F}]"
)

Array = npt.NDArray[Any]


class MiniLM(tf.Module):
    """The encoder without its pooler.

    Args:
      weights: tensors by their names in the sentence-transformers package, dense kernels as [out, in].
    """

    def __init__(self, weights: Mapping[str, Array]) -> None:
        super().__init__(name="minilm")
        self.layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
        self._weights: dict[str, tf.Variable] = {}
        for name, value in weights.items():
            if name.startswith("pooler.") or value.dtype != np.float32:
                continue
            if name.startswith("encoder.") and value.ndim == 2:
                value = np.ascontiguousarray(value.T)
            self._weights[name] = tf.Variable(value, trainable=False, name=name)

    def hidden_states(self, ids: tf.Tensor, mask: tf.Tensor, segment_ids: tf.Tensor) -> list[tf.Tensor]:
        """Returns the embedding layer's output and every layer's, each float32 [n, length, 384].

        Args:
          ids, mask, segment_ids: int32 [n, length]; the mask is 1 for tokens and 0 for padding.
        """
        embeddings = "embeddings.{}_embeddings.weight"
        x = tf.gather(self._weights[embeddings.format("word")], ids)
        x += self._weights[embeddings.format("position")][: tf.shape(ids)[1]]
        x += tf.gather(self._weights[embeddings.format("token_type")], segment_ids)
        states = [self._layer_norm(x, "embeddings.LayerNorm")]
        # Added to attention logits: padding must not be attended to.
        bias = (1.0 - tf.cast(mask, tf.float32))[:, tf.newaxis, tf.newaxis, :] * -1e4
        for index in range(self.layers):
            states.append(self._layer(states[-1], bias, f"encoder.layer.{index}"))
        return states

    def _layer(self, x: tf.Tensor, bias: tf.Tensor, name: str) -> tf.Tensor:
        attended = self._dense(self._attention(x, bias, f"{name}.attention.self"), f"{name}.attention.output.dense")
        x = self._layer_norm(x + attended, f"{name}.attention.output.LayerNorm")
        hidden = tf.nn.gelu(self._dense(x, f"{name}.intermediate.dense"))
        return self._layer_norm(x + self._dense(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _attention(self, x: tf.Tensor, bias: tf.Tensor, name: str) -> tf.Tensor:
        length, width = tf.shape(x)[1], x.shape[-1]
        shape = [-1, length, width // _HEAD_SIZE, _HEAD_SIZE]
        query, key, value = (
            tf.transpose(tf.reshape(self._dense(x, f"{name}.{part}"), shape), [0, 2, 1, 3])
            for part in ("query", "key", "value")
        )
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) * _HEAD_SIZE**-0.5 + bias)
        return tf.reshape(tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3]), [-1, length, width])

    def _dense(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return dense(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _layer_norm(self, x: tf.Tensor, name: str) -> tf.Tensor:
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
        scaled = centred * tf.math.rsqrt(variance + _EPSILON)
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


class BertTokenizer(tf.Module):
    """Tokenizes as the Task Library does on the device: ASCII is lower-cased, accents stay as they are.

    Args:
      vocabulary: vocab.txt, one token a line.
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
          texts: string [n], UTF-8.
          length: tokens including [CLS] and [SEP]; longer texts are cut, shorter ones padded with zeros.
        """
        # Unlike tf_text.BertTokenizer, the device leaves control characters in their words.
        # tf.strings.lower in its default encoding touches ASCII only.
        words = tf_text.regex_split(
            tf.strings.lower(texts), rf"\s+|{_PUNCTUATION}|{_CJK}", keep_delim_regex_pattern=f"{_PUNCTUATION}|{_CJK}"
        )
        tokens = self._wordpiece.tokenize(words).merge_dims(1, 2)[:, : length - 2]
        ends = tf.ones([tf.shape(texts)[0], 1], tf.int32)
        framed = tf.concat([self._cls * ends, tokens, self._sep * ends], 1)
        ids = framed.to_tensor(shape=[None, length])
        mask = tf.sequence_mask(framed.row_lengths(), length, tf.int32)
        return ids, mask, tf.zeros_like(ids)
