"""Finds the files of a corpus (a file, a folder or a glob), local, in gs:// or in any file system that Beam supports.

Files are yielded as a stream, in the order of the file system, so that large folders and buckets need little memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import BadRequest, Forbidden

from beam_jobs.corpus.patterns import WILDCARD, Exclusion, Glob
from searchforge.errors import JobError, UsageError
from searchforge.storage import buckets
from searchforge.storage.base import GCS_SCHEME

_NO_PERMISSION = "no permission to list the folder, whose files are left out; change its permissions or move it"


class File(NamedTuple):
    """One file, or a folder that may not be listed.

    Attributes:
      id: Path relative to the folder or to the fixed part of the glob; the name of a single file.
      path: Absolute path or URI.
      size: Size in bytes; -1 if the file is missing.
      version, content, reject, detail, may_pass: See `Item`. In an id and path that are not UTF-8, the other bytes are
        escaped.
    """

    id: str
    path: str
    size: int = -1
    version: str = ""
    content: str = ""
    reject: str = ""
    detail: str = ""
    may_pass: bool = False


def find_files(source: str, exclusion: Exclusion) -> File | Iterator[File]:
    """Returns the file named `source`, or an iterator over the files in that folder or matching that glob.

    A single file is never excluded.

    In a glob, `*` and `?` match within a folder, `**` across folders, and `[...]` matches one of several characters.
    A path that exists is not treated as a glob, and neither are the leading folders of a local glob that exist.

    Below a folder, a file whose path is not UTF-8 and a subfolder that may not be listed are yielded as rejects.

    Raises:
      UsageError: The file, folder or bucket does not exist, or `source` is not UTF-8.
      JobError: A folder or a bucket cannot be listed.
    """
    source = local_path(source)
    if source.startswith(GCS_SCHEME):
        return _without(_bucket_source(source), exclusion)
    if "://" in source:
        return _without(_beam_source(source), exclusion)
    path = os.path.abspath(os.path.expanduser(source))  # noqa: PTH100, PTH111 (Path.resolve would follow links)
    if not _is_utf8(path):
        raise UsageError(f"corpus {_printable(path)} is not UTF-8; rename the file or folder")
    if os.path.isdir(path):  # noqa: PTH112
        return _walk(path.rstrip("/"), None, exclusion)
    root = _existing_root(path)
    if WILDCARD.search(path[len(root) :]) and not os.path.lexists(path):
        pattern = Glob(path, root)
        if not os.path.isdir(pattern.root or "/"):  # noqa: PTH112
            raise UsageError(f"corpus {source}: folder {pattern.root} does not exist; check the path")
        return _walk(pattern.root, pattern, exclusion)
    return _local_source(source, path)


def local_path(uri: str) -> str:
    """Returns the path of a file:// URI (RFC 8089), and anything else unchanged."""
    if not uri.startswith("file://"):
        return uri
    host, slash, path = uri.removeprefix("file://").partition("/")
    return unquote(slash + path) if host in ("", "localhost") else uri


def scheme_advice(uri: str) -> str:
    """Returns what to do about a URI whose scheme Beam does not know."""
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        return "web addresses are not read; download the images, for example with img2dataset, and list the files"
    extra = {"s3": "aws", "azfs": "azure"}.get(scheme)
    if extra:
        return f"{scheme}:// needs a file system for Beam: pip install 'apache-beam[{extra}]'"
    return f"{scheme}:// is not supported; expected a path, file:///path or gs://bucket/name"


def _without(found: File | Iterator[File], exclusion: Exclusion) -> File | Iterator[File]:
    return found if isinstance(found, File) else (file for file in found if not exclusion.excludes(file.id))


def describe_file(path: str) -> File:
    """Returns the file at an absolute path or URI, without a version if it is missing or inaccessible.

    Raises:
      JobError: The bucket cannot be reached.
      UsageError: There are no credentials.
    """
    try:
        if path.startswith(GCS_SCHEME):
            return _describe_object(path)
        if "://" in path:
            return _beam_file(path, path)
        status = os.stat(path)  # noqa: PTH116
    except (BeamIOError, OSError, ValueError):
        return File(path, path)
    return File(path, path, status.st_size, _local_version(status))


def _existing_root(path: str) -> str:
    """Returns the folder above the first part of a local path that has a wildcard and is not the name of a folder."""
    root, *parts = path.split("/")
    for part in parts[:-1]:
        if WILDCARD.search(part) and not os.path.isdir(f"{root}/{part}"):  # noqa: PTH112
            break
        root = f"{root}/{part}"
    return root


