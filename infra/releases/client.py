"""Reference client: installs the live release of a channel in a local folder, as an app does; see docs/on-device.md.

    client = Client("gs://bucket/apps", folder, probe=open_searcher)
    outcome = client.update()             # periodically, in the background; on failure the installed version stays
    searcher = client.usable_version()    # folder of the installed version, or None

It is a single file that needs only Python's standard library, and serves as a model for clients in other languages.

    FOLDER/state.json        ids of the current and the previous version, and the releases that failed to open
    FOLDER/versions/<id>/    files of an installed version and its pointer.json; always complete
    FOLDER/incoming/<id>/    files that are being downloaded

On the command line: `python -m infra.releases.client SOURCE FOLDER [CHANNEL]`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import quote, urlsplit

POINTER_BYTES = 1 << 20
"""Maximum size of a pointer."""

_BLOCK_BYTES = 1 << 16

_FETCH_ATTEMPTS = 3
"""Attempts per update: a release may be deleted during the download because another one went live."""

_OPEN_ATTEMPTS = 3
"""Failed openings after which an app version gives a release up; a single failure may be a shortage of memory."""

_RELEASE_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,79}")
_FILE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_FETCH_ERRORS = (OSError, http.client.HTTPException, ValueError)
"""Errors of an unreachable or misbehaving source, RefusedError among them."""


class RefusedError(ValueError):
    """The source offers something that this client does not install."""


class _NotFoundError(ValueError):
    """The source has no such file."""


@dataclass(frozen=True)
class Outcome:
    """Result of an update.

    Attributes:
      state: `updated`, `unchanged` (the live release is already installed) or `kept` (it could not be installed).
      release: Id of the installed release, None if there is none.
      reason: Human-readable reason why nothing was installed.
    """

    state: Literal["updated", "unchanged", "kept"]
    release: str | None
    reason: str = ""


@dataclass(frozen=True)
class _State:
    """Content of state.json.

    Attributes:
      failures: Number of failed openings, by release id and Task Library version.
    """

    current: str | None = None
    previous: str | None = None
    failures: dict[str, int] = field(default_factory=dict)


class Client:
    """Keeps a local folder up to date with the live release of a channel.

    Args:
      source: Local folder, public gs://bucket/prefix or https URL that contains `releases/`.
      folder: Folder that only this client uses.
      probe: Opens the files of a folder as the app will; raises any exception if it cannot.
      task_library: Version of the TFLite Task Library that the app was built with.
      fingerprints: Embedding spaces that the app supports, None for any; matters to apps that store vectors.
      max_bytes: Maximum total size of a release.
      timeout: Seconds without data after which a request fails.
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        channel: str = "production",
        probe: Callable[[Path], object] = lambda folder: None,
        task_library: str = "0.4.4",
        fingerprints: Collection[str] | None = None,
        max_bytes: int = 2 << 30,
        timeout: float = 30.0,
    ) -> None:
        name = "CURRENT.json" if channel == "production" else f"CURRENT.{channel}.json"
        self._base = f"{_url(source)}/releases"
        self._pointer = f"{self._base}/{name}"
        self._folder, self._probe, self._task_library = folder, probe, task_library
        self._fingerprints, self._max_bytes, self._timeout = fingerprints, max_bytes, timeout
        self._versions, self._incoming = folder / "versions", folder / "incoming"
        for path in (self._versions, self._incoming):
            path.mkdir(parents=True, exist_ok=True)

    def update(self) -> Outcome:
        """Installs the live release if it is not installed; on any failure the installed version stays."""
        with _try_lock(self._folder / ".lock") as locked:
            if not locked:
                return Outcome("kept", self._state().current, "another update is running")
            for attempt in range(1, _FETCH_ATTEMPTS + 1):
                try:
                    return self._update()
                except _NotFoundError as error:
                    if attempt == _FETCH_ATTEMPTS:
                        return Outcome("kept", self._state().current, str(error))
                except _FETCH_ERRORS as error:
                    return Outcome("kept", self._state().current, str(error) or type(error).__name__)
        raise AssertionError("unreachable")

    def usable_version(self) -> Path | None:
        """Returns the folder of the current version, else of the previous one, or None if neither opens.

        A version with damaged files is dropped from the state, so that the next update downloads it again.
        """
        state = self._state()
        damaged: set[str] = set()
        for release in (state.current, state.previous):
            if release is None:
                continue
            folder = self._versions / release
            if self._open_error(folder) is None:
                self._drop(damaged)
                return folder
            if not _is_intact(folder):
                damaged.add(release)
        self._drop(damaged)
        # Another process may have installed a version in the meantime.
        return self.usable_version() if self._state() != state else None

    def _drop(self, damaged: Collection[str]) -> None:
        """Drops versions from the state if they are still damaged: an update may have installed them again."""
        if not damaged:
            return
        with _try_lock(self._folder / ".lock") as locked:
            if not locked:
                return
            state = self._state()
            installed = [id for id in (state.current, state.previous) if id]
            intact = [id for id in installed if id not in damaged or _is_intact(self._versions / id)]
            current, previous, *_ = [*intact, None, None]
            self._write_state(_State(current, previous, state.failures))

    def _open_error(self, folder: Path) -> Exception | None:
        """Returns the error with which a version fails to open, or None if it opens."""
        try:
            _verify_sizes(folder)
            self._probe(folder)
        except Exception as error:  # a probe may raise anything
            return error
        return None

    def _update(self) -> Outcome:
        state = self._state()
        data = self._fetch_pointer()
        pointer = _parse(data)
        release = pointer["release"]
        if release is None:
            return Outcome("kept", state.current, "the channel has no live release")
        if release == state.current and _is_complete(self._versions / release):
            return Outcome("unchanged", release)
        self._require_usable(pointer, state)
        folder = self._versions / release
        if not _is_intact(folder):
            folder = self._download(pointer, data)
        if error := self._open_error(folder):
            key = self._failure_key(release)
            failures = {**state.failures, key: state.failures.get(key, 0) + 1}
            self._write_state(_State(state.current, state.previous, failures))
            raise RefusedError(f"release {release} does not open: {error}")
        self._install(release, folder, state, data)
        return Outcome("updated", release)

    def _failure_key(self, release: str) -> str:
        return f"{release} {self._task_library}"

    def _require_usable(self, pointer: dict[str, Any], state: _State) -> None:
        release, needed = pointer["release"], pointer["minimum_task_library"]
        if state.failures.get(self._failure_key(release), 0) >= _OPEN_ATTEMPTS:
            raise RefusedError(f"release {release} did not open {_OPEN_ATTEMPTS} times")
        if _version(needed) > _version(self._task_library):
            raise RefusedError(f"release {release} needs Task Library {needed}, this app has {self._task_library}")
        if self._fingerprints is not None and pointer["fingerprint"] not in self._fingerprints:
            raise RefusedError(
                f"release {release} was built with encoder {pointer['encoder']}, which this app does not support"
            )
        size = sum(file["bytes"] for file in pointer["files"].values())
        if size > self._max_bytes:
            raise RefusedError(f"release {release} has {size} bytes, more than the {self._max_bytes} allowed")

    def _fetch_pointer(self) -> bytes:
        with self._open(self._pointer, 0) as (stream, _):
            data = stream.read(POINTER_BYTES + 1)
        if len(data) > POINTER_BYTES:
            raise RefusedError(f"{self._pointer} has more than {POINTER_BYTES} bytes")
        return data

    def _download(self, pointer: dict[str, Any], data: bytes) -> Path:
        """Downloads and verifies the files of a release, resuming an earlier attempt; returns their folder."""
        folder = self._incoming / pointer["release"]
        for other in self._incoming.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        for name, file in pointer["files"].items():
            target, url = folder / name, f"{self._base}/{quote(file['path'])}"
            if not (target.exists() and _sha256(target) == file["sha256"]):
                self._download_file(url, target, file["bytes"], file["sha256"])
        _write(folder / "pointer.json", data)
        return folder

    def _download_file(self, url: str, target: Path, size: int, sha256: str) -> None:
        part = target.with_name(f"{target.name}.part")
        offset = part.stat().st_size if part.exists() else 0
        if offset > size:
            part.unlink()
            offset = 0
        if offset < size or not size:
            with self._open(url, offset) as (stream, start), part.open("r+b" if part.exists() else "w+b") as file:
                file.seek(start)
                file.truncate()
                while block := stream.read(min(_BLOCK_BYTES, size - file.tell() + 1)):
                    file.write(block)
                    if file.tell() > size:
                        break  # longer than the pointer says
                file.flush()
                os.fsync(file.fileno())
        received = part.stat().st_size
        if received < size:
            raise RefusedError(f"{url} ended after {received} of {size} bytes")
        if received > size or _sha256(part) != sha256:
            part.unlink()
            raise RefusedError(f"{url} does not have the size and SHA-256 in the pointer")
        part.replace(target)

    def _install(self, release: str, folder: Path, state: _State, data: bytes) -> None:
        target = self._versions / release
        _write(folder / "pointer.json", data)
        if folder != target:
            shutil.rmtree(target, ignore_errors=True)  # an incomplete version
            _sync(folder)
            folder.rename(target)
            _sync(self._versions)
        previous = state.current if state.current != release else state.previous
        self._write_state(_State(release, previous, state.failures))
        for other in self._versions.iterdir():
            if other.name not in (release, previous):
                shutil.rmtree(other, ignore_errors=True)

    def _state(self) -> _State:
        """Reads state.json; if it is missing or damaged, rebuilds the state from the intact versions."""
        try:
            values = json.loads((self._folder / "state.json").read_bytes())
            state = _State(values["current"], values["previous"], dict(values["failures"]))
            if all(id is None or _RELEASE_ID.fullmatch(id) for id in (state.current, state.previous)):
                return state
        except (OSError, ValueError, KeyError, TypeError):
            pass
        intact = [path for path in self._versions.iterdir() if _RELEASE_ID.fullmatch(path.name) and _is_intact(path)]
        latest = sorted(intact, key=lambda path: (_pointer(path)["serial"], path.stat().st_mtime), reverse=True)
        current, previous, *_ = [*(path.name for path in latest), None, None]
        return _State(current, previous)

    def _write_state(self, state: _State) -> None:
        _write(self._folder / "state.json", json.dumps(asdict(state)).encode())

    @contextlib.contextmanager
    def _open(self, url: str, offset: int) -> Iterator[tuple[BinaryIO, int]]:
        """Yields a stream and the offset at which it begins, which is 0 if the server ignores ranges."""
        if "://" not in url:
            try:
                file = Path(url).open("rb")  # noqa: SIM115
            except FileNotFoundError:
                raise _NotFoundError(f"{url} does not exist") from None
            with file:
                file.seek(offset)
                yield file, offset
            return
        headers = {"Cache-Control": "no-cache", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            response = _OPENER.open(urllib.request.Request(url, headers=headers), timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (404, 410):
                    raise _NotFoundError(f"{url} does not exist ({error.code})") from None
                raise RefusedError(f"{url} answers {error.code}") from None
        with response:
            begins = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
            yield response, offset if response.status == 206 and begins else 0


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows only redirects to secure URLs."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SecureRedirects)


def _url(source: str) -> str:
    """Returns the URL or local path of a source, without a trailing slash."""
    if source.startswith("gs://"):
        host = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
        source = f"{host.rstrip('/')}/{quote(source.removeprefix('gs://'))}"
    if "://" in source:
        _require_secure(source)
    return source.rstrip("/")


def _require_secure(url: str) -> None:
    """Raises RefusedError unless a URL is https or local: files are verified only by the pointer's checksums."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise RefusedError(f"{url} is not https")


def _parse(data: bytes) -> dict[str, Any]:
    """Parses a pointer and validates every field that the client uses.

    Raises:
      RefusedError: The pointer is damaged or unsafe.
    """
    try:
        pointer = json.loads(data)
        if pointer["version"] != 1:
            raise RefusedError(f"the pointer has version {pointer['version']!r}, and this client reads version 1")
        release = pointer["release"]
        pointer["serial"] = int(pointer.get("serial", 0))
        if release is None:
            return dict(pointer)
        if not _RELEASE_ID.fullmatch(release):
            raise RefusedError(f"{release!r} is not a valid release id")
        for name, file in pointer["files"].items():
            path = PurePosixPath(file["path"])
            inside = not path.is_absolute() and ".." not in path.parts and "\\" not in file["path"]
            valid_name = _FILE_NAME.fullmatch(name) and name != "pointer.json" and not name.endswith((".part", ".tmp"))
            valid_values = type(file["bytes"]) is int and file["bytes"] >= 0 and _SHA256.fullmatch(file["sha256"])
            if not (inside and valid_name and valid_values):
                raise RefusedError(f"file {name!r} of the pointer has an invalid name, path, size or checksum")
        if not pointer["files"]:
            raise RefusedError(f"release {release} has no files")
        _version(pointer["minimum_task_library"])
        _ = pointer["fingerprint"], pointer["encoder"]
        return dict(pointer)
    except RefusedError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedError(f"the pointer is damaged: {type(error).__name__}: {error}") from error


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _pointer(folder: Path) -> dict[str, Any]:
    return _parse((folder / "pointer.json").read_bytes())


def _verify_sizes(folder: Path) -> None:
    """Raises ValueError or OSError unless a version has all its files, each with its size."""
    for name, file in _pointer(folder)["files"].items():
        if (folder / name).stat().st_size != file["bytes"]:
            raise ValueError(f"{folder / name} is damaged")


def _is_complete(folder: Path) -> bool:
    try:
        _verify_sizes(folder)
    except (OSError, ValueError):
        return False
    return True


def _is_intact(folder: Path) -> bool:
    """Returns whether every file of a version has its size and SHA-256."""
    return _is_complete(folder) and all(
        _sha256(folder / name) == file["sha256"] for name, file in _pointer(folder)["files"].items()
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Writes a file atomically and durably."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Locks a file without waiting; yields whether the lock was acquired."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def main(arguments: list[str]) -> int:
    """Updates a folder; returns exit code 0, 1 if the live release could not be installed, or 2 for wrong usage."""
    if not 2 <= len(arguments) <= 3:
        print("usage: python -m infra.releases.client SOURCE FOLDER [CHANNEL]", file=sys.stderr)
        return 2
    source, folder, *channel = arguments
    try:
        outcome = Client(source, Path(folder), channel=(*channel, "production")[0]).update()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    reason = f"; {outcome.reason}" if outcome.reason else ""
    print(f"{outcome.state}: {outcome.release or 'nothing'} is installed{reason}")
    return 0 if outcome.state != "kept" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
