"""Embedding of images: accounting, resuming, and bytes that do not depend on how the job runs."""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from beam_jobs.embed import embed, list_corpus
from beam_jobs.embed_images import embed_images, main
from beam_jobs.planning.listing import CorpusListing
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from tests.beam_jobs.corpus.test_archives import tar_bytes
from tests.beam_jobs.photos import draw_photos, embed_config, png, records, rejects, shard_bytes
from tests.tiny_bundle import DIM, write_bundle


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(str(tmp_path_factory.mktemp("workspace")))
    write_bundle(workspace)
    return workspace


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos")


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0"))


def test_every_image_is_embedded_under_its_path(workspace: Workspace, photos: Path) -> None:
    manifest = embed_images(embed_config(workspace, photos), "tiny")
    found = records(workspace, manifest)
    assert found.keys() == {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")}
    for record in found.values():
        assert record.embedding.shape == (DIM,)
        assert np.linalg.norm(record.embedding) == pytest.approx(1, abs=1e-5)
    assert (manifest.inputs, manifest.embedded, manifest.rejected) == (20, 20, 0)


def test_bad_inputs_are_rejected_with_their_reason(workspace: Workspace, photos: Path) -> None:
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "text.jpg").write_bytes(b"not an image at all")
    (photos / "cut.png").write_bytes(png(1)[:-40])
    (photos / "bomb.png").write_bytes(_png_claiming(50_000, 50_000))
    (photos / "big.png").write_bytes(_png_claiming(11_000, 10_000))
    (photos / "long.png").write_bytes(png(2) + b"\0" * 5000)
    manifest = embed_images(embed_config(workspace, photos, corpus__max_bytes=4000), "tiny")
    assert {reject["id"]: reject["reason"] for reject in rejects(workspace, manifest)} == {
        "zero.jpg": "empty",
        "text.jpg": "not_an_image",
        "cut.png": "truncated",
        "bomb.png": "too_many_pixels",
        "big.png": "too_many_pixels",
        "long.png": "too_large",
    }
    assert (manifest.inputs, manifest.embedded, manifest.rejected) == (26, 20, 6)


def test_missing_files_in_a_list_are_rejected(workspace: Workspace, photos: Path) -> None:
    (photos / "list.txt").write_text("00.png\nsub/01.png\ngone.png\n\n")
    manifest = embed_images(embed_config(workspace, photos / "list.txt"), "tiny")
    assert manifest.rejected_by_reason == {"missing": 1}
    assert manifest.inputs == 3


def test_ids_are_relative_to_the_fixed_part_of_a_glob(workspace: Workspace, photos: Path) -> None:
    manifest = embed_images(embed_config(workspace, f"{photos}/sub/*.png"), "tiny")
    assert records(workspace, manifest).keys() == {path.name for path in (photos / "sub").iterdir()}


def test_the_bytes_do_not_depend_on_the_workers(photos: Path, tmp_path: Path) -> None:
    found = []
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    for name, threads, options in (("a", 1, ()), ("b", 4, ()), ("c", None, two)):
        other = Workspace(str(tmp_path / name))
        write_bundle(other)
        config = embed_config(other, photos, embed__beam_options=options, embed__threads=threads)
        found.append(shard_bytes(other, embed_images(config, "tiny")))
    assert found[0] == found[1] == found[2]


def test_tensorflow_agrees_with_litert(photos: Path, tmp_path: Path) -> None:
    found = []
    for backend in ("litert", "tensorflow"):
        other = Workspace(str(tmp_path / backend))
        write_bundle(other)
        manifest = embed_images(embed_config(other, photos, embed__backend=backend, embed__batch_size=3), "tiny")
        assert manifest.backend == backend
        found.append(records(other, manifest))
    for id, record in found[0].items():
        assert record.embedding @ found[1][id].embedding > 0.9999


def test_litert_is_not_used_without_a_verified_tflite_encoder(photos: Path, tmp_path: Path) -> None:
    other = Workspace(str(tmp_path / "workspace"))
    write_bundle(other, tflite=False)
    assert embed_images(embed_config(other, photos), "tiny").backend == "tensorflow"
    with pytest.raises(UsageError, match="litert cannot embed images with encoder tiny, which runs on tensorflow"):
        embed_images(embed_config(other, photos, embed__backend="litert"), "tiny")


