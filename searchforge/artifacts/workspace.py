"""The workspace: storage of all artifacts, each of which is complete or absent.

    encoders/<id>/     encoder.json
    evaluations/<id>/  report.json
    embeddings/<id>/   MANIFEST.json
    searchers/<id>/    build.json
    checks/<id>/       report.json
    releases/<id>/     release.json

The file listed here is written last and commits its artifact: without it, the artifact does not exist.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_bytes
from searchforge.storage.base import Storage
from searchforge.storage.factory import open_storage
from searchforge.storage.files import make_folder, sync_files, sync_folder
from searchforge.storage.local import LocalStorage

Kind = Literal["encoders", "evaluations", "embeddings", "searchers", "checks", "releases"]

MARKERS: dict[Kind, str] = {
    "encoders": "encoder.json",
    "evaluations": "report.json",
    "embeddings": "MANIFEST.json",
    "searchers": "build.json",
    "checks": "report.json",
    "releases": "release.json",
}
"""File that commits an artifact, by kind."""

_PROBE = ".writable"

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,79}")


class Staging:
    """An unfinished artifact: files are written below `path`, then `commit` makes them visible atomically."""

    def __init__(self, workspace: Workspace, kind: Kind, id: str, path: Path) -> None:
        self.path = path
        self._workspace, self._kind, self._id = workspace, kind, id

    def commit(self, marker: dict[str, Any]) -> None:
        """Publishes the files, the marker last. An artifact that is already committed is kept."""
        self._workspace._commit(self._kind, self._id, self.path, marker)


class Workspace:
    """Artifacts by kind and id, under a local folder or gs://bucket/prefix.

    Args:
      root: Folder or URL.
      storage: Storage of the artifacts, if other than `root`; `root` is then the local folder for copies, caches and
        unfinished artifacts.

    Raises:
      UsageError: The scheme is unknown, credentials are missing, or a bucket's copies have no folder.
    """

    def __init__(self, root: str, storage: Storage | None = None) -> None:
        self.storage = storage or open_storage(root)
        self.root = self.storage.root
        if storage or isinstance(self.storage, LocalStorage):
            self._local_root = Path(root).expanduser().resolve()
        else:
            self._local_root = _user_cache() / "searchforge" / sha256_bytes(self.root.encode())[:16]

    @property
    def local_storage(self) -> LocalStorage:
        """Storage of local copies and caches; for a local workspace, the workspace itself."""
        return LocalStorage(str(self._local_root))

    def require_writable(self) -> None:
        """Raises JobError unless files can be written."""
        self._make_local(self._local_root)
        self.storage.write(_PROBE, b"")
        self.storage.delete(_PROBE)

    def cache(self, name: str) -> Path:
        """Returns a local folder for data that can be recomputed, such as features of frozen towers."""
        path = self._local_root / "cache" / name
        self._make_local(path)
        return path

    def committed(self, kind: Kind, id: str) -> bool:
        """Returns whether the artifact is complete."""
        return self.storage.exists(_path(kind, id, MARKERS[kind]))

    def marker(self, kind: Kind, id: str) -> dict[str, Any]:
        """Returns the content of the file that commits an artifact.

        Raises:
          UsageError: The artifact does not exist; the message lists the existing ones.
          JobError: The file is damaged.
        """
        path = _path(kind, id, MARKERS[kind])
        try:
            content = json.loads(self.storage.read(path))
        except FileNotFoundError:
            known = ", ".join(self.ids(kind)) or "none"
            raise UsageError(f"{kind}/{id} is not in workspace {self.root}; existing: {known}") from None
        except (ValueError, RecursionError) as error:
            raise JobError(f"{self.root}/{path} is damaged (not JSON: {error}); recreate {id}") from None
        if not isinstance(content, dict):
            raise JobError(f"{self.root}/{path} is damaged (it contains a {type(content).__name__}); recreate {id}")
        return content

    def ids(self, kind: Kind) -> list[str]:
        """Returns the ids of all committed artifacts of a kind."""
        return [name for name in self.all_ids(kind) if self.committed(kind, name)]

    def all_ids(self, kind: Kind) -> list[str]:
        """Returns the ids of all artifacts of a kind, committed or not."""
        return [name for name in self.storage.list_folders(kind) if _ID.fullmatch(name)]

    def local(self, kind: Kind, id: str) -> Path:
        """Returns a local folder with the files of a committed artifact, which are downloaded once from a bucket.

        Raises:
          UsageError: The artifact does not exist.
        """
        self.marker(kind, id)
        path = self._local_root / kind / id
        if not (path / MARKERS[kind]).exists():
            with self._staging(kind, id) as staging:
                self.storage.download_folder(f"{kind}/{id}", staging)
                if not (staging / MARKERS[kind]).exists():
                    raise JobError(f"{kind}/{id} was deleted from {self.root} during the download")
                _move(staging, path, MARKERS[kind])
        return path

    def url(self, kind: Kind, id: str, name: str = "") -> str:
        """Returns the path or URL of an artifact or of one of its files."""
        return f"{self.root}/{_path(kind, id, name)}".rstrip("/")

    @contextlib.contextmanager
    def create(self, kind: Kind, id: str) -> Iterator[Staging]:
        """Yields a local folder for an artifact's files, which is deleted unless `commit` is called."""
        with self._staging(kind, id) as path:
            yield Staging(self, kind, id, path)

    def _make_local(self, path: Path) -> None:
        try:
            make_folder(path)
        except JobError as error:
            if self._local_root == Path(self.root):
                raise
            raise JobError(
                f"{error}; it is for local copies of {self.root}: set XDG_CACHE_HOME to a writable folder"
            ) from None

    @contextlib.contextmanager
    def _staging(self, kind: Kind, id: str) -> Iterator[Path]:
        parent = self._local_root / ".staging"
        self._make_local(parent)
        _remove_abandoned(parent)
        path = parent / f"{kind}-{id}-{secrets.token_hex(4)}"
        lock_path = Path(f"{path}.lock")
        with lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path.mkdir()
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
                lock_path.unlink(missing_ok=True)

    def _commit(self, kind: Kind, id: str, path: Path, marker: dict[str, Any]) -> None:
        name = MARKERS[kind]
        content = json.dumps(marker, indent=2, ensure_ascii=False, allow_nan=False).encode()
        if isinstance(self.storage, LocalStorage):
            LocalStorage(str(path)).write(name, content)
            sync_files(path)
            _move(path, self._local_root / kind / id, name)
            return
        if self.committed(kind, id):
            return
        self._upload(kind, id, path)
        if self.storage.create(_path(kind, id, name), content):
            return
        # Another process committed the same artifact meanwhile. If its files have other bytes, as from another kind of
        # CPU, the upload may have replaced some of them: the artifact then becomes this process' one as a whole.
        if self.marker(kind, id).get("files") != marker.get("files"):
            self._upload(kind, id, path)
            self.storage.write(_path(kind, id, name), content)

    def _upload(self, kind: Kind, id: str, path: Path) -> None:
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            self.storage.upload(file, _path(kind, id, file.relative_to(path).as_posix()))


