"""Codes and codebooks minimize the documented loss."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.quantization.codebooks import CODEBOOK_SIZE, train_codebooks
from indexer.quantization.codes import decode, encode

WIDTHS = [1, 2, 3, 2]
DIM = sum(WIDTHS)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    spread = np.linspace(2, 0.5, DIM)
    return (np.random.default_rng(seed).normal(size=(count, DIM)) * spread).astype(np.float32)


def random_codebooks(seed: int = 1) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(CODEBOOK_SIZE, width)).astype(np.float32) for width in WIDTHS]


def directions_of(points: np.ndarray, length: float) -> np.ndarray:
    """Returns random directions of equal length."""
    found = np.random.default_rng(2).normal(size=points.shape)
    return (length * found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def loss(points: np.ndarray, directions: np.ndarray, codes: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    residual = points.astype(np.float64) - decode(codes, books)
    return (residual**2).sum(axis=1) + np.einsum("nd,nd->n", residual, directions) ** 2


def test_without_a_direction_codes_are_the_nearest_entries() -> None:
    points, books = vectors(300), random_codebooks()
    codes = encode(points, np.zeros_like(points), books)
    for block, part in enumerate(np.split(points, np.cumsum(WIDTHS)[:-1], axis=1)):
        distances = ((part[:, None] - books[block]) ** 2).sum(axis=2)
        chosen = np.take_along_axis(distances, codes[:, block : block + 1].astype(int), axis=1)[:, 0]
        np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)


@pytest.mark.parametrize("length", [1.0, 2.5])
def test_changing_a_single_block_does_not_lower_the_loss(length: float) -> None:
    points, books = vectors(200), random_codebooks()
    directions = directions_of(points, length)
    codes = encode(points, directions, books)
    reached = loss(points, directions, codes, books)
    settled = np.ones(len(points), bool)
    for block in range(len(WIDTHS)):
        for entry in range(CODEBOOK_SIZE):
            other = codes.copy()
            other[:, block] = entry
            settled &= loss(points, directions, other, books) >= reached - 1e-4
    assert settled.mean() > 0.97  # the rest would need another pass
    plain = encode(points, np.zeros_like(points), books)
    assert np.all(reached <= loss(points, directions, plain, books) + 1e-4)


def test_a_code_does_not_depend_on_the_batch() -> None:
    points, books = vectors(100), random_codebooks()
    directions = directions_of(points, 2.0)
    together = encode(points, directions, books)
    alone = [encode(points[row : row + 1], directions[row : row + 1], books) for row in range(len(points))]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_trained_codebooks_generalize() -> None:
    sample, fresh = vectors(6_000), vectors(1_000, seed=9)
    books = train_codebooks(sample, WIDTHS, iterations=10, seed=0)
    residual = fresh - decode(encode(fresh, np.zeros_like(fresh), books), books)
    assert (residual**2).sum(axis=1).mean() < 0.05 * (fresh**2).sum(axis=1).mean()


def test_training_depends_on_the_seed_and_not_on_threads() -> None:
    sample = vectors(1_000)
    for one, other in zip(*(train_codebooks(sample, WIDTHS, 3, 5, threads) for threads in (1, 3)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [1, 2, 100, 255])
def test_fewer_points_than_entries_are_represented_exactly(count: int) -> None:
    points = vectors(count)
    books = train_codebooks(points, WIDTHS, iterations=2, seed=0)
    np.testing.assert_allclose(decode(encode(points, directions_of(points, 2.0), books), books), points, atol=5e-3)


def test_equal_and_zero_vectors_are_encoded() -> None:
    for points in (np.zeros((5, DIM), np.float32), np.ones((300, DIM), np.float32)):
        books = train_codebooks(points, WIDTHS, iterations=2, seed=0)
        np.testing.assert_allclose(decode(encode(points, points, books), books), points, atol=1e-6)
