"""Pruning interleaved with other commands on a Google Cloud Storage server."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from searchforge.artifacts.workspace import Workspace
from tests.infra.releases.prune_actors import PruneActors, require_sound
from tests.infra.releases.stepped_storage import interleave

pytestmark = pytest.mark.integration

each_call = pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.proof)])
"""Interleaves before every storage call of a command in the proofs, and before every ninth one otherwise."""


@pytest.fixture
def actors(tmp_path: Path) -> PruneActors:
    return PruneActors(Workspace(str(tmp_path / "source")))


@pytest.fixture
def make(actors: PruneActors, bucket: str) -> Callable[[], Callable[[], Workspace]]:
    count = itertools.count()

    def fill() -> Callable[[], Workspace]:
        opened = functools.partial(Workspace, f"{bucket}/{next(count)}")
        actors.fill(opened())
        return opened

    return fill


@each_call
@pytest.mark.parametrize("other", ["rollback", "publish_pruned"])
def test_a_prune_is_paused_during_another_prune_and_a_command(
    actors: PruneActors, make: Callable[[], Callable[[], Workspace]], other: str, every: int
) -> None:
    """Objects stored again under the same id have other generations than those that the paused prune listed."""

    def between(target: Workspace) -> None:
        actors.prune(target)
        getattr(actors, other)(target)

    interleave(make, actors.prune, between, require_sound, every, deletions=False)


@each_call
def test_a_prune_interleaves_with_publishing_the_same_release(
    actors: PruneActors, make: Callable[[], Callable[[], Workspace]], every: int
) -> None:
    interleave(make, actors.publish_pruned, actors.prune, require_sound, every, deletions=False)
