"""No false alarm: good searchers of every kind pass the check, gate by gate."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving_check.check import check
from tests.serving_check.good_releases import kinds

KINDS = kinds()


def test_there_are_at_least_twenty_kinds() -> None:
    assert len(KINDS) >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_release_passes(tmp_path: Path, kind: str) -> None:
    release = KINDS[kind](tmp_path)
    report = check(release.config, release.searcher)
    assert {gate["name"]: gate["detail"] for gate in report["gates"] if not gate["passed"]} == {}
    assert report["passed"]
