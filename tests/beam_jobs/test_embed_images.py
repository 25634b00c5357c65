"""The embedding job keeps its books, survives being killed, and gives the same bytes however it runs."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beam_jobs import embed_shard
from beam_jobs.embed_images import embed_images
from searchforge.config import Config, load_config
from searchforge.errors import JobError, UsageError
from searchforge.manifest import Manifest, read_shards
from searchforge.preprocessing import RejectedInput
from searchforge.workspace import Workspace
from tests.tiny_bundle import DIM, write_bundle


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(str(tmp_path_factory.mktemp("workspace")))
    write_bundle(workspace)
    return workspace


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for index in range(20):
        name = f"{'sub/' if index % 2 else ''}{index:02d}.png"
        (folder / name).write_bytes(_png(index))
    return folder


def _png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0"))


def _config(workspace: Workspace, source: Path | str, **overrides: object) -> Config:
    values = {"workspace": workspace.root, "corpus.source": str(source), "embed.batch_size": 4, "embed.shards": 3}
    return load_config(None, {**values, **overrides})


def _shard_bytes(workspace: Workspace, manifest: Manifest) -> dict[str, bytes]:
    folder = workspace.local("embeddings", manifest.id)
    return {shard.name: (folder / shard.name).read_bytes() for shard in manifest.shards}


def test_every_image_is_embedded_under_its_path(workspace: Workspace, photos: Path) -> None:
    manifest = embed_images(_config(workspace, photos), "tiny")
    records = list(read_shards(workspace.local("embeddings", manifest.id), manifest))
    assert sorted(record.id for record in records) == sorted(
        path.relative_to(photos).as_posix() for path in photos.rglob("*.png")
    )
    for record in records:
        assert record.embedding.shape == (DIM,)
        assert np.linalg.norm(record.embedding) == pytest.approx(1, abs=1e-5)
    assert (manifest.inputs, manifest.embedded, manifest.rejected) == (20, 20, 0)


def test_bad_inputs_are_rejected_with_their_reason(workspace: Workspace, photos: Path) -> None:
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "text.jpg").write_bytes(b"not an image at all")
    (photos / "cut.png").write_bytes(_png(1)[:-40])
    (photos / "bomb.png").write_bytes(_png_claiming(50_000, 50_000))
    (photos / "big.png").write_bytes(_png_claiming(11_000, 10_000))
    (photos / "long.png").write_bytes(_png(2) + b"\0" * 5000)
    manifest = embed_images(_config(workspace, photos, **{"corpus.max_bytes": 4000}), "tiny")
    folder = workspace.local("embeddings", manifest.id)
    rejects = [json.loads(line) for name in manifest.rejects for line in (folder / name).read_text().splitlines()]
    assert {reject["id"]: reject["reason"] for reject in rejects} == {
        "zero.jpg": "empty",
        "text.jpg": "not_an_image",
        "cut.png": "truncated",
        "bomb.png": "too_many_pixels",
        "big.png": "too_many_pixels",
        "long.png": "too_large",
    }
    assert (manifest.inputs, manifest.embedded, manifest.rejected) == (26, 20, 6)


def test_a_list_may_name_missing_files(workspace: Workspace, photos: Path) -> None:
    (photos / "list.txt").write_text("00.png\nsub/01.png\ngone.png\n\n")
    manifest = embed_images(_config(workspace, photos / "list.txt"), "tiny")
    assert manifest.rejected_by_reason == {"missing": 1}
    assert manifest.inputs == 3


def test_a_glob_gives_the_ids_below_its_fixed_part(workspace: Workspace, photos: Path) -> None:
    manifest = embed_images(_config(workspace, f"{photos}/sub/*.png"), "tiny")
    ids = [record.id for record in read_shards(workspace.local("embeddings", manifest.id), manifest)]
    assert sorted(ids) == sorted(path.name for path in (photos / "sub").iterdir())


def test_workers_do_not_change_the_bytes(photos: Path, tmp_path: Path) -> None:
    found = []
    for name, options in (("a", ()), ("b", ("--direct_num_workers=2", "--direct_running_mode=multi_processing"))):
        other = Workspace(str(tmp_path / name))
        write_bundle(other)
        manifest = embed_images(_config(other, photos, **{"embed.beam_options": options}), "tiny")
        found.append(_shard_bytes(other, manifest))
    assert found[0] == found[1]


def test_a_killed_run_keeps_its_finished_shards(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Workspace(str(tmp_path / "workspace"))
    write_bundle(other)
    config = _config(other, photos)
    written: list[int] = []

    def write_two_then_die(storage: object, folder: str, shard: embed_shard.Shard, *rest: object) -> object:
        if len(written) == 2:
            raise OSError("killed")
        written.append(shard.index)
        return original(storage, folder, shard, *rest)

    original = embed_shard.write_shard
    monkeypatch.setattr(embed_shard, "write_shard", write_two_then_die)
    with pytest.raises(JobError, match="run the command again"):
        embed_images(config, "tiny")
    assert other.ids("embeddings") == []

    redone: list[int] = []
    monkeypatch.setattr(
        embed_shard,
        "write_shard",
        lambda storage, folder, shard, *rest: (
            redone.append(shard.index),
            original(storage, folder, shard, *rest),
        )[1],
    )
    manifest = embed_images(config, "tiny")
    assert manifest.embedded == 20
    assert set(redone).isdisjoint(written)


def test_a_finished_run_is_found_again(workspace: Workspace, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(workspace, photos)
    first = embed_images(config, "tiny")
    monkeypatch.setattr("beam_jobs.embed_images._run_pipeline", lambda *_: pytest.fail("the job ran again"))
    assert embed_images(config, "tiny") == first


def test_a_changed_image_is_another_run(workspace: Workspace, photos: Path) -> None:
    config = _config(workspace, photos)
    first = embed_images(config, "tiny")
    (photos / "00.png").write_bytes(_png(99, (13, 10)))
    assert embed_images(config, "tiny").id != first.id


def test_an_empty_corpus_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is empty"):
        embed_images(_config(workspace, tmp_path / "empty"), "tiny")


def test_a_duplicate_id_shows_both_sources(workspace: Workspace, photos: Path) -> None:
    (photos / "list.txt").write_text("00.png\n00.png\n")
    with pytest.raises(UsageError, match=r"'00.png' names two items"):
        embed_images(_config(workspace, photos / "list.txt"), "tiny")


def test_too_many_rejects_fail_the_job(workspace: Workspace, photos: Path) -> None:
    for index in range(5):
        (photos / f"{index}.txt").write_text("x")
    with pytest.raises(JobError, match=r"5 of 25 inputs were rejected \(5 not_an_image\)"):
        embed_images(_config(workspace, photos, **{"corpus.max_reject_fraction": 0.1}), "tiny")


def test_rejects_that_failed_a_job_are_tried_again(
    workspace: Workspace, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(uri: str, max_bytes: int) -> bytes:
        raise RejectedInput("unreadable", "the file server is down")

    config = _config(workspace, photos)
    with monkeypatch.context() as patch, pytest.raises(JobError, match="20 unreadable"):
        patch.setattr(embed_shard, "read_bytes", unreachable)
        embed_images(config, "tiny")
    manifest = embed_images(config, "tiny")
    assert (manifest.embedded, manifest.rejected, manifest.rejects) == (20, 0, ())


def test_a_link_to_a_folder_is_counted(workspace: Workspace, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    assert embed_images(_config(workspace, photos), "tiny").rejected_by_reason == {"not_a_file": 1}


def test_a_damaged_archive_is_rejected(workspace: Workspace, photos: Path) -> None:
    (photos / "photo.jpg.gz").write_bytes(b"\x1f\x8bbroken")
    assert embed_images(_config(workspace, photos), "tiny").rejected_by_reason == {"not_an_image": 1}


def test_an_unknown_encoder_is_refused(workspace: Workspace, photos: Path) -> None:
    with pytest.raises(UsageError, match="encoders/other is not in workspace"):
        embed_images(_config(workspace, photos), "other")
