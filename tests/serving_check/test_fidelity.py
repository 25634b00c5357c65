"""Codes, centroids and encoders are told from others' in any space that the indexer may have mapped them to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from serving_check.fidelity import LIMIT, Fidelity, centroid_limit, limit_of
from serving_check.index_file import Index

DIM, ITEMS, PARTITIONS, BLOCKS = 16, 600, 6, 8


def unit(matrix: np.ndarray) -> np.ndarray:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """Vectors in clusters, under a map, quantized by codebooks of some of the items."""

    index: Index
    vectors: np.ndarray
    queries: np.ndarray
    mapped: np.ndarray

    def errors(self, index: Index | None = None, mapped: np.ndarray | None = None) -> Fidelity:
        return Fidelity(
            index or self.index, self.vectors, self.queries, self.mapped if mapped is None else mapped, seed=3
        )


@pytest.fixture(scope="module")
def case() -> Case:
    random = np.random.default_rng(0)
    centres = random.normal(size=(PARTITIONS, DIM)) * 2
    assigned = np.sort(random.integers(0, PARTITIONS, ITEMS))
    vectors = unit(centres[assigned] + random.normal(size=(ITEMS, DIM)))
    transform = np.linalg.qr(random.normal(size=(DIM, DIM)))[0] * random.uniform(0.5, 2, DIM)
    mapped = (vectors @ transform).astype(np.float32)
    width = DIM // BLOCKS
    books = tuple(mapped[:256, block * width : (block + 1) * width] for block in range(BLOCKS))
    codes = np.stack(
        [
            ((mapped[:, np.newaxis, block * width : (block + 1) * width] - book) ** 2).sum(axis=2).argmin(axis=1)
            for block, book in enumerate(books)
        ],
        axis=1,
    ).astype(np.uint8)
    sizes = np.bincount(assigned, minlength=PARTITIONS)
    centroids = np.stack([mapped[assigned == p].mean(axis=0) for p in range(PARTITIONS)])
    index = Index(centroids, books, codes, sizes, 0.5, "float", [], b"", {})
    queries = unit(random.normal(size=(40, DIM)))
    return Case(index, vectors, queries, (queries @ np.linalg.inv(transform).T).astype(np.float32))


def test_a_good_index_has_no_error_beyond_the_limit(case: Case) -> None:
    fidelity = case.errors()
    for errors in (fidelity.codes(), fidelity.queries()):
        assert errors.max() < limit_of(errors)
    assert fidelity.centroids().max() < LIMIT / 2


def test_two_codes_that_were_swapped_are_found_among_all(case: Case) -> None:
    codes = case.index.codes.copy()
    codes[[7, 555]] = codes[[555, 7]]
    errors = case.errors(dataclasses.replace(case.index, codes=codes)).codes()
    assert np.flatnonzero(errors > limit_of(errors)).tolist() == [7, 555]


def test_shuffled_codes_are_found(case: Case) -> None:
    errors = case.errors(dataclasses.replace(case.index, codes=np.roll(case.index.codes, ITEMS // 2, axis=0))).codes()
    assert np.median(errors) > LIMIT


def test_two_centroids_that_were_swapped_are_found(case: Case) -> None:
    centroids = case.index.centroids.copy()
    centroids[[1, 4]] = centroids[[4, 1]]
    errors = case.errors(dataclasses.replace(case.index, centroids=centroids)).centroids()
    assert set(np.flatnonzero(errors > centroid_limit(errors))) == {1, 4}


def test_an_encoder_that_lacks_the_map_or_permutes_its_output_is_found(case: Case) -> None:
    for wrong in (case.queries, np.roll(case.mapped, 1, axis=1), np.zeros_like(case.mapped)):
        errors = case.errors(mapped=wrong).queries()
        assert np.median(errors) > limit_of(errors)


def test_values_that_are_no_numbers_are_errors(case: Case) -> None:
    books = (np.full_like(case.index.codebooks[0], np.nan), *case.index.codebooks[1:])
    errors = case.errors(dataclasses.replace(case.index, codebooks=books)).codes()
    assert np.isinf(errors).all()


def test_equal_items_are_no_error(case: Case) -> None:
    same = np.repeat(case.vectors[:1], ITEMS, axis=0)
    codes = np.repeat(case.index.codes[:1], ITEMS, axis=0)
    errors = Fidelity(dataclasses.replace(case.index, codes=codes), same, case.queries, case.mapped).codes()
    assert errors.max() <= limit_of(errors)
