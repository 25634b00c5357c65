"""Embeddings that were computed elsewhere are imported as embedding runs."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from beam_jobs.exchange.export import export
from beam_jobs.exchange.import_run import import_embeddings
from infra.cli.main import main
from searchforge.artifacts.manifest import Manifest, read_shards
from searchforge.artifacts.records import EmbeddingRecord, write_tfrecords
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from searchforge.errors import UsageError
from tests.indexer.shards import records, workspace_with_encoder
from tests.indexer.tiny_corpus import DIM, commit_embeddings, commit_on
from tests.indexer.tiny_encoder import unit

VECTORS = unit(np.random.default_rng(3).normal(size=(5, DIM)))
NO_TEXTS = pa.array([], pa.string())
IDS = ["a", "b", "line\nbreak", "d", "é"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_encoder(tmp_path / "workspace")


def _config(workspace: Workspace) -> Config:
    return load_config(None, {"workspace": workspace.root})


def _import(workspace: Workspace, *files: Path, **options: Any) -> Manifest:
    return import_embeddings(_config(workspace), files, "tiny", **options)


def _stored(workspace: Workspace, manifest: Manifest) -> dict[str, EmbeddingRecord]:
    return {record.id: record for record in read_shards(workspace, manifest)}


def _lists(vectors: Any, type: pa.DataType | None = None) -> pa.Array:
    return pa.array([None if row is None else list(row) for row in vectors], type or pa.list_(pa.float32()))


def _parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"id": IDS, "embedding": _lists(VECTORS)} | columns), path)
    return path


@pytest.mark.parametrize(
    ("type", "tolerance"),
    [
        (pa.list_(pa.float32()), 0.0),
        (pa.large_list(pa.float64()), 0.0),
        (pa.list_(pa.float32(), DIM), 0.0),
        (pa.list_(pa.float16()), 1e-3),
    ],
    ids=str,
)
def test_parquet_with_lists_of_any_kind_is_imported(
    workspace: Workspace, tmp_path: Path, type: pa.DataType, tolerance: float
) -> None:
    vectors = VECTORS.astype(np.float16) if tolerance else VECTORS
    path = _parquet(tmp_path / "x.parquet", embedding=_lists(vectors, type))
    manifest = _import(workspace, path)
    assert (manifest.inputs, manifest.embedded, manifest.dim, manifest.encoder) == (5, 5, DIM, "tiny")
    assert manifest == Manifest.model_validate(workspace.marker("embeddings", manifest.id))
    stored = _stored(workspace, manifest)
    assert stored.keys() == set(IDS)
    found = np.stack([stored[id].embedding for id in IDS])
    np.testing.assert_allclose(found, VECTORS, atol=tolerance, rtol=0)


def test_further_columns_become_metadata(workspace: Workspace, tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "uri": ["/a.jpg", None, "", "", ""],
        "year": [1999, None, 1, 2, 3],
        "stars": [0.5, float("nan"), 1.0, 2.0, 3.0],
        "day": [datetime.date(2024, 2, 29)] * 5,
        "tags": [["x", None], [], None, None, None],
        "metadata": ['{"year": 1, "album": "sea"}', None, "{}", "{}", "{}"],
    }
    stored = _stored(workspace, manifest := _import(workspace, _parquet(tmp_path / "x.parquet", **columns)))
    assert stored["a"].uri == "/a.jpg" and stored["b"].uri == ""
    assert stored["a"].metadata == {
        "year": 1999,
        "album": "sea",
        "stars": 0.5,
        "day": "2024-02-29",
        "tags": ["x", None],
    }
    assert stored["b"].metadata == {"day": "2024-02-29", "tags": []}
    assert manifest.modality == "images"


def test_what_pandas_adds_is_left_out_and_integers_are_ids(workspace: Workspace, tmp_path: Path) -> None:
    columns = {"id": pa.array(range(5), pa.int64()), "__index_level_0__": pa.array(range(5))}
    stored = _stored(workspace, _import(workspace, _parquet(tmp_path / "x.parquet", **columns)))
    assert stored.keys() == {"0", "1", "2", "3", "4"} and stored["0"].metadata == {}


def test_a_matrix_with_ids_is_imported(workspace: Workspace, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VECTORS.astype(np.float64))
    ids = [*IDS[:2], *IDS[3:], "f"]
    (tmp_path / "x.txt").write_text("".join(f"{id}\n" for id in ids))
    stored = _stored(workspace, _import(workspace, tmp_path / "x.npy"))
    assert np.stack([stored[id].embedding for id in ids]).tobytes() == VECTORS.tobytes()
    lines = [{"id": id, "uri": f"/{id}", "metadata": {"n": 1}, "year": 7} for id in IDS]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stored = _stored(workspace, _import(workspace, tmp_path / "x.npy", ids=[tmp_path / "other.jsonl"]))
    assert stored[IDS[2]].metadata == {"n": 1, "year": 7} and stored["a"].uri == "/a"


def test_examples_are_imported(workspace: Workspace, tmp_path: Path) -> None:
    own = tmp_path / "own.tfrecord"
    with own.open("wb") as file:
        write_tfrecords(file, [record.to_bytes() for record in records(4)])
    stored = _stored(workspace, _import(workspace, own))
    assert [stored[record.id].to_bytes() for record in records(4)] == [record.to_bytes() for record in records(4)]


def test_integers_and_floats_of_examples_are_read_packed_or_not(workspace: Workspace, tmp_path: Path) -> None:
    from searchforge.protobuf import bytes_field, tag, varint

    def feature(key: str, list_field: int, values: bytes) -> bytes:
        return bytes_field(1, bytes_field(1, key.encode()) + bytes_field(2, bytes_field(list_field, values)))

    def example(id: str, floats: bytes, integers: bytes) -> bytes:
        text = feature("id", 1, bytes_field(1, id.encode()))
        return bytes_field(1, text + feature("embedding", 2, floats) + feature("n", 3, integers))

    numbers = [varint(7), varint(2**64 - 1)]
    packed = example("p", bytes_field(1, VECTORS[0].tobytes()), bytes_field(1, b"".join(numbers)))
    tagged = b"".join(tag(1, 5) + value.tobytes() for value in VECTORS[1])
    unpacked = example("u", tagged, b"".join(tag(1, 0) + number for number in numbers))
    with (tmp_path / "x.tfrecord").open("wb") as file:
        write_tfrecords(file, [packed, unpacked])
    stored = _stored(workspace, _import(workspace, tmp_path / "x.tfrecord"))
    assert stored["p"].metadata == stored["u"].metadata == {"n": [7, -1]}
    assert stored["u"].embedding.tobytes() == VECTORS[1].tobytes()


def test_vectors_are_normalized_unless_they_are(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = np.array([[1.0], [3.0], [1e-200], [1e200], [1.0005]])
    path = _parquet(tmp_path / "x.parquet", embedding=_lists(VECTORS * scale, pa.list_(pa.float64())))
    stored = _stored(workspace, _import(workspace, path))
    found = np.stack([stored[id].embedding for id in IDS])
    np.testing.assert_allclose(np.linalg.norm(found[:4], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[:4], VECTORS[:4], atol=1e-6)
    assert found[0].tobytes() == VECTORS[0].tobytes()
    assert np.linalg.norm(found[4]) == pytest.approx(1.0005, abs=1e-6)
    assert "3 of 5 embeddings were not of length 1" in capsys.readouterr().err


def _changed(row: int, value: float) -> Any:
    vectors = VECTORS.copy()
    vectors[row, 2] = value
    return vectors


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"embedding": _lists(_changed(3, np.nan))}, r"x.parquet, row 3: number 2 of the embedding is nan"),
        ({"embedding": _lists(_changed(4, np.inf))}, r"row 4: number 2 of the embedding is inf; expected finite"),
        ({"embedding": _lists(VECTORS * [[1], [0], [1], [1], [1]])}, r"row 1: the embedding is zero"),
        ({"embedding": _lists([*VECTORS[:4], None])}, r"row 4: the embedding is null; expected 16 numbers"),
        ({"embedding": _lists([*VECTORS[:4], VECTORS[4][:9]])}, r"row 4: the embedding has 9 dimensions; expected 16"),
        ({"embedding": _lists([*VECTORS[:4], [None, *VECTORS[4][1:]]])}, r"row 4: number 0 of the embedding is null"),
        ({"embedding": _lists(VECTORS[:, :8], pa.list_(pa.float32(), 8))}, r"have 8 dimensions; expected 16"),
        ({"embedding": pa.array(["x"] * 5)}, r"'embedding' is string; expected lists of floats"),
        ({"embedding": _lists(np.ones((5, DIM), int), pa.list_(pa.int8()))}, r"expected lists of floats"),
        ({"id": pa.array(["a", "b", None, "d", "e"])}, r"row 2: the id is None; expected a text"),
        ({"id": pa.array(["a", "b", "", "d", "e"])}, r"row 2: the id is ''; expected a text"),
        ({"id": pa.array([1.0, 2.0, 3.0, 4.0, 5.0])}, r"'id' is double; expected texts or integers"),
        ({"id": ["a", "b", "c", "a", "b"]}, r"id 'a' occurs twice: \S*x.parquet, row 0 and \S*x.parquet, row 3"),
        ({"metadata": ["{}", "[1]", "{}", "{}", "{}"]}, r"row 1: the metadata of 'b' cannot be stored: .*list"),
        ({"metadata": ["{}", "{", "{}", "{}", "{}"]}, r"row 1: the metadata of 'b' cannot be stored"),
        ({"stars": [1.0, 2.0, float("inf"), 1.0, 1.0]}, r"row 2: the metadata of .* inf is not JSON"),
        ({"text": ["x" * 70_000, "", "", "", ""]}, r"row 0: the metadata of 'a' cannot be stored: more than 65536"),
        ({"thumbnail": [b"\xff"] * 5}, r"column 'thumbnail' is binary, which metadata cannot hold"),
        ({"uri": [1, 2, 3, 4, 5]}, r"row 0: uri of 'a' is 1; expected a text"),
    ],
)
def test_bad_rows_are_refused_and_leave_nothing(
    workspace: Workspace, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = _parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(UsageError, match=message):
        _import(workspace, path)
    assert workspace.all_ids("embeddings") == []
    assert not list(Path(workspace.root, ".staging").glob("*"))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _save(path: Path, array: Any, ids: int = 5) -> Path:
    np.save(path, array)
    path.with_suffix(".txt").write_text("".join(f"{number}\n" for number in range(ids)))
    return path


def _without_id(path: Path) -> Path:
    pq.write_table(pa.table({"key": IDS, "embedding": _lists(VECTORS)}), path)
    return path


def _examples(path: Path, *payloads: bytes) -> Path:
    with path.open("wb") as file:
        write_tfrecords(file, payloads)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.parquet", r"none.parquet does not exist"),
        (lambda folder: folder, r"has neither Parquet nor .npy files"),
        (lambda folder: _write(folder / "x.csv", b"id"), r"x.csv is neither .parquet nor .npy nor .tfrecord"),
        (lambda folder: _write(folder / "x.parquet", b"PAR1 and no more"), r"cannot be read as Parquet"),
        (lambda folder: _without_id(folder / "x.parquet"), r"has 0 columns 'id', among key, embedding"),
        (
            lambda folder: _parquet(folder / "x.parquet", id=pa.array([], pa.string()), embedding=_lists([])),
            r"has no rows",
        ),
        (lambda folder: _write(folder / "x.npy", b"not numpy"), r"cannot be read as a NumPy array"),
        (lambda folder: _save(folder / "x.npy", VECTORS[:, :8]), r"float32\[5, 8\]; expected floats \[n, 16\]"),
        (lambda folder: _save(folder / "x.npy", VECTORS[0]), r"float32\[16\]; expected floats \[n, 16\]"),
        (lambda folder: _save(folder / "x.npy", np.asfortranarray(VECTORS)), r"in column-major order; expected"),
        (lambda folder: _save(folder / "x.npy", np.ones((5, DIM), np.int8)), r"int8\[5, 16\]; expected floats"),
        (lambda folder: _save(folder / "x.npy", np.full((5, DIM), None)), r"object\[5, 16\]; expected floats"),
        (lambda folder: _save(folder / "x.npy", VECTORS, ids=4), r"x.txt has 4 ids, but \S+ has 5 rows"),
        (lambda folder: _save(folder / "x.npy", VECTORS, ids=6), r"x.txt has more than 5 ids"),
        (lambda folder: _save(folder / "x.npy", _changed(2, np.nan)), r"x.npy, row 2: number 2 of the embedding"),
        (lambda folder: _write(folder / "x.tfrecord", b"not records"), r"is not TFRecords, or is damaged"),
        (lambda folder: _examples(folder / "x.tfrecord", b"\xff"), r"row 0: 1 bytes are not a tf.train.Example"),
        (lambda folder: _examples(folder / "x.tfrecord", b""), r"row 0: the feature 'embedding' has no floats"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(workspace: Workspace, tmp_path: Path, make: Any, message: str) -> None:
    (tmp_path / "files").mkdir()
    path = make(tmp_path / "files")
    with pytest.raises(UsageError, match=message):
        _import(workspace, path)
    assert workspace.all_ids("embeddings") == []


def test_a_matrix_without_ids_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VECTORS)
    with pytest.raises(UsageError, match=r"x.npy has no file of ids beside it \(x.jsonl, x.txt, ids.jsonl, ids.txt\)"):
        _import(workspace, tmp_path / "x.npy")
    with pytest.raises(UsageError, match=r"there are 2 files of ids for 1 .npy files; expected one for each"):
        _import(workspace, tmp_path / "x.npy", ids=[tmp_path / "a.txt", tmp_path / "b.txt"])


def test_an_id_that_occurs_in_two_files_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    first, second = _parquet(tmp_path / "1.parquet"), _parquet(tmp_path / "2.parquet", id=["v", "w", "x", "b", "z"])
    with pytest.raises(UsageError, match=r"id 'b' occurs twice: \S*1.parquet, row 1 and \S*2.parquet, row 3"):
        _import(workspace, first, second)
    assert workspace.all_ids("embeddings") == []


def test_the_same_files_are_imported_once(workspace: Workspace, tmp_path: Path) -> None:
    path = _parquet(tmp_path / "x.parquet")
    manifest = _import(workspace, path, modality="texts")
    assert manifest.modality == "texts"
    assert _import(workspace, path, modality="texts") == manifest
    assert _import(workspace, path).id != manifest.id


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_an_export_comes_back_as_the_run_that_it_was(workspace: Workspace, tmp_path: Path, format: Any) -> None:
    metadata: list[dict[str, Any]] = [
        {"n": 1, "mixed": 1, "list": [1, 1.0], "null": None, "uri": "mine"},
        {"n": 2.5, "mixed": "a", "big": 2**70, "é": "\n"},
        {},
    ]
    items = [replace(record, metadata=values) for record, values in zip(records(3), metadata, strict=True)]
    items[0] = replace(items[0], version="5-7", byte_range="1+2@x.tar", id="line\nbreak")
    original = commit_embeddings(workspace, sorted(items, key=lambda item: item.id), shards=1, fingerprint="f")
    export(_config(workspace), "corpus", format, tmp_path / "out")
    other = workspace_with_encoder(tmp_path / "other")
    assert _import(other, tmp_path / "out") == original
    files = {path.name: path.read_bytes() for path in other.local("embeddings", "corpus").iterdir()}
    assert files == {path.name: path.read_bytes() for path in workspace.local("embeddings", "corpus").iterdir()}


def test_an_export_with_other_records_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    commit_embeddings(workspace, records(6), shards=1, fingerprint="f")
    folder = Path(export(_config(workspace), "corpus", "parquet", tmp_path / "out").folder)
    path, other = folder / "data-00000-of-00001.parquet", workspace_with_encoder(tmp_path / "other")
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 5), path)
    with pytest.raises(UsageError, match=r"the files have 5 rows, but .* is an export of 6"):
        _import(other, path)
    pq.write_table(table.set_column(2, "uri", [["elsewhere"] * 6]), path)
    with pytest.raises(UsageError, match=r"records of data-\S+ differ from the export of embeddings corpus"):
        _import(other, path)
    with pytest.raises(UsageError, match="is an export of images, not of texts"):
        _import(other, path, modality="texts")
    assert other.all_ids("embeddings") == []


def test_embeddings_of_another_encoder_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    base = commit_embeddings(workspace, records(6), fingerprint="f" * 64)
    commit_on(workspace, base, "second", removed={"id0"}, added=[])
    for run in ("corpus", "second"):  # the second has no copy of its manifest, because it refers to another run
        folder = export(_config(workspace), run, "parquet", tmp_path / run).folder
        with pytest.raises(UsageError, match="their embedding spaces differ"):
            _import(workspace_with_encoder(tmp_path / f"{run}-other"), Path(folder))


def test_a_run_with_dead_records_comes_back_without_them(workspace: Workspace, tmp_path: Path) -> None:
    base = commit_embeddings(workspace, records(6), fingerprint="f")
    second = commit_on(workspace, base, "second", removed={"id0"}, added=[])
    folder = export(_config(workspace), "second", "parquet", tmp_path / "out").folder
    imported = _import(other := workspace_with_encoder(tmp_path / "other"), Path(folder))
    stored, expected = _stored(other, imported), _stored(workspace, second)
    assert {id: record.to_bytes() for id, record in stored.items()} == {
        id: record.to_bytes() for id, record in expected.items()
    }


def test_the_command_imports_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    _parquet(tmp_path / "files" / "x.parquet")
    arguments = ["embeddings", "import", str(tmp_path / "files"), "--encoder", "tiny", "--workspace", workspace.root]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "5 images: 5 embedded, 0 reused, 0 rejected" in result.stdout
    result = CliRunner().invoke(main, [*arguments, "--modality", "sounds"])
    assert result.exit_code == 2 and "sounds" in result.output
