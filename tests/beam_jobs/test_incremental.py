"""Incremental runs embed only what changed, and their records equal those of a full run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.embed import compact, embed, list_corpus
from beam_jobs.embed_images import embed_images
from beam_jobs.planning.listing import Changes, CorpusListing
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from tests.beam_jobs.corpus.test_archives import tar_bytes
from tests.beam_jobs.photos import draw_photos, embed_config, png, records, shard_bytes
from tests.opened_files import opened_files
from tests.tiny_bundle import write_bundle


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(str(tmp_path / "workspace"))
    write_bundle(workspace)
    return workspace


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos")


def _counts(manifest: Manifest) -> tuple[int, int, int, int]:
    return manifest.inputs, manifest.embedded, manifest.reused, manifest.rejected


def _read(workspace: Workspace, manifest: Manifest, name: str) -> str:
    return workspace.storage.read(f"embeddings/{manifest.id}/{name}").decode()


def _full_run(photos: Path, tmp_path: Path) -> tuple[Workspace, Manifest]:
    other = Workspace(str(tmp_path / "full-run"))
    write_bundle(other)
    return other, embed_images(embed_config(other, photos), "tiny")


def _change_the_corpus(photos: Path) -> None:
    """Adds, changes, deletes, renames, touches and copies one photo each."""
    (photos / "new.png").write_bytes(png(100))
    (photos / "00.png").write_bytes(png(101))
    (photos / "02.png").unlink()
    (photos / "04.png").rename(photos / "renamed.png")
    os.utime(photos / "06.png", (1, 1))
    (photos / "copy.png").write_bytes(png(8))


def test_only_changed_items_are_embedded(workspace: Workspace, photos: Path, tmp_path: Path) -> None:
    first = embed_images(embed_config(workspace, photos), "tiny")
    _change_the_corpus(photos)
    second = embed_images(embed_config(workspace, photos), "tiny")
    assert second.base == first.id
    assert _counts(second) == (21, 2, 19, 0)
    other, full = _full_run(photos, tmp_path)
    assert records(workspace, second).keys() == records(other, full).keys()
    for id, record in records(other, full).items():
        found = records(workspace, second)[id]
        assert found.to_bytes() == record.to_bytes(), id


def test_every_run_lists_the_items_without_unreadable_metadata(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    members = [("a.png", png(1)), ("a.json", b'{"x": NaN}'), ("b.png", png(2)), ("b.json", b'{"x": 1}')]
    (folder / "1.tar").write_bytes(tar_bytes(members))
    config = embed_config(workspace, folder)
    runs = [embed_images(config, "tiny")]
    (folder / "new.png").write_bytes(png(3))
    runs.append(embed_images(config, "tiny"))
    runs.append(compact(config, runs[1].id))
    assert [_counts(run) for run in runs] == [(2, 2, 0, 0), (3, 1, 2, 0), (3, 0, 3, 0)]
    for run in runs:
        assert run.metadata_errors == 1
        assert "1 without unreadable metadata" in run.summary
        assert json.loads(workspace.storage.read(f"embeddings/{run.id}/report.json"))["metadata_errors"] == 1
        (line,) = workspace.storage.read(f"embeddings/{run.id}/metadata-errors.jsonl").splitlines()
        assert json.loads(line) == {
            "id": "1.tar/a.png",
            "uri": f"{folder}/1.tar!a.png",
            "detail": "a.json: NaN is not JSON",
        }


def test_unchanged_files_are_not_read(workspace: Workspace, photos: Path) -> None:
    with opened_files(photos) as read:
        embed_images(embed_config(workspace, photos), "tiny")
    assert {path.name for path in read} == {f"{index:02d}.png" for index in range(20)}
    _change_the_corpus(photos)
    with opened_files(photos) as read:
        embed_images(embed_config(workspace, photos), "tiny")
    assert {path.name for path in read} == {"new.png", "00.png", "renamed.png", "06.png", "copy.png"}


def test_an_unchanged_corpus_is_the_same_run(workspace: Workspace, photos: Path) -> None:
    config = embed_config(workspace, photos)
    assert embed_images(config, "tiny") == embed_images(config, "tiny")
    assert len(workspace.ids("embeddings")) == 1


def test_deletions_alone_write_no_shards(workspace: Workspace, photos: Path) -> None:
    embed_images(embed_config(workspace, photos), "tiny")
    (photos / "02.png").unlink()
    manifest = embed_images(embed_config(workspace, photos), "tiny")
    assert _counts(manifest) == (19, 0, 19, 0)
    assert shard_bytes(workspace, manifest) == {}
    assert "02.png" not in records(workspace, manifest)


def test_equal_contents_are_embedded_once(workspace: Workspace, photos: Path) -> None:
    for name in ("a.png", "b.png"):
        (photos / name).write_bytes(png(3))
    manifest = embed_images(embed_config(workspace, photos), "tiny")
    assert _counts(manifest) == (22, 20, 2, 0)
    found = records(workspace, manifest)
    assert found["a.png"].embedding.tobytes() == found["sub/03.png"].embedding.tobytes()
    assert found["a.png"].uri != found["sub/03.png"].uri


def test_a_duplicate_is_read_separately_if_the_original_has_changed(workspace: Workspace, photos: Path) -> None:
    """The original changes after a run has stored its plan and failed, and before the next run executes that plan."""
    (photos / "zz.png").write_bytes(png(0))
    config = embed_config(workspace, photos)
    with CorpusListing() as before, CorpusListing() as again:
        for listing in (before, again):
            listing.add(list_corpus(config, "images"))
        with pytest.raises(JobError, match="the Beam job failed"):
            embed(embed_config(workspace, photos, embed__runner="NoSuchRunner"), "tiny", "images", before)
        (photos / "00.png").write_bytes(png(500))
        manifest = embed(config, "tiny", "images", again)
    assert _counts(manifest) == (21, 21, 0, 0)
    found = records(workspace, manifest)
    assert found["00.png"].content_hash != found["zz.png"].content_hash
    assert found["00.png"].embedding.tobytes() != found["zz.png"].embedding.tobytes()


def test_an_item_takes_the_id_over_when_the_first_one_with_it_is_gone(workspace: Workspace, photos: Path) -> None:
    listed = photos / "list.csv"
    listed.write_text("id,path\na,00.png\nb,02.png\na,04.png\n")
    config = embed_config(workspace, listed)
    first = embed_images(config, "tiny")
    listed.write_text("id,path\nb,02.png\na,04.png\nb,06.png\n")
    with CorpusListing() as listing:
        listing.add(list_corpus(config, "images"))
        changes = listing.changes(workspace, first)
    assert changes == Changes(added=0, changed=1, removed=0, unchanged=1)
    second = embed_images(config, "tiny")
    assert _counts(second) == (3, 1, 1, 1)
    assert {id: Path(record.uri).name for id, record in records(workspace, second).items()} == {
        "a": "04.png",
        "b": "02.png",
    }


def test_rejects_are_retried(workspace: Workspace, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"not an image")
    first = embed_images(embed_config(workspace, photos), "tiny")
    (photos / "new.png").write_bytes(png(100))
    second = embed_images(embed_config(workspace, photos), "tiny")
    assert _counts(first) == (21, 20, 0, 1)
    assert _counts(second) == (22, 1, 20, 1)


def _embed_while_missing(workspace: Workspace, photos: Path, *names: str, **settings: Any) -> Manifest:
    """Embeds while some photos are missing, as if their file server had failed after the corpus was listed."""
    config = embed_config(workspace, photos, **settings)
    with CorpusListing() as listing:
        listing.add(list_corpus(config, "images"))
        for name in names:
            (photos / name).rename(photos.parent / name)
        try:
            return embed(config, "tiny", "images", listing)
        finally:
            for name in names:
                (photos.parent / name).rename(photos / name)


@pytest.mark.parametrize("settings", [{}, {"embed__reuse_from": "none"}])
def test_what_could_not_be_read_is_tried_again_by_the_next_run(
    settings: dict[str, Any], workspace: Workspace, photos: Path, tmp_path: Path
) -> None:
    (photos / "bad.png").write_bytes(b"not an image")
    first = _embed_while_missing(workspace, photos, "06.png", **settings)
    assert (_counts(first), first.retryable) == ((21, 19, 0, 2), 1)
    rejects = [json.loads(line) for name in first.rejects for line in _read(workspace, first, name).splitlines()]
    assert {(reject["id"], reject["reason"], reject["may_pass"]) for reject in rejects} == {
        ("06.png", "missing", True),
        ("bad.png", "not_an_image", False),
    }
    second = embed_images(embed_config(workspace, photos, **settings), "tiny")
    assert (_counts(second), second.retryable, second.base) == ((21, 1, 19, 1), 0, first.id)
    other, full = _full_run(photos, tmp_path)
    assert {id: record.to_bytes() for id, record in records(workspace, second).items()} == {
        id: record.to_bytes() for id, record in records(other, full).items()
    }
    assert embed_images(embed_config(workspace, photos, **settings), "tiny") == second


def test_an_attempt_in_vain_leaves_nothing_behind(workspace: Workspace, photos: Path) -> None:
    (photos / "list.txt").write_text("00.png\n02.png\ngone.png\n")
    config = embed_config(workspace, photos / "list.txt")
    first = embed_images(config, "tiny")
    assert (_counts(first), first.retryable) == ((3, 2, 0, 1), 1)
    assert embed_images(config, "tiny") == embed_images(config, "tiny") == first
    assert workspace.all_ids("embeddings") == [first.id]


def test_rejected_contents_are_not_read_again(workspace: Workspace, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"not an image")
    first = embed_images(embed_config(workspace, photos), "tiny")
    with opened_files(photos) as opened:
        assert embed_images(embed_config(workspace, photos), "tiny") == first
    assert opened == []


def test_a_job_fails_if_more_than_a_few_items_cannot_be_read(workspace: Workspace, photos: Path) -> None:
    message = r"2 of 20 inputs cannot be read at the moment \(2 missing\); at most 5% \(corpus\.max_unread_fraction\)"
    with pytest.raises(JobError, match=message):
        _embed_while_missing(workspace, photos, "00.png", "06.png")
    assert workspace.ids("embeddings") == []
    accepted = _embed_while_missing(workspace, photos, "00.png", "06.png", corpus__max_unread_fraction=0.1)
    assert (accepted.retryable, accepted.records) == (2, 18)
    assert _counts(embed_images(embed_config(workspace, photos), "tiny")) == (20, 2, 18, 0)


def test_incremental_runs_can_be_chained(workspace: Workspace, photos: Path, tmp_path: Path) -> None:
    for round in range(4):
        (photos / f"new-{round}.png").write_bytes(png(200 + round))
        (photos / f"0{2 * round}.png").unlink()
        manifest = embed_images(embed_config(workspace, photos), "tiny")
        assert manifest.embedded == (20 if round == 0 else 1)
    assert len({shard.run for shard in manifest.shards}) == 4
    other, full = _full_run(photos, tmp_path)
    assert {id: record.to_bytes() for id, record in records(workspace, manifest).items()} == {
        id: record.to_bytes() for id, record in records(other, full).items()
    }


def test_too_many_dead_records_trigger_a_copy(workspace: Workspace, photos: Path) -> None:
    embed_images(embed_config(workspace, photos), "tiny")
    for index in range(0, 20, 2):
        (photos / f"{index:02d}.png").unlink()
    manifest = embed_images(embed_config(workspace, photos, embed__max_dead_fraction=0.4), "tiny")
    assert _counts(manifest) == (10, 0, 10, 0)
    assert all(not shard.run and not shard.dead for shard in manifest.shards)
    assert len(records(workspace, manifest)) == 10


def test_a_compacted_run_has_the_bytes_of_a_full_run(workspace: Workspace, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"not an image")
    embed_images(embed_config(workspace, photos), "tiny")
    _change_the_corpus(photos)
    config = embed_config(workspace, photos)
    manifest = compact(config, embed_images(config, "tiny").id)
    other, full = _full_run(photos, tmp_path)
    assert shard_bytes(workspace, manifest) == shard_bytes(other, full)
    assert (manifest.inputs, manifest.rejected_by_reason) == (full.inputs, full.rejected_by_reason)
    folder = workspace.local("embeddings", manifest.id)
    assert all((folder / name).is_file() for name in manifest.rejects)


def test_an_unchanged_corpus_finds_its_compacted_run(workspace: Workspace, photos: Path) -> None:
    embed_images(embed_config(workspace, photos), "tiny")
    (photos / "new.png").write_bytes(png(100))
    config = embed_config(workspace, photos)
    manifest = compact(config, embed_images(config, "tiny").id)
    assert embed_images(config, "tiny") == manifest
    assert compact(config, manifest.id) == manifest


def test_a_deleted_base_is_named(workspace: Workspace, photos: Path) -> None:
    first = embed_images(embed_config(workspace, photos), "tiny")
    (photos / "new.png").write_bytes(png(100))
    second = embed_images(embed_config(workspace, photos), "tiny")
    workspace.storage.delete(f"embeddings/{first.id}/MANIFEST.json")
    with pytest.raises(
        JobError, match=f"embeddings {first.id}, whose shards embeddings {second.id} reuse, are missing"
    ):
        records(workspace, second)


def test_without_a_base_everything_is_embedded(workspace: Workspace, photos: Path) -> None:
    embed_images(embed_config(workspace, photos), "tiny")
    (photos / "new.png").write_bytes(png(100))
    manifest = embed_images(embed_config(workspace, photos, embed__reuse_from="none"), "tiny")
    assert (_counts(manifest), manifest.base) == ((21, 21, 0, 0), None)


def test_a_run_of_another_encoder_is_not_reused(workspace: Workspace, photos: Path) -> None:
    write_bundle(workspace, "other", seed=1)
    first = embed_images(embed_config(workspace, photos), "tiny")
    manifest = embed_images(embed_config(workspace, photos), "other")
    assert (manifest.embedded, manifest.base) == (20, None)
    with pytest.raises(UsageError, match="cannot be reused"):
        embed_images(embed_config(workspace, photos / "sub", embed__reuse_from=first.id), "other")


def test_the_base_can_be_chosen(workspace: Workspace, photos: Path) -> None:
    first = embed_images(embed_config(workspace, photos), "tiny")
    embed_images(embed_config(workspace, photos / "sub"), "tiny")
    (photos / "new.png").write_bytes(png(100))
    assert embed_images(embed_config(workspace, photos, embed__reuse_from=first.id), "tiny").base == first.id
    with pytest.raises(UsageError, match="embeddings/unknown is not in workspace"):
        embed_images(embed_config(workspace, photos / "sub" / "*.png", embed__reuse_from="unknown"), "tiny")
