"""Encoded shards depend only on shard and quantizer, and their merge does not depend on the sharding."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from indexer.corpus.shards import Shard
from indexer.encoding.beam_run import encode_with_beam
from indexer.encoding.encoded_shards import (
    EncodedCorpus,
    encode_shard,
    encode_shard_bytes,
    encode_shards,
    encoded_shard_name,
    merge_shards,
)
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.errors import JobError, UsageError
from tests.indexer.shards import records, with_metadata_text, workspace_with_encoder, write_shard, write_shards
from tests.indexer.tiny_corpus import DIM, commit_embeddings

BLOCK_DIMS = (1, 5, 2, 8)
PARTITIONS = 7


@dataclasses.dataclass(frozen=True)
class NearestQuantizer:
    """Quantizer that chooses the nearest centroid, and the nearest entry of every block, in the mapped space."""

    transform: np.ndarray
    centroids: np.ndarray
    codebooks: tuple[np.ndarray, ...]

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mapped = np.einsum("nd,md->nm", vectors, self.transform)  # unlike BLAS, independent of the batch
        blocks = np.split(mapped, np.cumsum(BLOCK_DIMS)[:-1], axis=1)
        codes = [_nearest(block, book) for block, book in zip(blocks, self.codebooks, strict=True)]
        return _nearest(mapped, self.centroids).astype(np.uint32), np.stack(codes, axis=1).astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.concatenate([book[codes[:, block]] for block, book in enumerate(self.codebooks)], axis=1)


def _nearest(vectors: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.argmin(((vectors[:, None] - points) ** 2).sum(axis=-1), axis=1)


@pytest.fixture(scope="module")
def quantizer() -> NearestQuantizer:
    generator = np.random.default_rng(5)
    centroids = 0.3 * generator.normal(size=(PARTITIONS, DIM))
    centroids[[3, -1]] = 1e6  # these partitions stay empty
    return NearestQuantizer(
        generator.normal(size=(DIM, DIM)).astype(np.float32),
        centroids.astype(np.float32),
        tuple(generator.normal(size=(256, dims)).astype(np.float32) for dims in BLOCK_DIMS),
    )


def encode_and_merge(shards: Sequence[Shard], quantizer: NearestQuantizer, folder: Path) -> EncodedCorpus:
    folder.mkdir(exist_ok=True, parents=True)
    encode_shards(shards, quantizer, folder, threads=2)
    return merge_shards(shards, quantizer, folder, folder / "metadata")


def everything(result: EncodedCorpus) -> tuple[list[int], list[tuple[bytes, bytes]]]:
    """Returns partition sizes, and code and metadata of every item in device order."""
    items = [(code.tobytes(), result.metadata(item)) for item, code in enumerate(result.codes)]
    return result.partition_sizes.tolist(), items


def expected(
    items: Sequence[EmbeddingRecord], quantizer: NearestQuantizer
) -> tuple[list[int], list[tuple[bytes, str]]]:
    """Returns partition sizes, and code and id of every item, sorted by partition and id instead of order key."""
    assignments, codes = quantizer.encode(np.array([record.embedding for record in items]))
    order = sorted(range(len(items)), key=lambda row: (assignments[row], items[row].id))
    sizes = np.bincount(assignments, minlength=PARTITIONS).tolist()
    return sizes, [(codes[row].tobytes(), items[row].id) for row in order]


def test_the_merge_puts_every_code_into_its_partition(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    items = records(200)
    result = encode_and_merge(write_shards(tmp_path, items, 3), quantizer, tmp_path / "parts")
    sizes, found = everything(result)
    partitions = np.repeat(np.arange(PARTITIONS), sizes)
    named = [(int(p), json.loads(meta)["id"], code) for p, (code, meta) in zip(partitions, found, strict=True)]
    assert (sizes, [(code, id) for _, id, code in sorted(named)]) == expected(items, quantizer)
    assert sizes[3] == sizes[-1] == 0
    albums = {record.id: record.metadata for record in items}
    assert all(
        json.loads(meta) == {**albums[json.loads(meta)["id"]], "id": json.loads(meta)["id"]} for _, meta in found
    )


def test_the_index_does_not_depend_on_the_sharding(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    items = records(200)
    one = everything(encode_and_merge(write_shards(tmp_path / "1", items, 1), quantizer, tmp_path / "1/parts"))
    shuffled = random.Random(0).sample(items, len(items))
    many = everything(encode_and_merge(write_shards(tmp_path / "9", shuffled, 9), quantizer, tmp_path / "9/parts"))
    assert one == many


def test_dead_records_leave_no_trace(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    """The merge equals that of the corpus embedded anew, and dead records do not change encoded shards."""
    items = records(90)
    dead = [f"id{i}" for i in range(0, 90, 4)]
    whole, changed = write_shards(tmp_path / "a", items, 5), write_shards(tmp_path / "b", items, 5, dead)
    parts = tmp_path / "parts"
    encode_and_merge(whole, quantizer, parts)
    written = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    result = encode_and_merge(changed, quantizer, parts)
    assert {name: (parts / name).stat().st_mtime_ns for name in written if name != "metadata"} == {
        name: time for name, time in written.items() if name != "metadata"
    }
    fresh = [record for record in items if record.id not in dead]
    again = encode_and_merge(write_shards(tmp_path / "c", fresh, 2), quantizer, tmp_path / "again")
    assert everything(result) == everything(again)
    assert result.squared_error == pytest.approx(again.squared_error)


def test_an_encoded_shard_depends_only_on_shard_and_quantizer(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    (_, path) = write_shards(tmp_path, records(100), 1)[0]
    encode_shard(path, quantizer, tmp_path / "first")
    path.rename(tmp_path / "elsewhere")
    encode_shard(tmp_path / "elsewhere", quantizer, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_encoding_does_not_depend_on_the_chunk_size(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    shards = write_shards(tmp_path, records(100), 1)
    whole = encode_and_merge(shards, quantizer, tmp_path / "whole")
    parts = tmp_path / "chunks"
    parts.mkdir()
    for info, path in shards:
        (parts / encoded_shard_name(info)).write_bytes(
            encode_shard_bytes(path.read_bytes(), quantizer, path.name, chunk=33)
        )
    in_chunks = merge_shards(shards, quantizer, parts, parts / "metadata")
    assert everything(in_chunks) == everything(whole)
    assert in_chunks.squared_error == pytest.approx(whole.squared_error)


def test_an_interrupted_run_encodes_only_missing_shards(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    shards = write_shards(tmp_path, records(60), 4)
    parts = tmp_path / "parts"
    before = everything(encode_and_merge(shards, quantizer, parts))
    (parts / encoded_shard_name(shards[2][0])).unlink()
    times = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
    assert len(times) == 3
    assert everything(encode_and_merge(shards, quantizer, parts)) == before
    assert all((parts / name).stat().st_mtime_ns == time for name, time in times.items())


def test_the_error_is_the_mean_squared_distance_to_reconstructions(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    items = records(50)
    vectors = np.array([record.embedding for record in items])
    distances = vectors @ quantizer.transform.T - quantizer.decode(quantizer.encode(vectors)[1])
    result = encode_and_merge(write_shards(tmp_path, items, 2), quantizer, tmp_path / "parts")
    assert result.squared_error == pytest.approx((distances**2).sum(axis=1).mean(), rel=1e-5)


def _set_equal_order_keys(path: Path) -> None:
    """Rewrites an encoded shard as if all its ids had the same hash."""
    with safe_open(str(path), framework="numpy") as file:
        header = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, "order_keys": np.full_like(tensors["order_keys"], 7)}, path, header)


def test_ids_with_equal_order_keys_are_sorted(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    names = ["z", "é", "日", "a", '"', "B", "\n", "id"] * 5
    items = [
        dataclasses.replace(record, id=f"{name}{i // 8}")
        for i, (record, name) in enumerate(zip(records(40), names, strict=True))
    ]
    shards, parts = write_shards(tmp_path, items, 3), tmp_path / "parts"
    encode_and_merge(shards, quantizer, parts)
    for info, _ in shards:
        _set_equal_order_keys(parts / encoded_shard_name(info))
    sizes, found = everything(merge_shards(shards, quantizer, parts, parts / "metadata"))
    assert (sizes, [(code, json.loads(meta)["id"]) for code, meta in found]) == expected(items, quantizer)


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_corpora_and_empty_shards_are_merged(tmp_path: Path, quantizer: NearestQuantizer, count: int) -> None:
    result = encode_and_merge(write_shards(tmp_path, records(count), 4), quantizer, tmp_path / "parts")
    assert result.codes.shape == (count, len(BLOCK_DIMS))
    assert result.partition_sizes.sum() == count


def test_identical_vectors_are_in_one_partition(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    items = [dataclasses.replace(record, embedding=records()[0].embedding) for record in records(30)]
    sizes, found = everything(encode_and_merge(write_shards(tmp_path, items, 2), quantizer, tmp_path / "parts"))
    assert sorted(sizes) == [0] * (PARTITIONS - 1) + [30]
    assert len({code for code, _ in found}) == 1
    assert {json.loads(meta)["id"] for _, meta in found} == {record.id for record in items}


def test_a_megabyte_of_metadata_is_preserved(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    items = records(5)
    items[1] = dataclasses.replace(items[1], metadata={"text": "日" * 350_000})
    result = encode_and_merge(write_shards(tmp_path, items, 2), quantizer, tmp_path / "parts")
    longest = max((result.metadata(item) for item in range(5)), key=len)
    assert json.loads(longest) == {"id": "id1", **items[1].metadata}


def test_duplicate_ids_are_rejected_unless_they_are_dead(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    twice = [*records(4), dataclasses.replace(records(6)[5], id="id2")]
    with pytest.raises(
        UsageError, match=r"'id2' occurs twice in the corpus, from /photos/(2|5).jpg and from /photos/(2|5)"
    ):
        encode_and_merge(write_shards(tmp_path, twice, 2), quantizer, tmp_path / "parts")
    alone = encode_and_merge(write_shards(tmp_path, twice, 2, dead=["id2"]), quantizer, tmp_path / "parts")
    assert len(alone.codes) == 3


def test_faulty_records_are_rejected_unless_they_are_dead(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    items = records()
    items[3] = dataclasses.replace(items[3], embedding=np.full(DIM, np.nan, np.float32))
    payloads = [record.to_bytes() for record in items]
    payloads[1] = with_metadata_text(items[1], b'{"id": "other"}')
    parts = tmp_path / "parts"
    for dead, fault in (((1,), "embedding of 'id3' contains NaN"), ((3,), "metadata of 'id1' has its own key 'id'")):
        with pytest.raises(UsageError, match=fault):
            encode_and_merge([write_shard(tmp_path / "shard", payloads, dead)], quantizer, parts)
    sound = [record for row, record in enumerate(items) if row not in (1, 3)]
    result = encode_and_merge([write_shard(tmp_path / "shard", payloads, (1, 3))], quantizer, parts)
    assert everything(result) == everything(
        encode_and_merge(write_shards(tmp_path / "s", sound, 1), quantizer, tmp_path / "p")
    )


def test_a_corpus_without_live_records_is_rejected(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    with pytest.raises(UsageError, match="no records"):
        encode_and_merge(write_shards(tmp_path, records(1), 1, dead=["id0"]), quantizer, tmp_path / "parts")


def test_a_damaged_or_missing_encoded_shard_is_an_error(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    shards = write_shards(tmp_path, records(20), 2)
    parts = tmp_path / "parts"
    encode_and_merge(shards, quantizer, parts)
    path = parts / encoded_shard_name(shards[1][0])
    data = path.read_bytes()
    for damaged in (data[:-1], data[:100], b"", b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(JobError, match=r"encoded shard .*safetensors cannot be read: .*; delete it"):
            merge_shards(shards, quantizer, parts, tmp_path / "metadata")
    path.unlink()
    with pytest.raises(JobError, match="cannot be read"):
        merge_shards(shards, quantizer, parts, tmp_path / "metadata")


def test_a_beam_job_writes_the_same_bytes(tmp_path: Path, quantizer: NearestQuantizer) -> None:
    workspace = workspace_with_encoder(tmp_path / "workspace")
    manifest = commit_embeddings(workspace, records(30), shards=3)
    folder = workspace.local("embeddings", "corpus")
    encode_shards([(shard, folder / shard.name) for shard in manifest.shards], quantizer, tmp_path / "here", threads=1)
    encode_with_beam(workspace, manifest, quantizer, "parts/q")
    encode_with_beam(workspace, manifest, quantizer, "parts/q")  # finds the encoded shards
    there = tmp_path / "workspace/parts/q"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()
    }
    shard = folder / manifest.shards[1].name
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(JobError, match=r"data-00001-of-00003.tfrecord has SHA-256"):
        encode_with_beam(workspace, manifest, quantizer, "parts/other")
