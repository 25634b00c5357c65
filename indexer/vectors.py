"""Loads the shards of an embedding run into one matrix, and refuses what must not be indexed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from searchforge.errors import UsageError
from searchforge.hashing import canonical_json
from searchforge.manifest import Manifest, read_shards
from searchforge.workspace import Workspace

NORM_TOLERANCE = 1e-3
"""How far the length of an embedding may be from 1."""


@dataclass(frozen=True)
class Corpus:
    """Embedded items in the order of their ids, however they were sharded.

    Attributes:
      ids: unique.
      vectors: [n, dim] float32, finite, L2-normalised.
      device_metadata: for each item the JSON that the device returns with a hit: its metadata and its `id`.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    device_metadata: list[bytes]


def load_corpus(workspace: Workspace, manifest: Manifest) -> Corpus:
    """Reads and validates every record of an embedding run.

    Raises:
      UsageError: there are no records, an id is there twice, a vector is not a finite one of length 1 and of the
        manifest's dimension, or metadata cannot be JSON on the device.
      JobError: a shard is missing or damaged.
    """
    count = manifest.records
    require_images(manifest)
    vectors = np.empty((count, manifest.dim), np.float32)
    ids: list[str] = []
    uris: dict[str, str] = {}
    metadata: list[bytes] = []
    for row, record in enumerate(read_shards(workspace, manifest)):
        if record.id in uris:
            raise UsageError(
                f"id {record.id!r} is in embeddings {manifest.id} twice, from {uris[record.id]} and from {record.uri}; "
                "give every item an id of its own"
            )
        if len(record.embedding) != manifest.dim:
            raise UsageError(
                f"embedding of {record.id!r} has {len(record.embedding)} dimensions, the manifest of embeddings "
                f"{manifest.id} says {manifest.dim}; embed the corpus again with one encoder"
            )
        vectors[row] = record.embedding
        ids.append(record.id)
        uris[record.id] = record.uri
        metadata.append(_device_metadata(record.id, record.metadata))
    _require_unit_vectors(vectors, ids)
    order = sorted(range(count), key=ids.__getitem__)
    return Corpus([ids[row] for row in order], vectors[order], [metadata[row] for row in order])


def require_images(manifest: Manifest) -> None:
    """Raises UsageError where an embedding run embedded nothing."""
    if not manifest.records:
        raise UsageError(
            f"embeddings {manifest.id} hold no images ({manifest.inputs} inputs, {manifest.rejected} rejected: "
            f"{manifest.rejected_by_reason}); there is nothing to index"
        )


def _device_metadata(id: str, metadata: dict[str, object]) -> bytes:
    if metadata.get("id", id) != id:
        raise UsageError(
            f"metadata of {id!r} has a key 'id' of its own ({metadata['id']!r}), which the device uses for the item's "
            "id; rename the key"
        )
    try:
        return canonical_json({**metadata, "id": id})
    except ValueError as error:
        raise UsageError(f"metadata of {id!r} is not JSON that a device can read: {error}; mend the value") from None


def _require_unit_vectors(vectors: npt.NDArray[np.float32], ids: list[str]) -> None:
    norms = np.linalg.norm(vectors, axis=1)
    faults = (
        (~np.isfinite(norms), "hold NaN or infinity"),
        (norms == 0, "are all zeros"),
        (np.abs(norms - 1) > NORM_TOLERANCE, f"are not of length 1 (tolerance {NORM_TOLERANCE})"),
    )
    for bad, what in faults:
        if bad.any():
            rows = np.flatnonzero(bad)
            shown = ", ".join(f"{ids[row]!r} (length {norms[row]:g})" for row in rows[:3])
            raise UsageError(
                f"{len(rows)} of {len(ids)} embeddings {what}, such as those of {shown}; the encoder that made them is "
                "faulty: train it again, then embed the corpus again"
            )
