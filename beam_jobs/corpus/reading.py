"""Reads items and whole files from local disk, gs://, or any file system that Beam supports.

Nothing is decompressed, whatever the name of the file, except objects that are stored with `Content-Encoding: gzip`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import NotFound

from beam_jobs.corpus.files import scheme_advice
from searchforge.image_decoding import RejectedInput
from searchforge.storage import buckets
from searchforge.storage.base import GCS_SCHEME

_BUFFER = 2**18

_INVALID_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def read_bytes(file: str, max_bytes: int, offset: int | None = None, size: int = -1) -> bytes:
    """Reads a file, or `size` bytes of it starting at `offset`.

    Args:
      max_bytes: Size limit; longer inputs are rejected, having read at most one byte more than this.
      offset: Offset of the range in bytes; None to read the whole file.

    Raises:
      RejectedInput: The file is `missing`, `not_a_file` (a folder, a pipe, a device), `unreadable` or `too_large`, or
        it ends before the range does (`truncated`).
      UsageError: There are no credentials for gs://.
    """
    if offset is not None and size > max_bytes:
        raise RejectedInput("too_large", f"{size} bytes, limit {max_bytes}")
    start, stop = (0, max_bytes + 1) if offset is None else (offset, offset + size)
    if "://" not in file:
        data = _read_local(file, start, stop)
    elif file.startswith(GCS_SCHEME):
        data = _read_object(file, start, stop)
    else:
        data = _read_with_beam(file, start, stop)
    if offset is None and len(data) > max_bytes:
        raise RejectedInput("too_large", f"more than {max_bytes} bytes")
    if offset is not None and len(data) < size:
        raise RejectedInput("truncated", f"{file} ends {size - len(data)} bytes before the item does")
    return data


@contextmanager
def open_file(file: str, version: str) -> Iterator[BinaryIO]:
    """Opens a file for sequential reading, in constant memory.

    Args:
      version: Version of the file as in `Item`; for an object in a bucket, the generation to read.

    Raises:
      RejectedInput: The file is `missing`, `not_a_file` or `unreadable`.
      UsageError, JobError: The bucket cannot be used.
    """
    if "://" not in file:
        with _open_local(file, _BUFFER) as local:
            try:
                yield local
            except OSError as error:
                raise _unreadable(error) from error
    elif file.startswith(GCS_SCHEME):
        with buckets.converted_errors(file):
            try:
                with buckets.open_object(file, version) as stream:
                    yield io.BufferedReader(stream, _BUFFER)  # type: ignore[type-var]
            except NotFound as error:
                raise RejectedInput("missing", str(error), may_pass=True) from error
            except buckets.DECOMPRESSION_ERRORS as error:
                raise RejectedInput("unreadable", f"{file}: {error}") from error
    else:
        with _open_with_beam(file) as other:
            yield other


def _unreadable(error: Exception) -> RejectedInput:
    """Returns the reject of an input whose reading raised `error`; it may pass unless the name itself is invalid."""
    invalid = isinstance(error, ValueError) or getattr(error, "errno", None) in _INVALID_NAME
    return RejectedInput("unreadable", str(error), may_pass=not invalid)


def _open_local(path: str, buffering: int) -> BinaryIO:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (opening a pipe or a device would block)
            raise RejectedInput("not_a_file", path)
        return open(path, "rb", buffering=buffering)  # noqa: PTH123 (constructing a Path doubles the cost)
    except (FileNotFoundError, NotADirectoryError):
        raise RejectedInput("missing", path, may_pass=True) from None
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL byte
        raise _unreadable(error) from error


def _read_local(path: str, start: int, stop: int) -> bytes:
    with _open_local(path, 0) as file:
        descriptor = file.fileno()
        try:
            stop = min(stop, os.fstat(descriptor).st_size)
            data = os.pread(descriptor, max(0, stop - start), start)
            # Linux returns at most 2 GiB per call.
            while len(data) < stop - start and (
                more := os.pread(descriptor, stop - start - len(data), start + len(data))
            ):
                data += more
        except OSError as error:
            raise _unreadable(error) from error
    return data


def _read_object(uri: str, start: int, stop: int) -> bytes:
    if start >= stop:
        return b""
    try:
        return buckets.read_object(uri, start, stop)
    except NotFound as error:
        raise RejectedInput("missing", str(error), may_pass=True) from error
    except (*buckets.ERRORS, ValueError) as error:  # ValueError: the URI has no bucket
        raise _unreadable(error) from error


def _read_with_beam(uri: str, start: int, stop: int) -> bytes:
    with _open_with_beam(uri) as file:
        try:
            file.seek(start)
            return file.read(stop - start)
        except (BeamIOError, OSError) as error:
            raise _unreadable(error) from error


def _open_with_beam(uri: str) -> BinaryIO:
    try:
        file: BinaryIO = FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED)
    except FileNotFoundError as error:
        raise RejectedInput("missing", str(error), may_pass=True) from error
    except (BeamIOError, OSError) as error:
        raise _unreadable(error) from error
    except ValueError as error:  # Beam does not know the scheme
        raise RejectedInput("unreadable", scheme_advice(uri)) from error
    return file