def test_a_failed_job_keeps_its_finished_shards(photos: Path, tmp_path: Path) -> None:
    """A folder with the name of the last shard file makes the job fail after the other shards are done."""
    twin, other = (Workspace(str(tmp_path / name)) for name in ("twin", "workspace"))
    for each in (twin, other):
        write_bundle(each)
    names = [shard.name for shard in embed_images(embed_config(twin, photos), "tiny").shards]
    config = embed_config(other, photos)
    with pytest.raises(JobError, match=r"Finished shards are kept in .*; run the command again"):
        embed_images(embed_config(other, photos, embed__runner="NoSuchRunner"), "tiny")
    (folder,) = (tmp_path / "workspace" / "embeddings").iterdir()
    blocked = folder / names[2]
    blocked.mkdir()
    with pytest.raises(JobError, match="cannot be used: Is a directory"):
        embed_images(config, "tiny")
    assert other.ids("embeddings") == []
    finished = [folder / name for name in names[:2]]
    assert len(list(folder.glob("done-*.json"))) == 2
    written = [path.stat() for path in finished]

    blocked.rmdir()
    manifest = embed_images(config, "tiny")
    assert manifest.embedded == 20
    assert [path.stat() for path in finished] == written, "a finished shard was repeated"


def test_a_finished_run_is_not_repeated(workspace: Workspace, photos: Path) -> None:
    first = embed_images(embed_config(workspace, photos), "tiny")
    assert embed_images(embed_config(workspace, photos, embed__runner="NoSuchRunner"), "tiny") == first


def test_a_changed_image_is_another_run(workspace: Workspace, photos: Path) -> None:
    config = embed_config(workspace, photos)
    first = embed_images(config, "tiny")
    (photos / "00.png").write_bytes(png(99, (13, 10)))
    assert embed_images(config, "tiny").id != first.id


def test_an_empty_corpus_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is empty"):
        embed_images(embed_config(workspace, tmp_path / "empty"), "tiny")


def test_what_is_left_out_by_name_is_counted(
    workspace: Workspace, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / ".thumbnails").mkdir()
    (photos / ".thumbnails" / "00.png").write_bytes(png(1))
    (photos / "sub" / "._01.png").write_bytes(b"resource fork")
    config = embed_config(workspace, photos)
    with caplog.at_level("INFO"):
        assert len(list(list_corpus(config, "images"))) == 20
    assert re.search(r"2 files and folders are left out, such as \S+ \(corpus.exclude\)", caplog.text)
    assert len(list(list_corpus(embed_config(workspace, photos, corpus__exclude=[]), "images"))) == 22
    with pytest.raises(UsageError, match=r"is empty: all of it is left out by corpus.exclude"):
        list(list_corpus(embed_config(workspace, photos, corpus__exclude=["*"]), "images"))


def test_of_items_with_one_id_the_first_is_embedded_and_the_others_are_rejects(
    workspace: Workspace, photos: Path
) -> None:
    (photos / "list.csv").write_text("id,path\na,00.png\nb,02.png\na,sub/01.png\na,03.png\n")
    manifest = embed_images(embed_config(workspace, photos / "list.csv"), "tiny")
    assert manifest.rejected_by_reason == {"duplicate_id": 2}
    assert {id: record.uri for id, record in records(workspace, manifest).items()} == {
        "a": str(photos / "00.png"),
        "b": str(photos / "02.png"),
    }
    first = f"{photos / '00.png'} has the same id and comes first; ids must be unique"
    assert sorted((reject["id"], reject["uri"], reject["detail"]) for reject in rejects(workspace, manifest)) == [
        ("a", str(photos / "03.png"), first),
        ("a", str(photos / "sub/01.png"), first),
    ]


