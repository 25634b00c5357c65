"""Nothing bad passes the check: every corruption of a good searcher is caught by the gate that is there for it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.releases.releases import list_releases, publish
from searchforge.errors import GateError
from serving_check.inspection import Kind as SearcherKind
from tests.serving_check.corruptions import CORRUPTIONS
from tests.serving_check.inspect_gates import FILE_GATES
from tests.serving_check.specimen import BOTH, Specimen, copy_of, make_template, rebuilt

Report = dict[str, Any]

RUN = [name for name, corruption in CORRUPTIONS.items() if corruption.runs]

ASKED = (
    "the_text_searcher_is_empty",
    "the_image_searcher_is_a_web_page",
    "the_archive_is_compressed",
    "blocks_of_the_table_do_not_decompress",
    "a_centroid_holds_a_value_that_is_not_a_number",
    "the_metadata_of_an_item_is_nested_without_end",
    "all_ids_are_shuffled",
    "the_model_holds_no_operators",
    "the_embeddings_are_those_of_other_images",
    "the_text_encoder_is_another_one_of_the_same_shape",
    "a_weight_of_the_image_encoder_is_not_a_number",
    "the_text_encoder_lacks_the_map_of_the_index",
    "the_image_encoder_has_the_map_of_another_index",
    "the_bundles_image_encoder_is_not_the_one_that_embedded_the_corpus",
)
"""Those of RUN whose damaged searcher is asked outside the proofs, too: one of each sort."""

OF_FILES_ONLY = [name for name in CORRUPTIONS if name not in ASKED and CORRUPTIONS[name].gate in FILE_GATES]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def coarse(template: Specimen) -> Specimen:
    """Its codes have two bytes for 16 dimensions."""
    return rebuilt(template, code_bytes=2)


@pytest.fixture(scope="module")
def drifted(template: Specimen) -> Specimen:
    """Its codebooks and centroids were trained on other images."""
    specimen = rebuilt(template, reuse_from=template.other)
    quantizers = [template.workspace.marker("searchers", id)["quantizer"] for id in (specimen.searcher, template.other)]
    assert quantizers[0] == quantizers[1]
    return specimen


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


def _damaged(template: Specimen, specimen: Specimen) -> SearcherKind:
    """Returns which searcher was damaged; the image searcher where both or neither were."""
    text, image = (specimen.path(name).read_bytes() == template.path(name).read_bytes() for name in BOTH)
    return "text" if image and not text else "image"


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


@pytest.mark.parametrize("corruption", OF_FILES_ONLY)
def test_what_the_files_show_is_caught_by_its_gate(template: Specimen, tmp_path: Path, corruption: str) -> None:
    _require_caught(corruption, _corrupted(template, tmp_path, corruption).failed_gates())


@pytest.mark.parametrize("corruption", ASKED)
def test_what_the_damaged_searcher_answers_is_caught_by_its_gate(
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
OF_CENTROIDS = ("two_centroids_are_swapped", "a_centroid_is_negated", "a_centroid_is_shrunk_to_nearly_nothing")


@pytest.mark.parametrize("corruption", OF_CODES)
def test_codes_that_tell_little_are_judged_all_the_same(coarse: Specimen, tmp_path: Path, corruption: str) -> None:
    _require_caught(corruption, _corrupted(coarse, tmp_path, corruption).failed_gates())


@pytest.mark.parametrize("corruption", OF_CENTROIDS)
def test_centroids_of_an_earlier_corpus_are_judged_all_the_same(
    drifted: Specimen, tmp_path: Path, corruption: str
) -> None:
    _require_caught(corruption, _corrupted(drifted, tmp_path, corruption).failed_gates())


def test_files_that_are_hard_to_judge_are_good(coarse: Specimen, drifted: Specimen) -> None:
    for specimen in (coarse, drifted):
        assert specimen.failed_gates() == {}


@pytest.mark.proof
def test_what_is_hard_to_judge_is_good(coarse: Specimen, drifted: Specimen, tmp_path: Path) -> None:
    for number, template in enumerate((coarse, drifted)):
        assert _failed(copy_of(template, tmp_path / str(number), "good").check()) == set()


def _require_caught(corruption: str, failed: Collection[str]) -> None:
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
