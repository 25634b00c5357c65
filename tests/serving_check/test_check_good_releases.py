"""No false alarm: good searchers of every kind pass the check, gate by gate."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from serving_check.check import check
from tests.serving_check.good_releases import Corpora, Release, kinds
from tests.serving_check.inspect_gates import failed_gates

KINDS = kinds()

WHOLE = ("one_image", "look_ups_of_16_bits", "the_recipe_of_2022", "texts")
"""Kinds by which a searcher that runs differs most; the others are checked as a whole by the proofs."""

FILES_ONLY = (
    "codes_of_one_byte",
    "more_partitions_than_fit_the_corpus",
    "no_compression",
    "images_that_are_all_equal",
    "series_of_photos_that_hardly_differ",
    "images_of_one_colour_each",
    "ids_and_metadata_in_any_script",
    "no_metadata",
    "long_metadata",
    "a_changed_corpus_on_the_quantizer_that_was_there",
    "embeddings_of_another_backend",
)
"""Kinds whose files are of a form or a content of their own."""


Built = Callable[[str], Release]
"""Returns the release of a kind."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    corpora = Corpora(tmp_path_factory.mktemp("corpora"))
    return functools.cache(lambda kind: KINDS[kind](corpora))


def test_there_are_at_least_twenty_kinds() -> None:
    assert len(KINDS) >= 20


@pytest.mark.parametrize("kind", FILES_ONLY)
def test_the_files_of_a_good_release_pass(built: Built, kind: str) -> None:
    release = built(kind)
    assert failed_gates(release.config, release.searcher) == {}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_good_release_that_runs_unlike_others_passes(built: Built, kind: str) -> None:
    _require_passed(built(kind))


@pytest.mark.proof
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WHOLE])
def test_a_good_release_passes(built: Built, kind: str) -> None:
    _require_passed(built(kind))


def _require_passed(release: Release) -> None:
    report = check(release.config, release.searcher)
    assert {gate["name"]: gate["detail"] for gate in report["gates"] if not gate["passed"]} == {}
    assert report["passed"]
