"""Each value of a metadata field gets an index of its own that a device opens together with the encoder.

This module is also the worker process that searches, as tflite-support needs a separate process.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from indexer.tuning.cost_model import search_ms
from indexer.tuning.parameters import IndexParameters
from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE
from searchforge.artifacts.searcher import INDEX
from searchforge.errors import UsageError
from searchforge.hashing import sha256_file
from searchforge.processes import isolated
from serving_check.check import check
from serving_check.formats.leveldb_reader import read_table
from tests.indexer.tiny_corpus import DIM, IMAGES, TinyCorpus, commit_embeddings, make_corpus

MODULE = "tests.indexer.device.test_partitioned"
FIELD = "album"
COUNT = 120
VALUES: tuple[Any, ...] = ("sea", "Caf\u00e9 / \u2603", 7, 7.5, "7", True, None, ...)
"""Values of the items in turn; `...` stands for a missing field."""


@dataclasses.dataclass(frozen=True)
class Partitioned:
    """A partitioned searcher; `rows` maps the JSON of each value to its items."""

    folder: Path
    report: dict[str, Any]
    listing: dict[str, Any]
    rows: dict[str, list[int]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return make_corpus(tmp_path_factory.mktemp("partitioned"), count=COUNT, index__partition_by=FIELD)


@pytest.fixture(scope="module")
def partitioned(corpus: TinyCorpus) -> Partitioned:
    values = [VALUES[i % len(VALUES)] for i in range(COUNT)]
    return _build(corpus, "albums", [{} if value is ... else {FIELD: value} for value in values])


def test_every_item_is_in_the_index_of_its_value_only(partitioned: Partitioned) -> None:
    indexed = {json.dumps(entry["value"]): _indexed(partitioned, entry) for entry in partitioned.listing["indexes"]}
    assert indexed == {value: sorted(map(_id, rows)) for value, rows in partitioned.rows.items()}


def test_items_without_the_field_are_in_the_index_of_null(partitioned: Partitioned) -> None:
    (entry,) = [entry for entry in partitioned.listing["indexes"] if entry["value"] is None]
    missing = {_id(i) for i in range(COUNT) if VALUES[i % len(VALUES)] is ...}
    assert missing < set(_indexed(partitioned, entry))


def test_the_text_encoder_finds_only_items_of_the_indexs_value(partitioned: Partitioned) -> None:
    entries = partitioned.listing["indexes"]
    requests = [_request(partitioned, entry, [f"w{i}" for i in range(0, COUNT, 7)], COUNT) for entry in entries]
    for entry, found in zip(entries, _search(requests), strict=True):
        own = {_id(i) for i in partitioned.rows[json.dumps(entry["value"])]}
        assert all(set(hits) == own for hits in found)


def test_the_text_encoder_ranks_the_right_item_first(partitioned: Partitioned) -> None:
    entries = partitioned.listing["indexes"]
    rows = [partitioned.rows[json.dumps(entry["value"])] for entry in entries]
    requests = [
        _request(partitioned, entry, [f"w{i}" for i in own], 3) for entry, own in zip(entries, rows, strict=True)
    ]
    found = [[hits[0] for hits in of_value] for of_value in _search(requests)]
    assert found == [[_id(i) for i in own] for own in rows]


def test_the_image_encoder_ranks_the_image_first(corpus: TinyCorpus, partitioned: Partitioned) -> None:
    entry = partitioned.listing["indexes"][0]
    own = partitioned.rows[json.dumps(entry["value"])]
    request = _request(partitioned, entry, [corpus.records[i].uri for i in own], 3, images=True)
    assert [hits[0] for hits in _search([request])[0]] == [_id(i) for i in own]


def test_the_listing_describes_each_file(partitioned: Partitioned) -> None:
    assert partitioned.listing["partition_by"] == FIELD
    entries = partitioned.listing["indexes"]
    for entry in entries:
        path = partitioned.folder / entry["file"]
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, sha256_file(path))
        assert entry["images"] == len(partitioned.rows[json.dumps(entry["value"])])
    assert sum(entry["images"] for entry in entries) == COUNT
    files = {path.relative_to(partitioned.folder).as_posix() for path in (partitioned.folder / "indexes").iterdir()}
    assert sorted(entry["file"] for entry in entries) == sorted(files)


def test_each_index_names_its_value_and_searcher(partitioned: Partitioned) -> None:
    for entry in partitioned.listing["indexes"]:
        info = json.loads(_table(partitioned, entry)[b"USER_INFO"])
        expected = {"partition_by": FIELD, "value": entry["value"], "images": entry["images"]}
        assert expected.items() <= info.items()
        assert (info["searcher"], info["fingerprint"]) == (partitioned.report["id"], "f" * 64)


def test_the_searcher_contains_encoders_but_no_index_of_the_whole_corpus(partitioned: Partitioned) -> None:
    names = {path.name for path in partitioned.folder.iterdir()}
    assert {TEXT_TFLITE, IMAGE_TFLITE, "indexes", "indexes.json"} < names
    assert names.isdisjoint({INDEX, "text_searcher.tflite", "image_searcher.tflite", "scratch"})


def test_the_report_contains_total_sizes(partitioned: Partitioned) -> None:
    sizes, entries = partitioned.report["sizes"], partitioned.listing["indexes"]
    tables = [_table(partitioned, entry) for entry in entries]
    assert sizes["indexes"] == len(entries)
    assert sizes["index_file"] == sum(entry["bytes"] for entry in entries)
    assert sizes["codes"] == COUNT * partitioned.report["parameters"]["code_bytes"]
    assert sizes["user_info"] == sum(len(table[b"USER_INFO"]) for table in tables)
    assert sizes["centroids_and_codebooks"] == sum(len(table[b"INDEX_CONFIG"]) for table in tables)
    metadata = [value for table in tables for key, value in table.items() if key.startswith(b"M_")]
    assert len(metadata) == COUNT
    assert sizes["metadata"] == sum(map(len, metadata))


def test_equal_inputs_give_equal_bytes(corpus: TinyCorpus, partitioned: Partitioned) -> None:
    (partitioned.folder / "build.json").unlink()
    again = build_index(corpus.config, "albums")
    assert again["files"] == partitioned.report["files"]
    assert json.loads((partitioned.folder / "indexes.json").read_text()) == partitioned.listing
    for entry in partitioned.listing["indexes"]:
        assert sha256_file(partitioned.folder / entry["file"]) == entry["sha256"]


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}])
def test_a_list_or_object_as_value_is_rejected(corpus: TinyCorpus, value: Any) -> None:
    before = corpus.workspace.ids("searchers")
    metadata = [{FIELD: "sea"} for _ in range(COUNT)]
    metadata[17] = {FIELD: value}
    id = f"of-{type(value).__name__}"
    with pytest.raises(UsageError, match=r"metadata 'album' of '00017\.png' is .* choose another field"):
        _build(corpus, id, metadata)
    assert corpus.workspace.ids("searchers") == before
    assert list((Path(corpus.workspace.root) / ".staging").iterdir()) == []


def test_the_check_rejects_a_partitioned_searcher(corpus: TinyCorpus, partitioned: Partitioned) -> None:
    with pytest.raises(
        UsageError,
        match=rf"{partitioned.report['id']} has a separate index for each album; .* without index\.partition_by",
    ):
        check(corpus.config, partitioned.report["id"])
    assert corpus.workspace.ids("checks") == []


def test_a_value_with_many_items_is_searched_within_the_latency_limit(tmp_path: Path) -> None:
    """It keeps the corpus's partitions, while a value with few items is scanned completely."""
    limit = 0.0745
    settings = {"index__code_bytes": DIM, "index__max_latency_ms": limit, "index__recall_at_10": None}
    corpus = make_corpus(tmp_path, index__partition_by=FIELD, **settings)
    built = _build(corpus, "uneven", [{FIELD: "few" if i % 20 == 0 else "many"} for i in range(IMAGES)])
    infos = {entry["value"]: _table(built, entry)[b"USER_INFO"] for entry in built.listing["indexes"]}
    few, many = (IndexParameters(**json.loads(infos[value])["parameters"]) for value in ("few", "many"))
    assert (few.partitions, few.partitions_searched) == (1, 1)
    assert 1 < many.partitions_searched < many.partitions
    items = len(built.rows['"many"'])
    assert search_ms(DIM, many, items * many.partitions_searched / many.partitions) <= limit
    words = [f"w{i}" for i in built.rows['"many"'][:100]]
    (found,) = _search([_request(built, built.listing["indexes"][1], words, IMAGES)])
    assert all(0 < len(hits) < items and not {_id(i) for i in built.rows['"few"']} & set(hits) for hits in found)
    first = [hits[0] == _id(i) for hits, i in zip(found, built.rows['"many"'], strict=False)]
    assert sum(first) > 0.8 * len(words)


