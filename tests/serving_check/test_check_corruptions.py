"""Every corruption of a valid searcher is caught by the gate that is responsible for it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.releases.releases import list_releases, publish
from searchforge.artifacts.encoder import InputKind
from searchforge.errors import GateError
from tests.serving_check.corruptions import CORRUPTIONS
from tests.serving_check.inspect_gates import FILE_GATES
from tests.serving_check.specimen import BOTH, Specimen, copy_of, make_template, rebuilt

Report = dict[str, Any]

RUN = [name for name, corruption in CORRUPTIONS.items() if corruption.runs]

RUN_ALWAYS = (
    "the_text_searcher_is_empty",
    "the_image_searcher_is_a_web_page",
    "the_archive_is_compressed",
    "blocks_of_the_table_do_not_decompress",
    "a_centroid_holds_a_value_that_is_not_a_number",
    "the_metadata_of_an_item_is_nested_too_deeply",
    "all_ids_are_shuffled",
    "the_model_has_no_operators",
    "the_embeddings_are_those_of_other_images",
    "the_text_encoder_is_another_one_of_the_same_shape",
    "a_weight_of_the_image_encoder_is_not_a_number",
    "the_text_encoder_lacks_the_query_map",
    "the_image_encoder_has_the_query_map_of_another_index",
    "the_bundles_image_encoder_is_not_the_one_that_embedded_the_corpus",
)
"""Corruptions of RUN whose searcher is also run outside the proofs: one of each sort."""

FILES_ONLY = [name for name in CORRUPTIONS if name not in RUN_ALWAYS and CORRUPTIONS[name].gate in FILE_GATES]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def coarse(template: Specimen) -> Specimen:
    """A searcher whose codes have two bytes for 16 dimensions."""
    return rebuilt(template, code_bytes=2)


@pytest.fixture(scope="module")
def drifted(template: Specimen) -> Specimen:
    """A searcher whose codebooks and centroids were trained on other images."""
    specimen = rebuilt(template, reuse_from=template.other)
    quantizers = [template.workspace.marker("searchers", id)["quantizer"] for id in (specimen.searcher, template.other)]
    assert quantizers[0] == quantizers[1]
    return specimen


@pytest.fixture(scope="module")
def reports(
    template: Specimen, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Report]]]:
    """Reports of the requested corruptions, computed in parallel, because most of a check runs in child processes."""
    folder = tmp_path_factory.mktemp("corrupted")
    calls = [item.callspec.params for item in request.session.items if "reports" in getattr(item, "fixturenames", ())]
    requested = [params["corruption"] for params in calls]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(_corrupted(template, folder / name, name).check) for name in requested}


def _corrupted(template: Specimen, folder: Path, name: str) -> Specimen:
    specimen = copy_of(template, folder, name)
    CORRUPTIONS[name].apply(specimen)
    if CORRUPTIONS[name].signed:
        specimen.sign()
    return specimen


def _failed(report: Report) -> set[str]:
    return {gate["name"] for gate in report["gates"] if not gate["passed"]}


def _damaged(template: Specimen, specimen: Specimen) -> InputKind:
    """Returns which searcher was damaged; the image searcher if both or neither were."""
    text, image = (specimen.path(name).read_bytes() == template.path(name).read_bytes() for name in BOTH)
    return "text" if image and not text else "image"


def test_there_are_at_least_thirty_corruptions() -> None:
    assert len(CORRUPTIONS) >= 30


def test_the_searcher_is_valid_before_it_is_corrupted(template: Specimen, tmp_path: Path) -> None:
    """Parsing, writing and signing it changes nothing, and it passes."""
    specimen = copy_of(template, tmp_path, "good")
    before = {path.name: path.read_bytes() for path in specimen.folder.glob("*.tflite")}
    specimen.change_index(lambda index: index.lay_out())
    specimen.sign()
    assert {path.name: path.read_bytes() for path in specimen.folder.glob("*.tflite")} == before
    report = specimen.check()
    assert _failed(report) == set()
    assert report["passed"]
    known = {gate["name"] for gate in report["gates"]}
    assert {corruption.gate for corruption in CORRUPTIONS.values()} <= known


@pytest.mark.parametrize("corruption", FILES_ONLY)
def test_a_corruption_of_files_is_caught_by_its_gate(template: Specimen, tmp_path: Path, corruption: str) -> None:
    _require_caught(corruption, _corrupted(template, tmp_path, corruption).failed_gates())


@pytest.mark.parametrize("corruption", RUN_ALWAYS)
def test_a_corruption_that_shows_when_the_searcher_runs_is_caught_by_its_gate(
    template: Specimen, tmp_path: Path, corruption: str
) -> None:
    specimen = _corrupted(template, tmp_path, corruption)
    _require_caught(corruption, specimen.failed_gates(_damaged(template, specimen)))


@pytest.mark.proof
@pytest.mark.parametrize("corruption", RUN)
def test_a_corruption_is_caught_by_its_gate(reports: dict[str, Future[Report]], corruption: str) -> None:
    report = reports[corruption].result()
    assert not report["passed"]
    _require_caught(corruption, _failed(report))


OF_CODES = (
    "one_code_is_another_items",
    "the_ids_of_two_items_are_swapped",
    "the_entries_of_the_leading_codebook_are_in_another_order",
)
OF_CENTROIDS = ("two_centroids_are_swapped", "a_centroid_is_negated", "a_centroid_is_a_thousand_times_too_short")


@pytest.mark.parametrize("corruption", OF_CODES)
def test_corruptions_of_coarse_codes_are_caught(coarse: Specimen, tmp_path: Path, corruption: str) -> None:
    _require_caught(corruption, _corrupted(coarse, tmp_path, corruption).failed_gates())


@pytest.mark.parametrize("corruption", OF_CENTROIDS)
def test_corruptions_of_reused_centroids_are_caught(drifted: Specimen, tmp_path: Path, corruption: str) -> None:
    _require_caught(corruption, _corrupted(drifted, tmp_path, corruption).failed_gates())


def test_the_files_of_coarse_and_drifted_searchers_pass(coarse: Specimen, drifted: Specimen) -> None:
    for specimen in (coarse, drifted):
        assert specimen.failed_gates() == {}


@pytest.mark.proof
def test_coarse_and_drifted_searchers_pass(coarse: Specimen, drifted: Specimen, tmp_path: Path) -> None:
    for number, template in enumerate((coarse, drifted)):
        assert _failed(copy_of(template, tmp_path / str(number), "good").check()) == set()


def _require_caught(corruption: str, failed: Collection[str]) -> None:
    expected = CORRUPTIONS[corruption]
    assert expected.gate in failed
    if expected.signed and expected.gate != "files":
        assert "files" not in failed  # it was caught by its content, not by its hash


def test_a_corrupted_searcher_is_not_published(template: Specimen, tmp_path: Path) -> None:
    specimen = _corrupted(template, tmp_path, "the_ids_of_two_items_are_swapped")
    report = specimen.check()
    with pytest.raises(GateError, match=rf"did not pass its check {report['id']}; nothing is published:\n  codes: "):
        publish(specimen.workspace, specimen.workspace, report["id"])
    assert list_releases(specimen.workspace) == []
