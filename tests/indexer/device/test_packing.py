"""Packing puts an index into an encoder's file, preserves everything else, and streams the index.

This module is also the worker process that packs, as tflite-support needs a separate process.
"""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_lite_support.metadata import metadata_schema_py_generated as metadata_schema

from indexer.device.packing import INDEX_NAME, pack_searcher
from searchforge.artifacts.tflite_graph import read_model, write_model
from searchforge.errors import JobError, UsageError
from searchforge.processes import isolated
from tests import lookup_encoder

MODULE = "tests.indexer.device.test_packing"
DIM = 8
ITEMS = 60
QUERIES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with encoder.tflite and index.ldb, and the arrays that they were made from."""
    folder = tmp_path_factory.mktemp("packing")
    rng = np.random.default_rng(0)
    arrays = {
        "centroids": np.zeros((1, DIM), np.float32),
        "entries": rng.normal(size=(256, DIM)).astype(np.float32),
        "widths": np.ones(DIM, np.int64),
        "codes": rng.integers(0, 256, (ITEMS, DIM), np.uint8),
        "assignments": np.zeros(ITEMS, np.uint32),
    }
    np.savez(folder / "arrays.npz", **arrays)
    np.save(folder / "queries.npy", rng.normal(size=(QUERIES, DIM)).astype(np.float32))
    with isolated.Session(lookup_encoder.MODULE) as session:
        session.call({"do": "write", "vectors": str(folder / "queries.npy"), "encoder": str(folder / "encoder.tflite")})
        index = {"lut_type": "float", "search_fraction": 1.0, "index": str(folder / "index.ldb")}
        session.call({"do": "write_index", "arrays": str(folder / "arrays.npz"), **index})
    return folder


def test_the_task_library_searches_the_packed_index(folder: Path, tmp_path: Path) -> None:
    searcher = _pack(folder, tmp_path)
    items, scores = _search(searcher, tmp_path)
    expected = np.load(folder / "queries.npy") @ _vectors(folder).T
    np.testing.assert_array_equal(items, np.argsort(-expected, axis=1)[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :3], atol=1e-5)


def test_queries_are_mapped_before_searching(folder: Path, tmp_path: Path) -> None:
    query_map = np.random.default_rng(2).normal(size=(DIM, DIM)).astype(np.float32)
    items, scores = _search(_pack(folder, tmp_path, query_map=query_map), tmp_path)
    expected = np.load(folder / "queries.npy") @ query_map.T @ _vectors(folder).T
    np.testing.assert_array_equal(items, np.argsort(-expected, axis=1)[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :3], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mapped", [False, True])
def test_the_archive_contains_the_encoders_files_and_the_index(folder: Path, tmp_path: Path, mapped: bool) -> None:
    searcher = _pack(folder, tmp_path, query_map=np.eye(DIM, dtype=np.float32) if mapped else None)
    with zipfile.ZipFile(folder / "encoder.tflite") as before, zipfile.ZipFile(searcher) as after:
        assert after.testzip() is None
        assert after.namelist() == [*before.namelist(), INDEX_NAME]
        for name in before.namelist():
            assert after.read(name) == before.read(name)
        assert after.read(INDEX_NAME) == (folder / "index.ldb").read_bytes()
        for info in after.infolist():
            assert (info.compress_type, info.date_time[:3]) == (zipfile.ZIP_STORED, (1980, 1, 1))
            # Offsets are relative to the start of the file, as the Task Library expects.
            assert searcher.read_bytes()[info.header_offset :].startswith(b"PK\x03\x04")


def test_all_other_metadata_is_preserved(folder: Path, tmp_path: Path) -> None:
    before, after = _metadata(folder / "encoder.tflite"), _metadata(_pack(folder, tmp_path))
    (entry,) = after.subgraphMetadata[0].outputTensorMetadata[0].associatedFiles
    assert entry.name.decode() == INDEX_NAME
    assert entry.type == metadata_schema.AssociatedFileType.SCANN_INDEX_FILE
    assert after.minParserVersion == b"1.4.0"  # the first version that supports indexes
    after.subgraphMetadata[0].outputTensorMetadata[0].associatedFiles = None
    after.minParserVersion = before.minParserVersion
    assert _plain(after) == _plain(before)


def test_equal_inputs_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    query_map = np.eye(DIM, dtype=np.float32)
    first = _pack(folder, tmp_path, query_map=query_map).read_bytes()
    assert _pack(folder, tmp_path, query_map=query_map).read_bytes() == first


def test_memory_does_not_hold_the_index(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "large.ldb"
    with index.open("wb") as file:
        file.truncate(64 << 20)
    reply = isolated.call(MODULE, _request(folder / "encoder.tflite", index, tmp_path / "searcher.tflite"))
    assert (tmp_path / "searcher.tflite").stat().st_size > index.stat().st_size
    assert reply["peak"] < 8 << 20


def test_an_index_beyond_4_gib_is_rejected(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "huge.ldb"
    with index.open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(UsageError, match=r"is limited to 4 GiB .* \(index\.partition_by\) or choose smaller codes"):
        isolated.call(MODULE, _request(folder / "encoder.tflite", index, tmp_path / "searcher.tflite"))
    assert not (tmp_path / "searcher.tflite").exists()


def test_packing_into_a_searcher_is_rejected(folder: Path, tmp_path: Path) -> None:
    searcher = _pack(folder, tmp_path)
    with pytest.raises(JobError, match="already contains an index"):
        isolated.call(MODULE, _request(searcher, folder / "index.ldb", tmp_path / "again.tflite"))


def _without_metadata(model: Any) -> None:
    model.metadata = None


def _of_two_outputs(model: Any) -> None:
    buffer = model.buffers[model.metadata[0].buffer]
    metadata = _unpacked(buffer.data.tobytes())
    metadata.subgraphMetadata[0].outputTensorMetadata *= 2
    buffer.data = np.frombuffer(_packed(metadata), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_metadata, "has no TFLite metadata"),
        (_of_two_outputs, "has metadata of 2 output tensors, expected 1"),
    ],
)
def test_encoders_with_unsuitable_metadata_are_rejected(
    folder: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    model = read_model((folder / "encoder.tflite").read_bytes())
    change(model)
    encoder = tmp_path / "encoder.tflite"
    encoder.write_bytes(write_model(model, 0))
    with pytest.raises(JobError, match=f"encoder.tflite {message}"):
        isolated.call(MODULE, _request(encoder, folder / "index.ldb", tmp_path / "searcher.tflite"))


def test_a_query_map_of_a_different_dimension_is_rejected(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=rf"output is \[1, {DIM}\], expected \[1, 3\]"):
        _pack(folder, tmp_path, query_map=np.eye(3, dtype=np.float32))


def _vectors(folder: Path) -> np.ndarray:
    """Returns the vectors [ITEMS, DIM] that the codes represent."""
    with np.load(folder / "arrays.npz") as arrays:
        return arrays["entries"][arrays["codes"], np.arange(DIM)]


def _pack(folder: Path, target: Path, query_map: np.ndarray | None = None) -> Path:
    request = _request(folder / "encoder.tflite", folder / "index.ldb", target / "searcher.tflite")
    if query_map is not None:
        np.save(target / "query_map.npy", query_map)
        request["query_map"] = str(target / "query_map.npy")
    isolated.call(MODULE, request)
    return target / "searcher.tflite"


def _request(encoder: Path, index: Path, searcher: Path) -> dict[str, str]:
    return {"encoder": str(encoder), "index": str(index), "searcher": str(searcher)}


def _search(searcher: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns items and scores, [QUERIES, 3]."""
    output = folder / "hits.npz"
    request = {"searcher": str(searcher), "queries": QUERIES, "k": 3, "output": str(output)}
    isolated.call(lookup_encoder.MODULE, {"do": "search", **request})
    with np.load(output) as hits:
        return hits["items"], -hits["distances"]


def _metadata(path: Path) -> Any:
    model = read_model(path.read_bytes())
    return _unpacked(model.buffers[model.metadata[0].buffer].data.tobytes())


def _unpacked(buffer: bytes) -> Any:
    return metadata_schema.ModelMetadataT.InitFromObj(metadata_schema.ModelMetadata.GetRootAs(buffer, 0))


def _packed(metadata: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(metadata.Pack(builder), b"M001")
    return bytes(builder.Output())


def _plain(value: Any) -> Any:
    """Converts the object API's objects into dictionaries, which can be compared."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in vars(value).items()} if hasattr(value, "__dict__") else value


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    query_map = np.load(request["query_map"]) if "query_map" in request else None
    tracemalloc.start()
    pack_searcher(Path(request["encoder"]), Path(request["index"]), Path(request["searcher"]), query_map)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"peak": peak}


if __name__ == "__main__":
    isolated.serve(_handle)