def test_300_values_give_300_indexes(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, index__partition_by=FIELD)
    built = _build(corpus, "many", [{FIELD: f"user {i % 300}"} for i in range(IMAGES)])
    entries = built.listing["indexes"]
    assert [entry["images"] for entry in entries if entry["value"] == "user 7"] == [2]
    assert len(entries) == len({entry["sha256"] for entry in entries}) == 300
    assert sorted(id for entry in entries for id in _indexed(built, entry)) == [_id(i) for i in range(IMAGES)]
    chosen = entries[::25]
    rows = [built.rows[json.dumps(entry["value"])] for entry in chosen]
    requests = [_request(built, entry, [f"w{own[-1]}"], 5) for entry, own in zip(chosen, rows, strict=True)]
    assert [(hits[0], len(hits)) for (hits,) in _search(requests)] == [(_id(own[-1]), len(own)) for own in rows]


def _build(corpus: TinyCorpus, id: str, metadata: Sequence[dict[str, Any]]) -> Partitioned:
    """Commits the corpus's records with this metadata and builds their indexes."""
    records = [dataclasses.replace(r, metadata=m) for r, m in zip(corpus.records, metadata, strict=True)]
    commit_embeddings(corpus.workspace, records, id)
    report = build_index(corpus.config, id)
    folder = corpus.workspace.local("searchers", report["id"])
    rows: dict[str, list[int]] = {}
    for row, found in enumerate(metadata):
        rows.setdefault(json.dumps(found.get(FIELD)), []).append(row)
    return Partitioned(folder, report, json.loads((folder / "indexes.json").read_text()), rows)


