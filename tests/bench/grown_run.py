"""Writes large embedding runs without Beam or an encoder, for benchmarks of the indexer.

    python -m tests.bench.grown_run --workspace bench --photos RUN --count 10000000 --id grown

grows a run from the embeddings of photos (see tests/bench/grown_set.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from searchforge.artifacts.manifest import Manifest, ShardInfo, read_shards
from searchforge.artifacts.records import EmbeddingRecord, write_tfrecords
from searchforge.artifacts.workspace import Workspace
from searchforge.hashing import sha256_file
from tests.bench.grown_set import grow

BLOCK = 16_384
"""Number of records serialized at a time."""


def write_run(
    workspace: Workspace,
    id: str,
    blocks: Iterable[npt.NDArray[np.float32]],
    count: int,
    dim: int,
    *,
    encoder: str = "tiny",
    fingerprint: str = "f" * 64,
    preprocessing: str = "",
    records_per_shard: int = 1024,
    metadata: dict[str, Any] | None = None,
    first: int = 0,
) -> Manifest:
    """Commits an embedding run of `count` records with the ids `00000000.jpg` and so on, in the order of the vectors.

    Args:
      blocks: Matrices [any, dim] float32 of L2-normalised rows, with `count` rows in total.
      metadata: Metadata of every record.
      first: Number in the first id.
    """
    total = -(-count // records_per_shard)
    stream = _Rows(blocks, dim)
    with workspace.create("embeddings", id) as staging:
        infos = []
        for shard in range(total):
            begin = shard * records_per_shard
            size = min(records_per_shard, count - begin)
            path = staging.path / f"data-{shard:05d}-of-{total:05d}.tfrecord"
            with path.open("wb") as file:
                for start in range(begin, begin + size, BLOCK):
                    vectors = stream.take(min(BLOCK, begin + size - start))
                    write_tfrecords(file, map(bytes, examples(vectors, first + start, metadata or {})))
            infos.append(ShardInfo(name=path.name, count=size, bytes=path.stat().st_size, sha256=sha256_file(path)))
        manifest = Manifest(
            id=id,
            encoder=encoder,
            fingerprint=fingerprint,
            preprocessing=preprocessing,
            dim=dim,
            source="grown",
            inputs=count,
            embedded=count,
            reused=0,
            rejected=0,
            rejected_by_reason={},
            shards=tuple(infos),
            rejects=(),
            seconds=0.0,
        )
        staging.commit(manifest.model_dump())
    return manifest


def write_like(
    workspace: Workspace, base: Manifest, id: str, blocks: Iterable[npt.NDArray[np.float32]], count: int, first: int = 0
) -> Manifest:
    """Commits a run with the encoder of another run, unless it exists; see `write_run`."""
    if workspace.committed("embeddings", id):
        return Manifest.model_validate(workspace.marker("embeddings", id))
    like = {"encoder": base.encoder, "fingerprint": base.fingerprint, "preprocessing": base.preprocessing}
    return write_run(workspace, id, blocks, count, base.dim, first=first, **like)


def examples(vectors: npt.NDArray[np.float32], first: int, metadata: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Returns serialized records with ids counting from `first`, as a matrix, since all have the same length."""
    ids = [f"{first + row:08d}.jpg" for row in range(len(vectors))]
    template = EmbeddingRecord(ids[0], vectors[0], f"/photos/{ids[0]}", "0" * 64, metadata).to_bytes()
    rows = np.tile(np.frombuffer(template, np.uint8), (len(vectors), 1))
    names = np.array(ids, "S").view(np.uint8).reshape(len(ids), -1)
    for field, values in ((vectors[0].tobytes(), vectors.view(np.uint8)), (ids[0].encode(), names)):
        at = -1
        while (at := template.find(field, at + 1)) >= 0:
            rows[:, at : at + len(field)] = values
    return rows


class _Rows:
    """Re-chunks a stream of matrices."""

    def __init__(self, blocks: Iterable[npt.NDArray[np.float32]], dim: int) -> None:
        self._blocks = iter(blocks)
        self._rest = np.empty((0, dim), np.float32)

    def take(self, count: int) -> npt.NDArray[np.float32]:
        pieces = [self._rest]
        while sum(map(len, pieces)) < count:
            pieces.append(next(self._blocks))
        rows = np.concatenate(pieces)
        self._rest = rows[count:]
        return np.ascontiguousarray(rows[:count], np.float32)


@click.command()
@click.option("--workspace", required=True)
@click.option("--photos", required=True, help="Id of the embedding run to grow from.")
@click.option("--count", default=1_000_000, show_default=True)
@click.option("--id", default="grown", show_default=True)
def main(workspace: str, photos: str, count: int, id: str) -> None:
    store = Workspace(workspace)
    base = Manifest.model_validate(store.marker("embeddings", photos))
    vectors = np.stack([record.embedding for record in read_shards(store, base)])
    click.echo(write_like(store, base, id, grow(vectors, count), count).summary)


if __name__ == "__main__":
    main()
