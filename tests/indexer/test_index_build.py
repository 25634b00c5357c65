"""The index and the searchers that are built from an embedding run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from indexer.__main__ import main
from indexer.build import build_index
from indexer.parameters import IndexParameters, resolve
from indexer.quantize import QuantizedCorpus
from searchforge import isolated
from searchforge.config import IndexConfig
from searchforge.errors import JobError, UsageError
from searchforge.hashing import sha256_file
from searchforge.searcher import IMAGE_SEARCHER, INDEX, TEXT_SEARCHER
from serving_check.leveldb_table import read_table
from serving_check.search import Searcher
from tests.indexer.tiny_corpus import commit_embeddings, make_corpus, tiny_encoder
from tests.indexer.tiny_encoder import unit


def test_searchers_answer_with_ids_and_metadata_and_never_with_paths(tmp_path: Path) -> None:
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


def test_the_report_says_what_was_built(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=64)
    report = build_index(corpus.config, "corpus")
    folder = corpus.workspace.local("searchers", report["id"])
    assert report["files"] == {name: sha256_file(folder / name) for name in (INDEX, TEXT_SEARCHER, IMAGE_SEARCHER)}
    sizes = report["sizes"]
    assert sizes["codes"] == 64 * 16
    assert report["bytes_per_image"] * 64 == sizes["codes"] + sizes["centroids_and_codebooks"] + sizes["user_info"]
    assert sizes[TEXT_SEARCHER] == (folder / TEXT_SEARCHER).stat().st_size
    assert not (folder / "scratch").exists()


def test_equal_inputs_give_equal_bytes_and_a_rerun_finds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (make_corpus(tmp_path / name) for name in ("a", "b"))
    report = build_index(first.config, "corpus")
    # The records' uris differ between the two workspaces, so their shards and the ids do: compare all but USER_INFO.
    again = build_index(second.config, "corpus")
    tables = [c.workspace.local("searchers", r["id"]) / INDEX for c, r in ((first, report), (second, again))]
    contents = [dict(read(table)) for table in tables]
    assert contents[0].keys() == contents[1].keys()
    assert all(contents[0][key] == contents[1][key] for key in contents[0] if key != b"USER_INFO")
    capsys.readouterr()
    assert build_index(first.config, "corpus") == report
    assert "there already" in capsys.readouterr().err
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


def test_equal_vectors_are_indexed(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=40)
    same = [type(r)(r.id, corpus.records[0].embedding, r.uri, r.content_hash, r.metadata) for r in corpus.records]
    commit_embeddings(corpus.workspace, same, "same")
    report = build_index(corpus.config, "same")
    with Searcher(corpus.workspace.local("searchers", report["id"]) / TEXT_SEARCHER) as searcher:
        assert len({hit.id for hit in searcher.search_text("w0", 40)}) == 40


def test_embeddings_of_another_encoder_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20)
    commit_embeddings(corpus.workspace, corpus.records, "foreign", fingerprint="e" * 64)
    with pytest.raises(UsageError, match=r"e{64}, but tiny is encoder f{64}"):
        build_index(corpus.config, "foreign")
    assert corpus.workspace.ids("searchers") == []


def test_more_partitions_than_images_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20, index__partitions=21)
    with pytest.raises(UsageError, match="partitions is 21, but the corpus has 20 images"):
        build_index(corpus.config, "corpus")


def test_the_command_builds_and_says_what_is_wrong(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20)
    arguments = ["--workspace", corpus.workspace.root, "--embeddings", "corpus"]
    built = CliRunner().invoke(main, [*arguments, "--preset", "recipe2022", "--json"])
    assert built.exit_code == 0
    assert json.loads(built.stdout)["parameters"]["lookup"] == "int8"
    refused = CliRunner().invoke(main, [*arguments, "--partitions", "21"])
    assert refused.exit_code == 2
    assert "partitions is 21, but the corpus has 20 images" in refused.output
    unknown = CliRunner().invoke(main, ["--workspace", corpus.workspace.root, "--embeddings", "other"])
    assert unknown.exit_code == 2
    assert "there: corpus" in unknown.output


def test_an_encoder_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, count=20)
    marker = tmp_path / "workspace/encoders/tiny/encoder.json"
    info = json.loads(marker.read_text())
    marker.write_text(json.dumps({**info, "files": {"text_encoder.tflite": "0" * 64}}))
    with pytest.raises(JobError, match=r"text_encoder\.tflite has SHA-256"):
        build_index(corpus.config, "corpus")


@pytest.mark.parametrize("lookup", ["float", "int8"])
@pytest.mark.parametrize("dims_per_block", [1, 3])
def test_the_device_computes_what_numpy_computes_from_the_codes(
    tmp_path: Path, lookup: str, dims_per_block: int
) -> None:
    """dims_per_block 3 leaves a last block of one dimension: 16 = 5 x 3 + 1."""
    encoder, _, bundle = tiny_encoder()
    vectors = clustered(2_000, 16)
    config = IndexConfig(dims_per_block=dims_per_block, lookup=lookup, partitions_searched=5)  # type: ignore[arg-type]
    parameters = resolve(config, len(vectors), 16)
    quantized = build_searcher(tmp_path, vectors, parameters, bundle)
    assert quantized.codes.shape == (2_000, -(-16 // dims_per_block))
    tolerance = 1e-5 if lookup == "float" else 0.05
    with Searcher(tmp_path / TEXT_SEARCHER) as searcher:
        for i in range(30):
            scores = approximate_scores(quantized, parameters, encoder.text(f"w{i}"))
            hits = searcher.search_text(f"w{i}", 10)
            best = np.sort(scores)[::-1][:10]
            np.testing.assert_allclose([hit.score for hit in hits], best, atol=tolerance)
            np.testing.assert_allclose([scores[int(hit.id)] for hit in hits], best, atol=2 * tolerance)


def test_recall_on_clustered_vectors_is_high_and_falls_with_coarser_codes(tmp_path: Path) -> None:
    encoder, _, bundle = tiny_encoder()
    vectors = clustered(3_000, 16)
    recall = {}
    for dims_per_block in (1, 8):
        parameters = resolve(IndexConfig(dims_per_block=dims_per_block), len(vectors), 16)
        build_searcher(tmp_path, vectors, parameters, bundle)
        found = []
        with Searcher(tmp_path / TEXT_SEARCHER) as searcher:
            for i in range(50):
                exact = np.argsort(-(vectors @ encoder.text(f"w{i}")))[:10]
                found.append(len({int(hit.id) for hit in searcher.search_text(f"w{i}", 10)} & set(exact.tolist())) / 10)
        recall[dims_per_block] = np.mean(found)
    assert recall[1] > 0.97
    assert recall[8] < 0.9


def clustered(count: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    centers = rng.normal(size=(40, dim))
    return unit(centers[rng.integers(0, 40, count)] + 0.6 * rng.normal(size=(count, dim)))


def build_searcher(folder: Path, vectors: np.ndarray, parameters: IndexParameters, bundle: Path) -> QuantizedCorpus:
    """Runs the worker's three steps on plain vectors whose ids are their positions."""
    np.save(folder / "vectors.npy", vectors)
    (folder / "metadata.jsonl").write_text("".join(f'{{"id":"{i}"}}\n' for i in range(len(vectors))))
    request: dict[str, Any] = {
        "parameters": parameters.to_json(),
        "vectors": str(folder / "vectors.npy"),
        "quantized": str(folder / "quantized.npz"),
        "metadata": str(folder / "metadata.jsonl"),
        "user_info": "{}",
        "index": str(folder / INDEX),
        "encoder": str(bundle / "text_encoder.tflite"),
        "searcher": str(folder / TEXT_SEARCHER),
    }
    with isolated.Session("indexer.worker") as worker:
        for step in ("quantize", "write_index", "pack"):
            worker.call({**request, "step": step})
    return QuantizedCorpus.load(folder / "quantized.npz")


def approximate_scores(corpus: QuantizedCorpus, parameters: IndexParameters, query: np.ndarray) -> np.ndarray:
    """[n] scores by look-up; vectors of partitions that are not searched score minus infinity."""
    bounds = np.cumsum([book.shape[1] for book in corpus.codebooks])[:-1]
    tables = [book @ part for book, part in zip(corpus.codebooks, np.split(query, bounds), strict=True)]
    scores = sum(table[corpus.codes[:, block]] for block, table in enumerate(tables))
    searched = np.argsort(-(corpus.centroids @ query))[: parameters.partitions_searched]
    return np.where(np.isin(corpus.assignments, searched), scores, -np.inf)


def read(path: Path) -> list[tuple[bytes, bytes]]:
    return list(read_table(path.read_bytes()))
