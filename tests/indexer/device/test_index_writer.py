"""The streamed index is identical to one from the Task Library's own builder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from indexer.device.index_config import index_config
from indexer.device.index_writer import write_index
from indexer.encoding.encoded_shards import EncodedCorpus
from searchforge.config import LutType
from searchforge.processes import isolated
from serving_check.formats.leveldb_reader import read_table

QUERIES, K = 100, 10
SEARCH_FRACTION = 0.3
USER_INFO = '{"city": "Zürich"}'


@dataclass(frozen=True)
class Case:
    """An index of random codes and metadata."""

    count: int
    partitions: int
    lut_type: LutType = "float"
    widths: tuple[int, ...] = (1, 2, 3, 5, 7)
    filled: float = 1.0  # share of partitions that are not empty
    metadata: str = "numbers"


CASES = {
    "one item": Case(1, 1),
    "one partition": Case(1_000, 1, "int16"),
    "partitions without items": Case(500, 120, filled=0.3),
    "more partitions than items": Case(3, 40, "int8"),
    "twelve thousand items": Case(12_000, 110, "int8", metadata="json"),
    "a power of ten of items": Case(1_000, 11),
    "one item more than a power of ten": Case(1_001, 11),
    "blocks of even width": Case(2_000, 30, widths=(2,) * 16, metadata="json"),
    "a configuration smaller than a block": Case(50, 3, widths=(1,)),
    "megabytes of metadata": Case(30, 3, metadata="long"),
    "metadata of zeros and other bytes": Case(3_000, 20, metadata="binary"),
    "no metadata": Case(3_000, 20, metadata="empty"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_index_is_byte_identical_to_the_builders(name: str, task_library: isolated.Session, tmp_path: Path) -> None:
    files = [write_ours(CASES[name], tmp_path), write_theirs(CASES[name], task_library, tmp_path)]
    ours, theirs = (file.read_bytes() for file in files)
    assert list(read_table(ours)) == list(read_table(theirs))
    assert ours == theirs


@pytest.mark.parametrize("name", CASES)
def test_a_compressed_index_has_the_same_entries_and_uncompressed_codes(
    name: str, task_library: isolated.Session, tmp_path: Path
) -> None:
    compressed = write_ours(CASES[name], tmp_path, compression=True).read_bytes()
    plain = write_ours(CASES[name], tmp_path).read_bytes()
    theirs = write_theirs(CASES[name], task_library, tmp_path, compression=True).read_bytes()
    assert list(read_table(compressed)) == list(read_table(plain)) == list(read_table(theirs))
    for key, value in read_table(plain):
        if key.startswith((b"E_", b"INDEX_CONFIG")):
            assert value in compressed


def test_compression_shrinks_json(tmp_path: Path) -> None:
    case = CASES["twelve thousand items"]
    sizes = {}
    for compression in (False, True):
        write_ours(case, tmp_path, compression)
        sizes[compression] = (tmp_path / "ours.ldb").stat().st_size
    assert sizes[True] < 0.8 * sizes[False]


@pytest.mark.parametrize("compression", [False, True])
@pytest.mark.parametrize("lut_type", ["float", "int16", "int8"])
def test_the_task_library_returns_the_same_hits_from_both_indexes(
    lut_type: LutType, compression: bool, task_library: isolated.Session, tmp_path: Path
) -> None:
    case = Case(4_000, 50, lut_type, filled=0.8)
    ours = write_ours(case, tmp_path, compression)
    theirs = write_theirs(case, task_library, tmp_path, compression)
    queries = np.random.default_rng(2).normal(size=(QUERIES, sum(case.widths))).astype(np.float32)
    np.save(tmp_path / "queries.npy", queries)
    encoder = str(tmp_path / "e.tflite")
    task_library.call({"do": "write", "vectors": str(tmp_path / "queries.npy"), "encoder": encoder})
    found = []
    for index in (ours, theirs):
        hits = str(tmp_path / "hits.npz")
        query = {"searcher": encoder, "queries": QUERIES, "k": K, "output": hits, "index": str(index)}
        task_library.call({"do": "search", **query})
        with np.load(hits, allow_pickle=False) as arrays:
            found.append((arrays["items"], arrays["distances"]))
    assert np.all(found[0][0] >= 0)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    case = CASES["twelve thousand items"]
    first = write_ours(case, tmp_path, compression=True).read_bytes()
    assert write_ours(case, tmp_path, compression=True).read_bytes() == first


def test_reported_sizes_match_the_entries_and_the_file(tmp_path: Path) -> None:
    case = CASES["partitions without items"]
    sizes = write(case, tmp_path, compression=True)
    entries = dict(read_table((tmp_path / "ours.ldb").read_bytes()))
    assert sizes == {
        "codes": sum(len(value) for key, value in entries.items() if key.startswith(b"E_")),
        "centroids_and_codebooks": len(entries[b"INDEX_CONFIG"]),
        "metadata": sum(len(value) for key, value in entries.items() if key.startswith(b"M_")),
        "user_info": len(USER_INFO.encode()),
        "index_file": (tmp_path / "ours.ldb").stat().st_size,
    }


def test_mismatched_arrays_are_rejected(tmp_path: Path) -> None:
    case = Case(20, 4)
    arrays = make_arrays(case)
    books = codebooks(arrays)
    sizes = np.bincount(arrays["assignments"], minlength=4)
    with pytest.raises(ValueError, match=r"centroids are \[3, 18\], expected \[4, 18\]"):
        index_config(arrays["centroids"][1:], books, "float", 1, sizes)
    with pytest.raises(ValueError, match=r"centroids are \[4, 18\], expected \[4, 11\]"):
        index_config(arrays["centroids"], books[:-1], "float", 1, sizes)
    encoded = EncodedCorpus(arrays["codes"][1:], sizes, *make_metadata(case), np.arange(20), 0.0)
    with pytest.raises(ValueError, match=r"codes are \[19, 5\], expected \[20, 5\]"):
        write_index(encoded, arrays["centroids"], books, "float", 1, False, "", tmp_path / "index.ldb")


def write_ours(case: Case, folder: Path, compression: bool = False) -> Path:
    write(case, folder, compression)
    return folder / "ours.ldb"


def write(case: Case, folder: Path, compression: bool) -> dict[str, int]:
    """Writes the index from metadata that is not in item order."""
    arrays = make_arrays(case)
    data, offsets = make_metadata(case)
    blob_order = np.random.default_rng(3).permutation(case.count)
    values = [data[offsets[item] : offsets[item + 1]].tobytes() for item in blob_order]
    (folder / "blob").write_bytes(b"".join(values) or b"\0")  # an empty file cannot be mapped
    encoded = EncodedCorpus(
        codes=arrays["codes"],
        partition_sizes=np.bincount(arrays["assignments"], minlength=case.partitions),
        metadata_blob=np.memmap(folder / "blob", np.uint8, "r"),
        metadata_offsets=np.cumsum([0, *map(len, values)]),
        order=np.argsort(blob_order),
        squared_error=0.0,
    )
    given = (arrays["centroids"], codebooks(arrays), case.lut_type, SEARCH_FRACTION, compression, USER_INFO)
    return write_index(encoded, *given, folder / "ours.ldb")


def write_theirs(case: Case, task_library: isolated.Session, folder: Path, compression: bool = False) -> Path:
    data, offsets = make_metadata(case)
    paths = {name: str(folder / f"{name}.npz") for name in ("arrays", "metadata")}
    np.savez(paths["arrays"], **make_arrays(case))
    np.savez(paths["metadata"], data=data, offsets=offsets)
    index = folder / "theirs.ldb"
    request = {"lut_type": case.lut_type, "search_fraction": SEARCH_FRACTION, "user_info": USER_INFO}
    request |= {"compression": compression, "index": str(index)}
    task_library.call({"do": "write_index", **paths, **request})
    return index


def make_arrays(case: Case) -> dict[str, np.ndarray]:
    """Returns the arguments of lookup_encoder.write_index."""
    rng = np.random.default_rng(1)
    dim = sum(case.widths)
    filled = rng.choice(case.partitions, max(1, int(case.filled * case.partitions)), replace=False)
    return {
        "centroids": rng.normal(size=(case.partitions, dim)).astype(np.float32),
        "entries": rng.normal(size=(256, dim)).astype(np.float32),
        "widths": np.array(case.widths),
        "codes": rng.integers(0, 256, (case.count, len(case.widths)), np.uint8),
        "assignments": np.sort(rng.choice(filled, case.count)).astype(np.uint32),
    }


def make_metadata(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns the items' metadata and their offsets, in device order."""
    rng = np.random.default_rng(4)
    items = range(case.count)
    values = {
        "numbers": lambda: [b"%d" % item for item in items],
        "json": lambda: [b'{"id":"%d.jpg","album":"holiday","year":%d}' % (i, 1990 + i % 30) for i in items],
        "long": lambda: [rng.bytes(int(size)) for size in rng.choice([0, 5, 4_090, 10**6, 2**20], case.count)],
        "binary": lambda: [rng.bytes(size) + bytes(size) for size in rng.integers(0, 300, case.count).tolist()],
        "empty": lambda: [b""] * case.count,
    }[case.metadata]()
    return np.frombuffer(b"".join(values), np.uint8), np.cumsum([0, *map(len, values)])


def codebooks(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return np.split(arrays["entries"], np.cumsum(arrays["widths"])[:-1], axis=1)
