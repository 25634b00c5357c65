"""Valid searchers of every kind pass all gates."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from serving_check.check import check
from tests.serving_check.good_releases import Corpora, Release, kinds
from tests.serving_check.inspect_gates import failed_gates

KINDS = kinds()

WHOLE = ("one_image", "look_ups_of_16_bits", "the_recipe_of_2022", "texts")
"""Kinds whose searchers differ most when they run; the proofs run the others, too."""

FILES_ONLY = (
    "codes_of_one_byte",
    "too_many_partitions_for_the_corpus",
    "no_compression",
    "images_that_are_all_equal",
    "series_of_photos_that_hardly_differ",
    "images_of_one_colour_each",
    "ids_and_metadata_in_any_script",
    "no_metadata",
    "long_metadata",
    "a_changed_corpus_with_a_reused_quantizer",
    "embeddings_of_another_backend",
)
"""Kinds whose files have an unusual form or content."""

Built = Callable[[str], Release]
"""Builds the release of a kind, once."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    corpora = Corpora(tmp_path_factory.mktemp("corpora"))
    return functools.cache(lambda kind: KINDS[kind](corpora))


def test_there_are_at_least_twenty_kinds() -> None:
    assert len(KINDS) >= 20


@pytest.mark.parametrize("kind", FILES_ONLY)
def test_the_files_of_a_valid_release_pass(built: Built, kind: str) -> None:
    release = built(kind)
    assert failed_gates(release.config, release.searcher) == {}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_valid_release_with_an_unusual_searcher_passes(built: Built, kind: str) -> None:
    _require_passed(built(kind))


@pytest.mark.proof
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WHOLE])
def test_a_valid_release_passes(built: Built, kind: str) -> None:
    _require_passed(built(kind))


def _require_passed(release: Release) -> None:
    report = check(release.config, release.searcher)
    assert {gate["name"]: gate["detail"] for gate in report["gates"] if not gate["passed"]} == {}
    assert report["passed"]
