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
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.storage import GCS_SCHEME, Object, Snapshot, Storage, check_path

Method = TypeVar("Method", bound=Callable[..., Any])

TIMEOUT_SECONDS = (10.0, 60.0)
"""To connect, and between two bytes of an answer."""

RETRY_SECONDS = 180.0
"""For how long a call is tried again."""

FIRST_DELAY_SECONDS = 1.0
"""Before the second try, on average half of it; doubled for each further one."""

CHUNK_BYTES = 8 << 20
"""Of an upload: after a failure it goes on at the last whole chunk."""

UPLOADS = 3
"""Of one file: the server may lose a resumable session, or store what does not match its checksum."""

_CLOCK = ".clock"

_TOKEN = "writer"


def _reports_errors(method: Method) -> Method:
    """Turns what the service answers (no bucket, no permission, unavailable) into an error for the user."""

    @functools.wraps(method)
    def wrapper(self: GcsStorage, path: Any = "", *arguments: Any, **options: Any) -> Any:
        from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests import RequestException

        named = path if isinstance(path, str) else arguments[0]  # `upload` takes the local path first
        try:
            return method(self, *([path] if path else []), *arguments, **options)
        except FileNotFoundError:
            raise
        except (
            GoogleAPIError, GoogleAuthError, InvalidResponse, DataCorruption, RequestException, ConnectionError
        ) as error:  # fmt: skip
            if isinstance(error, (Forbidden, Unauthorized)):
                advice = "the account needs the role roles/storage.objectAdmin on the bucket"
            elif isinstance(error, NotFound):
                advice = "check the bucket's name and your permissions"
            else:
                advice = "it was tried again for a while; check the network and try later"
            reason = str(error).strip().partition("\n")[0]  # what follows is the service's own page
            raise JobError(f"{self.root}/{named}".rstrip("/") + f" cannot be used ({reason}); {advice}") from error

    return wrapper  # type: ignore[return-value]


