"""The check passes a valid searcher, and a named gate catches each fault."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from indexer.build import build_index
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.hashing import sha256_file
from serving_check.__main__ import main
from serving_check.check import check
from serving_check.measurement.search import Searcher
from tests.serving_check.conftest import COUNT, Built
from tests.serving_check.inspect_gates import failed_gates


def failed(report: dict[str, Any]) -> set[str]:
    assert report["passed"] == all(gate["passed"] for gate in report["gates"])
    return {gate["name"] for gate in report["gates"] if not gate["passed"]}


def detail(report: dict[str, Any], name: str) -> str:
    return next(gate["detail"] for gate in report["gates"] if gate["name"] == name)


def test_a_valid_searcher_passes_with_all_figures(good: Built) -> None:
    report = good.report
    assert failed(report) == set()
    figures = report["figures"]
    assert figures["images"] == figures["gallery"] == COUNT
    assert (figures["query_kind"], figures["queries"]) == ("text", COUNT // 2)
    assert figures["recall_at_10"] > 0.95
    assert figures["r_at_1"] > 0.9 and figures["r_at_1"] <= figures["r_at_5"] <= figures["r_at_10"] <= 1
    assert figures["exact_r_at_10"] == 1
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]
    assert figures["image_latency_p50_ms"] > 0
    build = good.corpus.workspace.marker("searchers", good.searcher)
    assert figures["bytes_per_image"] == pytest.approx(build["bytes_per_image"], rel=0.2)
    assert report["provenance"] == {"encoder": "tiny", "embeddings": "corpus", "searcher": good.searcher}
    for name, file in report["files"].items():
        assert file == {"bytes": (good.folder / name).stat().st_size, "sha256": sha256_file(good.folder / name)}
    assert set(report["files"]) == {"text_searcher.tflite", "image_searcher.tflite"}
    assert good.corpus.workspace.marker("checks", report["id"]) == report
    assert report["version"] == 2


def test_a_passed_check_is_not_repeated_unless_the_gates_change(good: Built, built: Built) -> None:
    assert good.check() == good.report
    report = built.check(min_recall_at_10=0.5, hostile_megapixels=good.report["config"]["hostile_megapixels"])
    assert report["passed"] and report["id"] != good.report["id"]


def test_limits_are_enforced_and_a_failed_check_keeps_its_report_and_is_repeated(built: Built) -> None:
    limits = {
        "max_latency_p50_ms": 1e-6,
        "max_latency_p99_ms": 1e-6,
        "max_bytes_per_image": 10,
        "max_searcher_bytes": 1000,
    }
    first, second = (built.check(**limits) for _ in range(2))
    assert failed(first) == failed(second) == {limit.removeprefix("max_") for limit in limits}
    assert first["id"] != second["id"]
    assert built.corpus.workspace.committed("checks", first["id"])


def test_low_recall_fails_its_gate_and_the_command_exits_1(built: Built) -> None:
    index = built.corpus.config.index.model_copy(
        update={"partitions": 20, "partitions_searched": 1, "recall_at_10": None}
    )
    config = built.corpus.config.model_copy(update={"index": index})
    searcher = build_index(config, "corpus")["id"]
    data = config.data
    arguments = ["--workspace", config.workspace, "--searcher", searcher]
    arguments += ["--set", f"data.captions={data.captions[0]}", "--set", f"data.images={data.images}"]
    arguments += ["--set", f"check.hostile_megapixels={config.check.hostile_megapixels}"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "FAILED recall_at_10: " in result.output
    workspace = built.corpus.workspace
    (report,) = (workspace.marker("checks", id) for id in workspace.ids("checks") if id != built.report["id"])
    assert failed(report) >= {"recall_at_10"}
    assert "below the minimum of 0.90" in detail(report, "recall_at_10")


def test_an_item_that_is_not_in_the_manifest_is_caught(built: Built) -> None:
    records = list(built.corpus.records)
    records[3] = dataclasses.replace(records[3], id="renamed")
    built.rewrite_embeddings(records)
    found = failed_gates(built.corpus.config, built.searcher, "text")
    assert found.keys() >= {"items", "known_ids"}
    assert "'renamed'" in found["items"]
    assert "'00003.png'" in found["known_ids"]


def test_an_index_of_half_the_corpus_is_caught(built: Built) -> None:
    built.rewrite_embeddings(built.corpus.records[: COUNT // 2])
    half = build_index(built.corpus.config, "corpus")["id"]
    built.rewrite_embeddings(built.corpus.records)
    found = failed_gates(built.corpus.config, half)
    assert found.keys() >= {"items", "fingerprint"}
    assert "60 items are in the manifest, but not in the index" in found["items"]
    assert "USER_INFO says images 60, expected 120" in found["fingerprint"]


def test_another_encoders_index_is_caught(built: Built) -> None:
    marker = Path(built.corpus.workspace.root) / "embeddings/corpus/MANIFEST.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "fingerprint": "e" * 64}))
    report = built.check()
    assert failed(report) == {"fingerprint"}
    assert "the manifest is of encoder eeeeeeeeeeeeeeee, the bundle is encoder ffffffffffffffff" in detail(
        report, "fingerprint"
    )


def test_ids_that_belong_to_other_images_are_caught(built: Built) -> None:
    records = built.corpus.records
    ids = [record.id for record in records]
    rotated = [dataclasses.replace(record, id=id) for record, id in zip(records, ids[7:] + ids[:7], strict=True)]
    built.rewrite_embeddings(rotated)
    shuffled = build_index(built.corpus.config, "corpus")["id"]
    built.rewrite_embeddings(records)
    assert failed(check(built.corpus.config, shuffled)) >= {"images_find_themselves", "recall_at_10"}


def test_a_flipped_byte_in_the_index_is_caught(built: Built) -> None:
    path = built.folder / "text_searcher.tflite"
    data = bytearray(path.read_bytes())
    start = data.index(b"on_device_scann_index.ldb")
    data[data.index(b"E_0", start) + 8] ^= 1
    path.write_bytes(data)
    found = failed_gates(built.corpus.config, built.searcher)
    assert found.keys() >= {"files", "model"}
    assert "text_searcher.tflite" in found["model"]


@pytest.mark.parametrize(
    ("truncated", "missing", "keep"),
    [
        ("image_searcher.tflite", "text_searcher.tflite", 0),
        ("image_searcher.tflite", "text_searcher.tflite", 100),
        ("text_searcher.tflite", "image_searcher.tflite", 5000),
        ("image_searcher.tflite", "text_searcher.tflite", 5000),
    ],
)
def test_truncated_and_missing_searchers_are_caught(built: Built, truncated: str, missing: str, keep: int) -> None:
    path = built.folder / truncated
    path.write_bytes(path.read_bytes()[:keep])
    (built.folder / missing).unlink()
    report = built.check()
    assert failed(report) >= {"files", "model", "opens"}
    for gate in ("files", "model", "opens"):
        assert truncated in detail(report, gate) and missing in detail(report, gate)


def test_a_native_crash_fails_a_gate_that_names_the_query(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Searcher.timed_search

    def crash_on_w7(searcher: Searcher, query: str, k: int) -> Any:
        if query == "w7":
            os.kill(searcher.pid, signal.SIGSEGV)
        return search(searcher, query, k)

    monkeypatch.setattr(Searcher, "timed_search", crash_on_w7)
    report = built.check()
    assert failed(report) == {"answers", "recall_at_10"}
    assert "query 'w7'" in detail(report, "answers")
    assert "signal 11" in detail(report, "answers")


def test_without_captions_the_corpus_images_are_the_queries(built: Built) -> None:
    config = built.corpus.config
    report = check(Config(workspace=config.workspace, check=config.check), built.searcher)
    assert failed(report) == set()
    assert report["figures"]["query_kind"] == "image"
    assert report["figures"]["recall_at_10"] > 0.95
    assert report["figures"]["latency_p50_ms"] > 0
    assert "r_at_10" not in report["figures"]


def test_recall_that_cannot_be_measured_fails_its_gate(built: Built) -> None:
    gone = [dataclasses.replace(record, uri="/nowhere/x.png") for record in built.corpus.records]
    built.rewrite_embeddings(gone)
    config = built.corpus.config
    report = check(Config(workspace=config.workspace, check=config.check), built.searcher)
    assert failed(report) == {"recall_at_10"}
    assert "none of the corpus' images can be read" in detail(report, "recall_at_10")


def test_an_unknown_searcher_is_refused(built: Built) -> None:
    with pytest.raises(UsageError, match=built.searcher):
        check(built.corpus.config, "0" * 16)
