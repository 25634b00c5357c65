"""The reference searcher returns the same hits as the Task Library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.encoding.reference import ReferenceSearcher, partitions_searched
from searchforge.processes import isolated
from tests.indexer.random_indexes import CASES, UNEVEN, Case, codebooks, make_arrays, make_queries, sizes

QUERIES = 200


@pytest.mark.parametrize("count", [QUERIES, pytest.param(1_000, marks=pytest.mark.proof)])
@pytest.mark.parametrize("name", CASES)
def test_hits_equal_those_of_the_task_library(
    name: str, count: int, task_library: isolated.Session, tmp_path: Path
) -> None:
    """Distances are equal bit by bit, and every hit is a different item at that distance.

    So ids have the same order wherever distances differ. The C++ library's partial sort does not specify which of
    several items at the same distance are hits, nor their order.
    """
    case = CASES[name]
    searcher, queries, expected, distances = search_both(case, task_library, tmp_path, count)
    ranked, ranked_distances = searcher.search(queries, max(case.count, case.k), case.searched)
    np.testing.assert_array_equal(ranked_distances[:, : case.k], distances)
    distance_of = np.full((count, case.count + 1), np.nan, np.float32)
    distance_of[:, -1] = np.inf  # distance of item -1, no hit
    np.put_along_axis(distance_of, ranked, ranked_distances, axis=1)
    np.testing.assert_array_equal(np.take_along_axis(distance_of, expected, axis=1), distances)
    found = np.sort(expected, axis=1)
    assert not np.any((np.diff(found, axis=1) == 0) & (found[:, 1:] >= 0)), "an item is found twice"


def test_ids_equal_those_of_the_task_library_for_float_tables(task_library: isolated.Session, tmp_path: Path) -> None:
    case = CASES["float, even blocks"]
    searcher, queries, expected, _ = search_both(case, task_library, tmp_path)
    items, _ = searcher.search(queries, case.k, case.searched)
    np.testing.assert_array_equal(items[1:], expected[1:])  # the zero query's distances all tie


def test_the_number_of_partitions_searched_is_rounded_as_on_the_device() -> None:
    assert partitions_searched(26, 7 / 26) == 8  # 7/26 is rounded up in float32
    for partitions in (1, 2, 26, 351, 1_000, 10_000):
        for searched in (1, 2, partitions // 3, partitions):
            if 1 <= searched <= partitions:
                assert partitions_searched(partitions, (searched - 0.5) / partitions) == searched
    assert partitions_searched(10, 1.5) == 10


def test_a_sweep_equals_a_search_with_each_number_of_partitions() -> None:
    searcher, queries = random_searcher(Case("int8", UNEVEN, filled=0.7))
    steps = [1, 2, 5, 40]
    items, distances = searcher.sweep(queries, 7, steps)
    for step, searched in enumerate(steps):
        alone, alone_distances = searcher.search(queries, 7, searched)
        np.testing.assert_array_equal(items[step], alone)
        np.testing.assert_array_equal(distances[step], alone_distances)


def test_routes_descend_by_dot_product_and_contain_the_hits() -> None:
    case = Case("float", UNEVEN)
    searcher, queries = random_searcher(case)
    centroids = make_arrays(case)["centroids"]
    routes = searcher.route(queries, case.partitions)
    along = np.take_along_axis(queries.astype(np.float64) @ centroids.T, routes, axis=1)
    assert np.all(np.diff(along, axis=1) < 1e-5)
    items, _ = searcher.search(queries, 10, 3)
    partition_of = make_arrays(case)["assignments"].astype(np.int64)
    assert np.all(np.any(partition_of[items][:, :, None] == routes[:, None, :3], axis=2))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    case = Case("int16", UNEVEN)
    (one, queries), (many, _) = (random_searcher(case, threads) for threads in (1, 5))
    for alone, together in zip(one.search(queries, 10, 4), many.search(queries, 10, 4), strict=True):
        np.testing.assert_array_equal(alone, together)


def test_mismatched_arrays_are_rejected() -> None:
    case = Case("float", UNEVEN)
    searcher, queries = random_searcher(case)
    arrays = make_arrays(case)
    books = codebooks(arrays)
    with pytest.raises(ValueError, match="expected 40 of 3000"):
        ReferenceSearcher(arrays["centroids"], books, arrays["codes"], np.ones(40, np.int64), "float")
    with pytest.raises(ValueError, match="7 codebooks of 28 dimensions, expected 8 of 48"):
        ReferenceSearcher(arrays["centroids"], books[:-1], arrays["codes"], sizes(arrays), "float")
    with pytest.raises(ValueError, match=r"expected float32 \[m, 48\]"):
        searcher.search(queries[:, 1:], 10, 3)
    for searched in ([], [0], [3, 3], [41]):
        with pytest.raises(ValueError, match=r"ascending numbers in 1\.\.40"):
            searcher.sweep(queries, 10, searched)


def search_both(
    case: Case, task_library: isolated.Session, folder: Path, count: int = QUERIES
) -> tuple[ReferenceSearcher, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the reference searcher, `count` queries, and the Task Library's items and distances, [count, k]."""
    searcher, queries = random_searcher(case, count=count)
    paths = {name: str(folder / name) for name in ("queries.npy", "arrays.npz", "e.tflite", "index.ldb", "hits.npz")}
    np.save(paths["queries.npy"], queries)
    np.savez(paths["arrays.npz"], **make_arrays(case))
    task_library.call({"do": "write", "vectors": paths["queries.npy"], "encoder": paths["e.tflite"]})
    index = {"lut_type": case.lut_type, "search_fraction": case.search_fraction, "index": paths["index.ldb"]}
    task_library.call({"do": "write_index", "arrays": paths["arrays.npz"], **index})
    query = {"queries": count, "k": case.k, "output": paths["hits.npz"], "index": paths["index.ldb"]}
    task_library.call({"do": "search", "searcher": paths["e.tflite"], **query})
    with np.load(paths["hits.npz"], allow_pickle=False) as hits:
        return searcher, queries, hits["items"], hits["distances"]


def random_searcher(
    case: Case, threads: int | None = None, count: int = QUERIES
) -> tuple[ReferenceSearcher, np.ndarray]:
    arrays = make_arrays(case)
    searcher = ReferenceSearcher(
        arrays["centroids"], codebooks(arrays), arrays["codes"], sizes(arrays), case.lut_type, threads
    )
    return searcher, make_queries(case, count)