class GcsStorage(Storage):
    """Objects under gs://bucket/prefix. `STORAGE_EMULATOR_HOST` is honoured, without credentials."""

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root.removeprefix(GCS_SCHEME).strip("/").partition("/")
        if not bucket:
            raise UsageError(f"storage {root!r} names no bucket; expected gs://bucket/prefix")
        self.root = f"{GCS_SCHEME}{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = gcs_client().bucket(bucket)

    @_reports_errors
    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        if size is None and not offset:
            return self._read_whole(path)[0]
        if size == 0:
            return b""
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        end = None if size is None else offset + size - 1
        try:  # the service knows the checksum of the whole only
            data: bytes = self._blob(path).download_as_bytes(start=offset, end=end, checksum=None, **_persistent())
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        except RequestRangeNotSatisfiable:
            return b""
        return data

    @_reports_errors
    def write(self, path: str, data: bytes) -> None:
        blob = self._blob(path)
        blob.upload_from_string(data, content_type=_content_type(path), checksum="crc32c", **_persistent())

    @_reports_errors
    def exists(self, path: str) -> bool:
        return bool(self._blob(path).exists(**_persistent()))

    @_reports_errors
    def names(self, folder: str) -> list[str]:
        prefix = self._folder(folder)
        listing = self._list(prefix, delimiter="/")
        for _ in listing:  # prefixes are complete once every page was read
            pass
        return sorted(name.removeprefix(prefix).rstrip("/") for name in listing.prefixes)

    @_reports_errors
    def files(self, folder: str) -> list[str]:
        prefix = self._folder(folder)
        return sorted(blob.name.removeprefix(prefix) for blob in self._list(prefix, delimiter="/"))

    @_reports_errors
    def snapshot(self, folder: str) -> contextlib.AbstractContextManager[Snapshot]:
        prefix = self._folder(folder)
        blobs = {blob.name.removeprefix(prefix): blob for blob in self._list(prefix)}
        return contextlib.nullcontext(GcsSnapshot(self, folder, blobs))

    @_reports_errors
    def delete(self, path: str, version: str | None = None) -> None:
        self._delete(self._blob(path), version)

    @_reports_errors
    def upload(self, local: Path, path: str) -> None:
        from google.api_core.exceptions import ClientError, Forbidden, Unauthorized
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

        checksum = crc32c_file(local)
        for upload in range(1, UPLOADS + 1):
            blob = self._blob(path)
            blob.chunk_size = CHUNK_BYTES
            try:
                blob.upload_from_filename(
                    str(local), content_type=_content_type(path), checksum="crc32c", **_persistent()
                )
                if blob.crc32c != checksum:
                    raise JobError(f"{self.root}/{path} has CRC32C {blob.crc32c} after the upload, {local} {checksum}")
                return
            except (ClientError, InvalidResponse, DataCorruption, JobError) as error:
                if upload == UPLOADS or isinstance(error, (Forbidden, Unauthorized)):
                    raise

    @_reports_errors
    def download_folder(self, folder: str, local: Path) -> None:
        prefix = self._folder(folder)
        for blob in self._list(prefix):
            target = local / check_path(blob.name.removeprefix(prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(target), checksum="crc32c", **_persistent())
            if crc32c_file(target) != blob.crc32c:  # a download that was resumed is not verified by the client
                raise JobError(f"{self.root}/{folder} was changed or damaged while {blob.name} was copied; try again")

    @_reports_errors
    def read_version(self, path: str) -> tuple[bytes | None, str]:
        try:
            return self._read_whole(path)
        except FileNotFoundError:
            return None, "0"  # GCS: generation 0 matches only an absent object

    @_reports_errors
    def replace(self, path: str, data: bytes, version: str) -> None:
        from google.api_core.exceptions import PreconditionFailed

        token = secrets.token_hex(8)
        blob = self._blob(path)
        blob.cache_control = "no-cache"
        blob.metadata = {_TOKEN: token}
        try:
            blob.upload_from_string(
                data,
                content_type=_content_type(path),
                if_generation_match=int(version),
                checksum="crc32c",
                **_persistent(),
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

    @_reports_errors
    def modified(self, path: str) -> datetime:
        from google.api_core.exceptions import NotFound

        blob = self._blob(path)
        try:
            blob.reload(**_persistent())
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        updated: datetime = blob.updated
        return updated

    @_reports_errors
    def now(self) -> datetime:
        blob = self._blob(_CLOCK)
        blob.upload_from_string(b"", checksum="crc32c", **_persistent())
        updated: datetime = blob.updated
        return updated

    @_reports_errors
    def delete_snapshot(self, folder: str, blobs: dict[str, Any], first: str) -> None:
        """Deletes objects that are still at the generation at which they were listed."""
        for name in sorted(blobs, key=lambda name: (name != first, name)):
            self._delete(blobs[name], str(blobs[name].generation))

    def _delete(self, blob: Any, version: str | None) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound, PreconditionFailed):
            blob.delete(if_generation_match=None if version is None else int(version), **_persistent())

    def _read_whole(self, path: str) -> tuple[bytes, str]:
        """Returns an object's content, verified, and its generation."""
        from google.api_core.exceptions import NotFound

        blob = self._blob(path)
        try:
            data = blob.download_as_bytes(checksum="crc32c", **_persistent())
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        if crc32c(data) != blob.crc32c:  # a download that was resumed is not verified by the client
            raise JobError(f"{self.root}/{path} was damaged on the way; try again")
        return data, str(blob.generation)

    def _is_ours(self, path: str, token: str) -> bool:
        """Whether an object is the one that was written with this token."""
        from google.api_core.exceptions import NotFound

        blob = self._blob(path)
        try:
            blob.reload(**_persistent())
        except NotFound:
            return False
        return bool((blob.metadata or {}).get(_TOKEN) == token)

    def _list(self, prefix: str, **options: Any) -> Any:
        return self._bucket.client.list_blobs(self._bucket, prefix=prefix, **options, **_persistent())

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


def _persistent() -> dict[str, Any]:
    """The timeout of a request, and how it is tried again."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    delays = DEFAULT_RETRY.with_delay(initial=FIRST_DELAY_SECONDS, maximum=30.0, multiplier=2.0)
    return {"timeout": TIMEOUT_SECONDS, "retry": delays.with_timeout(RETRY_SECONDS)}


def _content_type(path: str) -> str:
    return "application/json" if path.endswith(".json") else "application/octet-stream"