def test_duplicate_members_of_an_archive_are_told_apart(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.png", png(1)), ("2.png", png(2)), ("1.png", png(3))]))
    manifest = embed_images(embed_config(workspace, tmp_path / "a.tar"), "tiny")
    assert manifest.records == 2
    (reject,) = rejects(workspace, manifest)
    assert reject["reason"] == "duplicate_id"
    assert f"{tmp_path / 'a.tar'}!1.png at byte 512 has the same id" in reject["detail"]


def test_a_repeated_line_of_a_list_is_counted(workspace: Workspace, photos: Path) -> None:
    (photos / "list.txt").write_text("00.png\n02.png\n00.png\n")
    manifest = embed_images(embed_config(workspace, photos / "list.txt"), "tiny")
    assert (manifest.inputs, manifest.records, manifest.rejected_by_reason) == (3, 2, {"duplicate_id": 1})


def test_columns_of_a_list_become_metadata_of_the_record(workspace: Workspace, photos: Path) -> None:
    (photos / "list.csv").write_text('id,path,title\na,00.png,"A, B"\n')
    manifest = embed_images(embed_config(workspace, photos / "list.csv"), "tiny")
    assert records(workspace, manifest)["a"].metadata == {"title": "A, B"}


def test_too_many_rejects_fail_the_job(workspace: Workspace, photos: Path) -> None:
    for index in range(5):
        (photos / f"{index}.txt").write_text("x")
    with pytest.raises(JobError, match=r"5 of 25 inputs were rejected \(5 not_an_image\)"):
        embed_images(embed_config(workspace, photos, corpus__max_reject_fraction=0.1), "tiny")


def test_rejects_that_failed_a_job_are_retried(workspace: Workspace, photos: Path) -> None:
    """The photos disappear after the corpus is listed, as they would if a file server were down for a while."""
    config = embed_config(workspace, photos, embed__reuse_from="none")
    with CorpusListing() as listing:
        listing.add(list_corpus(config, "images"))
        photos.rename(photos.with_name("away"))
        with pytest.raises(JobError, match="20 missing"):
            embed(config, "tiny", "images", listing)
    photos.with_name("away").rename(photos)
    manifest = embed_images(config, "tiny")
    assert (manifest.embedded, manifest.rejected, manifest.rejects) == (20, 0, ())


def test_a_link_to_a_folder_is_rejected(workspace: Workspace, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    assert embed_images(embed_config(workspace, photos), "tiny").rejected_by_reason == {"not_a_file": 1}


def test_a_name_that_is_not_utf8_is_rejected(workspace: Workspace, photos: Path) -> None:
    (photos / "00.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(JobError, match="1 not_utf8"):
        embed_images(embed_config(workspace, photos, corpus__max_reject_fraction=0.0), "tiny")
    manifest = embed_images(embed_config(workspace, photos), "tiny")
    assert manifest.rejected_by_reason == {"not_utf8": 1}
    (name,) = manifest.rejects
    reject = json.loads(workspace.storage.read(f"embeddings/{manifest.id}/{name}"))
    assert (reject["id"], reject["uri"]) == ("caf\\xe9.png", f"{photos}/caf\\xe9.png")


def test_a_compressed_file_is_not_decompressed(workspace: Workspace, photos: Path) -> None:
    (photos / "photo.jpg.gz").write_bytes(b"\x1f\x8bbroken")
    assert embed_images(embed_config(workspace, photos), "tiny").rejected_by_reason == {"not_an_image": 1}


def test_an_unknown_encoder_is_refused(workspace: Workspace, photos: Path) -> None:
    with pytest.raises(UsageError, match="encoders/other is not in workspace"):
        embed_images(embed_config(workspace, photos), "other")


def test_the_report_adds_up(workspace: Workspace, photos: Path) -> None:
    (photos / "copy.png").write_bytes(png(0))
    (photos / "bad.png").write_bytes(b"?")
    manifest = embed_images(embed_config(workspace, photos, embed__reuse_from="none"), "tiny")
    report = json.loads(workspace.storage.read(f"embeddings/{manifest.id}/report.json"))
    assert (report["inputs"], report["embedded"], report["reused"], report["rejected"]) == (22, 20, 1, 1)
    assert report["bytes_read"] == 1 + sum(len(png(index)) for index in range(20))
    assert report["bytes_written"] == sum(shard.bytes for shard in manifest.shards)
    assert report["batch_size"]["sum"] == report["batch_ms"]["count"] == 20


def test_the_command_passes_options_to_beam(workspace: Workspace, photos: Path) -> None:
    arguments = ["--workspace", workspace.root, "--encoder", "tiny", "--corpus", str(photos), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--reuse-from", "none", "--direct_num_workers=1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["embedded"] == 20
    result = CliRunner().invoke(main, [*arguments, "--corpus", str(photos / "sub"), "--runner", "NoSuchRunner"])
    assert result.exit_code == 1
    assert "the Beam job failed" in result.output
