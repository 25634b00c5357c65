"""The map preserves dot products, whitens queries, and aligns the corpus with its principal axes."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.quantization.query_map import inverse_transpose, query_aware_map
from tests.indexer.tiny_encoder import unit

DIM = 24


@pytest.mark.parametrize("known", [True, False])
def test_the_map_preserves_dot_products(known: bool) -> None:
    vectors, queries = corpus(), some_queries(500)
    assert_keeps_dot_products(query_aware_map(vectors, queries if known else None), vectors, queries)


def test_mapped_queries_are_white() -> None:
    queries = some_queries(2_000)
    mapped = queries @ inverse_transpose(query_aware_map(corpus(), queries)).T
    np.testing.assert_allclose(mapped.T @ mapped / len(mapped), np.eye(DIM), atol=1e-3)
    moment = queries.T @ queries / len(queries)
    assert np.linalg.eigvalsh(moment)[-1] > 10 * np.linalg.eigvalsh(moment)[0]  # they were not white before


@pytest.mark.parametrize("known", [True, False])
def test_the_mapped_corpus_varies_along_its_axes_and_most_along_the_first(known: bool) -> None:
    vectors = corpus()
    mapped = vectors @ query_aware_map(vectors, some_queries(500) if known else None).T
    covariance = np.cov(mapped, rowvar=False, bias=True, dtype=np.float64)
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance - np.diag(variances), 0, atol=1e-5 * variances[0])
    assert np.all(np.diff(variances) <= 1e-6 * variances[0])


def test_without_queries_the_map_is_a_rotation() -> None:
    transform = query_aware_map(corpus(), None)
    np.testing.assert_allclose(transform.T @ transform, np.eye(DIM), atol=1e-5)
    np.testing.assert_allclose(inverse_transpose(transform), transform, atol=1e-5)


def test_squared_errors_of_mapped_vectors_equal_those_of_scores() -> None:
    """The mean of (q . e)^2 is |A e|^2: the error of a code in the mapped space is the error of scores."""
    vectors, queries = corpus(), some_queries(2_000)
    transform = query_aware_map(vectors, queries)
    errors = np.random.default_rng(5).normal(size=(50, DIM))
    seen = np.mean((errors @ queries.T) ** 2, axis=1)
    np.testing.assert_allclose(((errors @ transform.T) ** 2).sum(axis=1), seen, rtol=1e-3)


def test_equal_input_gives_equal_bytes() -> None:
    first, second = (query_aware_map(corpus(), some_queries(500)).tobytes() for _ in range(2))
    assert first == second


def test_reordering_vectors_queries_or_dimensions_affects_only_rounding() -> None:
    """Even the sign of an axis, which is arbitrary, does not depend on the order."""
    vectors, queries = corpus(), some_queries(500)
    dimensions = np.random.default_rng(7).permutation(DIM)
    shuffled = query_aware_map(vectors[::-1, dimensions], queries[::-1, dimensions])
    np.testing.assert_allclose(shuffled, query_aware_map(vectors, queries)[:, dimensions], atol=1e-4)


CORPORA = {
    "one vector": unit(np.random.default_rng(3).normal(size=(1, DIM))),
    "equal vectors": unit(np.ones((50, DIM))),
    "fewer vectors than dimensions": unit(np.random.default_rng(3).normal(size=(5, DIM))),
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("queries", [None, 1, 7, 300])
def test_dot_products_are_preserved_if_vectors_or_queries_do_not_span_the_space(name: str, queries: int | None) -> None:
    transform = query_aware_map(CORPORA[name], None if queries is None else some_queries(queries))
    assert_keeps_dot_products(transform, corpus(), some_queries(50, seed=8))


def assert_keeps_dot_products(transform: np.ndarray, vectors: np.ndarray, queries: np.ndarray) -> None:
    mapped = (queries @ inverse_transpose(transform).T) @ (vectors @ transform.T).T
    np.testing.assert_allclose(mapped, queries @ vectors.T, atol=1e-4)


def corpus() -> np.ndarray:
    """Returns vectors that vary more in some directions than in others; none of these is an axis."""
    generator = np.random.default_rng(1)
    rotation = np.linalg.qr(generator.normal(size=(DIM, DIM)))[0]
    return unit((generator.normal(size=(1_000, DIM)) * np.linspace(2, 0.4, DIM)) @ rotation)


def some_queries(count: int, seed: int = 2) -> np.ndarray:
    """Returns queries with a different distribution than the vectors."""
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(DIM, DIM)))[0]
    return unit((np.random.default_rng(seed).normal(size=(count, DIM)) * np.linspace(3, 0.5, DIM)) @ rotation)
