"""Loads the embedded items of a corpus in full precision, as the reference for a searcher."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.hashing import sha256_bytes
from searchforge.sources import SourceReader


@dataclass(frozen=True)
class Corpus:
    """The embedded items, in the order of the shards.

    Attributes:
      vectors: [n, dim] float32.
      metadata: [n] uint64, digest of the metadata that the device returns for each item; see `metadata_digest`.
      texts: Texts of a text corpus; empty for images.
      row_of: Row of each id.
      row_of_uri: Row of each URI that `load_corpus` was given.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    metadata: npt.NDArray[np.uint64]
    texts: list[str]
    row_of: dict[str, int]
    row_of_uri: dict[str, int]
    _locations: Locations
    _reader: SourceReader

    def read(self, row: int) -> bytes | None:
        """Returns the bytes of an item; None if they are missing or have changed since they were embedded."""
        return self._reader.read(*self._locations[row])


class Locations:
    """URI, byte range and content hash of many items, at a fraction of the memory that Python strings take."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("Q", [0])

    def append(self, record: EmbeddingRecord) -> None:
        """Adds the location of one more item."""
        self._text += "\n".join((record.content_hash, record.byte_range, record.uri)).encode()
        self._ends.append(len(self._text))

    def __getitem__(self, row: int) -> tuple[str, str, str]:
        text = self._text[self._ends[row] : self._ends[row + 1]].decode()
        content_hash, byte_range, uri = text.split("\n", 2)
        return uri, byte_range, content_hash


def load_corpus(workspace: Workspace, manifest: Manifest, uris: Collection[str] = ()) -> Corpus:
    """Reads every record of an embedding run.

    Args:
      uris: URIs to include in `Corpus.row_of_uri`.

    Raises:
      JobError: A shard is missing or damaged.
    """
    of_texts = manifest.modality == "texts"
    vectors = np.empty((manifest.records, manifest.dim), np.float32)
    metadata = np.empty(manifest.records, np.uint64)
    ids: list[str] = []
    texts: list[str] = []
    row_of_uri: dict[str, int] = {}
    locations = Locations()
    for row, record in enumerate(read_shards(workspace, manifest)):
        ids.append(record.id)
        vectors[row] = record.embedding
        metadata[row] = metadata_digest({**record.metadata, "id": record.id})
        locations.append(record)
        if of_texts:
            texts.append(str(record.metadata.get("text", "")))
        if record.uri in uris:
            row_of_uri[record.uri] = row
    row_of = {id: row for row, id in enumerate(ids)}
    return Corpus(ids, vectors, metadata, texts, row_of, row_of_uri, locations, SourceReader())


def metadata_digest(metadata: dict[str, Any]) -> int:
    """Returns a 64-bit hash of metadata that does not depend on the order of keys."""
    return int(sha256_bytes(json.dumps(metadata, sort_keys=True).encode())[:16], 16)
