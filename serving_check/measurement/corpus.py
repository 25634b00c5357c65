"""What a searcher is held against: the embedded items, as the embedding run holds them in full precision."""

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
      metadata: [n] uint64, digest of what the device is to return for each item; see `metadata_digest`.
      texts: of a text corpus; empty for images.
      row_of: position of each id.
      row_of_uri: position of those items that were asked for by where they were read.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    metadata: npt.NDArray[np.uint64]
    texts: list[str]
    row_of: dict[str, int]
    row_of_uri: dict[str, int]
    _sources: Sources
    _reader: SourceReader

    def read(self, row: int) -> bytes | None:
        """Returns an item's bytes; None where they are gone, or others than those that were embedded."""
        return self._reader.read(*self._sources[row])


class Sources:
    """Where many items were read: uri, place and content hash, at a fraction of the memory of strings."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("Q", [0])

    def append(self, record: EmbeddingRecord) -> None:
        self._text += "\n".join((record.content_hash, record.byte_range, record.uri)).encode()
        self._ends.append(len(self._text))

    def __getitem__(self, row: int) -> tuple[str, str, str]:
        text = self._text[self._ends[row] : self._ends[row + 1]].decode()
        content_hash, place, uri = text.split("\n", 2)
        return uri, place, content_hash


def load_corpus(workspace: Workspace, manifest: Manifest, uris: Collection[str] = ()) -> Corpus:
    """Reads every record of an embedding run.

    Args:
      uris: whose rows are wanted, see `Corpus.row_of_uri`.

    Raises:
      JobError: a shard is missing or damaged.
    """
    of_texts = manifest.modality == "texts"
    vectors = np.empty((manifest.records, manifest.dim), np.float32)
    metadata = np.empty(manifest.records, np.uint64)
    ids: list[str] = []
    texts: list[str] = []
    row_of_uri: dict[str, int] = {}
    sources = Sources()
    for row, record in enumerate(read_shards(workspace, manifest)):
        ids.append(record.id)
        vectors[row] = record.embedding
        metadata[row] = metadata_digest({**record.metadata, "id": record.id})
        sources.append(record)
        if of_texts:
            texts.append(str(record.metadata.get("text", "")))
        if record.uri in uris:
            row_of_uri[record.uri] = row
    row_of = {id: row for row, id in enumerate(ids)}
    return Corpus(ids, vectors, metadata, texts, row_of, row_of_uri, sources, SourceReader())


def metadata_digest(metadata: dict[str, Any]) -> int:
    """Returns 64 bits that differ where metadata differ, whatever the order of their keys."""
    return int(sha256_bytes(json.dumps(metadata, sort_keys=True).encode())[:16], 16)
