"""Tokenizes texts as the TFLite Task Library does."""

from __future__ import annotations

import ctypes
import weakref
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from searchforge_reader.library import check, load


class Tokens(NamedTuple):
    """Input tensors of a text encoder, [length] int32 each.

    Attributes:
      ids: Token ids.
      mask: 1 for the tokens of the text, 0 for padding.
      segment_ids: 0 everywhere.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.int32]
    segment_ids: npt.NDArray[np.int32]


class Tokenizer:
    """A tokenizer; several threads may share it."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle
        weakref.finalize(self, load().sf_close_tokenizer, handle)

    @classmethod
    def bert(cls, vocabulary: bytes) -> Tokenizer:
        """Returns the BertTokenizer of a vocabulary, one word a line.

        Raises:
          UnsupportedFile: The vocabulary is too large.
        """
        handle = ctypes.c_void_p()
        check(load().sf_open_bert_tokenizer(vocabulary, len(vocabulary), ctypes.byref(handle)))
        return cls(handle)

    @classmethod
    def regex(cls, pattern: str, vocabulary: bytes) -> Tokenizer:
        """Returns the RegexTokenizer of a pattern for what is between tokens, and a vocabulary of words with their ids.

        Raises:
          ValueError: The pattern is not a regular expression.
          UnsupportedFile: The pattern has assertions, flags, Unicode classes, or may match the empty string.
          DamagedFile: A line of the vocabulary is not a word and a number, or <PAD> or <UNKNOWN> is missing.
        """
        handle = ctypes.c_void_p()
        check(load().sf_open_regex_tokenizer(pattern.encode(), vocabulary, len(vocabulary), ctypes.byref(handle)))
        return cls(handle)

    def tokenize(self, text: str | bytes, length: int) -> Tokens:
        """Tokenizes a text.

        Args:
          text: The text; of bytes, those that are not UTF-8 belong to no known word.
          length: Length of the tensors; tokens that do not fit are cut off.

        Raises:
          ValueError: The tensors are too short for any text.
        """
        data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        tensors = Tokens(*(np.empty(length, np.int32) for _ in range(3)))
        pointers = (tensor.ctypes.data for tensor in tensors)
        used = ctypes.c_size_t()
        check(load().sf_tokenize(self._handle, data, len(data), length, *pointers, ctypes.byref(used)))
        return tensors
