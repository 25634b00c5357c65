"""Loads the reader's shared library and declares its functions (ondevice/cpp/searchforge_reader.h)."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from searchforge_reader.errors import DamagedFile, ReaderError, UnsupportedFile

_NAME = "libsearchforge_reader.so"
_VARIABLE = "SEARCHFORGE_READER_LIBRARY"
"""Environment variable with the path of another library to load."""

_OK, _INVALID_ARGUMENT, _DAMAGED, _UNSUPPORTED, _IO, _OUT_OF_MEMORY = range(6)


class Shape(ctypes.Structure):
    """`sf_shape`."""

    _fields_ = (
        ("items", ctypes.c_uint32),
        ("dim", ctypes.c_uint32),
        ("partitions", ctypes.c_uint32),
        ("partitions_searched", ctypes.c_uint32),
        ("code_bytes", ctypes.c_uint32),
        ("lookup_type", ctypes.c_uint32),
    )


class RawPreprocessing(ctypes.Structure):
    """`sf_preprocessing`."""

    _fields_ = (
        ("height", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("filter", ctypes.c_uint32),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
    )


class RawHit(ctypes.Structure):
    """`sf_hit`."""

    _fields_ = (("score", ctypes.c_float), ("item", ctypes.c_uint32))


@functools.cache
def load() -> ctypes.CDLL:
    """Returns the library: the one that the environment names, the package's own, or the one built in this checkout.

    Raises:
      ReaderError: There is none, or it is of another version.
    """
    here = Path(__file__).parent
    places = [here / _NAME, here.parent.parent / "build" / _NAME]
    if named := os.environ.get(_VARIABLE):
        places = [Path(named)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ReaderError(f"no reader at {' or '.join(map(str, places))}; build it with `make ondevice`")
    return _declared(ctypes.CDLL(str(path)))


def check(status: int) -> None:
    """Raises the error of a call that did not return SF_OK."""
    if status == _OK:
        return
    message = load().sf_error_message().decode(errors="replace")
    if status == _INVALID_ARGUMENT:
        raise ValueError(message)
    if status == _IO:
        raise OSError(message)
    if status == _OUT_OF_MEMORY:
        raise MemoryError(message)
    raise {_DAMAGED: DamagedFile, _UNSUPPORTED: UnsupportedFile}.get(status, ReaderError)(message)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    index, size, size_pointer = ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)
    image = (ctypes.POINTER(RawPreprocessing), ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, size, ctypes.c_void_p)
    signatures = {
        "sf_error_message": (ctypes.c_char_p, ()),
        "sf_open_path": (ctypes.c_int, (ctypes.c_char_p, ctypes.POINTER(index))),
        "sf_open_memory": (ctypes.c_int, (ctypes.c_char_p, size, ctypes.POINTER(index))),
        "sf_close": (None, (index,)),
        "sf_get_shape": (Shape, (index,)),
        "sf_user_info": (ctypes.c_void_p, (index, size_pointer)),
        "sf_search": (
            ctypes.c_int,
            (index, ctypes.c_void_p, size, size, ctypes.c_uint32, ctypes.POINTER(RawHit), size_pointer),
        ),
        "sf_metadata": (ctypes.c_int, (index, ctypes.c_uint32, ctypes.c_void_p, size, size_pointer)),
        "sf_verify": (ctypes.c_int, (index,)),
        "sf_file_count": (size, (index,)),
        "sf_file_name": (ctypes.c_char_p, (index, size, ctypes.POINTER(ctypes.c_uint64))),
        "sf_open_tokenizer": (ctypes.c_int, (index, ctypes.POINTER(ctypes.c_void_p))),
        "sf_open_bert_tokenizer": (ctypes.c_int, (ctypes.c_char_p, size, ctypes.POINTER(ctypes.c_void_p))),
        "sf_open_regex_tokenizer": (
            ctypes.c_int,
            (ctypes.c_char_p, ctypes.c_char_p, size, ctypes.POINTER(ctypes.c_void_p)),
        ),
        "sf_close_tokenizer": (None, (ctypes.c_void_p,)),
        "sf_tokenize": (
            ctypes.c_int,
            (ctypes.c_void_p, ctypes.c_char_p, size, size, *[ctypes.c_void_p] * 3, size_pointer),
        ),
        "sf_parse_preprocessing": (ctypes.c_int, (ctypes.c_char_p, ctypes.POINTER(RawPreprocessing))),
        "sf_resize_image": (ctypes.c_int, image),
        "sf_preprocess_image": (ctypes.c_int, image),
        "sf_read_file": (ctypes.c_int, (index, size, ctypes.c_uint64, size, ctypes.c_void_p)),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise ReaderError(
                f"{library._name} has no {name}, so it is of another version than this package; build it again"
            ) from None
        function.restype, function.argtypes = result, arguments
    return library
