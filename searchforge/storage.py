"""One storage interface over a local folder and gs://bucket/prefix.

Paths are relative to the storage's root and use `/`. A write is whole or not there. A mutable object is replaced
only if it is still the version that was read (GCS: generation precondition; local: content under a lock).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.hashing import sha256_bytes

GCS_SCHEME = "gs://"

Method = TypeVar("Method", bound=Callable[..., Any])


class Storage(ABC):
    """A folder of immutable objects and of a few that are replaced under a precondition."""

    root: str

    @abstractmethod
    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """Reads an object, or at most `size` bytes of it from `offset` on.

        Raises:
          FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Writes an object whole."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the object is there."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names of the folders directly in `folder`, sorted."""

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """Names of the objects directly in `folder`, sorted; unfinished writes are among them."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Deletes an object that may be gone already."""

    @abstractmethod
    def upload(self, local: Path, path: str) -> None:
        """Copies a local file."""

    @abstractmethod
    def download_folder(self, folder: str, local: Path) -> None:
        """Copies every object under `folder` into a local folder."""

    @abstractmethod
    def read_version(self, path: str) -> tuple[bytes | None, str]:
        """Returns an object's content (None where it is absent) and the version to hand to `replace`."""

    @abstractmethod
    def replace(self, path: str, data: bytes, version: str) -> None:
        """Replaces an object if it is still at `version`.

        Raises:
          ConflictError: somebody else replaced it first.
        """

    def __str__(self) -> str:
        return self.root


def open_storage(root: str) -> Storage:
    """Opens a local folder or gs://bucket/prefix.

    Raises:
      UsageError: the scheme is another one.
    """
    if root.startswith(GCS_SCHEME):
        return GcsStorage(root)
    if "://" in root:
        raise UsageError(f"storage {root!r} is not supported; expected a local folder or gs://bucket/prefix")
    return LocalStorage(root)


