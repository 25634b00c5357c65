"""Objects in Google Cloud Storage, as a corpus needs them: listed page by page, described, and read in ranges."""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import requests
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPIError,
    NotFound,
    RequestRangeNotSatisfiable,
    Unauthorized,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter

from searchforge.errors import JobError, UsageError
from searchforge.storage.base import GCS_SCHEME
from searchforge.storage.gcs import gcs_client

ERRORS = (GoogleAPIError, GoogleAuthError, InvalidResponse, DataCorruption, requests.RequestException, ConnectionError)
"""Whatever a request may end with after its retries."""

_TIMEOUT = (5, 30)
"""Seconds to connect, and between two packets."""

_RETRY_SECONDS = 45
"""A request is tried again for so long; enough for a busy service, and nobody waits for minutes for an absent one."""

_RETRY = DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)
_CONNECTIONS = 64
_CHUNK = 8 * 2**20
"""Bytes a request, where an object is read from its beginning to its end."""


class Object(NamedTuple):
    """One object: its URI, size in bytes, generation, and `md5:<hex>` (empty for a composite object)."""

    uri: str
    size: int
    generation: str
    content: str


def list_objects(prefix: str) -> Iterator[Object]:
    """Yields the objects whose URI begins with `gs://bucket/prefix`, in lexical order.

    Raises:
      as of `find_object`.
    """
    bucket, name = _split(prefix)
    fields = "items(name,size,generation,md5Hash),nextPageToken"
    for blob in _client().list_blobs(bucket, prefix=name or None, fields=fields, timeout=_TIMEOUT, retry=_RETRY):
        if not blob.name.endswith("/"):  # a folder's placeholder
            yield _object(bucket, blob)


def find_object(uri: str) -> Object | None:
    """Returns the object of exactly this URI, or None.

    Raises:
      one of `ERRORS`; ValueError: the URI names no bucket; UsageError: there are no credentials.
    """
    bucket, name = _split(uri)
    blob = _client().bucket(bucket).get_blob(name, timeout=_TIMEOUT, retry=_RETRY) if name else None
    return _object(bucket, blob) if blob else None


def read_object(uri: str, start: int, stop: int) -> bytes:
    """Returns the bytes from `start` up to `stop`, fewer where the object ends before.

    Raises:
      as of `find_object`; NotFound is one of `ERRORS`.
    """
    bucket, name = _split(uri)
    try:
        # Raw: an object stored with Content-Encoding gzip is not unpacked on its way.
        data: bytes = (
            _client()
            .bucket(bucket)
            .blob(name)
            .download_as_bytes(start=start, end=stop - 1, raw_download=True, timeout=_TIMEOUT, retry=_RETRY)
        )
    except RequestRangeNotSatisfiable:  # it ends before `start`
        return b""
    return data[: stop - start]


def open_object(uri: str, generation: str) -> BinaryIO:
    """Opens one generation of an object for reading in order; a read raises one of `ERRORS`."""
    bucket, name = _split(uri)
    blob = _client().bucket(bucket).blob(name, generation=int(generation) if generation else None)
    file: BinaryIO = blob.open("rb", chunk_size=_CHUNK, timeout=_TIMEOUT, retry=_RETRY, raw_download=True)
    return file


@contextmanager
def reports_errors(uri: str) -> Iterator[None]:
    """Turns what the service answers, or that it does not, into one message for the user.

    Raises:
      UsageError: there is no such bucket or object, or `uri` names none.
      JobError: it may not be used, or cannot be reached.
    """
    try:
        bucket = f"{GCS_SCHEME}{_split(uri)[0]}"
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        yield
    except NotFound:
        raise UsageError(f"{uri} does not exist, or bucket {bucket} does not; check the name") from None
    except (Forbidden, Unauthorized, GoogleAuthError) as error:
        raise JobError(
            f"{uri} may not be read ({_first_line(error)}); expected permission to list and read the objects of "
            f"{bucket} (roles/storage.objectViewer)"
        ) from None
    except ERRORS as error:
        raise JobError(
            f"{bucket} cannot be reached ({_first_line(error)}); check the network, then run again"
        ) from None


def _split(uri: str) -> tuple[str, str]:
    bucket, _, name = uri.removeprefix(GCS_SCHEME).partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket; expected gs://bucket/prefix")
    return bucket, name


def _object(bucket: str, blob: Any) -> Object:
    md5 = f"md5:{base64.b64decode(blob.md5_hash).hex()}" if blob.md5_hash else ""
    return Object(f"{GCS_SCHEME}{bucket}/{blob.name}", int(blob.size), str(blob.generation), md5)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)  # of a RetryError: what failed again and again
    return str(cause or error).splitlines()[0] if str(cause or error) else type(error).__name__


def _client() -> Any:
    return _process_client(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.lru_cache(maxsize=1)
def _process_client(process: int, host: str | None) -> Any:
    """One client a process: its connections are kept, and must not be shared with a forked process."""
    client = gcs_client()
    for scheme in ("https://", "http://"):  # by default ten connections are kept, and threads beyond that warn and wait
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return client
