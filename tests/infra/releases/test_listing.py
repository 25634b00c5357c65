"""`searchforge releases` shows where each release is live or withdrawn, and how to publish the first one."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from infra.cli.main import main
from infra.releases.releases import list_releases, publish, rollback
from searchforge.artifacts.workspace import Workspace
from tests.infra.releases.sample_artifacts import commit_checked


def test_a_rolled_back_release_is_marked_as_withdrawn_until_it_is_live_again(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "workspace"))
    first, second = (publish(workspace, workspace, commit_checked(workspace, name)).id for name in "ab")
    rollback(workspace)
    shown = {release.id: (release.channels, release.withdrawn) for release in list_releases(workspace)}
    assert shown == {first: (("production",), ()), second: ((), ("production",))}
    output = CliRunner().invoke(main, ["releases", "--workspace", workspace.root]).output
    (line,) = (line for line in output.splitlines() if line.startswith(second))
    assert line.endswith("withdrawn from production")
    rollback(workspace, to=second)
    assert {release.id: release.withdrawn for release in list_releases(workspace)}[second] == ()


def test_without_releases_the_command_that_publishes_one_is_named(tmp_path: Path) -> None:
    output = CliRunner().invoke(main, ["releases", "--workspace", str(tmp_path / "workspace")]).output
    assert "no release yet; `searchforge reindex` publishes one" in output