def check_path(path: str) -> str:
    """Returns `path` if it stays inside its root, else raises UsageError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise UsageError(f"path {path!r} leaves its storage; expected a relative path without '..'")
    return path


class LocalStorage(Storage):
    """A local folder."""

    def __init__(self, root: str) -> None:
        self.root = str(Path(root).expanduser().resolve())

    def path(self, path: str) -> Path:
        """The local path of an object."""
        return Path(self.root) / check_path(path)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        with self.path(path).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)

    def write(self, path: str, data: bytes) -> None:
        with self._replacing(path) as file:
            file.write(data)

    def exists(self, path: str) -> bool:
        return self.path(path).is_file()

    def names(self, folder: str) -> list[str]:
        path = self.path(folder)
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if path.is_dir() else []

    def files(self, folder: str) -> list[str]:
        path = self.path(folder)
        return sorted(entry.name for entry in os.scandir(path) if entry.is_file()) if path.is_dir() else []

    def delete(self, path: str) -> None:
        self.path(path).unlink(missing_ok=True)

    def upload(self, local: Path, path: str) -> None:
        with self._replacing(path) as target, local.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)

    def download_folder(self, folder: str, local: Path) -> None:
        shutil.copytree(self.path(folder), local, dirs_exist_ok=True)

    def read_version(self, path: str) -> tuple[bytes | None, str]:
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None, ""
        return data, sha256_bytes(data)

    def replace(self, path: str, data: bytes, version: str) -> None:
        target = self.path(path)
        make_folder(target.parent)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when the holder dies
            if self.read_version(path)[1] != version:
                raise ConflictError(f"{target} was replaced by another writer; read it again and decide anew")
            self.write(path, data)

    @contextlib.contextmanager
    def _replacing(self, path: str) -> Iterator[Any]:
        target = self.path(path)
        make_folder(target.parent)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # mkstemp's own mode shuts out every other reader
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _reports_gcs_errors(method: Method) -> Method:
    """Turns what the service answers (no bucket, no permission, unavailable) into an error for the user."""

    @functools.wraps(method)
    def wrapper(self: GcsStorage, *arguments: Any) -> Any:
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError

        try:
            return method(self, *arguments)
        except (GoogleAPICallError, GoogleAuthError) as error:
            reason = str(error).splitlines()[0]  # what follows is the service's own page
            raise JobError(
                f"{self.root} cannot be used ({reason}); check the bucket's name and your permissions"
            ) from error

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

    @_reports_gcs_errors
    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        from google.api_core.exceptions import NotFound

        # The service knows the checksum of the whole only.
        part = {} if size is None else {"start": offset, "end": offset + size - 1, "checksum": None}
        try:
            data: bytes = self._blob(path).download_as_bytes(**{"checksum": "crc32c", **part})
        except NotFound as error:
            raise FileNotFoundError(f"{self.root}/{path}") from error
        return data

    @_reports_gcs_errors
    def write(self, path: str, data: bytes) -> None:
        self._blob(path).upload_from_string(data, content_type=_content_type(path), checksum="crc32c")

    @_reports_gcs_errors
    def exists(self, path: str) -> bool:
        return bool(self._blob(path).exists())

    @_reports_gcs_errors
    def names(self, folder: str) -> list[str]:
        prefix = f"{self._prefix}{check_path(folder)}/"
        listing = self._bucket.client.list_blobs(self._bucket, prefix=prefix, delimiter="/")
        for _ in listing:  # prefixes are complete once every page was read
            pass
        return sorted(name.removeprefix(prefix).rstrip("/") for name in listing.prefixes)

    @_reports_gcs_errors
    def files(self, folder: str) -> list[str]:
        prefix = f"{self._prefix}{check_path(folder)}/"
        listing = self._bucket.client.list_blobs(self._bucket, prefix=prefix, delimiter="/")
        return sorted(blob.name.removeprefix(prefix) for blob in listing)

    @_reports_gcs_errors
    def delete(self, path: str) -> None:
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            self._blob(path).delete()

    @_reports_gcs_errors
    def upload(self, local: Path, path: str) -> None:
        self._blob(path).upload_from_filename(str(local), content_type=_content_type(path), checksum="crc32c")

    @_reports_gcs_errors
    def download_folder(self, folder: str, local: Path) -> None:
        prefix = f"{self._prefix}{check_path(folder)}/"
        for blob in self._bucket.client.list_blobs(self._bucket, prefix=prefix):
            target = local / check_path(blob.name.removeprefix(prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(target), checksum="crc32c")

    @_reports_gcs_errors
    def read_version(self, path: str) -> tuple[bytes | None, str]:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while True:
            blob = self._blob(path)
            try:
                blob.reload()
                data = blob.download_as_bytes(if_generation_match=blob.generation, checksum="crc32c")
            except NotFound:
                return None, "0"  # GCS: generation 0 matches only an absent object
            except PreconditionFailed:  # replaced between the two requests
                continue
            return data, str(blob.generation)

    @_reports_gcs_errors
    def replace(self, path: str, data: bytes, version: str) -> None:
        from google.api_core.exceptions import PreconditionFailed

        blob = self._blob(path)
        blob.cache_control = "no-cache"
        try:
            blob.upload_from_string(
                data, content_type=_content_type(path), if_generation_match=int(version), checksum="crc32c"
            )
        except PreconditionFailed as error:
            raise ConflictError(
                f"{self.root}/{path} was replaced by another writer; read it again and decide anew"
            ) from error

    def _blob(self, path: str) -> Any:
        return self._bucket.blob(self._prefix + check_path(path))


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


def make_folder(path: Path) -> None:
    """Creates a folder and its parents.

    Raises:
      JobError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"folder {path} cannot be created: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise JobError(f"folder {path} is not writable; choose another one or change its permissions")


def _content_type(path: str) -> str:
    return "application/json" if path.endswith(".json") else "application/octet-stream"
