"""A build turns an embedding run into an index and searchers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from indexer.__main__ import main
from indexer.build import build_index
from indexer.encoding.reuse import QUANTIZER
from indexer.tuning.tradeoff import TRADEOFF_JSON, TRADEOFF_SVG
from searchforge.artifacts.searcher import IMAGE_SEARCHER, INDEX, TEXT_SEARCHER
from searchforge.config import IndexConfig
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file
from serving_check.formats.leveldb_reader import read_table
from serving_check.measurement.search import Searcher
from tests.indexer.tiny_corpus import commit_embeddings, make_corpus


def test_searchers_return_ids_and_metadata_and_contain_no_paths(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    report = build_index(corpus.config, "corpus")
    folder = corpus.workspace.local("searchers", report["id"])
    with Searcher(folder / TEXT_SEARCHER) as text:
        first = text.search_text("w17", 3)[0]
        assert (first.id, first.metadata) == ("00017.png", {"number": 17})
        assert first.score == pytest.approx(1.0, abs=0.1)
        assert len(text.search_text("w17", 25)) == 25
        info = json.loads(text.user_info)
    assert info["fingerprint"] == "f" * 64
    assert (info["images"], info["embeddings"], info["encoder"]) == (400, "corpus", "tiny")
    assert info["parameters"] == report["parameters"]
    with Searcher(folder / IMAGE_SEARCHER) as image:
        assert image.search_image(tmp_path / "images" / "00042.png", 3)[0].id == "00042.png"
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_the_report_describes_the_build(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=64)
    report = build_index(corpus.config, "corpus")
    folder = corpus.workspace.local("searchers", report["id"])
    made = {path.name for path in folder.iterdir()} - {"build.json"}
    assert made == {INDEX, TEXT_SEARCHER, IMAGE_SEARCHER, QUANTIZER, TRADEOFF_JSON, TRADEOFF_SVG}
    assert report["files"] == {name: sha256_file(folder / name) for name in made}
    sizes = report["sizes"]
    assert sizes["codes"] == 64 * report["parameters"]["code_bytes"]
    assert report["bytes_per_image"] * 64 == sizes["codes"] + sizes["centroids_and_codebooks"] + sizes["user_info"]
    assert sizes[TEXT_SEARCHER] == (folder / TEXT_SEARCHER).stat().st_size
    assert not (folder / "scratch").exists()


def test_equal_inputs_give_equal_bytes_and_a_rerun_returns_the_existing_searcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (make_corpus(tmp_path / name) for name in ("a", "b"))
    report = build_index(first.config, "corpus")
    # URIs differ between the workspaces, and so do shards and ids: compare everything except USER_INFO.
    again = build_index(second.config, "corpus")
    tables = [c.workspace.local("searchers", r["id"]) / INDEX for c, r in ((first, report), (second, again))]
    contents = [dict(read(table)) for table in tables]
    assert contents[0].keys() == contents[1].keys()
    assert all(contents[0][key] == contents[1][key] for key in contents[0] if key != b"USER_INFO")
    capsys.readouterr()
    assert build_index(first.config, "corpus") == report
    assert "already exists" in capsys.readouterr().err
    other = first.config.model_copy(update={"index": IndexConfig(seed=1)})
    assert build_index(other, "corpus")["id"] != report["id"]


def test_a_build_is_reproducible_byte_by_byte(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    report = build_index(corpus.config, "corpus")
    (corpus.workspace.local("searchers", report["id"]) / "build.json").unlink()
    assert build_index(corpus.config, "corpus")["files"] == report["files"]


@pytest.mark.parametrize("count", [1, 2, 10, 15])
def test_tiny_corpora_are_searched_exactly(tmp_path: Path, count: int) -> None:
    corpus = make_corpus(tmp_path, count=count)
    report = build_index(corpus.config, "corpus")
    with Searcher(corpus.workspace.local("searchers", report["id"]) / TEXT_SEARCHER) as searcher:
        for i in range(count):
            hits = searcher.search_text(f"w{i}", 20)
            assert len({hit.id for hit in hits}) == count
            assert hits[0].id == f"{i:05d}.png"


def test_identical_vectors_are_indexed(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=40)
    same = [type(r)(r.id, corpus.records[0].embedding, r.uri, r.content_hash, r.metadata) for r in corpus.records]
    commit_embeddings(corpus.workspace, same, "same")
    report = build_index(corpus.config, "same")
    with Searcher(corpus.workspace.local("searchers", report["id"]) / TEXT_SEARCHER) as searcher:
        assert len({hit.id for hit in searcher.search_text("w0", 40)}) == 40


def test_embeddings_from_another_encoder_are_rejected(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20)
    commit_embeddings(corpus.workspace, corpus.records, "foreign", fingerprint="e" * 64)
    with pytest.raises(UsageError, match=r"e{64}, but tiny is encoder f{64}"):
        build_index(corpus.config, "foreign")
    assert corpus.workspace.ids("searchers") == []


def test_more_partitions_than_images_are_rejected(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20, index__partitions=21)
    with pytest.raises(UsageError, match="partitions is 21, but the corpus has 20 items"):
        build_index(corpus.config, "corpus")


def test_the_command_builds_a_searcher_and_reports_errors(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20)
    arguments = ["--workspace", corpus.workspace.root, "--embeddings", "corpus"]
    built = CliRunner().invoke(main, [*arguments, "--preset", "recipe2022", "--json"])
    assert built.exit_code == 0
    assert json.loads(built.stdout)["parameters"]["lut_type"] == "int8"
    refused = CliRunner().invoke(main, [*arguments, "--partitions", "21"])
    assert refused.exit_code == 2
    assert "partitions is 21, but the corpus has 20 items" in refused.output
    unknown = CliRunner().invoke(main, ["--workspace", corpus.workspace.root, "--embeddings", "other"])
    assert unknown.exit_code == 2
    assert "existing: corpus" in unknown.output


def test_a_modified_encoder_file_is_rejected(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20)
    marker = tmp_path / "workspace/encoders/tiny/encoder.json"
    info = json.loads(marker.read_text())
    marker.write_text(json.dumps({**info, "files": {"text_encoder.tflite": "0" * 64}}))
    with pytest.raises(JobError, match=r"text_encoder\.tflite has SHA-256"):
        build_index(corpus.config, "corpus")


def read(path: Path) -> list[tuple[bytes, bytes]]:
    return list(read_table(path.read_bytes()))
