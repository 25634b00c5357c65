"""A changed corpus reuses the quantizer and encodes only new shards, until it has drifted too far."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from indexer.encoding.reuse import QUANTIZER
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.searcher import INDEX, TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config, IndexConfig
from searchforge.errors import JobError, UsageError
from serving_check.formats.leveldb_reader import read_table
from serving_check.measurement.search import Searcher
from tests.indexer.shards import records as random_records
from tests.indexer.tiny_corpus import commit_embeddings, commit_on, make_corpus

IMAGES = 60
"""Number of images with captions; most of the corpus consists of random vectors, so that codes have errors."""
REMOVED, ADDED = range(20), range(40, IMAGES)
BULK = 1500


@dataclasses.dataclass(frozen=True)
class History:
    """A corpus that was indexed (`before`) and then changed (`grown`): images 0-19 were removed and 40-59 added."""

    workspace: Workspace
    index: IndexConfig
    before: Manifest
    live: list[EmbeddingRecord]
    first: dict[str, Any]

    def build(self, embeddings: str = "grown", encoder: str | None = None, **settings: Any) -> dict[str, Any]:
        index = self.index.model_copy(update=settings)
        return build_index(Config(workspace=self.workspace.root, index=index), embeddings, encoder)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> History:
    corpus = make_corpus(tmp_path_factory.mktemp("delta"), count=IMAGES, data__captions=[])
    bulk, images, workspace = random_records(BULK), corpus.records, corpus.workspace
    manifest = commit_embeddings(workspace, [*bulk, *images[: ADDED.start]], "before")
    gone = {images[i].id for i in REMOVED}
    commit_on(workspace, manifest, "grown", gone, [images[i] for i in ADDED])
    index = IndexConfig(code_bytes=4, partitions=20, recall_at_10=None)
    history = History(workspace, index, manifest, [*bulk, *images[REMOVED.stop :]], {})
    return dataclasses.replace(history, first=history.build("before"))


@pytest.fixture
def history(origin: History, tmp_path: Path) -> History:
    """Returns a copy that a test may change."""
    root = shutil.copytree(origin.workspace.root, tmp_path / "workspace")
    return dataclasses.replace(origin, workspace=Workspace(str(root)))


@dataclasses.dataclass(frozen=True)
class Grown:
    """Build of the changed corpus, and the encoded shards before and after it."""

    history: History
    report: dict[str, Any]
    parts_before: dict[str, tuple[int, int]]
    parts_after: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def grown(origin: History, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    root = shutil.copytree(origin.workspace.root, tmp_path_factory.mktemp("grown") / "workspace")
    history = dataclasses.replace(origin, workspace=Workspace(str(root)))
    before = _parts(history)
    return Grown(history, history.build(), before, _parts(history))


def test_a_changed_corpus_is_encoded_with_the_existing_quantizer(grown: Grown) -> None:
    first, report = grown.history.first, grown.report
    assert report["quantizer"] == first["quantizer"]
    assert report["files"][QUANTIZER] == first["files"][QUANTIZER]
    assert report["parameters"] == first["parameters"]
    assert report["training"]["embeddings"] == "before"
    assert 0 < report["training"]["drift"]["drift"] < grown.history.index.max_drift
    assert report["training"]["drift"]["share_changed"] == pytest.approx(40 / grown.history.before.records)


def test_only_new_shards_are_encoded(grown: Grown) -> None:
    before, after = grown.parts_before, grown.parts_after
    assert {name.partition(".")[0] for name in before} == {shard.sha256 for shard in grown.history.before.shards}
    assert {name: after[name] for name in before} == before
    (new,) = after.keys() - before.keys()
    assert new.startswith(grown.history.workspace.marker("embeddings", "grown")["shards"][-1]["sha256"])


def test_added_images_are_found_and_removed_ones_are_not(grown: Grown) -> None:
    workspace, report = grown.history.workspace, grown.report
    with Searcher(workspace.local("searchers", report["id"]) / TEXT_SEARCHER) as searcher:
        assert [searcher.search_text(f"w{i}", 1)[0].id for i in ADDED] == [f"{i:05d}.png" for i in ADDED]
        found = {hit.id for i in REMOVED for hit in searcher.search_text(f"w{i}", 20)}
        assert found.isdisjoint(f"{i:05d}.png" for i in REMOVED)
        assert json.loads(searcher.user_info)["images"] == len(grown.history.live)


def test_the_index_equals_that_of_the_corpus_embedded_anew(history: History) -> None:
    grown = history.build()
    shutil.rmtree(history.workspace.cache("parts"))
    commit_embeddings(history.workspace, history.live, "afresh", shards=3)
    afresh = history.build("afresh", reuse_from=history.first["id"], max_drift=10)
    assert afresh["quantizer"] == grown["quantizer"]
    tables = [_table(history, report) for report in (grown, afresh)]
    assert tables[0].keys() == tables[1].keys()
    assert [key for key in tables[0] if tables[0][key] != tables[1][key]] == [b"USER_INFO"]


def test_encoded_shards_that_left_the_corpus_a_day_ago_are_deleted(history: History) -> None:
    first, second = history.before.shards
    for path in history.workspace.cache("parts").glob(f"*/{first.sha256}*"):
        os.utime(path, (time.time() - 30 * 3600,) * 2)
    commit_on(history.workspace, history.before.model_copy(update={"shards": (second,)}), "halved", set(), [])
    history.build("halved", max_drift=10)
    assert [name.partition(".")[0] for name in _parts(history)] == [second.sha256]
    assert first.sha256 != second.sha256


def test_encoded_shards_of_a_quantizer_unused_for_a_day_are_deleted(history: History) -> None:
    parts = history.workspace.cache("parts")
    (used,) = parts.iterdir()
    recent, old = parts / "recent", parts / "old"
    for folder, hours in ((recent, 20), (old, 30)):
        shutil.copytree(used, folder)
        then = time.time() - hours * 3600
        os.utime(folder, (then, then))
    history.build()
    assert set(parts.iterdir()) == {used, recent}


def test_a_drifted_corpus_is_trained_on_again(history: History) -> None:
    report = history.build(max_drift=0)
    assert report["quantizer"] != history.first["quantizer"]
    assert (report["training"]["embeddings"], report["training"]["drift"]) == ("grown", None)


def test_a_corpus_of_different_vectors_has_drifted(history: History) -> None:
    commit_embeddings(history.workspace, random_records(BULK, seed=1), "other")
    report = history.build("other")
    assert report["training"]["embeddings"] == "other"


@pytest.mark.parametrize(("added", "trained_on"), [(0, "before"), (2, "after")])
def test_a_small_corpus_is_trained_again_only_if_its_codes_become_worse(
    tmp_path: Path, added: int, trained_on: str
) -> None:
    """Each block has more entries than there are images, so the codes of the first build have no error."""
    corpus = make_corpus(tmp_path, count=60, data__captions=[])
    before = commit_embeddings(corpus.workspace, corpus.records[:58], "before")
    commit_on(corpus.workspace, before, "after", {corpus.records[0].id}, corpus.records[58 : 58 + added])
    config = Config(workspace=corpus.workspace.root, index=IndexConfig(code_bytes=4, recall_at_10=None))
    build_index(config, "before")
    assert build_index(config, "after")["training"]["embeddings"] == trained_on


def test_reuse_from_none_trains(history: History) -> None:
    report = history.build(reuse_from="none")
    assert (report["training"]["embeddings"], report["training"]["drift"]) == ("grown", None)


def test_changes_accumulate_since_training(history: History) -> None:
    """Many small changes amount to a large one."""
    history.build()
    grown = Manifest.model_validate(history.workspace.marker("embeddings", "grown"))
    later = [dataclasses.replace(record, id=f"later-{record.id}") for record in random_records(30, seed=2)]
    commit_on(history.workspace, grown, "later", set(), later)
    report = history.build("later")
    assert report["training"]["embeddings"] == "before"
    assert report["training"]["drift"]["share_changed"] == pytest.approx(70 / history.before.records)


def test_a_named_searcher_with_other_settings_is_rejected(history: History) -> None:
    named = history.first["id"]
    with pytest.raises(UsageError, match=rf"searcher {named} \(index.reuse_from\) has a different config"):
        history.build(reuse_from=named, code_bytes=2)


def test_a_named_searcher_with_another_encoder_is_rejected(history: History) -> None:
    encoder = history.workspace.marker("encoders", "tiny") | {"id": "other", "fingerprint": "e" * 64}
    folder = history.workspace.local("encoders", "tiny")
    with history.workspace.create("encoders", "other") as staging:
        for path in folder.glob("*.tflite"):
            shutil.copy(path, staging.path)
        staging.commit(encoder)
    commit_embeddings(history.workspace, history.live, "foreign", fingerprint="e" * 64)
    with pytest.raises(
        UsageError,
        match=rf"searcher {history.first['id']} \(index.reuse_from\) has a different encoder and fingerprint",
    ):
        history.build("foreign", "other", reuse_from=history.first["id"])


def test_a_named_searcher_that_does_not_exist_is_rejected(history: History) -> None:
    with pytest.raises(UsageError, match=f"searchers/missing is not in workspace .*{history.first['id']}"):
        history.build(reuse_from="missing")


def test_searchers_with_another_encoder_are_not_reused(history: History) -> None:
    marker = history.workspace.local("searchers", history.first["id"]) / "build.json"
    marker.write_text(json.dumps({**history.first, "fingerprint": "e" * 64}))
    assert history.build()["training"]["embeddings"] == "grown"


def test_a_searcher_whose_embeddings_were_deleted_is_not_reused(history: History) -> None:
    """Without them, the share of the corpus that changed is unknown."""
    commit_embeddings(history.workspace, history.live, "afresh")
    shutil.rmtree(history.workspace.local("embeddings", "before"))
    assert history.build("afresh", max_drift=10)["training"]["embeddings"] == "afresh"


def test_an_index_that_exceeds_its_limit_is_rejected(history: History) -> None:
    plain = history.build("before", compression=False)
    settings = {"compression": False, "max_index_size": int(1.02 * plain["sizes"]["index_file"])}
    history.build("before", **settings)
    added = [dataclasses.replace(record, id=f"more-{record.id}") for record in random_records(90, seed=3)]
    commit_on(history.workspace, history.before, "more", set(), added)
    with pytest.raises(JobError, match="max_index_size"):
        history.build("more", **settings)


def _parts(history: History) -> dict[str, tuple[int, bytes]]:
    """Returns inode and content of each encoded shard."""
    parts = history.workspace.cache("parts").glob("*/*")
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in parts}


def _table(history: History, report: dict[str, Any]) -> dict[bytes, bytes]:
    return dict(read_table((history.workspace.local("searchers", report["id"]) / INDEX).read_bytes()))
