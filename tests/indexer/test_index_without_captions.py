"""Without captions, disjoint parts of a query log or of everyday texts tune, verify and check an index."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from indexer.build import build_index, summary
from indexer.corpus.queries import QueryTexts, choose_texts
from infra.cli.main import main
from searchforge.artifacts.encoder import TEXT_TFLITE
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.captions.query_texts import text_sources
from searchforge.config import Config, load_config
from searchforge.queries.everyday_texts import everyday_texts
from serving_check.check import check
from serving_check.schema import Report
from serving_check.schema import summary as check_summary
from tests.indexer.tiny_corpus import DIM, FINGERPRINT, TinyCorpus, commit_embeddings, make_corpus
from tests.indexer.tiny_encoder import TinyEncoder, unit

COUNT = 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return make_corpus(tmp_path_factory.mktemp("uncaptioned"), COUNT, data__captions=(), data__images=None)


@pytest.fixture(scope="module")
def log(corpus: TinyCorpus) -> Path:
    path = Path(corpus.workspace.root).parent / "queries.txt"
    path.write_text("".join(f"w{i} w{(i * 7 + j) % COUNT}\t{1 + i % 5}\n" for i in range(COUNT) for j in range(1, 5)))
    return path


def _config(corpus: TinyCorpus, **settings: Any) -> Config:
    keys = {"workspace": corpus.workspace.root, "check.hostile_megapixels": 0.01}
    return load_config(None, {**keys, **{key.replace("__", "."): value for key, value in settings.items()}})


def _chosen(config: Config) -> QueryTexts:
    texts = choose_texts(config, lambda texts: np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32))
    assert texts
    return texts


@pytest.fixture(scope="module")
def built(corpus: TinyCorpus, log: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reports of an index that was tuned with the log and of its check."""
    config = _config(corpus, data__queries=str(log), check__min_r_at_10=0.1)
    build = build_index(config, "corpus")
    return build, check(config, build["id"])


def test_a_query_log_tunes_verifies_and_checks_with_disjoint_parts(
    corpus: TinyCorpus, log: Path, built: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    build, report = built
    config = _config(corpus, data__queries=str(log))
    texts = _chosen(config)
    asked = next(source for source in text_sources(config.data) if not isinstance(source, str))
    checked = asked.sample("check", 10_000, 0)
    parts = [texts.training, texts.tuning, texts.verification, checked]
    assert all(parts) and len(set().union(*parts)) == sum(map(len, parts)) == len(log.read_text().splitlines())
    tuning = build["training"]["tuning"]
    assert tuning["query_kind"] == "query_log"
    assert tuning["recall_at_10"]["tuning"]["queries"] == len(texts.tuning)
    assert tuning["recall_at_10"]["verification"]["queries"] == len(texts.verification)
    assert "on queries of the query log" in summary(build)
    figures = report["figures"]
    assert (figures["query_kind"], figures["queries"]) == ("query_log", len(checked))
    assert figures["queries_seen_by_tuner"] == 0
    assert figures["recall_at_10"] > 0.9
    printed = check_summary(Report.model_validate(report))
    assert f"Measured with {len(checked)} queries of the query log among 120 images" in printed


def test_gates_that_need_an_answer_key_are_not_measured(built: tuple[dict[str, Any], dict[str, Any]]) -> None:
    report = built[1]
    assert "r_at_10" not in report["figures"]
    [gate] = [gate for gate in report["gates"] if gate["name"] == "r_at_10"]
    assert (gate["passed"], gate["measured"]) == (False, None)
    assert gate["detail"].startswith("not measured: ")


def test_photo_embeddings_and_a_text_encoder_alone_are_asked_with_everyday_texts(tmp_path: Path) -> None:
    random, workspace = np.random.default_rng(0), Workspace(str(tmp_path / "workspace"))
    words = sorted({word for text in everyday_texts(15_000) for word in text.lower().split()})
    bundle = TinyEncoder({word: random.normal(size=DIM) for word in words}).bundle(FINGERPRINT)
    with workspace.create("encoders", "tiny") as staging:
        shutil.copy(bundle / TEXT_TFLITE, staging.path)
        info = json.loads((bundle / "encoder.json").read_text())
        staging.commit({**info, "files": {TEXT_TFLITE: info["files"][TEXT_TFLITE]}})
    vectors = unit(random.normal(size=(300, DIM)))
    records = [EmbeddingRecord(f"{i}.jpg", v, f"/nowhere/{i}.jpg", f"{i:064}", {}) for i, v in enumerate(vectors)]
    commit_embeddings(workspace, records)
    config = load_config(None, {"workspace": workspace.root, "check.hostile_megapixels": 0.01, "index.queries": 600})
    build = build_index(config, "corpus")
    assert build["training"]["tuning"]["query_kind"] == "everyday_text"
    report = check(config, build["id"])
    assert report["passed"] and report["figures"]["query_kind"] == "everyday_text"
    assert report["figures"]["recall_at_10"] >= 0.9
    assert {gate["name"] for gate in report["gates"]} >= {"recall_at_10"}


def test_texts_that_the_encoder_embeds_alike_are_passed_over(
    corpus: TinyCorpus, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny encoder knows none of the everyday words."""
    config = _config(corpus, index__reuse_from="none")
    with caplog.at_level(logging.WARNING):
        build = build_index(config, "corpus")
        report = check(config, build["id"])
    assert build["training"]["tuning"]["query_kind"] == "item"
    assert "recall@10 " in summary(build) and "on items of the corpus" in summary(build)
    assert report["passed"] and report["figures"]["query_kind"] == "image"
    assert "other queries are used to tune the index: the encoder embeds 200 of these texts as only" in caplog.text
    assert "other queries are used to measure recall: the encoder embeds 200 of these texts as only" in caplog.text


def test_an_index_is_tuned_again_when_better_queries_are_known(corpus: TinyCorpus, log: Path) -> None:
    """Otherwise its quantizer is reused."""
    first = build_index(_config(corpus, index__recall_at_10=0.9), "corpus")
    config = _config(corpus, index__recall_at_10=0.9, data__queries=str(log))
    better = build_index(config, "corpus")
    assert first["training"]["tuning"]["query_kind"] == "item"
    assert better["training"]["tuning"]["query_kind"] == "query_log"
    assert better["training"]["drift"] is None
    log.write_text(log.read_text() + "".join(f"w{i} w{i} w{i}\n" for i in range(20)))
    again = build_index(config, "corpus")
    assert again["id"] != better["id"]
    assert again["quantizer"] == better["quantizer"]


def test_a_query_log_that_is_not_used_is_reported(tmp_path: Path, log: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = make_corpus(tmp_path, COUNT, data__queries=str(log))
    with caplog.at_level(logging.WARNING):
        build = build_index(made.config, "corpus")
    assert build["training"]["tuning"]["query_kind"] == "caption"
    assert f"query log {log} is not used: there are captions" in caplog.text


def test_commands_take_a_query_log(corpus: TinyCorpus, log: Path) -> None:
    options = ["--workspace", corpus.workspace.root, "--queries", str(log)]
    built = CliRunner().invoke(main, ["index", *options])
    assert built.exit_code == 0, built.output
    assert "on queries of the query log" in built.output
    for command in ("run", "reindex", "index", "check"):
        refused = CliRunner().invoke(main, [command, *options[:3], "/nowhere.txt"])
        assert refused.exit_code == 2
        assert "query log /nowhere.txt cannot be read" in refused.output
