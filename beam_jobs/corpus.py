"""Lists a corpus: a folder, a glob, or a text file of paths or URIs; local or any file system that Beam knows."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id

_GLOB = re.compile(r"[*?\[]")
_STAT_THREADS = 32


@dataclass(frozen=True)
class Item:
    """One input of a corpus.

    Attributes:
      id: unique: the path below the folder (or below the fixed part of the glob), or the line of the list.
      uri: where its bytes are.
      version: changes when the file changes: its size and time of modification; empty where it is missing.
    """

    id: str
    uri: str
    version: str


def list_corpus(source: str) -> list[Item]:
    """Returns every item of a corpus in the order of the ids.

    Raises:
      UsageError: the source does not exist, is empty, or two items have one id.
      JobError: the file system cannot be listed.
    """
    try:
        items = sorted(_list(source), key=lambda item: item.id)
    except BeamIOError as error:
        raise JobError(f"corpus {source} cannot be listed: {error}") from None
    for item in items:
        if not item.id.isprintable() and any("\udc80" <= character <= "\udcff" for character in item.id):
            raise UsageError(f"file name {item.id!r} in corpus {source} is not UTF-8; rename the file")
    if not items:
        raise UsageError(f"corpus {source} is empty: no file was found; check the path")
    for first, second in itertools.pairwise(items):
        if first.id == second.id:
            raise UsageError(f"id {first.id!r} names two items, {first.uri} and {second.uri}; ids are unique")
    return items


def listing_digest(items: Iterable[Item]) -> str:
    """Returns a hash that changes when any item is added, removed or changed."""
    return content_id([[item.id, item.uri, item.version] for item in items])


def _list(source: str) -> list[Item]:
    if _GLOB.search(source) and not Path(source).exists():
        fixed = _GLOB.split(source)[0].rpartition("/")[0]
        return _match(_absolute(source), f"{_absolute(fixed or '.')}/")
    if "://" in source:
        root = source.rstrip("/")
        return _match(f"{root}/**", f"{root}/") or _read_list(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _walk(path.resolve())
    return _read_list(str(path))


def _match(pattern: str, root: str) -> list[Item]:
    (result,) = FileSystems.match([pattern])
    return [
        Item(
            found.path.removeprefix(root),
            found.path,
            _version(found.size_in_bytes, found.last_updated_in_seconds),
        )
        for found in result.metadata_list
        if not found.path.endswith("/")
    ]


def _walk(root: Path) -> list[Item]:
    items = []
    for folder, folders, names in os.walk(root, onerror=_fail):
        # A link to a folder is not followed, since it may lead back: it is an item, and will be rejected.
        for name in [*names, *(name for name in folders if (Path(folder) / name).is_symlink())]:
            path = Path(folder) / name
            items.append(Item(path.relative_to(root).as_posix(), str(path), _local_version(path)))
    return items


def _fail(error: OSError) -> None:
    raise JobError(f"folder {error.filename} cannot be listed: {error.strerror}; change its permissions") from None


def _read_list(source: str) -> list[Item]:
    try:
        with FileSystems.open(source) as file:
            text = file.read().decode("utf-8")
    except (BeamIOError, OSError):
        raise UsageError(
            f"corpus {source} does not exist; expected a folder, a glob, or a text file of paths or URIs"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"corpus {source} is not a text file; expected one path or URI a line") from None
    base = source.rpartition("/")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    uris = [line if "://" in line else os.path.join(_absolute(base or "."), line) for line in lines]  # noqa: PTH118
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        versions = pool.map(_uri_version, uris)
    return [Item(line, uri, version) for line, uri, version in zip(lines, uris, versions, strict=True)]


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def _uri_version(uri: str) -> str:
    if "://" not in uri:
        return _local_version(Path(uri))
    try:
        found = FileSystems.metadata(uri)
    except (BeamIOError, OSError, ValueError):
        return ""
    return _version(found.size_in_bytes, found.last_updated_in_seconds)


def _local_version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return _version(status.st_size, status.st_mtime)


def _version(size: int, modified: float | None) -> str:
    return f"{size}:{modified or 0:.6f}"
