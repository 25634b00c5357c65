"""`searchforge reindex` releases changes of the corpus, skips needless work, and keeps the live release on failure."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infra import api
from infra.cli import summaries
from infra.cli.main import main
from infra.reindex import journal, lease
from infra.reindex.journal import Run
from infra.reindex.run import StageFunctions, Stopped, reindex
from infra.releases.channels import advance_fence
from infra.releases.channels import read as read_pointer
from infra.releases.releases import Release, list_refusals, list_releases, live_release, publish, read_release
from searchforge.config import Config
from searchforge.errors import ConflictError, GateError, JobError, PermanentError, UsageError
from tests.infra.reindex.scenario import Scenario, make_scenario, write_encoder
from tests.infra.reindex.stub_stages import STUBS


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A scenario with a release, reached through a symbolic link so that copies have the same paths."""
    root = tmp_path_factory.mktemp("template")
    (root / "original").mkdir()
    (root / "scenario").symlink_to("original")
    scenario = make_scenario(root / "scenario", images=64, **_captioned(root / "scenario"))
    api.reindex(scenario.config)
    return scenario


@pytest.fixture
def scenario(template: Scenario, tmp_path: Path) -> Scenario:
    link = template.images.parent
    shutil.copytree(link.parent / "original", tmp_path / "copy")
    link.unlink()
    link.symlink_to(tmp_path / "copy")
    return template


def _captioned(root: Path) -> dict[str, str]:
    """Configures captions; they are only used to decide about training, which these tests never run."""
    root.mkdir(exist_ok=True)
    _write_captions(root, first=0)
    return {"data__captions": str(root / "captions.csv"), "data__images": str(root / "images")}


def _write_captions(root: Path, first: int) -> None:
    """Writes captions that consist of words of the tiny encoder."""
    rows = [f"{number:03}.png,w{first + number}" for number in range(40)]
    (root / "captions.csv").write_text("\n".join(["image,caption", *rows]))


def _with(scenario: Scenario, **settings: Any) -> Config:
    """Returns the scenario's configuration with other settings, whose keys have `__` in place of the dot."""
    values = scenario.config.model_dump()
    for key, value in settings.items():
        section, _, name = key.partition("__")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    return Config.model_validate(values)


def _runs(scenario: Scenario) -> list[Run]:
    return list(journal.runs(scenario.workspace.storage))


