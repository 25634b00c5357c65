"""Objects in Google Cloud Storage as input: listed page by page, described, and read in ranges."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from google.api_core.exceptions import Forbidden, NotFound, RequestRangeNotSatisfiable, Unauthorized
from google.auth.exceptions import GoogleAuthError

from searchforge.errors import JobError, UsageError
from searchforge.storage.base import GCS_SCHEME
from searchforge.storage.gcs_client import ERRORS, RetryPolicy, gcs_client, split_uri

POLICY = RetryPolicy(timeout_seconds=(5.0, 30.0), retry_seconds=45.0)
"""Enough for a busy service, without waiting for minutes for each item when it cannot be reached."""


DECOMPRESSION_ERRORS = (gzip.BadGzipFile, zlib.error, EOFError)
"""Errors that reading a compressed object may raise if it is damaged."""

_GZIP = "gzip"
_MAX_DECOMPRESSED = 2**30
"""Size limit in bytes of a decompressed object for which the caller gives none."""


class BucketObject(NamedTuple):
    """An object in a bucket.

    Attributes:
      uri: URI of the form gs://bucket/name.
      size: Size in bytes.
      generation: Generation number of the object.
      content: Hash of the form `md5:<hex>`, empty for a composite object.
    """

    uri: str
    size: int
    generation: str
    content: str


def list_objects(prefix: str) -> Iterator[BucketObject]:
    """Yields the objects whose URI begins with `gs://bucket/prefix`, in lexicographic order.

    Raises:
      The same errors as `find_object`.
    """
    bucket, name = split_uri(prefix)
    fields = "items(name,size,generation,md5Hash),nextPageToken"
    for blob in gcs_client().list_blobs(bucket, prefix=name or None, fields=fields, **POLICY.options):
        if not blob.name.endswith("/"):  # placeholder of a folder
            yield _object(bucket, blob)


def find_object(uri: str) -> BucketObject | None:
    """Returns the object with exactly this URI, or None.

    Raises:
      ERRORS: The request failed.
      ValueError: The URI contains no bucket.
      UsageError: There are no credentials.
    """
    bucket, name = split_uri(uri)
    blob = gcs_client().bucket(bucket).get_blob(name, **POLICY.options) if name else None
    return _object(bucket, blob) if blob else None


def read_object(uri: str, start: int = 0, stop: int | None = None) -> bytes:
    """Returns the bytes from `start` up to `stop`, or fewer if the object ends earlier; by default all of them.

    An object that is stored with `Content-Encoding: gzip` is decompressed.

    Raises:
      The same errors as `find_object`; a missing object is NotFound, one of `ERRORS`.
      ValueError: The object is compressed and `start` is not 0.
    """
    bucket, name = split_uri(uri)
    blob = gcs_client().bucket(bucket).blob(name)
    try:  # raw, because the client would decompress without a limit
        end = None if stop is None else stop - 1
        data: bytes = blob.download_as_bytes(start=start, end=end, raw_download=True, **POLICY.options)
    except RequestRangeNotSatisfiable:  # the object ends before `start`
        return b""
    if blob.content_encoding == _GZIP and start:
        raise ValueError(
            f"{uri} is stored with Content-Encoding: gzip, so parts of it cannot be read; store it uncompressed"
        )
    if blob.content_encoding == _GZIP:
        data = _decompressed(data, stop or _MAX_DECOMPRESSED)
    return data if stop is None else data[: stop - start]


def open_object(uri: str, generation: str) -> BinaryIO:
    """Opens one generation of an object for sequential reading; reads raise one of `ERRORS`.

    An object that is stored with `Content-Encoding: gzip` is decompressed; reads then also raise DECOMPRESSION_ERRORS.
    """
    bucket, name = split_uri(uri)
    blob = gcs_client().bucket(bucket).blob(name, generation=int(generation) if generation else None)
    blob.reload(**POLICY.options)
    file: BinaryIO = blob.open("rb", chunk_size=POLICY.chunk_bytes, raw_download=True, **POLICY.options)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if blob.content_encoding == _GZIP else file


@contextmanager
def converted_errors(uri: str) -> Iterator[None]:
    """Converts errors of the service into messages for the user.

    Raises:
      UsageError: The bucket or object does not exist, or `uri` contains no bucket.
      JobError: Access is denied, or the service cannot be reached.
    """
    try:
        bucket = f"{GCS_SCHEME}{split_uri(uri)[0]}"
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


def _decompressed(data: bytes, limit: int) -> bytes:
    """Returns at most `limit` decompressed bytes; returns damaged or truncated data unchanged."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        found = stream.decompress(data, limit)
    except zlib.error:
        return data
    return found if stream.eof or len(found) == limit else data


def _object(bucket: str, blob: Any) -> BucketObject:
    md5 = f"md5:{base64.b64decode(blob.md5_hash).hex()}" if blob.md5_hash else ""
    return BucketObject(f"{GCS_SCHEME}{bucket}/{blob.name}", int(blob.size), str(blob.generation), md5)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)  # of a RetryError: the error of the last attempt
    return str(cause or error).splitlines()[0] if str(cause or error) else type(error).__name__
