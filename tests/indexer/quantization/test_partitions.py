"""Every vector is assigned to the partition with the nearest mean, independent of its batch."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.quantization.partitions import PartitionAssigner, train_partitions
from tests.indexer.tiny_encoder import unit

DIM = 24


@pytest.mark.parametrize("partitions", [1, 2, 17, 256])
def test_a_vector_is_assigned_to_the_nearest_cluster(partitions: int) -> None:
    vectors = some_vectors(1_200)
    clusters = some_vectors(partitions, seed=1) * np.linspace(0.2, 1, partitions, dtype=np.float32)[:, None]
    chosen, distances = chosen_and_all_distances(vectors, clusters)
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-6)


@pytest.mark.parametrize("partitions", [257, 1_000])
def test_among_many_clusters_the_nearest_is_found_for_99_percent_of_vectors(partitions: int) -> None:
    vectors = clustered(4_000)
    clusters = train_partitions(vectors, partitions, iterations=4, seed=0)
    chosen, distances = chosen_and_all_distances(vectors[:1_000], clusters)
    assert np.mean(chosen <= distances.min(axis=1) + 1e-6) >= 0.99


@pytest.mark.parametrize("copies", [3, 40])
def test_the_first_of_equal_clusters_is_chosen(copies: int) -> None:
    """With few clusters, and with many, where a vector is not compared with all of them."""
    clusters = np.repeat(some_vectors(9, seed=1), copies, axis=0)
    assert set(assigned(some_vectors(600), clusters).tolist()) <= set(range(0, 9 * copies, copies))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_every_vector_has_a_cluster_however_many_clusters_are_equal(share: float) -> None:
    copies = np.repeat(some_vectors(1, seed=8), 1_000, axis=0)
    clusters = np.where(np.random.default_rng(9).random((1_000, 1)) < share, copies, some_vectors(1_000, seed=1))
    vectors = np.concatenate([copies[:5], some_vectors(300)])
    assert assigned(vectors, clusters).max() < 1_000
    chosen, distances = chosen_and_all_distances(vectors, clusters)
    assert np.all(chosen <= distances.mean(axis=1) + 1e-6)


@pytest.mark.parametrize("batch", [1, 7, 700])
@pytest.mark.parametrize("partitions", [20, 300])
def test_an_assignment_does_not_depend_on_the_batch(batch: int, partitions: int) -> None:
    """Here the last bits decide, in which a matrix product of one row differs from that of many."""
    vectors, clusters = some_vectors(1_200), nearly_equal_clusters(partitions)
    parts = [assigned(vectors[start : start + batch], clusters) for start in range(0, len(vectors), batch)]
    np.testing.assert_array_equal(np.concatenate(parts), assigned(vectors, clusters))


def test_a_view_of_a_matrix_is_assigned_like_a_copy() -> None:
    vectors, clusters = some_vectors(400), some_vectors(20, seed=1)
    np.testing.assert_array_equal(assigned(vectors[::2], clusters), assigned(vectors[::2].copy(), clusters))


def test_no_vectors_have_no_assignments() -> None:
    assert assigned(some_vectors(0), some_vectors(3)).shape == (0,)


def test_clusters_are_the_means_of_their_members() -> None:
    """For well-separated clusters, after convergence."""
    generator = np.random.default_rng(3)
    own = generator.integers(12, size=900)
    vectors = (np.eye(DIM)[own] + 0.02 * generator.normal(size=(900, DIM))).astype(np.float32)
    clusters = train_partitions(vectors, 12, iterations=40, seed=0)
    members = assigned(vectors, clusters)
    assert len(set(members.tolist())) == 12
    for partition, cluster in enumerate(clusters):
        np.testing.assert_allclose(cluster, vectors[members == partition].mean(axis=0), atol=1e-6)


def test_training_reduces_the_distance_to_clusters() -> None:
    vectors = clustered(2_000)

    def distance(iterations: int) -> float:
        clusters = train_partitions(vectors, 40, iterations, seed=0)
        return float(((vectors - clusters[assigned(vectors, clusters)]) ** 2).sum(axis=1).mean())

    assert distance(8) < 0.95 * distance(1)


def test_one_partition_is_the_mean() -> None:
    vectors = some_vectors(500)
    clusters = train_partitions(vectors, 1, iterations=8, seed=0)
    np.testing.assert_allclose(clusters, vectors.mean(axis=0, dtype=np.float64)[None], atol=1e-6)


def test_with_as_many_partitions_as_vectors_each_has_its_own() -> None:
    vectors = some_vectors(30)
    clusters = train_partitions(vectors, 30, iterations=4, seed=0)
    assert sorted(assigned(vectors, clusters).tolist()) == list(range(30))


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_vectors_than_partitions_are_their_own_clusters(distinct: int) -> None:
    vectors = some_vectors(distinct)[np.arange(60) % distinct]
    clusters = train_partitions(vectors, 10, iterations=8, seed=0)
    assert clusters.shape == (10, DIM)
    np.testing.assert_allclose(clusters[assigned(vectors, clusters)], vectors, atol=1e-6)


def test_an_empty_partition_is_refilled() -> None:
    """Most clusters start at copies of one vector, so that all but one of them are empty."""
    vectors = np.concatenate([np.repeat(some_vectors(1, seed=8), 900, axis=0), some_vectors(100)])
    clusters = train_partitions(vectors, 40, iterations=12, seed=0)
    assert len(set(assigned(vectors, clusters).tolist())) > 30


def test_training_is_seeded() -> None:
    vectors = clustered(500)
    first, again, other = (train_partitions(vectors, 20, 4, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_does_not_modify_the_sample() -> None:
    vectors = clustered(500)
    before = vectors.copy()
    train_partitions(vectors, 20, 4, seed=0)
    np.testing.assert_array_equal(vectors, before)


def assigned(vectors: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    return PartitionAssigner(clusters).assign(vectors)


def chosen_and_all_distances(vectors: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns squared distances to the assigned and to all clusters, in float64."""
    products = vectors.astype(np.float64) @ clusters.T
    lengths, cluster_lengths = ((points.astype(np.float64) ** 2).sum(axis=1) for points in (vectors, clusters))
    distances = lengths[:, None] - 2 * products + cluster_lengths
    return distances[np.arange(len(vectors)), assigned(vectors, clusters)], distances


def some_vectors(count: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, DIM)))


def nearly_equal_clusters(count: int) -> np.ndarray:
    """Returns clusters that differ only in the last bits of float32."""
    noise = np.random.default_rng(4).normal(size=(count, DIM))
    return (some_vectors(1, seed=1) + 2e-7 * noise).astype(np.float32)


def clustered(count: int) -> np.ndarray:
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(40, DIM))
    return unit(centres[generator.integers(40, size=count)] + 0.5 * generator.normal(size=(count, DIM)))
