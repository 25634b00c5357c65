"""Nothing bad passes the check: every corruption of a good searcher is caught by the gate that is there for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.releases import list_releases, publish
from searchforge.errors import GateError
from tests.serving_check.corruptions import CORRUPTIONS
from tests.serving_check.specimen import Specimen, copy_of, make_template

Report = dict[str, Any]

RUN = [name for name, corruption in CORRUPTIONS.items() if corruption.runs]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    """Its codes have two bytes for 16 dimensions."""
    return make_template(tmp_path_factory.mktemp("coarse"), code_bytes=2)


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    """Its codebooks and centroids were trained on other images."""
    return make_template(tmp_path_factory.mktemp("drifted"), base="auto")


@pytest.fixture(scope="module")
def reports(
    template: Specimen, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Report]]]:
    """The checks that are wanted, on every core: most of a check goes on in processes of its own."""
    folder = tmp_path_factory.mktemp("corrupted")
    calls = [item.callspec.params for item in request.session.items if "reports" in getattr(item, "fixturenames", ())]
    wanted = [params["corruption"] for params in calls]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(_corrupted(template, folder / name, name).check) for name in wanted}


def _corrupted(template: Specimen, folder: Path, name: str) -> Specimen:
    specimen = copy_of(template, folder, name)
    CORRUPTIONS[name].apply(specimen)
    if CORRUPTIONS[name].signed:
        specimen.sign()
    return specimen


def _failed(report: Report) -> set[str]:
    return {gate["name"] for gate in report["gates"] if not gate["passed"]}


def _failed_files(specimen: Specimen) -> set[str]:
    """Returns the gates that fail by what the files show, without running a searcher."""
    return {gate.name for gate in specimen.examine_files() if not gate.passed}


def test_there_are_at_least_thirty_corruptions() -> None:
    assert len(CORRUPTIONS) >= 30


def test_the_searcher_that_is_corrupted_is_good(template: Specimen, tmp_path: Path) -> None:
    """Taken apart, put together and signed, it is what it was; and it passes."""
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


@pytest.mark.parametrize("corruption", [name for name in CORRUPTIONS if name not in RUN])
def test_what_the_files_show_is_caught_by_its_gate(template: Specimen, tmp_path: Path, corruption: str) -> None:
    _require_caught(corruption, _failed_files(_corrupted(template, tmp_path, corruption)))


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
OF_CENTROIDS = ("two_centroids_are_swapped", "a_centroid_is_negated", "a_centroid_is_shrunk_to_nearly_nothing")


@pytest.mark.parametrize("corruption", OF_CODES)
def test_codes_that_tell_little_are_judged_all_the_same(coarse: Specimen, tmp_path: Path, corruption: str) -> None:
    _require_caught(corruption, _failed_files(_corrupted(coarse, tmp_path, corruption)))


@pytest.mark.parametrize("corruption", OF_CENTROIDS)
def test_centroids_of_an_earlier_corpus_are_judged_all_the_same(
    drifted: Specimen, tmp_path: Path, corruption: str
) -> None:
    _require_caught(corruption, _failed_files(_corrupted(drifted, tmp_path, corruption)))


def test_what_is_hard_to_judge_is_good(coarse: Specimen, drifted: Specimen, tmp_path: Path) -> None:
    for number, template in enumerate((coarse, drifted)):
        assert _failed(copy_of(template, tmp_path / str(number), "good").check()) == set()


def _require_caught(corruption: str, failed: set[str]) -> None:
    expected = CORRUPTIONS[corruption]
    assert expected.gate in failed
    if expected.signed and expected.gate != "files":
        assert "files" not in failed  # it was caught by what it means, not by its hash


def test_a_corrupted_searcher_is_not_published(template: Specimen, tmp_path: Path) -> None:
    specimen = _corrupted(template, tmp_path, "the_ids_of_two_items_are_swapped")
    report = specimen.check()
    with pytest.raises(GateError, match=rf"did not pass its check {report['id']}; nothing is published:\n  codes: "):
        publish(specimen.workspace, specimen.workspace, report["id"])
    assert list_releases(specimen.workspace) == []
