"""Wrong codes, centroids and encoders are detected in any space into which the indexer may map vectors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from serving_check.formats.index_file import Index
from serving_check.gates.fidelity import MAX_CENTROID_ERROR, MAX_CODE_ERROR, MAX_QUERY_ERROR, Fidelity, query_errors

DIM, ITEMS, PARTITIONS, BLOCKS = 16, 600, 6, 8


def unit(matrix: np.ndarray) -> np.ndarray:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """Clustered vectors, mapped and quantized with codebooks taken from some of the items."""

    index: Index
    vectors: np.ndarray
    query_map: np.ndarray

    def fidelity(self, **changes: object) -> Fidelity:
        return Fidelity(dataclasses.replace(self.index, **changes), self.vectors, self.query_map)


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
    return Case(index, vectors, np.linalg.inv(transform).astype(np.float32))


def test_a_good_index_has_no_error_beyond_the_limit(case: Case) -> None:
    fidelity = case.fidelity()
    codes = fidelity.codes()
    assert codes.items.max() <= MAX_CODE_ERROR
    assert 0 < codes.median_loss < 0.1
    assert codes.useless_blocks == []
    assert fidelity.centroids().max() < MAX_CENTROID_ERROR / 2
    queries = unit(np.random.default_rng(1).normal(size=(40, DIM)))
    assert query_errors(fidelity.transform, queries, queries @ case.query_map.T).max() < MAX_QUERY_ERROR / 100


def test_two_swapped_codes_are_found(case: Case) -> None:
    codes = case.index.codes.copy()
    codes[[7, 555]] = codes[[555, 7]]
    errors = case.fidelity(codes=codes).codes().items
    assert np.flatnonzero(errors > MAX_CODE_ERROR).tolist() == [7, 555]


def test_wrong_codes_are_found_even_if_most_codes_are_wrong(case: Case) -> None:
    errors = case.fidelity(codes=np.roll(case.index.codes, ITEMS // 2, axis=0)).codes().items
    assert (errors > MAX_CODE_ERROR).mean() > 0.95


def test_a_useless_codebook_is_found(case: Case) -> None:
    for ruin in (np.zeros_like, lambda book: -book):
        books = list(case.index.codebooks)
        books[2] = ruin(books[2])
        assert case.fidelity(codebooks=tuple(books)).codes().useless_blocks == [2]


def test_two_swapped_centroids_are_found(case: Case) -> None:
    centroids = case.index.centroids.copy()
    centroids[[1, 4]] = centroids[[4, 1]]
    errors = case.fidelity(centroids=centroids).centroids()
    assert set(np.flatnonzero(errors > MAX_CENTROID_ERROR)) == {1, 4}


@pytest.mark.parametrize("factor", [0.0, 0.01, -1.0, 20.0])
def test_a_centroid_of_wrong_length_or_direction_is_found(case: Case, factor: float) -> None:
    centroids = case.index.centroids.copy()
    centroids[3] *= factor
    assert case.fidelity(centroids=centroids).centroids()[3] > MAX_CENTROID_ERROR


def test_an_encoder_with_a_wrong_output_is_found(case: Case) -> None:
    queries = unit(np.random.default_rng(1).normal(size=(40, DIM)))
    mapped = queries @ case.query_map.T
    swapped = mapped[:, [1, 0, *range(2, DIM)]]
    for wrong in (queries, swapped, -mapped, np.zeros_like(mapped), np.full_like(mapped, np.nan)):
        assert not (query_errors(case.fidelity().transform, queries, wrong) <= MAX_QUERY_ERROR).any()


def test_nan_is_an_error(case: Case) -> None:
    books = (np.full_like(case.index.codebooks[0], np.nan), *case.index.codebooks[1:])
    assert not (case.fidelity(codebooks=books).codes().items <= MAX_CODE_ERROR).any()


@pytest.mark.parametrize("matrix", [np.zeros((DIM, DIM)), np.eye(DIM)[:8], np.full((DIM, DIM), np.nan)])
def test_a_query_map_that_is_not_invertible_is_rejected(case: Case, matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="it maps queries by a matrix"):
        Fidelity(case.index, case.vectors, matrix.astype(np.float32))


def test_equal_items_are_not_an_error(case: Case) -> None:
    same = np.repeat(case.vectors[:1], ITEMS, axis=0)
    codes = np.repeat(case.index.codes[:1], ITEMS, axis=0)
    errors = Fidelity(dataclasses.replace(case.index, codes=codes), same, case.query_map).codes()
    assert errors.items.max() <= MAX_CODE_ERROR
