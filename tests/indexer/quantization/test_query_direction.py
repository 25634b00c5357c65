"""The mean direction of the queries near a vector is learned from pairs and predicted row by row."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.quantization.query_direction import QueryDirectionModel, multiply_rows
from tests.indexer.tiny_encoder import unit

DIM = 12


def test_the_identity_model_returns_the_direction_of_the_mapped_vector() -> None:
    vectors, mapped = pairs(40)[:2]
    found = QueryDirectionModel.identity(DIM).directions(vectors, mapped, 4.0)
    np.testing.assert_allclose(found, 2 * unit(mapped), atol=1e-5)


@pytest.mark.parametrize("anisotropic_weight", [0.0, 1.0, 6.0])
def test_directions_have_the_requested_squared_length(anisotropic_weight: float) -> None:
    vectors, mapped = pairs(200)[:2]
    for model in (QueryDirectionModel.identity(DIM), fitted()):
        lengths = (model.directions(vectors, mapped, anisotropic_weight) ** 2).sum(axis=1)
        np.testing.assert_allclose(lengths, anisotropic_weight, rtol=1e-5)


def test_a_linear_relation_of_queries_and_vectors_is_learned() -> None:
    """For vectors that the fit has not seen."""
    vectors, mapped, queries = pairs(300, seed=4)
    assert likeness(fitted().directions(vectors, mapped, 1.0), queries).mean() > 0.99
    assert likeness(QueryDirectionModel.identity(DIM).directions(vectors, mapped, 1.0), queries).mean() < 0.5


def test_a_relation_to_nearby_landmarks_is_learned() -> None:
    """Each cluster of vectors has its own query direction, which is not a linear relation."""
    generator = np.random.default_rng(5)
    centres, towards = unit(generator.normal(size=(40, DIM))), unit(generator.normal(size=(40, DIM)))
    cluster = generator.integers(40, size=2_000)
    vectors = unit(centres[cluster] + 0.1 * generator.normal(size=(2_000, DIM)))
    train, fresh = slice(1_500), slice(1_500, None)

    def found(landmarks: np.ndarray) -> np.ndarray:
        model = QueryDirectionModel.fit(vectors[train], vectors[train], towards[cluster[train]], landmarks)
        return likeness(model.directions(vectors[fresh], vectors[fresh], 1.0), towards[cluster[fresh]])

    assert found(landmarks=vectors[:200]).mean() > 0.9
    assert found(landmarks=vectors[:0]).mean() < 0.8


def test_directions_do_not_depend_on_the_batch() -> None:
    vectors, mapped = pairs(100)[:2]
    model = fitted()
    together = model.directions(vectors, mapped, 6.0)
    alone = [model.directions(vectors[row : row + 1], mapped[row : row + 1], 6.0) for row in range(len(vectors))]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_multiply_rows_equals_a_matrix_product() -> None:
    vectors, matrix = pairs(30)[0], np.random.default_rng(7).normal(size=(5, DIM)).astype(np.float32)
    np.testing.assert_allclose(multiply_rows(vectors, matrix), vectors @ matrix.T, atol=1e-5)


def test_a_zero_vector_has_a_finite_direction() -> None:
    zeros = np.zeros((3, DIM), np.float32)
    np.testing.assert_array_equal(QueryDirectionModel.identity(DIM).directions(zeros, zeros, 6.0), zeros)
    assert np.isfinite(fitted().directions(zeros, zeros, 6.0)).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_pairs_than_dimensions_are_fitted(count: int) -> None:
    vectors, mapped, queries = pairs(count)
    model = QueryDirectionModel.fit(vectors, mapped, queries, vectors)
    assert likeness(model.directions(vectors, mapped, 1.0), queries).min() > 0.95


def likeness(directions: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the cosines of the angles between unit directions and queries."""
    return np.einsum("nd,nd->n", directions, unit(queries))


def fitted() -> QueryDirectionModel:
    vectors, mapped, queries = pairs(3_000)
    return QueryDirectionModel.fit(vectors, mapped, queries, vectors[:50])


def pairs(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns vectors, mapped vectors, and queries that are a linear function of the vectors plus noise."""
    fixed, generator = np.random.default_rng(0), np.random.default_rng(seed)
    transform, relation = fixed.normal(size=(2, DIM, DIM)) / DIM**0.5
    vectors = unit(generator.normal(size=(count, DIM)))
    mapped = (vectors @ transform.T).astype(np.float32)
    queries = vectors @ relation.T + 0.5 * relation[0] + 0.01 * generator.normal(size=(count, DIM))
    return vectors, mapped, queries.astype(np.float32)