def _walk(root: str, pattern: Glob | None, exclusion: Exclusion) -> Iterator[File]:
    folders = [""]
    while folders:
        folder = folders.pop()
        subfolders: list[str] = []
        try:
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    name = folder + entry.name
                    # A link to a folder could form a cycle: it is listed instead, and rejected when it is read.
                    if entry.is_dir(follow_symlinks=False):
                        if (pattern is None or pattern.enters(name)) and not exclusion.excludes(name):
                            subfolders.append(f"{name}/")
                    elif (pattern is None or pattern.matches(name)) and not exclusion.excludes(name):
                        yield _local_file(name, entry)
        except OSError as error:
            if folder and isinstance(error, PermissionError):
                yield _rejected(folder[:-1], f"{root}/{folder[:-1]}", "unlisted_folder", _NO_PERMISSION, may_pass=True)
                continue
            raise JobError(
                f"folder {root}/{folder} cannot be listed: {error.strerror}; change its permissions"
            ) from None
        folders += sorted(subfolders, reverse=True)


def _local_file(id: str, entry: os.DirEntry[str]) -> File:
    if not id.isascii() and not _is_utf8(entry.path):
        return _rejected(id, entry.path, "not_utf8", "the name of the file or of its folder is not UTF-8; rename it")
    try:
        status = entry.stat()
    except OSError:
        return File(id, entry.path)
    return File(id, entry.path, status.st_size, _local_version(status))


def _local_version(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}"


def _rejected(id: str, path: str, reason: str, detail: str, may_pass: bool = False) -> File:
    return File(_printable(id), _printable(path), reject=reason, detail=detail, may_pass=may_pass)


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _local_source(source: str, path: str) -> File:
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"corpus {source} does not exist or cannot be read ({reason}); expected a folder, a glob, a list or an "
            "archive"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(
            f"corpus {source} is neither a file nor a folder; expected a folder, a glob, a list or an archive"
        )
    return File(os.path.basename(path), path, status.st_size, _local_version(status))  # noqa: PTH119


def _describe_object(uri: str) -> File:
    try:
        found = buckets.find_object(uri)
    except (BadRequest, Forbidden):  # concerns this object only; reading it will report why
        found = None
    except buckets.ERRORS:
        with buckets.converted_errors(uri):
            raise
    return File(uri, uri, found.size, found.generation, found.content) if found else File(uri, uri)


def _bucket_source(source: str) -> File | Iterator[File]:
    with buckets.converted_errors(source):
        found = None if source.endswith("/") else buckets.find_object(source)
        if found and not found.size and next(buckets.list_objects(f"{source}/"), None):
            found = None  # an empty object that some tools create for a folder
    if found:
        return File(source.rpartition("/")[2], source, found.size, found.generation, found.content)
    if WILDCARD.search(source):
        pattern = Glob(source)
        files = _list_bucket(WILDCARD.split(source)[0], f"{pattern.root}/")
        return (file for file in files if pattern.matches(file.id))
    folder = f"{source.rstrip('/')}/"
    return _list_bucket(folder, folder)


def _list_bucket(prefix: str, root: str) -> Iterator[File]:
    with buckets.converted_errors(prefix):
        for uri, size, generation, content in buckets.list_objects(prefix):
            yield File(uri[len(root) :], uri, size, generation, content)


def _beam_source(source: str) -> File | Iterator[File]:
    root = Glob(source).root if WILDCARD.search(source) else source.rstrip("/")
    try:
        (result,) = FileSystems.match([source if WILDCARD.search(source) else f"{root}/**"])
    except ValueError:
        raise UsageError(f"corpus {source} cannot be used: {scheme_advice(source)}") from None
    except (BeamIOError, OSError) as error:
        raise JobError(f"corpus {source} cannot be listed: {error}") from None
    if result.metadata_list or WILDCARD.search(source):
        found = (file for file in result.metadata_list if not file.path.endswith("/"))
        return (_file_from_metadata(file.path.removeprefix(f"{root}/"), file) for file in found)
    try:
        return _beam_file(root.rpartition("/")[2], root)
    except (BeamIOError, OSError) as error:
        raise UsageError(f"corpus {source} does not exist or cannot be read: {error}") from None


def _beam_file(id: str, path: str) -> File:
    return _file_from_metadata(id, FileSystems.get_filesystem(path).metadata(path))


def _file_from_metadata(id: str, found: FileMetadata) -> File:
    return File(id, found.path, found.size_in_bytes, f"{found.size_in_bytes}:{found.last_updated_in_seconds or 0:.6f}")
