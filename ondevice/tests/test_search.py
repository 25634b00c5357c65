"""The reader returns the hits of the Task Library, and of the reference searcher, which equals it bit by bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small_indexes

from indexer.encoding.reference import ReferenceSearcher
from searchforge.processes import isolated
from searchforge_reader import Index
from tests.indexer.random_indexes import CASES, UNEVEN, Case, codebooks, make_arrays, make_queries, sizes

QUERIES = 200


@pytest.mark.parametrize("name", CASES)
def test_hits_equal_those_of_the_task_library(name: str, task_library: isolated.Session, tmp_path: Path) -> None:
    """Scores are equal bit by bit, and so are items, except that either may return any of several with equal scores."""
    case = CASES[name]
    path, queries = small_indexes.write(case, tmp_path), make_queries(case, QUERIES)
    items, distances = search_with_task_library(task_library, path, queries, case.k)
    with Index(path) as index:
        for query, expected_items, expected_distances in zip(queries, items, distances, strict=True):
            require_equal(index, query, expected_items, expected_distances, case.k)


def test_an_index_of_the_task_librarys_own_builder_is_searched_alike(
    task_library: isolated.Session, tmp_path: Path
) -> None:
    """Its partitions are compressed, several to a block."""
    case = Case("int16", UNEVEN, count=600)
    path, queries = tmp_path / "theirs.ldb", make_queries(case, QUERIES)
    np.savez(tmp_path / "arrays.npz", **make_arrays(case))
    settings = {"lut_type": case.lut_type, "search_fraction": case.search_fraction, "compression": True}
    task_library.call(
        {"do": "write_index", "arrays": str(tmp_path / "arrays.npz"), "index": str(path), "user_info": "", **settings}
    )
    items, distances = search_with_task_library(task_library, path, queries, case.k)
    with Index(path) as index:
        assert index.user_info == ""
        for query, expected_items, expected_distances in zip(queries, items, distances, strict=True):
            require_equal(index, query, expected_items, expected_distances, case.k)


@pytest.mark.parametrize("lut_type", ["float", "int16", "int8"])
@pytest.mark.parametrize("partitions", [1, 3, 40])
def test_every_query_may_search_another_number_of_partitions(lut_type: str, partitions: int, tmp_path: Path) -> None:
    case = Case(lut_type, [3] * 33, k=7)  # type: ignore[arg-type]
    items, distances = reference(case).search(make_queries(case, QUERIES)[1:], case.k, partitions)
    with Index(small_indexes.write(case, tmp_path)) as index:
        assert index.partitions_searched == case.searched
        for query, expected, distance in zip(make_queries(case, QUERIES)[1:], items, distances, strict=True):
            require_equal(index, query, expected, distance, case.k, partitions)


def test_threads_may_share_an_index(tmp_path: Path) -> None:
    case = Case("float", [2] * 64)
    queries = make_queries(case, QUERIES)
    path = small_indexes.write(case, tmp_path)
    with Index(path) as one, Index(path) as shared:
        alone = [one.search(query) for query in queries]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(shared.search, queries)) == alone


def test_an_index_describes_itself(tmp_path: Path) -> None:
    case = Case("int8", UNEVEN)
    with Index(small_indexes.write(case, tmp_path)) as index:
        assert (index.items, index.dim, index.partitions) == (case.count, sum(UNEVEN), case.partitions)
        assert (index.code_bytes, index.lookup_type, index.user_info) == (len(UNEVEN), "int8", small_indexes.USER_INFO)
        assert index.metadata(17) == b"17"
        index.verify()


def test_mistaken_queries_are_refused(tmp_path: Path) -> None:
    case = Case("float", UNEVEN)
    query = make_queries(case, 2)[1]
    with Index(small_indexes.write(case, tmp_path)) as index:
        with pytest.raises(ValueError, match="the query has 47 dimensions, expected 48"):
            index.search(query[1:])
        for partitions in (0, 41, 2**32 + 1):
            with pytest.raises(ValueError, match=f"partitions {partitions}, expected .* None or 1 to 40"):
                index.search(query, partitions=partitions)
        with pytest.raises(ValueError, match="k 0"):
            index.search(query, k=0)
        with pytest.raises(ValueError, match="NaN or infinity"):
            index.search(np.full_like(query, np.nan))
        with pytest.raises(ValueError, match="too large for scores"):
            index.search(np.full_like(query, 3e38))
        for item in (-1, 3_000, 2**32):
            with pytest.raises(ValueError, match=f"item {item} was asked for, but the index has 3000 items"):
                index.metadata(item)
    with pytest.raises(ValueError, match="the index is closed"):
        index.search(query)


def require_equal(
    index: Index, query: np.ndarray, items: np.ndarray, distances: np.ndarray, k: int, partitions: int | None = None
) -> None:
    """Compares a query's hits with items and distances that are padded with -1 and infinity."""
    hits = index.search(query, k, partitions)
    found, scores = [hit.item for hit in hits], np.array([hit.score for hit in hits], np.float32)
    items = items[items >= 0]
    np.testing.assert_array_equal(scores, -distances[: len(items)])
    assert [hit.metadata for hit in hits] == [b"%d" % item for item in found]
    assert len(set(found)) == len(found)
    # Where a score is unique, and that of no further hit either, the item is as well.
    further = [hit.score for hit in index.search(query, k + 1, partitions)]
    for ours, theirs, score in zip(found, items.tolist(), scores, strict=True):
        assert ours == theirs or further.count(score) > 1


def reference(case: Case) -> ReferenceSearcher:
    arrays = make_arrays(case)
    return ReferenceSearcher(arrays["centroids"], codebooks(arrays), arrays["codes"], sizes(arrays), case.lut_type, 1)


def search_with_task_library(
    session: isolated.Session, index: Path, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns items and distances, [queries, k], padded with -1 and infinity."""
    folder = index.parent
    paths = {name: str(folder / name) for name in ("queries.npy", "encoder.tflite", "hits.npz")}
    np.save(paths["queries.npy"], queries)
    session.call({"do": "write", "vectors": paths["queries.npy"], "encoder": paths["encoder.tflite"]})
    request = {"queries": len(queries), "k": k, "output": paths["hits.npz"], "index": str(index)}
    session.call({"do": "search", "searcher": paths["encoder.tflite"], **request})
    with np.load(paths["hits.npz"]) as hits:
        return hits["items"], hits["distances"]
