"""Embedding runs are exported to Parquet and NumPy files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from beam_jobs.exchange.export import export
from beam_jobs.exchange.parquet_export import write_parquet
from infra.cli.main import main
from searchforge.artifacts.manifest import read_shards
from searchforge.artifacts.record_batches import read_batches
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, load_config
from searchforge.errors import JobError, UsageError
from tests.indexer.shards import records, workspace_with_encoder
from tests.indexer.tiny_corpus import DIM, commit_embeddings, commit_on


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_encoder(tmp_path / "workspace")


def _config(workspace: Workspace) -> Config:
    return load_config(None, {"workspace": workspace.root})


def _with_metadata(*metadata: dict[str, Any]) -> list[EmbeddingRecord]:
    return [replace(record, metadata=values) for record, values in zip(records(len(metadata)), metadata, strict=True)]


def test_parquet_has_fixed_size_lists_and_a_column_for_each_attribute(workspace: Workspace, tmp_path: Path) -> None:
    manifest = commit_embeddings(workspace, records(50))
    report = export(_config(workspace), "corpus", "parquet", tmp_path / "out")
    assert (report.records, report.dim, report.files) == (50, DIM, ("data-00000-of-00001.parquet",))
    table = pq.read_table(tmp_path / "out")  # readers of folders skip the folder with the manifest
    type = table.schema.field("embedding").type
    assert (type.list_size, str(type.value_type)) == (DIM, "float")
    stored = list(read_shards(workspace, manifest))
    assert table["id"].to_pylist() == [record.id for record in stored]
    assert table["uri"].to_pylist() == [record.uri for record in stored]
    assert table["content_hash"].to_pylist() == ["0" * 64] * 50
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    assert vectors.tobytes() == np.stack([record.embedding for record in stored]).tobytes()
    assert table["album"].to_pylist() == [record.metadata["album"] for record in stored]
    assert table.schema.metadata[b"searchforge.fingerprint"].decode() == manifest.fingerprint


def test_keys_of_one_type_are_columns_and_metadata_keeps_every_value(workspace: Workspace, tmp_path: Path) -> None:
    metadata = [
        {"title": "Sea", "year": 1999, "stars": 4, "public": True, "mixed": 1, "tags": ["a"], "URI": "x", "none": None},
        {"title": None, "year": 2001, "stars": 4.5, "mixed": "one", "big": 2**60},
        {"big": 2**70, "large": 2**60},
    ]
    commit_embeddings(workspace, _with_metadata(*metadata), shards=1)
    export(_config(workspace), "corpus", "parquet", tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert [json.loads(text) for text in table["metadata"].to_pylist()] == metadata
    columns = {name: table[name].to_pylist() for name in table.schema.names[7:]}
    assert columns == {
        "large": [None, None, 2**60],
        "public": [True, None, None],
        "stars": [4.0, 4.5, None],
        "title": ["Sea", None, None],
        "year": [1999, 2001, None],
    }


def test_parquet_is_sharded(workspace: Workspace, tmp_path: Path) -> None:
    manifest = commit_embeddings(workspace, records(50))
    batches = lambda: read_batches(workspace, manifest)  # noqa: E731
    paths = write_parquet(batches, manifest, tmp_path, lambda count: None, file_bytes=20 * 4 * DIM)
    assert [pq.read_metadata(path).num_rows for path in paths] == [20, 20, 10]
    assert paths[-1].name == "data-00002-of-00003.parquet"
    assert pq.read_table(paths)["id"].to_pylist() == [id for batch in batches() for id in batch.ids]


def test_npy_has_a_matrix_and_a_line_for_each_row(workspace: Workspace, tmp_path: Path) -> None:
    odd = [replace(record, id=f"line\n{record.id}é") for record in records(3)]
    manifest = commit_embeddings(workspace, odd)
    export(_config(workspace), "corpus", "npy", tmp_path / "out")
    stored = list(read_shards(workspace, manifest))
    matrix = np.load(tmp_path / "out" / "embeddings.npy")
    assert matrix.dtype == np.float32 and matrix.tobytes() == np.stack([row.embedding for row in stored]).tobytes()
    lines = (tmp_path / "out" / "ids.jsonl").read_text().split("\n")
    assert [json.loads(line)["id"] for line in lines if line] == [record.id for record in stored]
    assert json.loads(lines[0])["metadata"] == stored[0].metadata


def test_only_live_records_are_exported(workspace: Workspace, tmp_path: Path) -> None:
    base = commit_embeddings(workspace, records(10))
    commit_on(workspace, base, "second", removed={"id1"}, added=[replace(records(1)[0], id="added")])
    export(_config(workspace), "second", "parquet", tmp_path / "out")
    ids = set(pq.read_table(tmp_path / "out")["id"].to_pylist())
    assert ids == {f"id{number}" for number in range(10) if number != 1} | {"added"}


def test_a_folder_that_is_not_empty_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    commit_embeddings(workspace, records(3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists; expected a folder that does not exist or is empty"):
        export(_config(workspace), "corpus", "parquet", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_failed_export_leaves_nothing(workspace: Workspace, tmp_path: Path, format: Any) -> None:
    manifest = commit_embeddings(workspace, records(3))
    shard = workspace.local("embeddings", "corpus") / manifest.shards[1].name
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(JobError, match="SHA-256"):
        export(_config(workspace), "corpus", format, tmp_path / "out" / "here")
    assert not list((tmp_path / "out").iterdir())


def test_the_command_exports_the_only_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_embeddings(workspace, records(3))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["embeddings", "export", "--workspace", workspace.root, "--format", "npy"])
    assert result.exit_code == 0, result.output
    assert f"embeddings-corpus: 3 embeddings of {DIM} dimensions in 2 npy files" in result.stdout
    assert np.load(tmp_path / "embeddings-corpus" / "embeddings.npy").shape == (3, DIM)
