"""Where the queries of a vector lie is learned from pairs, and each vector's direction is its own."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.quantization.query_direction import QueryDirectionModel, multiply_rows
from tests.indexer.tiny_encoder import unit

DIM = 12


def test_a_vectors_own_direction_is_that_of_the_mapped_vector() -> None:
    vectors, mapped = pairs(40)[:2]
    found = QueryDirectionModel.identity(DIM).directions(vectors, mapped, 4.0)
    np.testing.assert_allclose(found, 2 * unit(mapped), atol=1e-5)


@pytest.mark.parametrize("anisotropic_weight", [0.0, 1.0, 6.0])
def test_directions_have_the_squared_length_that_is_asked_for(anisotropic_weight: float) -> None:
    vectors, mapped = pairs(200)[:2]
    for query_direction in (QueryDirectionModel.identity(DIM), fitted()):
        lengths = (query_direction.directions(vectors, mapped, anisotropic_weight) ** 2).sum(axis=1)
        np.testing.assert_allclose(lengths, anisotropic_weight, rtol=1e-5)


def test_queries_that_depend_linearly_on_vectors_are_found() -> None:
    """Of vectors that the fit has not seen."""
    vectors, mapped, queries = pairs(300, seed=4)
    assert likeness(fitted().directions(vectors, mapped, 1.0), queries).mean() > 0.99
    assert likeness(QueryDirectionModel.identity(DIM).directions(vectors, mapped, 1.0), queries).mean() < 0.5


def test_queries_that_depend_on_what_a_vector_is_near_are_found() -> None:
    """The queries of one cluster of vectors lie in one direction, another cluster's in another: no linear relation."""
    generator = np.random.default_rng(5)
    centres, towards = unit(generator.normal(size=(40, DIM))), unit(generator.normal(size=(40, DIM)))
    cluster = generator.integers(40, size=2_000)
    vectors = unit(centres[cluster] + 0.1 * generator.normal(size=(2_000, DIM)))
    train, fresh = slice(1_500), slice(1_500, None)

    def found(landmarks: np.ndarray) -> np.ndarray:
        query_direction = QueryDirectionModel.fit(vectors[train], vectors[train], towards[cluster[train]], landmarks)
        return likeness(query_direction.directions(vectors[fresh], vectors[fresh], 1.0), towards[cluster[fresh]])

    assert found(landmarks=vectors[:200]).mean() > 0.9
    assert found(landmarks=vectors[:0]).mean() < 0.8


def test_directions_do_not_depend_on_the_batch() -> None:
    vectors, mapped = pairs(100)[:2]
    query_direction = fitted()
    together = query_direction.directions(vectors, mapped, 6.0)
    alone = [
        query_direction.directions(vectors[row : row + 1], mapped[row : row + 1], 6.0) for row in range(len(vectors))
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_a_product_is_that_of_the_matrix_and_each_vector() -> None:
    vectors, matrix = pairs(30)[0], np.random.default_rng(7).normal(size=(5, DIM)).astype(np.float32)
    np.testing.assert_allclose(multiply_rows(vectors, matrix), vectors @ matrix.T, atol=1e-5)


def test_a_zero_vector_has_a_finite_direction() -> None:
    zeros = np.zeros((3, DIM), np.float32)
    np.testing.assert_array_equal(QueryDirectionModel.identity(DIM).directions(zeros, zeros, 6.0), zeros)
    assert np.isfinite(fitted().directions(zeros, zeros, 6.0)).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_pairs_than_dimensions_are_fitted(count: int) -> None:
    vectors, mapped, queries = pairs(count)
    query_direction = QueryDirectionModel.fit(vectors, mapped, queries, vectors)
    assert likeness(query_direction.directions(vectors, mapped, 1.0), queries).min() > 0.95


def likeness(directions: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the cosine of the angle between directions of length 1 and queries."""
    return np.einsum("nd,nd->n", directions, unit(queries))


def fitted() -> QueryDirectionModel:
    vectors, mapped, queries = pairs(3_000)
    return QueryDirectionModel.fit(vectors, mapped, queries, vectors[:50])


def pairs(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns vectors, the same mapped, and queries that are a linear function of them and a little noise."""
    fixed, generator = np.random.default_rng(0), np.random.default_rng(seed)
    transform, relation = fixed.normal(size=(2, DIM, DIM)) / DIM**0.5
    vectors = unit(generator.normal(size=(count, DIM)))
    mapped = (vectors @ transform.T).astype(np.float32)
    queries = vectors @ relation.T + 0.5 * relation[0] + 0.01 * generator.normal(size=(count, DIM))
    return vectors, mapped, queries.astype(np.float32)
