"""What a searcher is held against: the full-precision embeddings, and queries whose answers are known."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchforge.captions import has_captions, load_captions, split_heldout
from searchforge.config import Config
from searchforge.errors import SearchforgeError
from searchforge.hashing import sha256_bytes
from searchforge.manifest import Manifest, read_shards
from searchforge.storage import Storage, open_storage
from searchforge.workspace import Workspace


@dataclass(frozen=True)
class Corpus:
    """The embedded items, in the order of the shards.

    Attributes:
      vectors: [n, dim] float32.
      texts: of a text corpus; empty for images.
      uris, places: where the items were read, as of EmbeddingRecord.
      row_of: position of each id.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    uris: list[str]
    places: list[str]
    content_hashes: list[str]
    texts: list[str]
    row_of: dict[str, int]


@dataclass(frozen=True)
class Queries:
    """Queries of one kind.

    Attributes:
      values: texts, or paths of image files.
      targets: the row of the item that each query describes or is.
    """

    values: list[str]
    targets: list[int]

    def __len__(self) -> int:
        return len(self.values)


def load_corpus(workspace: Workspace, manifest: Manifest) -> Corpus:
    """Reads every record of an embedding run.

    Raises:
      JobError: a shard is missing or damaged.
    """
    records = list(read_shards(workspace, manifest))
    ids = [record.id for record in records]
    return Corpus(
        ids=ids,
        vectors=np.stack([record.embedding for record in records]),
        uris=[record.uri for record in records],
        places=[record.place for record in records],
        content_hashes=[record.content_hash for record in records],
        texts=[str(record.metadata.get("text", "")) for record in records] if manifest.modality == "texts" else [],
        row_of={id: row for row, id in enumerate(ids)},
    )


def heldout_captions(config: Config, corpus: Corpus) -> Queries:
    """Returns a seeded sample of `check.queries` held-out captions of images of the corpus; none without captions."""
    if not has_captions(config.data):
        return Queries([], [])
    heldout = split_heldout(load_captions(config), config).heldout
    row_of_uri = {uri: row for row, uri in enumerate(corpus.uris)}
    pairs = []
    for image in heldout:
        row = corpus.row_of.get(image.id, row_of_uri.get(str(image.path.resolve())))
        if row is not None:
            pairs += [(caption, row) for caption in image.captions]
    chosen = _sample(len(pairs), config.check.queries, config.check.seed)
    return Queries([pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen])


def corpus_texts(corpus: Corpus, config: Config) -> Queries:
    """Returns a seeded sample of `check.queries` texts of a text corpus, which are to find themselves."""
    chosen = _sample(len(corpus.texts), config.check.queries, config.check.seed)
    return Queries([corpus.texts[row] for row in chosen], list(chosen))


def corpus_images(corpus: Corpus, count: int, seed: int, folder: Path) -> Queries:
    """Copies a seeded sample of the corpus' images into `folder`; those that are gone or changed are left out."""
    values, targets = [], []
    open_once = functools.cache(open_storage)  # a client for every bucket, not for every image
    for row in _sample(len(corpus.ids), count, seed):
        data = _read(corpus.uris[row], corpus.places[row], open_once)
        if data is not None and sha256_bytes(data) == corpus.content_hashes[row]:
            path = folder / str(row)
            path.write_bytes(data)
            values.append(str(path))
            targets.append(row)
    return Queries(values, targets)


def _sample(total: int, count: int, seed: int) -> Sequence[int]:
    if total <= count:
        return range(total)
    chosen: list[int] = np.sort(np.random.default_rng(seed).choice(total, count, replace=False)).tolist()
    return chosen


def _read(uri: str, place: str, open_folder: Callable[[str], Storage]) -> bytes | None:
    """Returns an item's bytes; None where they cannot be read."""
    byte_range, _, file = place.partition("@")
    offset, _, size = byte_range.partition("+")
    if "://" in (file := file or uri):
        scheme, _, rest = file.partition("://")
        bucket, _, name = rest.partition("/")
        folder = f"{scheme}://{bucket}"
    else:
        folder, name = "/", file.lstrip("/")
    try:
        return open_folder(folder).read(name, int(offset or 0), int(size) if size else None)
    except (OSError, SearchforgeError):
        return None
