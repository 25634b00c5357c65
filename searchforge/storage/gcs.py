"""Storage in Google Cloud Storage. Every request has a timeout and is retried with exponential back-off.

A retried request may have succeeded before its response was lost, so every request is idempotent: immutable objects are
written with the same content, and a replacement carries a token by which its writer recognises it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    NotFound,
    PreconditionFailed,
    RequestRangeNotSatisfiable,
    Unauthorized,
)
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from requests import RequestException

from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.storage.base import GCS_SCHEME, FolderSnapshot, ObjectInfo, Storage, check_path
from searchforge.storage.gcs_client import ERRORS, RetryPolicy, crc32c, crc32c_file, gcs_client, reason, split_uri

Method = TypeVar("Method", bound=Callable[..., Any])

ATTEMPTS = 3
"""Attempts of a whole call, for responses that break off or are damaged and for lost upload sessions."""

_CLOCKS = 256
"""Number of objects that `now` writes in turn, since GCS allows about one write a second for each object."""

_TOKEN = "writer"


class _RetryableError(Exception):
    """A failure after which the whole call starts again."""


_RETRYABLE = (_RetryableError, DataCorruption, RequestException, ConnectionError)


def _retried(method: Method) -> Method:
    """Restarts a call after retryable failures, and raises a JobError for the others."""

    @functools.wraps(method)
    def wrapper(self: GcsStorage, *arguments: Any, **options: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return method(self, *arguments, **options)
            except (_RetryableError, *ERRORS) as error:
                if attempt == ATTEMPTS or not isinstance(error, _RETRYABLE):
                    path = next((argument for argument in arguments if isinstance(argument, str)), "")
                    raise JobError(_explain(f"{self.root}/{path}".rstrip("/"), error)) from error
                time.sleep(self.policy.first_delay_seconds * 2 ** (attempt - 1))

    return wrapper  # type: ignore[return-value]


def _explain(url: str, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, _RetryableError) and error.__cause__ else error
    if isinstance(cause, (Forbidden, Unauthorized)):
        advice = "the account needs the role roles/storage.objectUser on the bucket"
    elif isinstance(cause, NotFound):
        advice = "check the bucket's name and your permissions"
    else:
        advice = "all retries failed; check the network and try again later"
    return f"{url} cannot be used ({reason(error)}); {advice}"


class GcsStorage(Storage):
    """Objects under gs://bucket/prefix. `STORAGE_EMULATOR_HOST` is honoured, without credentials.

    Args:
      root: URI of the form gs://bucket/prefix.
      policy: Timeouts and retries of every request.

    Raises:
      UsageError: `root` contains no bucket, or there are no credentials.
    """

    def __init__(self, root: str, policy: RetryPolicy | None = None) -> None:
        self.policy = policy or RetryPolicy()
        try:
            bucket, prefix = split_uri(GCS_SCHEME + root.removeprefix(GCS_SCHEME).strip("/"))
        except ValueError:
            raise UsageError(f"storage {root!r} names no bucket; expected gs://bucket/prefix") from None
        self.root = f"{GCS_SCHEME}{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = gcs_client().bucket(bucket)
        self._clock = itertools.count(secrets.randbelow(_CLOCKS))  # other processes start with another object

    @_retried
    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        if size is None and not offset:
            return self._read_whole(path)[0]
        if size == 0:
            return b""
        end = None if size is None else offset + size - 1
        try:  # GCS has checksums of whole objects only
            data: bytes = self._blob(path).download_as_bytes(
                start=offset, end=end, checksum=None, **self.policy.options
            )
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        except RequestRangeNotSatisfiable:
            return b""
        return data

    @_retried
    def write(self, path: str, data: bytes) -> None:
        blob = self._blob(path)
        blob.upload_from_string(data, content_type=_content_type(path), checksum="crc32c", **self.policy.options)

    @_retried
    def exists(self, path: str) -> bool:
        return bool(self._blob(path).exists(**self.policy.options))

    @_retried
    def list_folders(self, folder: str) -> list[str]:
        prefix = self._folder(folder)
        listing = self._list(prefix, delimiter="/")
        for _ in listing:  # the prefixes are complete after the last page
            pass
        return sorted(name.removeprefix(prefix).rstrip("/") for name in listing.prefixes)

    @_retried
    def list_files(self, folder: str) -> list[str]:
        prefix = self._folder(folder)
        return sorted(blob.name.removeprefix(prefix) for blob in self._list(prefix, delimiter="/"))

    @_retried
    def snapshot(self, folder: str) -> contextlib.AbstractContextManager[FolderSnapshot]:
        prefix = self._folder(folder)
        blobs = {blob.name.removeprefix(prefix): blob for blob in self._list(prefix)}
        return contextlib.nullcontext(GcsSnapshot(self, folder, blobs))

    @_retried
    def delete(self, path: str, version: str | None = None) -> None:
        self._delete(self._blob(path), version)

    @_retried
    def upload(self, local: Path, path: str) -> None:

        checksum = crc32c_file(local)
        blob = self._blob(path)
        blob.chunk_size = self.policy.chunk_bytes
        try:
            blob.upload_from_filename(
                str(local), content_type=_content_type(path), checksum="crc32c", **self.policy.options
            )
        except (Forbidden, Unauthorized):
            raise
        except (GoogleAPICallError, InvalidResponse) as error:  # the server lost the upload session
            raise _RetryableError(str(error)) from error
        if blob.crc32c != checksum:
            raise _RetryableError(f"CRC32C is {blob.crc32c} after the upload; expected {checksum} as in {local}")

    @_retried
    def download_folder(self, folder: str, local: Path) -> None:
        prefix = self._folder(folder)
        for blob in self._list(prefix):
            target = local / check_path(blob.name.removeprefix(prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(target), checksum="crc32c", **self.policy.options)
            if crc32c_file(target) != blob.crc32c:  # the client does not verify resumed downloads
                raise _RetryableError(f"{blob.name} was changed or damaged during the download")

    @_retried
    def read_version(self, path: str) -> tuple[bytes | None, str]:
        try:
            return self._read_whole(path)
        except FileNotFoundError:
            return None, "0"  # generation 0 matches only a nonexistent object

    def replace(self, path: str, data: bytes, version: str) -> None:
        self._replace(path, data, version, secrets.token_hex(8))

    @_retried
    def _replace(self, path: str, data: bytes, version: str, token: str) -> None:
        blob = self._blob(path)
        blob.cache_control = "no-cache"
        blob.metadata = {_TOKEN: token}
        try:
            blob.upload_from_string(
                data,
                content_type=_content_type(path),
                if_generation_match=int(version),
                checksum="crc32c",
                **self.policy.options,
            )
        except PreconditionFailed as error:
            if not self._has_token(path, token):
                raise ConflictError(
                    f"{self.root}/{path} was replaced by another writer; read it again and retry"
                ) from error
        except Exception:
            with contextlib.suppress(Exception):  # report the first failure
                if self._has_token(path, token):
                    return
            raise

    @_retried
    def modified(self, path: str) -> datetime:
        blob = self._blob(path)
        try:
            blob.reload(**self.policy.options)
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        updated: datetime = blob.updated
        return updated

    @_retried
    def now(self) -> datetime:
        blob = self._blob(f".clocks/{next(self._clock) % _CLOCKS}")
        blob.upload_from_string(b"", checksum="crc32c", **self.policy.options)
        updated: datetime = blob.updated
        return updated

    @_retried
    def delete_snapshot(self, folder: str, blobs: dict[str, Any], first: str) -> None:
        """Deletes the objects that are still at their listed generation."""
        for name in sorted(blobs, key=lambda name: (name != first, name)):
            self._delete(blobs[name], str(blobs[name].generation))

    def _delete(self, blob: Any, version: str | None) -> None:
        with contextlib.suppress(NotFound, PreconditionFailed):
            blob.delete(if_generation_match=None if version is None else int(version), **self.policy.options)

    def _read_whole(self, path: str) -> tuple[bytes, str]:
        """Returns an object's verified content and its generation."""
        blob = self._blob(path)
        try:
            data = blob.download_as_bytes(checksum="crc32c", **self.policy.options)
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        # The client does not verify resumed downloads. A checksum is that of the stored bytes, which may be compressed.
        if not blob.content_encoding and crc32c(data) != blob.crc32c:
            raise _RetryableError("the download was damaged")
        return data, str(blob.generation)

    def _has_token(self, path: str, token: str) -> bool:
        """Returns whether the object was written with this token."""
        blob = self._blob(path)
        try:
            blob.reload(**self.policy.options)
        except NotFound:
            return False
        return bool((blob.metadata or {}).get(_TOKEN) == token)

    def _list(self, prefix: str, **options: Any) -> Any:
        return self._bucket.client.list_blobs(self._bucket, prefix=prefix, **options, **self.policy.options)

    def _folder(self, folder: str) -> str:
        return f"{self._prefix}{check_path(folder)}/"

    def _blob(self, path: str) -> Any:
        return self._bucket.blob(self._prefix + check_path(path))


class GcsSnapshot(FolderSnapshot):
    """Objects at their listed generations."""

    def __init__(self, storage: GcsStorage, folder: str, blobs: dict[str, Any]) -> None:
        self._storage, self._folder, self._blobs = storage, folder, blobs
        self.objects = {name: ObjectInfo(blob.size, blob.updated) for name, blob in blobs.items()}

    def delete(self, first: str = "") -> None:
        self._storage.delete_snapshot(self._folder, self._blobs, first)


def _content_type(path: str) -> str:
    return "application/json" if path.endswith(".json") else "application/octet-stream"
