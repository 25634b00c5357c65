"""The command line reports errors as one message with the right exit code, never as a stack trace."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from infra.cli.doctor import Finding, check_packages, diagnose
from infra.cli.main import main
from infra.cli.summaries import printable
from infra.releases.releases import list_releases
from searchforge.artifacts.workspace import Workspace
from searchforge.console.options import require_python
from searchforge.errors import UsageError
from tests.infra.releases.sample_artifacts import commit_checked
from tests.tiny_bundle import write_colour_bundle

COMMANDS = """
    demo run train eval embed index check publish rollback promote releases schedule status search serve doctor
""".split()  # noqa: SIM905


def _invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_help_lists_every_command() -> None:
    output = _invoke("--help").output
    for command in COMMANDS:
        assert f"\n  {command} " in output


def test_the_help_of_every_command_fits_its_line() -> None:
    lines = CliRunner().invoke(main, ["--help"], terminal_width=80).output.partition("Commands:\n")[2].splitlines()
    assert len(lines) == len(main.commands)  # type: ignore[attr-defined]
    assert [line for line in lines if line.endswith("...")] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_configuration_options(command: str) -> None:
    output = _invoke(command, "--help").output
    for option in ("--config", "--workspace", "--set", "--json"):
        assert option in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "train.epoch=3"], "train.epoch: unknown key"),
        (["run", "--set", "nonsense"], "expected KEY=VALUE"),
        (["run", "--set", "train.epochs=[1"], "not valid YAML"),
        (["run", "--set", "train={dim: 8, dim: 9}"], "key 'dim' is already in line 1"),
        (["run", "--set", "index.partition_by=album"], "index.partition_by is 'album'"),
        (["run", "--set", "index.code_bytes=129"], "index.code_bytes is 129, but train.dim is 128"),
        (["reindex", "--set", "index.partition_by=album"], "index.partition_by is 'album'"),
        (["reindex", "--dry-run", "--set", "index.partition_by=album"], "index.partition_by is 'album'"),
        (["schedule", "--cron", "* * * * *", "--set", "index.partition_by=album"], "index.partition_by is 'album'"),
        (["run", "--workspace", "{tmp}"], "captioned images are required"),
        (["run", "--workspace", "s3://bucket"], "expected a local folder or gs://"),
        (["run", "--workspace", "{tmp}", "--captions", "none.json", "--images", "{tmp}"], "none.json cannot be read"),
        (["run", "--workspace", "{tmp}", "--captions", "c", "--images", "{tmp}/no"], "does not exist"),
        (["eval", "--workspace", "{tmp}"], "holds no encoder; run `searchforge train`"),
        (["eval", "--workspace", "{tmp}", "--encoder", "x"], "encoders/x is not in workspace"),
        (["embed", "--workspace", "{tmp}"], "has no encoders; run `searchforge train` first"),
        (["index", "--workspace", "{tmp}"], "has no embeddings; run `searchforge embed` first"),
        (["index", "--workspace", "{tmp}", "--captions", "c.json", "--images", "{tmp}"], "has no embeddings"),
        (["run", "--workspace", "{tmp}", "--encoder", "x"], "encoders/x is not in workspace"),
        (["encoder", "import", "--workspace", "{tmp}"], "no encoder was given"),
        (["check", "--workspace", "{tmp}", "--searcher", "x"], "searchers/x is not in workspace"),
        (["publish", "--workspace", "{tmp}", "--check", "../x"], "is not an artifact id"),
        (["rollback", "--workspace", "{tmp}"], "no earlier release in channel production"),
        (["rollback", "--workspace", "{tmp}", "--channel", "A"], "'A' is not a valid channel name"),
        (["promote", "--workspace", "{tmp}"], "channel staging of {tmp} has no live release"),
        (
            ["prune", "--workspace", "{tmp}", "--set", "reindex.keep_releases=null"],
            "set the number to keep with --keep",
        ),
        (["search", "a dog", "--workspace", "{tmp}"], "has no live release"),
        (["demo", "--workspace", "gs://bucket/x"], "needs a local workspace"),
        (["releases", "--config", "none.yaml"], "configuration none.yaml cannot be read"),
    ],
)
def test_bad_usage_is_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = _invoke(*[argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert result.exit_code == 2
    assert "error: " in result.output and message.replace("{tmp}", str(tmp_path)) in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_workspace_that_is_not_writable_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _invoke("run", "--workspace", str(tmp_path / "file" / "workspace"))
    assert result.exit_code == 1
    assert "cannot be created" in result.output


def test_reports_can_be_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["releases", "--workspace", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"releases": [], "refused": []}


def test_an_encoder_is_evaluated(tmp_path: Path) -> None:
    write_colour_bundle(Workspace(str(tmp_path)))
    images = []
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (9, 9), colour).save(tmp_path / f"{colour}.png")
        images.append({"id": index, "file_name": f"{colour}.png", "split": ("train", "dev", "dev")[index]})
    annotations = [{"image_id": index, "caption": "some green"} for index in range(3)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    options = ["--workspace", str(tmp_path), "--captions", str(tmp_path / "captions.json"), "--images", str(tmp_path)]
    result = CliRunner().invoke(main, ["eval", *options, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["text_to_image"]["gallery"] == 2
    assert report["text_to_image"]["r_at_1"]["value"] == 0.5
    result = CliRunner().invoke(main, ["eval", *options])
    assert "2 queries among 2: R@1 50.0" in result.stdout
    assert (tmp_path / "evaluations" / report["id"] / "report.html").exists()


@pytest.mark.parametrize("version", [(3, 9), (3, 12), (3, 13)])
def test_an_unsupported_python_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"has wheels for Python 3.10 and 3.11"):
        require_python(version)


def test_the_doctor_finds_no_fault_in_this_environment(tmp_path: Path) -> None:
    findings = diagnose(str(tmp_path))
    assert [finding for finding in findings if finding.status == "fault"] == []
    names = {finding.name for finding in findings}
    assert {"python", "packages", "Task Library", "ScaNN", "compiler", "workspace"} <= names


def test_the_doctor_names_a_conflict_and_the_remedy() -> None:
    found = check_packages(lambda name: "6.0" if name == "protobuf" else version(name))
    faults = {finding.name: finding for finding in found if finding.status == "fault"}
    assert list(faults) == ["protobuf"]
    assert faults["protobuf"] == Finding("protobuf", "fault", "6.0", "expected protobuf<6,>=3.20.3; run `make setup`")


def test_ids_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[31m\nb") == "a\\x1b[31m\\nb"


def test_releases_are_listed_promoted_and_pruned(tmp_path: Path) -> None:
    options = ["--workspace", str(tmp_path)]
    workspace = Workspace(str(tmp_path))
    for name in ("a", "b", "c", "d"):
        check = commit_checked(workspace, name, passed=name != "d")
        result = _invoke("publish", *options, "--check", check, "--channel", "staging")
        assert result.exit_code == (name == "d"), result.output
    ids = [release.id for release in list_releases(workspace)]
    assert f"release {ids[0]} is live in production" in _invoke("promote", *options).output
    output = _invoke("releases", *options).output
    assert re.search(rf"{ids[0]} .* 0.970 .* production, staging\n  check check-c-True passed all its gates", output)
    assert re.search(r"check-d-False .* staging .* did not pass its check.*\n  recall_at_10: 0.97", output)
    assert _invoke("prune", *options, "--min-age", "soon").exit_code == 2
    assert "deleted: nothing" in _invoke("prune", *options, "--keep", "1", "--min-age", "1h").output
    arguments = ["prune", *options, "--keep", "1", "--min-age", "0d"]
    assert f"would be deleted: release {ids[2]}" in _invoke(*arguments, "--dry-run").output
    assert json.loads(_invoke(*arguments, "--json").stdout)["releases"] == [ids[2]]
    assert [release.id for release in list_releases(workspace)] == ids[:2]
