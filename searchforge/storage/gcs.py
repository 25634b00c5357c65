"""Storage in Google Cloud Storage. Every call has a timeout, and is tried again with back-off where that helps.

A retried request may have been carried out before its answer was lost, so each is safe to repeat: writes of immutable
objects give the same object, and a replacement carries a token by which it recognises itself.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.storage.base import GCS_SCHEME, Object, Snapshot, Storage, check_path

Method = TypeVar("Method", bound=Callable[..., Any])

ATTEMPTS = 3
"""At a call as a whole: an answer may break off or be damaged, and the server may lose the session of an upload."""

_CLOCK = ".clock"

_TOKEN = "writer"


@dataclass(frozen=True)
class RetryPolicy:
    """How long requests may take, and how they are tried again.

    Attributes:
      timeout_seconds: to connect, and between two bytes of an answer.
      retry_seconds: for how long a request is tried again.
      first_delay_seconds: before the second try, on average half of it; doubled for each further one.
      chunk_bytes: of an upload: after a failure it goes on at the last whole chunk.
    """

    timeout_seconds: tuple[float, float] = (10.0, 60.0)
    retry_seconds: float = 180.0
    first_delay_seconds: float = 1.0
    chunk_bytes: int = 8 << 20


class _AgainError(Exception):
    """A call that has to begin anew."""


def _persists(method: Method) -> Method:
    """Begins a call anew where that may help, and turns what the service answers into an error for the user."""

    @functools.wraps(method)
    def wrapper(self: GcsStorage, *arguments: Any, **options: Any) -> Any:
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests import RequestException

        again = (_AgainError, DataCorruption, RequestException, ConnectionError)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return method(self, *arguments, **options)
            except (*again, GoogleAPIError, GoogleAuthError, InvalidResponse) as error:
                if attempt == ATTEMPTS or not isinstance(error, again):
                    path = next((argument for argument in arguments if isinstance(argument, str)), "")
                    raise JobError(_explain(f"{self.root}/{path}".rstrip("/"), error)) from error
                time.sleep(self.policy.first_delay_seconds * 2 ** (attempt - 1))

    return wrapper  # type: ignore[return-value]


def _explain(url: str, error: Exception) -> str:
    from google.api_core.exceptions import Forbidden, NotFound, Unauthorized

    cause = error.__cause__ if isinstance(error, _AgainError) and error.__cause__ else error
    if isinstance(cause, (Forbidden, Unauthorized)):
        advice = "the account needs the role roles/storage.objectAdmin on the bucket"
    elif isinstance(cause, NotFound):
        advice = "check the bucket's name and your permissions"
    else:
        advice = "it was tried again for a while; check the network and try later"
    reason = str(error).strip().partition("\n")[0]  # what follows is the service's own page
    return f"{url} cannot be used ({reason}); {advice}"


class GcsStorage(Storage):
    """Objects under gs://bucket/prefix. `STORAGE_EMULATOR_HOST` is honoured, without credentials.

    Args:
      root: gs://bucket/prefix.
      policy: of every request.

    Raises:
      UsageError: `root` names no bucket, or there are no credentials.
    """

    def __init__(self, root: str, policy: RetryPolicy | None = None) -> None:
        self.policy = policy or RetryPolicy()
        bucket, _, prefix = root.removeprefix(GCS_SCHEME).strip("/").partition("/")
        if not bucket:
            raise UsageError(f"storage {root!r} names no bucket; expected gs://bucket/prefix")
        self.root = f"{GCS_SCHEME}{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = gcs_client().bucket(bucket)

    @_persists
    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        if size is None and not offset:
            return self._read_whole(path)[0]
        if size == 0:
            return b""
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        end = None if size is None else offset + size - 1
        try:  # the service knows the checksum of the whole only
            data: bytes = self._blob(path).download_as_bytes(start=offset, end=end, checksum=None, **self._patiently())
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        except RequestRangeNotSatisfiable:
            return b""
        return data

    @_persists
    def write(self, path: str, data: bytes) -> None:
        blob = self._blob(path)
        blob.upload_from_string(data, content_type=_content_type(path), checksum="crc32c", **self._patiently())

    @_persists
    def exists(self, path: str) -> bool:
        return bool(self._blob(path).exists(**self._patiently()))

    @_persists
    def names(self, folder: str) -> list[str]:
        prefix = self._folder(folder)
        listing = self._list(prefix, delimiter="/")
        for _ in listing:  # prefixes are complete once every page was read
            pass
        return sorted(name.removeprefix(prefix).rstrip("/") for name in listing.prefixes)

    @_persists
    def files(self, folder: str) -> list[str]:
        prefix = self._folder(folder)
        return sorted(blob.name.removeprefix(prefix) for blob in self._list(prefix, delimiter="/"))

    @_persists
    def snapshot(self, folder: str) -> contextlib.AbstractContextManager[Snapshot]:
        prefix = self._folder(folder)
        blobs = {blob.name.removeprefix(prefix): blob for blob in self._list(prefix)}
        return contextlib.nullcontext(GcsSnapshot(self, folder, blobs))

    @_persists
    def delete(self, path: str, version: str | None = None) -> None:
        self._delete(self._blob(path), version)

    @_persists
    def upload(self, local: Path, path: str) -> None:
        from google.api_core.exceptions import Forbidden, GoogleAPICallError, Unauthorized
        from google.cloud.storage.exceptions import InvalidResponse

        checksum = crc32c_file(local)
        blob = self._blob(path)
        blob.chunk_size = self.policy.chunk_bytes
        try:
            blob.upload_from_filename(
                str(local), content_type=_content_type(path), checksum="crc32c", **self._patiently()
            )
        except (Forbidden, Unauthorized):
            raise
        except (GoogleAPICallError, InvalidResponse) as error:  # the server has lost the session
            raise _AgainError(str(error)) from error
        if blob.crc32c != checksum:
            raise _AgainError(f"it has CRC32C {blob.crc32c} after the upload, and {local} {checksum}")

    @_persists
    def download_folder(self, folder: str, local: Path) -> None:
        prefix = self._folder(folder)
        for blob in self._list(prefix):
            target = local / check_path(blob.name.removeprefix(prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(target), checksum="crc32c", **self._patiently())
            if crc32c_file(target) != blob.crc32c:  # a download that was resumed is not verified by the client
                raise _AgainError(f"{blob.name} was changed or damaged while it was copied")

    @_persists
    def read_version(self, path: str) -> tuple[bytes | None, str]:
        try:
            return self._read_whole(path)
        except FileNotFoundError:
            return None, "0"  # GCS: generation 0 matches only an absent object

    def replace(self, path: str, data: bytes, version: str) -> None:
        self._replace(path, data, version, secrets.token_hex(8))

    @_persists
    def _replace(self, path: str, data: bytes, version: str, token: str) -> None:
        from google.api_core.exceptions import PreconditionFailed

        blob = self._blob(path)
        blob.cache_control = "no-cache"
        blob.metadata = {_TOKEN: token}
        try:
            blob.upload_from_string(
                data,
                content_type=_content_type(path),
                if_generation_match=int(version),
                checksum="crc32c",
                **self._patiently(),
            )
        except PreconditionFailed as error:
            if not self._is_ours(path, token):
                raise ConflictError(
                    f"{self.root}/{path} was replaced by another writer; read it again and decide anew"
                ) from error
        except Exception:
            with contextlib.suppress(Exception):  # the first failure is the one to tell
                if self._is_ours(path, token):
                    return
            raise

    @_persists
    def modified(self, path: str) -> datetime:
        from google.api_core.exceptions import NotFound

        blob = self._blob(path)
        try:
            blob.reload(**self._patiently())
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        updated: datetime = blob.updated
        return updated

    @_persists
    def now(self) -> datetime:
        blob = self._blob(_CLOCK)
        blob.upload_from_string(b"", checksum="crc32c", **self._patiently())
        updated: datetime = blob.updated
        return updated

    @_persists
    def delete_snapshot(self, folder: str, blobs: dict[str, Any], first: str) -> None:
        """Deletes objects that are still at the generation at which they were listed."""
        for name in sorted(blobs, key=lambda name: (name != first, name)):
            self._delete(blobs[name], str(blobs[name].generation))

    def _delete(self, blob: Any, version: str | None) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound, PreconditionFailed):
            blob.delete(if_generation_match=None if version is None else int(version), **self._patiently())

    def _read_whole(self, path: str) -> tuple[bytes, str]:
        """Returns an object's content, verified, and its generation."""
        from google.api_core.exceptions import NotFound

        blob = self._blob(path)
        try:
            data = blob.download_as_bytes(checksum="crc32c", **self._patiently())
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        if crc32c(data) != blob.crc32c:  # a download that was resumed is not verified by the client
            raise _AgainError("it was damaged on the way")
        return data, str(blob.generation)

    def _is_ours(self, path: str, token: str) -> bool:
        """Whether an object is the one that was written with this token."""
        from google.api_core.exceptions import NotFound

        blob = self._blob(path)
        try:
            blob.reload(**self._patiently())
        except NotFound:
            return False
        return bool((blob.metadata or {}).get(_TOKEN) == token)

    def _list(self, prefix: str, **options: Any) -> Any:
        return self._bucket.client.list_blobs(self._bucket, prefix=prefix, **options, **self._patiently())

    def _patiently(self) -> dict[str, Any]:
        """The timeout of a request, and how it is tried again."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        delays = DEFAULT_RETRY.with_delay(initial=self.policy.first_delay_seconds, maximum=30.0, multiplier=2.0)
        return {"timeout": self.policy.timeout_seconds, "retry": delays.with_timeout(self.policy.retry_seconds)}

    def _folder(self, folder: str) -> str:
        return f"{self._prefix}{check_path(folder)}/"

    def _blob(self, path: str) -> Any:
        return self._bucket.blob(self._prefix + check_path(path))


class GcsSnapshot(Snapshot):
    """Objects at the generations at which they were listed."""

    def __init__(self, storage: GcsStorage, folder: str, blobs: dict[str, Any]) -> None:
        self._storage, self._folder, self._blobs = storage, folder, blobs
        self.objects = {name: Object(blob.size, blob.updated) for name, blob in blobs.items()}

    def delete(self, first: str = "") -> None:
        self._storage.delete_snapshot(self._folder, self._blobs, first)


def gcs_client() -> Any:
    """Returns a google-cloud-storage client.

    Raises:
      UsageError: there are no credentials.
    """
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    try:
        return storage.Client()
    except (DefaultCredentialsError, OSError) as error:
        raise UsageError(
            f"no Google Cloud credentials for gs:// ({error}); run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
        ) from None


def crc32c(data: bytes) -> str:
    """The CRC32C of bytes as the service writes it: base64 of the big-endian value."""
    return _encode(_checksum(iter([data])))


def crc32c_file(path: Path) -> str:
    """Like `crc32c`, of a file, in constant memory."""
    with path.open("rb") as file:
        return _encode(_checksum(iter(lambda: file.read(1 << 20), b"")))


def _checksum(blocks: Iterator[bytes]) -> int:
    from google_crc32c import extend

    value = 0
    for block in blocks:
        value = extend(value, block)
    return value


def _encode(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _content_type(path: str) -> str:
    return "application/json" if path.endswith(".json") else "application/octet-stream"