def _id(row: int) -> str:
    return f"{row:05d}.png"


def _table(built: Partitioned, entry: dict[str, Any]) -> dict[bytes, bytes]:
    return dict(read_table((built.folder / entry["file"]).read_bytes()))


def _indexed(built: Partitioned, entry: dict[str, Any]) -> list[str]:
    """Returns the ids of the items in an index."""
    return sorted(json.loads(value)["id"] for key, value in _table(built, entry).items() if key.startswith(b"M_"))


def _request(
    built: Partitioned, entry: dict[str, Any], queries: Sequence[str], hits: int, images: bool = False
) -> dict[str, Any]:
    encoder = built.folder / (IMAGE_TFLITE if images else TEXT_TFLITE)
    request = {"encoder": str(encoder), "index": str(built.folder / entry["file"]), "queries": list(queries)}
    return {**request, "hits": hits, "images": images}


def _search(requests: Sequence[dict[str, Any]]) -> list[list[list[str]]]:
    """Returns the ids of each query's hits, best first, for each request."""
    with isolated.Session(MODULE) as session:
        return [session.call(request)["ids"] for request in requests]


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    from tflite_support.task import core, processor, text, vision

    options = {
        "base_options": core.BaseOptions(file_name=request["encoder"], num_threads=1),
        "search_options": processor.SearchOptions(max_results=request["hits"], index_file_name=request["index"]),
    }
    if request["images"]:
        images = vision.ImageSearcher.create_from_options(vision.ImageSearcherOptions(**options))
        results = [images.search(vision.TensorImage.create_from_file(path)) for path in request["queries"]]
    else:
        texts = text.TextSearcher.create_from_options(text.TextSearcherOptions(**options))
        results = [texts.search(query) for query in request["queries"]]
    return {"ids": [[json.loads(hit.metadata)["id"] for hit in result.nearest_neighbors] for result in results]}


if __name__ == "__main__":
    isolated.serve(_handle)
