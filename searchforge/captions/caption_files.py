"""Captions files on disk or in a bucket: finds them by name or pattern, and copies those of a bucket."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from searchforge.captions.formats import READERS, CaptionRows, reader_for
from searchforge.captions.tfrecords import is_tfrecord
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id
from searchforge.storage import buckets
from searchforge.storage.base import GCS_SCHEME
from searchforge.storage.files import atomic_write


@dataclass(frozen=True)
class CaptionsFile:
    """A captions file.

    Attributes:
      name: Path or gs:// URI of the file, for messages.
      path: The file, or its local copy.
    """

    name: str
    path: Path

    def rows(self) -> CaptionRows:
        """Yields the rows of a file that is not a TFRecord, with places that state the file's own name.

        Raises:
          UsageError: The file cannot be read.
        """
        reader = reader_for(self.path)
        assert reader
        copied = str(self.path) != self.name
        try:
            for row in reader(self.path):
                yield dataclasses.replace(row, place=self._renamed(row.place)) if copied else row
        except OSError as error:
            raise UsageError(f"captions {self.name} cannot be read: {error.strerror}") from None
        except UsageError as error:
            raise UsageError(self._renamed(str(error))) from None

    def _renamed(self, text: str) -> str:
        return text.replace(str(self.path), self.name)


def find_captions_files(names: Sequence[str], cache: Path) -> list[CaptionsFile]:
    """Returns captions files, with patterns expanded unless a file has that very name.

    Args:
      names: Paths, gs:// URIs, or patterns with `*` in the last part.
      cache: Folder for copies of the files in buckets, which are copied once.

    Raises:
      UsageError: A file does not exist or its format is unknown, or TFRecords are mixed with other formats.
      JobError: A bucket may not be read or cannot be reached, or a copy cannot be written.
    """
    found: list[str] = []
    for name in names:
        matches = _bucket_matches(name) if name.startswith(GCS_SCHEME) else _local_matches(Path(name))
        if not matches:
            raise UsageError(f"captions {name} match no file; check the pattern")
        found += matches
    for name in found:
        if not is_tfrecord(name) and not reader_for(Path(name)):
            raise UsageError(
                f"captions {name} have an unknown format; expected a name that ends in {', '.join(READERS)}, "
                ".tfrecord, .tfrecords or .tfrec"
            )
    if len({is_tfrecord(name) for name in found}) > 1:
        raise UsageError(
            f"captions {', '.join(found[:4])} mix TFRecords with other formats; "
            "TFRecords contain their images, so use one or the other"
        )
    return [CaptionsFile(name, _copy(name, cache) if name.startswith(GCS_SCHEME) else Path(name)) for name in found]


def _local_matches(path: Path) -> list[str]:
    if "://" in str(path) or "*" not in path.name or path.exists():
        return [str(path)]
    try:
        names = os.listdir(path.parent)  # noqa: PTH208  fnmatch needs names
    except OSError as error:
        raise UsageError(f"captions {path}: {path.parent} cannot be read: {error.strerror}") from None
    return [str(path.parent / name) for name in sorted(fnmatch.filter(names, path.name))]


def _bucket_matches(uri: str) -> list[str]:
    folder, _, pattern = uri.rpartition("/")
    if "*" not in pattern:
        return [uri]
    with buckets.converted_errors(uri):
        found = [one.uri for one in buckets.list_objects(f"{folder}/{pattern.partition('*')[0]}")]
    return [name for name in found if name.rpartition("/")[0] == folder and fnmatch.fnmatchcase(name, uri)]


def _copy(uri: str, cache: Path) -> Path:
    """Returns a local copy of an object, made unless there is one of the same generation."""
    with buckets.converted_errors(uri):
        found = buckets.find_object(uri)
        if found is None:
            raise UsageError(f"captions {uri} do not exist; check the name")
        copy = cache / content_id([uri, found.generation]) / uri.rpartition("/")[2]
        if not copy.exists():
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(copy) as file, buckets.open_object(uri, found.generation) as source:
                    while block := source.read(1 << 20):
                        file.write(block)
            except buckets.ERRORS:
                raise
            except OSError as error:
                raise JobError(
                    f"{copy} cannot be written: {error.strerror}; free some space in the workspace"
                ) from error
        return copy