def _state(scenario: Scenario) -> dict[str, int]:
    """Returns the modification time of every file except the lease, the journal and caches."""
    root = Path(scenario.config.workspace).resolve()
    files = {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    return {name: time for name, time in files.items() if not name.startswith(("reindex/", "cache/"))}


def _made(scenario: Scenario) -> dict[str, list[str]]:
    kinds = ("encoders", "embeddings", "searchers", "checks", "releases")
    return {kind: scenario.workspace.ids(kind) for kind in kinds}  # type: ignore[arg-type]


def test_the_first_run_publishes_and_records_its_stages(scenario: Scenario) -> None:
    (run,) = _runs(scenario)
    assert (run.state, run.failures, run.error, run.fence) == ("published", 0, "", 1)
    assert run.release == live_release(scenario.workspace)
    assert run.plan and (run.plan.mode, run.plan.items, run.plan.added) == ("full", 64, 64)
    assert [entry.stage for entry in run.stages] == ["embed", "index", "check", "publish", "prune"]
    assert [entry.artifact for entry in run.stages[:4]] == [
        scenario.workspace.ids(kind)[0]  # type: ignore[arg-type]
        for kind in ("embeddings", "searchers", "checks", "releases")
    ]
    held = lease.read(scenario.workspace.storage)
    assert held and (held.state, held.fence) == ("free", 1)


def test_an_unchanged_corpus_needs_no_work(scenario: Scenario) -> None:
    before = _state(scenario)
    run = api.reindex(scenario.config)
    assert (run.state, run.release) == ("unchanged", live_release(scenario.workspace))
    assert run.plan and (run.plan.mode, run.plan.unchanged) == ("nothing", 64)
    assert _state(scenario) == before


def test_only_changed_images_are_embedded(scenario: Scenario) -> None:
    first = live_release(scenario.workspace)
    scenario.change(random.Random(0), 1)  # two added, one each changed, removed and renamed
    run = api.reindex(scenario.config)
    assert run.state == "published" and run.release == live_release(scenario.workspace) != first
    assert run.plan
    counts = (run.plan.mode, run.plan.added, run.plan.changed, run.plan.removed, run.plan.unchanged)
    assert counts == ("delta", 3, 1, 2, 61)
    manifest = scenario.workspace.marker("embeddings", run.stages[0].artifact)
    assert (manifest["inputs"], manifest["embedded"], manifest["reused"]) == (65, 3, 62)  # the renamed image is reused


def test_rewritten_files_with_the_same_contents_make_no_release(scenario: Scenario) -> None:
    releases = _made(scenario)["releases"]
    for path in scenario.images.iterdir():
        os.utime(path, (1, 1))
    run = api.reindex(scenario.config)
    assert run.state == "unchanged" and _made(scenario)["releases"] == releases
    assert [entry.stage for entry in run.stages] == ["embed", "prune"]
    again = api.reindex(scenario.config)
    assert again.plan and again.plan.mode == "nothing"


def test_rejected_images_are_counted_with_their_reasons(scenario: Scenario, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.png", "more.png"):
        (scenario.images / name).write_text("not an image")
    run = api.reindex(scenario.config)
    assert (run.state, run.release) == ("unchanged", live_release(scenario.workspace))
    assert run.items and run.items.rejected == {"not_an_image": 2}
    assert (run.items.items, run.items.embedded, run.items.reused) == (66, 0, 64)
    said = capsys.readouterr().err
    assert "66 items: 0 embedded, 64 reused, 2 rejected (2 not_an_image), listed in embeddings/" in said
    assert "the items that could be embedded match release" in said
    again = api.reindex(scenario.config)
    assert again.plan and again.plan.mode == "nothing" and again.items == run.items
    assert "66 unchanged, 2 rejected (2 not_an_image)" in capsys.readouterr().err


def test_changed_captions_make_no_release(scenario: Scenario) -> None:
    _write_captions(scenario.images.parent, first=100)
    made = _made(scenario)
    assert api.reindex(scenario.config).state == "unchanged"
    assert _made(scenario) == made


def test_changed_index_settings_make_a_release_of_the_same_embeddings(scenario: Scenario) -> None:
    run = reindex(_with(scenario, index__code_bytes=4), functions=StageFunctions(check=STUBS.check))
    assert run.state == "published" and run.plan and "index.code_bytes changed" in run.plan.reason
    assert len(_made(scenario)["embeddings"]) == 1 and len(_made(scenario)["searchers"]) == 2


def test_changed_gates_make_a_release_of_the_same_searcher(scenario: Scenario) -> None:
    run = api.reindex(_with(scenario, check__min_recall_at_1=0.1))
    assert run.state == "published" and run.plan and "check.min_recall_at_1 changed" in run.plan.reason
    assert len(_made(scenario)["searchers"]) == 1 and len(_made(scenario)["checks"]) == 2


def test_a_setting_missing_from_a_stored_check_had_its_default(scenario: Scenario) -> None:
    report = scenario.workspace.local("checks", scenario.workspace.ids("checks")[0]) / "report.json"
    content = json.loads(report.read_text())
    del content["config"]["seed"]
    report.write_text(json.dumps(content))
    assert api.reindex(scenario.config).state == "unchanged"
    assert api.reindex(_with(scenario, check__seed=1)).state == "published"


def test_another_encoder_embeds_everything_while_the_old_release_stays_live(scenario: Scenario) -> None:
    config = _with(scenario, reindex__retrain="settings", train__epochs=7)
    write_encoder(scenario.workspace, "other", config.train)
    first = live_release(scenario.workspace)
    plan = api.preview_reindex(config)
    assert (plan.entry.mode, plan.encoder, plan.entry.train) == ("full", "other", False)
    assert "encoder other replaces tiny" in plan.entry.reason
    failing = _with(scenario, reindex__retrain="settings", train__epochs=7, check__max_bytes_per_image=0.1)
    with pytest.raises(GateError, match="bytes_per_image"):
        reindex(failing, functions=STUBS)
    assert live_release(scenario.workspace) == first
    run = reindex(config, functions=STUBS)
    release = next(release for release in list_releases(scenario.workspace) if release.id == run.release)
    assert release.live and release.provenance["encoder"] == "other"
    manifest = scenario.workspace.marker("embeddings", release.provenance["embeddings"])
    assert (manifest["inputs"], manifest["embedded"]) == (64, 64)


def test_an_encoder_is_trained_when_its_settings_changed(scenario: Scenario) -> None:
    """Only the plan is verified; nothing is trained."""
    assert not api.preview_reindex(_with(scenario, reindex__retrain="never", train__epochs=9)).entry.train
    plan = api.preview_reindex(_with(scenario, reindex__retrain="settings", train__epochs=9)).entry
    assert (plan.mode, plan.train, plan.embed) == ("full", True, True) and "training settings changed" in plan.reason
    write_encoder(scenario.workspace, "same", _with(scenario, train__epochs=9).train)
    assert not api.preview_reindex(_with(scenario, reindex__retrain="settings", train__epochs=9)).entry.train


def test_a_dry_run_prints_the_plan_and_changes_nothing(scenario: Scenario) -> None:
    scenario.change(random.Random(0), 1)
    folder = Path(scenario.config.workspace).resolve()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    config = folder.parent / "config.yaml"
    config.write_text(json.dumps(scenario.config.model_dump(mode="json")))
    said = CliRunner().invoke(main, ["reindex", "--dry-run", "--config", str(config)])
    assert said.exit_code == 0, said.output
    assert "65 images: 3 added, 1 changed, 2 removed, 61 unchanged" in said.stdout
    assert "delta: embed, index, check, publish" in said.stdout
    as_json = CliRunner().invoke(main, ["reindex", "--dry-run", "--json", "--config", str(config)])
    assert json.loads(as_json.stdout)["added"] == 3
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_rollback_is_not_undone(scenario: Scenario) -> None:
    good = live_release(scenario.workspace)
    scenario.change(random.Random(0), 1)
    bad = reindex(scenario.config, functions=STUBS).release
    api.rollback(scenario.config)
    run = api.reindex(scenario.config)
    assert (run.state, run.release, live_release(scenario.workspace)) == ("unchanged", bad, good)
    assert run.plan and "it was rolled back" in run.plan.reason and f"rollback --to {bad}" in run.plan.reason
    nothing = f"nothing to publish in channel production: release {bad} matches the corpus but is not live"
    assert summaries.reindex(run).startswith(nothing)
    for entry in journal.ids(scenario.workspace.storage):
        scenario.workspace.storage.delete(f"{journal.FOLDER}/{entry}.json")
    assert api.reindex(scenario.config).state == "unchanged"  # the pointer records it as well
    scenario.change(random.Random(1), 2)
    assert reindex(scenario.config, functions=STUBS).release == live_release(scenario.workspace) not in (good, bad)


@pytest.mark.parametrize("retrain", ["settings", "never"])
def test_an_encoder_that_was_rolled_back_stays_withdrawn_until_its_release_is_made_live(
    scenario: Scenario, retrain: str
) -> None:
    config = _with(scenario, reindex__retrain="settings", train__epochs=7)
    write_encoder(scenario.workspace, "bad", config.train)
    bad = reindex(config, functions=STUBS).release
    config = _with(scenario, reindex__retrain=retrain, train__epochs=7)
    api.rollback(config)
    scenario.change(random.Random(0), 1)
    run = reindex(config, functions=STUBS)
    assert run.state == "published" and run.plan and run.plan.mode == "delta"
    assert read_release(scenario.workspace, run.release or "").provenance["encoder"] == "tiny"
    if retrain == "settings":
        assert "encoder bad has the configured settings but was rolled back, so encoder tiny stays" in run.plan.reason
    api.rollback(config, to=bad)
    assert api.preview_reindex(config).encoder == "bad"


def test_run_uses_an_encoder_that_was_rolled_back_only_if_it_is_asked_for(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _with(scenario, reindex__retrain="settings", train__epochs=7)
    write_encoder(scenario.workspace, "bad", config.train)
    monkeypatch.setattr(api, "train", lambda _: scenario.workspace.marker("encoders", "bad"))  # finds it trained
    reindex(config, functions=STUBS)
    api.rollback(config)
    scenario.change(random.Random(0), 1)
    with pytest.raises(UsageError, match=r"encoder bad, .* was rolled back in channel production; .* `--encoder bad`"):
        api.run(config)
    report = api.run(_with(scenario, encoder="bad"))
    assert report.release.provenance["encoder"] == "bad"


def test_an_encoder_with_other_settings_is_trained_after_a_rollback(scenario: Scenario) -> None:
    config = _with(scenario, reindex__retrain="settings", train__epochs=7)
    write_encoder(scenario.workspace, "bad", config.train)
    reindex(config, functions=STUBS)
    api.rollback(config)
    assert api.preview_reindex(_with(scenario, reindex__retrain="settings", train__epochs=8)).entry.train
    write_encoder(scenario.workspace, "mended", _with(scenario, train__epochs=8).train)
    mended = _with(scenario, reindex__retrain="settings", train__epochs=8)
    assert api.preview_reindex(mended).encoder == "mended"


def test_a_rollback_to_a_release_of_the_same_encoder_withdraws_no_encoder(scenario: Scenario) -> None:
    scenario.change(random.Random(0), 1)
    reindex(scenario.config, functions=STUBS)
    api.rollback(scenario.config)
    scenario.change(random.Random(1), 2)
    run = reindex(scenario.config, functions=STUBS)
    assert read_release(scenario.workspace, run.release or "").provenance["encoder"] == "tiny"


def test_a_reverted_corpus_is_released_again(scenario: Scenario) -> None:
    first = live_release(scenario.workspace)
    names = sorted(path.name for path in scenario.images.iterdir())
    (scenario.images / names[0]).rename(scenario.images.parent / "aside.png")
    quickly_checked = StageFunctions(check=STUBS.check)
    second = reindex(scenario.config, functions=quickly_checked).release
    (scenario.images.parent / "aside.png").rename(scenario.images / names[0])
    third = reindex(scenario.config, functions=quickly_checked)
    assert third.state == "published" and third.release == live_release(scenario.workspace) != second
    searchers = {release.id: release.provenance["searcher"] for release in list_releases(scenario.workspace)}
    assert first and third.release and searchers[third.release] == searchers[first]


def test_failed_gates_are_recorded_and_stop_runs_until_resumed(scenario: Scenario) -> None:
    failing = _with(scenario, check__max_bytes_per_image=0.1, reindex__max_failures=2)
    live = live_release(scenario.workspace)
    for count in (1, 2):
        with pytest.raises(GateError, match=r"bytes_per_image: .*above the maximum of 0\.10"):
            api.reindex(failing)
        run = _runs(scenario)[0]
        assert (run.state, run.failed_stage, run.failures) == ("failed", "publish", count)
        assert [entry.stage for entry in run.stages].count("publish") == 1  # permanent errors are not retried
    assert live_release(scenario.workspace) == live
    assert [refusal.gates.keys() for refusal in list_refusals(scenario.workspace)] == [{"bytes_per_image"}] * 2
    mended = _with(scenario, reindex__max_failures=2)
    with pytest.raises(JobError, match=r"2 consecutive runs of reindex failed, (.|\n)*bytes_per_image(.|\n)*--resume"):
        api.reindex(mended)
    assert len(_runs(scenario)) == 3
    run = api.reindex(mended, resume=True)
    assert (run.state, run.failures) == ("unchanged", 0)
    assert api.reindex(mended).state == "unchanged"


def test_a_corpus_that_lost_many_images_is_published_only_if_the_run_allows_it(scenario: Scenario) -> None:
    live = live_release(scenario.workspace)
    for path in sorted(scenario.images.iterdir())[44:]:
        path.unlink()
    with pytest.raises(GateError, match=r"live_images: 44, below the minimum of 58; --allow-removal accepts this"):
        api.reindex(scenario.config)
    assert live_release(scenario.workspace) == live
    run = api.reindex(scenario.config, allow_removal=True)
    assert run.state == "published" and run.release == live_release(scenario.workspace) != live
    assert api.reindex(scenario.config).state == "unchanged"


def test_transient_errors_are_retried(scenario: Scenario) -> None:
    scenario.change(random.Random(0), 1)
    answers = [JobError("the bucket is not there"), OSError("the disk is gone")]

    def flaky(*arguments: Any) -> dict[str, Any]:
        if answers:
            raise answers.pop(0)
        return STUBS.index(*arguments)

    run = reindex(scenario.config, functions=replace(STUBS, index=flaky))
    attempts = [(entry.attempt, entry.error, bool(entry.artifact)) for entry in run.stages if entry.stage == "index"]
    assert attempts == [
        (1, "the bucket is not there", False),
        (2, "OSError: the disk is gone", False),
        (3, "", True),
    ]
    assert run.state == "published" and run.failures == 0


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (RuntimeError("a fault of a service"), 3),
        (ValueError("a fault of a library"), 1),
        (PermanentError("the loss is nan in epoch 40"), 1),
    ],
)
def test_persistent_errors_fail_the_run_after_the_attempts_that_might_help(
    scenario: Scenario, error: Exception, attempts: int
) -> None:
    scenario.change(random.Random(0), 1)

    def broken(*_: Any) -> dict[str, Any]:
        raise error

    message = str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
    with pytest.raises(JobError, match=f"^{message}$"):  # without a traceback
        reindex(scenario.config, functions=StageFunctions(index=broken))
    run = _runs(scenario)[0]
    assert (run.state, run.failed_stage, run.error) == ("failed", "index", message)
    assert [entry.stage for entry in run.stages] == ["embed", *["index"] * attempts]


def test_usage_errors_are_not_retried(scenario: Scenario) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        api.reindex(_with(scenario, corpus__source=str(scenario.images / "nowhere")))
    run = _runs(scenario)[0]
    assert (run.state, run.failed_stage, run.stages) == ("failed", "plan", ())


def test_a_run_that_loses_its_lease_publishes_nothing(scenario: Scenario) -> None:
    scenario.change(random.Random(0), 1)
    live = live_release(scenario.workspace)

    def taken_over(*arguments: Any) -> dict[str, Any]:
        found = STUBS.check(*arguments)
        state = lease.read(scenario.workspace.storage)
        assert state
        other = state.model_copy(update={"run": "other", "fence": state.fence + 1})
        scenario.workspace.storage.write(lease.LEASE, other.model_dump_json().encode())
        return found

    with pytest.raises(ConflictError, match="lost the lease"):
        reindex(scenario.config, functions=replace(STUBS, check=taken_over))
    assert live_release(scenario.workspace) == live
    held = lease.read(scenario.workspace.storage)
    assert held and held.run == "other"


def test_a_suspended_run_with_a_stale_token_publishes_nothing(scenario: Scenario) -> None:
    """It last verified its lease just before another run took it over."""
    scenario.change(random.Random(0), 1)
    live = live_release(scenario.workspace)

    def overtaken(*arguments: Any, fence: int, **options: Any) -> Release:
        advance_fence(scenario.workspace.storage, "production", fence + 1)
        return publish(*arguments, fence=fence, **options)

    with pytest.raises(ConflictError, match="another run took over"):
        reindex(scenario.config, functions=replace(STUBS, publish=overtaken))
    assert live_release(scenario.workspace) == live


def test_a_killed_run_is_recorded_as_failed_by_the_next_one_which_starts_counting_anew(scenario: Scenario) -> None:
    storage = scenario.workspace.storage
    dead = _runs(scenario)[0].model_copy(
        update={"run": journal.run_id(), "state": "running", "ended": None, "fence": 9}
    )
    journal.write(storage, dead)
    run = api.reindex(scenario.config)
    assert run.failures == 0 and run.fence == 10
    closed = journal.read(storage, dead.run)
    assert closed and closed.state == "failed" and "killed" in closed.error and closed.failures == 1


def test_a_stop_during_pruning_does_not_change_the_result(scenario: Scenario) -> None:
    def stopped(*_: Any) -> None:
        raise Stopped("SIGTERM")

    run = reindex(scenario.config, functions=StageFunctions(prune=stopped))
    assert (run.state, run.error, run.stages[-1].error) == ("unchanged", "", "stopped by SIGTERM")


def test_a_notification_that_fails_does_not_change_the_run(
    scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario.change(random.Random(0), 1)

    def broken(*_: Any) -> None:
        raise RuntimeError("no")

    assert reindex(scenario.config, functions=replace(STUBS, notify=broken)).state == "published"
    assert "RuntimeError: no" in capsys.readouterr().err


def test_two_workspaces_can_share_a_release_target(scenario: Scenario, tmp_path: Path) -> None:
    other = make_scenario(tmp_path / "other", images=24, releases=scenario.workspace.root)
    first = live_release(scenario.workspace)
    run = reindex(other.config, functions=STUBS)
    assert run.state == "published" and run.plan and (run.plan.mode, run.plan.added) == ("full", 24)
    assert live_release(scenario.workspace) == run.release != first
    mine = api.reindex(scenario.config)  # its own corpus did not change
    assert (mine.state, mine.release, live_release(scenario.workspace)) == ("unchanged", first, run.release)
    scenario.change(random.Random(0), 1)
    mine = reindex(scenario.config, functions=STUBS)
    assert mine.state == "published" and mine.plan and mine.plan.unchanged == 61
    assert api.reindex(other.config).state == "unchanged"


def test_publishing_to_one_channel_leaves_the_others_alone(scenario: Scenario) -> None:
    live = live_release(scenario.workspace)
    scenario.change(random.Random(0), 1)
    run = reindex(_with(scenario, reindex__channel="staging"), functions=STUBS)
    assert (run.state, run.channel) == ("published", "staging")
    assert live_release(scenario.workspace, "staging") == run.release
    assert run.plan and "channel staging has no release that was built in this workspace yet" in run.plan.reason
    assert live_release(scenario.workspace) == live
    assert read_pointer(scenario.workspace.storage, "staging").pointer.fence == run.fence


def test_a_concurrent_run_exits_with_code_1(scenario: Scenario) -> None:
    with lease.acquire(scenario.workspace.storage, "first", lease_seconds=1.0):
        options = ["--workspace", scenario.config.workspace, "--corpus", str(scenario.images)]
        found = CliRunner().invoke(main, ["reindex", *options])
    assert found.exit_code == 1 and "run first" in found.output and "--wait" in found.output
    assert len(_runs(scenario)) == 1


def test_the_journal_is_bounded(scenario: Scenario) -> None:
    config = _with(scenario, reindex__keep_runs=2)
    runs = [api.reindex(config) for _ in range(4)]
    assert [run.run for run in _runs(scenario)] == [run.run for run in runs[:1:-1]]
    assert {run.state for run in runs} == {"unchanged"}
