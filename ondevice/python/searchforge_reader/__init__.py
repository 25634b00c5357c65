"""Searches the files of a searchforge release, without TensorFlow or the TFLite Task Library."""

from searchforge_reader.errors import DamagedFile, ReaderError, UnsupportedFile
from searchforge_reader.index import Hit, Index
from searchforge_reader.preprocessing import Preprocessing
from searchforge_reader.tokenizer import Tokenizer, Tokens

__all__ = ["DamagedFile", "Hit", "Index", "Preprocessing", "ReaderError", "Tokenizer", "Tokens", "UnsupportedFile"]
