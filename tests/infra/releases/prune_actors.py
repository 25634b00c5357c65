"""Commands that run concurrently with a prune, and the invariants that must hold afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from infra.releases import channels
from infra.releases.pruning import prune
from infra.releases.releases import list_releases, promote, publish, require_complete, rollback
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import ConflictError, GateError, UsageError
from tests.infra.releases.sample_artifacts import commit_checked


class PruneActors:
    """Commands on releases published from `source`; most of them use the oldest release, which a prune deletes."""

    def __init__(self, source: Workspace) -> None:
        self._source = source
        self._checks = [commit_checked(source, name) for name in ("a", "b", "c", "d", "z")]
        self._oldest = ""

    def fill(self, target: Workspace) -> None:
        """Publishes four releases, two of which a prune deletes."""
        self._oldest, *_ = [publish(self._source, target, check).id for check in self._checks[:4]]

    def prune(self, target: Workspace) -> None:
        prune(target, keep=0, min_age_days=0)

    def rollback(self, target: Workspace) -> None:
        with _may_lose():
            rollback(target, self._oldest)

    def promote(self, target: Workspace) -> None:
        with _may_lose():
            promote(target, "production", "staging", self._oldest)

    def publish_pruned(self, target: Workspace) -> None:
        with _may_lose():
            publish(self._source, target, self._checks[0])

    def publish_other(self, target: Workspace) -> None:
        with _may_lose():
            publish(self._source, target, self._checks[-1])


@contextlib.contextmanager
def _may_lose() -> Iterator[None]:
    """Suppresses the errors of a command that lost a race."""
    with contextlib.suppress(ConflictError, UsageError, GateError):
        yield


def require_sound(target: Workspace) -> None:
    """Asserts that live releases are complete and no release is damaged."""
    for channel in channels.channels(target.storage):
        pointer = channels.read(target.storage, channel).pointer
        if pointer.release is None and channel != channels.PRODUCTION:
            continue  # the first release of the channel was deleted before it went live
        assert pointer.release
        require_complete(target, pointer.release)
        for file in pointer.files.values():
            assert len(target.storage.read(f"releases/{file.path}")) == file.bytes
    assert not [release for release in list_releases(target) if release.damaged]
