"""A quantizer encodes row by row, is serialized to one file, and preserves the scores of queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from indexer.corpus.corpus_scan import exact_search
from indexer.quantization.block_allocation import block_widths
from indexer.quantization.codebooks import train_codebooks
from indexer.quantization.codes import decode
from indexer.quantization.partitions import PartitionAssigner
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_direction import QueryDirectionModel
from indexer.quantization.query_map import inverse_transpose, query_aware_map
from searchforge.errors import JobError
from tests.indexer.tiny_encoder import unit

DIM = 16
BLOCKS = 6
NAME = "/cache/quantizer.safetensors"


def test_a_quantizer_survives_serialization() -> None:
    quantizer = some_quantizer()
    again = Quantizer.from_bytes(quantizer.to_bytes(), NAME)
    assert_equal(again, quantizer)
    assert (again.id, again.to_bytes()) == (quantizer.id, quantizer.to_bytes())


def test_a_quantizer_without_landmarks_survives_serialization() -> None:
    quantizer = dataclasses.replace(some_quantizer(), query_direction=QueryDirectionModel.identity(DIM))
    assert_equal(Quantizer.from_bytes(quantizer.to_bytes(), NAME), quantizer)


def test_a_deserialized_quantizer_encodes_identically() -> None:
    quantizer, vectors = some_quantizer(), corpus(300)
    again = Quantizer.from_bytes(quantizer.to_bytes(), NAME)
    for read, written in zip(again.encode(vectors), quantizer.encode(vectors), strict=True):
        np.testing.assert_array_equal(read, written)


def with_uneven_blocks(quantizer: Quantizer) -> Quantizer:
    """Returns a quantizer with the same entries but different block boundaries."""
    entries = np.concatenate(quantizer.codebooks, axis=1)
    ends = np.cumsum([book.shape[1] for book in quantizer.codebooks])[:-1] - 1
    return dataclasses.replace(quantizer, codebooks=tuple(np.split(entries, ends, axis=1)))


CHANGES: dict[str, Callable[[Quantizer], Quantizer]] = {
    "transform": lambda q: dataclasses.replace(q, transform=changed(q.transform)),
    "clusters": lambda q: dataclasses.replace(q, clusters=changed(q.clusters)),
    "one cluster less": lambda q: dataclasses.replace(q, clusters=q.clusters[:-1]),
    "an entry": lambda q: dataclasses.replace(q, codebooks=(*q.codebooks[:-1], changed(q.codebooks[-1]))),
    "the order of codebooks": lambda q: dataclasses.replace(q, codebooks=q.codebooks[::-1]),
    "where blocks end": with_uneven_blocks,
    "landmarks": lambda q: dataclasses.replace(
        q, query_direction=QueryDirectionModel(changed(q.query_direction.landmarks), q.query_direction.weights)
    ),
    "weights": lambda q: dataclasses.replace(
        q, query_direction=QueryDirectionModel(q.query_direction.landmarks, changed(q.query_direction.weights))
    ),
    "parallel": lambda q: dataclasses.replace(q, anisotropic_weight=q.anisotropic_weight + 1e-9),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_change_of_any_part_changes_the_id(part: str) -> None:
    assert CHANGES[part](some_quantizer()).id != some_quantizer().id


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "no header": lambda data: data[8:],
    "another file": lambda data: b'{"version": 1, "transform": []}',
    "a tensor is missing": lambda data: data.replace(b'"weights"', b'"heights"'),
    "another shape": lambda data: data.replace(b'"shape":[16,16]', b'"shape":[16,15]'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_error_names_an_invalid_file(damage: str) -> None:
    data = some_quantizer().to_bytes()
    damaged = DAMAGES[damage](data)
    assert damaged != data
    with pytest.raises(JobError, match=f"{NAME} is not a quantizer: .*; delete it and run the index again"):
        Quantizer.from_bytes(damaged, NAME)


def test_encoding_does_not_depend_on_the_batch() -> None:
    quantizer, vectors = some_quantizer(), corpus(600)
    partitions, codes = quantizer.encode(vectors)
    for row in range(0, 600, 5):
        (partition,), (code,) = quantizer.encode(vectors[row : row + 1])
        assert partition == partitions[row]
        np.testing.assert_array_equal(code, codes[row])
    for rows in (slice(3, 300), slice(None, None, -1)):
        np.testing.assert_array_equal(quantizer.encode(vectors[rows])[0], partitions[rows])
        np.testing.assert_array_equal(quantizer.encode(vectors[rows])[1], codes[rows])


def test_mapping_does_not_depend_on_the_batch() -> None:
    quantizer, vectors = some_quantizer(), corpus(200)
    alone = [quantizer.map(vectors[row : row + 1]) for row in range(len(vectors))]
    np.testing.assert_array_equal(quantizer.map(vectors), np.concatenate(alone))


def test_a_vector_is_in_the_partition_of_the_nearest_cluster() -> None:
    quantizer, vectors = some_quantizer(), corpus(300)
    np.testing.assert_array_equal(quantizer.encode(vectors)[0], PartitionAssigner(quantizer.clusters).assign(vectors))


def test_mapped_queries_score_centroids_as_queries_score_clusters() -> None:
    """And mapped vectors like vectors."""
    quantizer, queries, vectors = some_quantizer(), some_queries(100), corpus(100)
    mapped = queries @ inverse_transpose(quantizer.transform).T
    np.testing.assert_allclose(mapped @ quantizer.centroids.T, queries @ quantizer.clusters.T, atol=1e-4)
    np.testing.assert_allclose(mapped @ quantizer.map(vectors).T, queries @ vectors.T, atol=1e-4)


def test_a_query_aware_map_lowers_the_error_of_scores() -> None:
    """With equal code sizes, on queries and vectors that training has not seen."""
    sample, fresh, queries = corpus(4_000), corpus(1_000, seed=8), some_queries(300, seed=9)
    plain = score_error(trained(sample, np.eye(DIM, dtype=np.float32)), fresh, queries)
    rotated = score_error(trained(sample, query_aware_map(sample, None)), fresh, queries)
    aware = score_error(trained(sample, query_aware_map(sample, some_queries(2_000))), fresh, queries)
    assert aware < 0.8 * min(plain, rotated)


def test_a_learned_query_direction_lowers_the_error_of_scores() -> None:
    """For queries and their nearest items, on vectors that training has not seen."""
    sample, fresh, known, queries = corpus(4_000), corpus(1_000, seed=8), some_queries(2_000), some_queries(300, seed=9)
    transform = query_aware_map(sample, known)
    best = exact_search(known, sample, 10).items
    vectors, towards = sample[best.reshape(-1)], np.repeat(known, 10, axis=0)
    learned = QueryDirectionModel.fit(
        vectors, vectors @ transform.T, towards @ inverse_transpose(transform).T, sample[:100]
    )
    hits = exact_search(queries, fresh, 10).items

    def error(query_direction: QueryDirectionModel, anisotropic_weight: float) -> float:
        return hit_error(trained(sample, transform, query_direction, anisotropic_weight), fresh, queries, hits)

    assert error(learned, 6.0) < 0.8 * error(learned, 0.0)
    assert error(learned, 6.0) < error(QueryDirectionModel.identity(DIM), 6.0)


def assert_equal(one: Quantizer, other: Quantizer) -> None:
    np.testing.assert_array_equal(one.transform, other.transform)
    np.testing.assert_array_equal(one.clusters, other.clusters)
    np.testing.assert_array_equal(one.query_direction.landmarks, other.query_direction.landmarks)
    np.testing.assert_array_equal(one.query_direction.weights, other.query_direction.weights)
    assert one.anisotropic_weight == other.anisotropic_weight
    for mine, theirs in zip(one.codebooks, other.codebooks, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def changed(matrix: np.ndarray) -> np.ndarray:
    """Returns a copy with the last element increased to the next float32."""
    copy = matrix.copy()
    copy[-1, -1] = np.nextafter(copy[-1, -1], np.float32(np.inf))
    return copy


def some_quantizer() -> Quantizer:
    """Returns a quantizer of random matrices, without training."""
    generator = np.random.default_rng(3)
    books = tuple(generator.normal(size=(256, width)).astype(np.float32) * 0.3 for width in (1, 2, 3, 3, 3, 4))
    weights = generator.normal(size=(DIM, 5 + DIM + 1)).astype(np.float32)
    transform = query_aware_map(corpus(200), some_queries(200))
    return Quantizer(transform, corpus(7, seed=4), books, QueryDirectionModel(corpus(5, seed=5), weights), 6.0)


def trained(
    sample: np.ndarray,
    transform: np.ndarray,
    query_direction: QueryDirectionModel | None = None,
    anisotropic_weight: float = 6.0,
) -> Quantizer:
    """Trains a quantizer with BLOCKS bytes per code."""
    mapped = sample @ transform.T
    widths = block_widths(np.sort(mapped.var(axis=0))[::-1], BLOCKS)
    books = train_codebooks(mapped, widths, iterations=6, seed=0)
    return Quantizer(
        transform, sample[:1], tuple(books), query_direction or QueryDirectionModel.identity(DIM), anisotropic_weight
    )


def score_error(quantizer: Quantizer, vectors: np.ndarray, queries: np.ndarray) -> float:
    """Returns the mean squared error of the scores of all queries and vectors."""
    return float((scored_errors(quantizer, vectors, queries) ** 2).mean())


def hit_error(quantizer: Quantizer, vectors: np.ndarray, queries: np.ndarray, hits: np.ndarray) -> float:
    """Returns the mean squared error of the scores of queries and their hits."""
    return float((np.take_along_axis(scored_errors(quantizer, vectors, queries), hits, axis=1) ** 2).mean())


def scored_errors(quantizer: Quantizer, vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    decoded = decode(quantizer.codes(vectors), quantizer.codebooks)
    return (queries @ inverse_transpose(quantizer.transform).T) @ decoded.T - queries @ vectors.T


def corpus(count: int, seed: int = 1) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, DIM)) * np.linspace(1.5, 0.7, DIM))


def some_queries(count: int, seed: int = 2) -> np.ndarray:
    """Returns queries that lie apart from the vectors and vary much more in some directions than in others."""
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(DIM, DIM)))[0]
    spread = np.random.default_rng(seed).normal(size=(count, DIM)) * np.geomspace(2, 0.1, DIM)
    return unit(spread @ rotation + 0.5 * rotation[2])