def _user_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise UsageError("this user has no home folder for a cache; set XDG_CACHE_HOME to a writable folder") from None


def _path(kind: Kind, id: str, name: str) -> str:
    if not _ID.fullmatch(id):
        raise UsageError(f"{id!r} is not an artifact id; expected letters, digits, '.', '_' and '-'")
    return f"{kind}/{id}/{name}" if name else f"{kind}/{id}"


def _move(source: Path, target: Path, marker: str) -> None:
    """Renames a complete folder to `target`, unless another process did so first."""
    make_folder(target.parent)
    with LocalStorage(str(target.parent)).snapshot(target.name) as snapshot:
        if marker not in snapshot.objects:
            snapshot.delete()  # deletes an incomplete artifact, but not a folder that was renamed into place meanwhile
    try:
        source.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        if not (target / marker).exists():
            raise JobError(f"{target} cannot be written: {error.strerror}") from error


def _remove_abandoned(parent: Path) -> None:
    """Deletes folders of killed processes, whose locks the kernel has released."""
    for lock_path in parent.glob("*.lock"):
        try:
            with lock_path.open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(str(lock_path).removesuffix(".lock"), ignore_errors=True)
                lock_path.unlink(missing_ok=True)
        except OSError:  # in use, or just removed by another process
            continue
