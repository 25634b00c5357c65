"""Corpora in a bucket of a real Google Cloud Storage server."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
from pathlib import Path

import pytest

from beam_jobs.corpus.corpus import list_images, list_texts
from beam_jobs.corpus.items import Item
from beam_jobs.corpus.patterns import Exclusion
from beam_jobs.corpus.reading import read_bytes
from beam_jobs.embed import EmbedMethod
from beam_jobs.embed_images import embed_images
from beam_jobs.embedding.embedder import Embedder
from beam_jobs.planning.shards import RecordLocation, Task
from searchforge.artifacts.records import TFRECORD_HEADER, EmbeddingRecord, iterate_tfrecords
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from searchforge.image_decoding import RejectedInput
from searchforge.storage.factory import open_storage
from searchforge.storage.gcs_client import gcs_client
from tests.beam_jobs.corpus.test_archives import tar_bytes, tf_example, tfrecord_bytes
from tests.beam_jobs.photos import draw_photos, embed_config, png
from tests.integration.faulty_proxy import faulty_proxy
from tests.tiny_bundle import write_bundle

pytestmark = pytest.mark.integration


def _write(bucket: str, files: dict[str, bytes]) -> None:
    storage = open_storage(bucket)
    for name, data in files.items():
        storage.write(name, data)


def _images(source: str) -> dict[str, Item]:
    return {item.id: item for item in list_images(source)}


def _bytes(item: Item) -> bytes:
    return read_bytes(item.file, 10**7, item.offset, item.size)


def test_a_prefix_lists_every_object_below_it(bucket: str) -> None:
    files = {f"photos/{index}/Käfer {index}.jpg": b"%d" % index for index in range(10)}
    _write(bucket, {**files, "photos-too/x.jpg": b"x", "photos/folder/": b""})
    items = _images(f"{bucket}/photos")
    assert items == _images(f"{bucket}/photos/")
    assert {f"photos/{id}": _bytes(item) for id, item in items.items()} == files
    assert _images(bucket).keys() == {*files, "photos-too/x.jpg"}
    for item in items.values():
        assert item.uri == item.file == f"{bucket}/photos/{item.id}"
        assert item.content == f"md5:{hashlib.md5(_bytes(item)).hexdigest()}"
        assert item.size == 1 and item.version.isdigit()
    before = items["0/Käfer 0.jpg"]
    _write(bucket, {"photos/0/Käfer 0.jpg": b"0"})
    after = _images(f"{bucket}/photos")["0/Käfer 0.jpg"]
    assert before.version != after.version and before.content == after.content


def test_a_glob_lists_objects_relative_to_its_fixed_part(bucket: str) -> None:
    _write(bucket, dict.fromkeys(["a/1.jpg", "a/2.png", "a/b/3.jpg", "c/4.jpg", "odd[1].jpg"], b"x"))
    assert _images(f"{bucket}/a/*.jpg").keys() == {"1.jpg"}
    assert _images(f"{bucket}/**/*.jpg").keys() == {"a/1.jpg", "a/b/3.jpg", "c/4.jpg", "odd[1].jpg"}
    assert _images(f"{bucket}/none/*.jpg") == {}


def test_lists_and_texts_can_be_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    _write(
        bucket,
        {
            "photos/a.jpg": b"a",
            "list.csv": f"path,id,author\nphotos/a.jpg,17,Ada\n{bucket}/photos/gone.jpg,,\ngs://,,\n".encode(),
            "texts/a.txt": b"one\ntwo\n" + b"x" * 300_000 + b"\nlast\n",
        },
    )
    items = _images(f"{bucket}/list.csv")
    assert items["17"].metadata == {"author": "Ada"}
    assert _bytes(items["17"]) == b"a"
    assert items[f"{bucket}/photos/gone.jpg"].version == "" == items["gs://"].version
    with pytest.raises(RejectedInput, match="missing"):
        _bytes(items[f"{bucket}/photos/gone.jpg"])
    with pytest.raises(RejectedInput, match="unreadable"):
        _bytes(items["gs://"])
    (tmp_path / "list.txt").write_text(f"{bucket}/photos/a.jpg\n")
    assert _bytes(_images(str(tmp_path / "list.txt"))[f"{bucket}/photos/a.jpg"]) == b"a"
    assert {item.id: item.text for item in list_texts(f"{bucket}/texts")} == {
        "a.txt:1": "one",
        "a.txt:2": "two",
        "a.txt:3": "x" * 300_000,
        "a.txt:4": "last",
    }


def test_archives_can_be_in_a_bucket(bucket: str) -> None:
    """One image is larger than the 8 MiB that are read from an archive at a time."""
    images = {
        f"{index}.jpg": random.Random(index).randbytes(9_000_000 if index == 3 else 10_000) for index in range(30)
    }
    sample = [pair for name, data in images.items() for pair in ((name, data), (f"{name[:-4]}.json", b'{"a": 1}'))]
    data = tar_bytes(sample)
    records = tfrecord_bytes(tf_example(image=image, id=name.encode()) for name, image in images.items())
    _write(bucket, {"a.tar": data, "b.tfrecord": records, "cut.tar": data[:20_000]})
    items = _images(bucket)
    for archive in ("a.tar", "b.tfrecord"):
        assert {name: _bytes(items[f"{archive}/{name}"]) for name in images} == images
    assert items["a.tar/29.jpg"].metadata == {"a": 1}
    assert [item.id for item in items.values() if item.reject] == ["cut.tar"]
    assert items["cut.tar"].reject == "damaged_archive"
    assert _bytes(items["cut.tar/0.jpg"]) == images["0.jpg"]


def test_parts_of_objects_are_read(bucket: str) -> None:
    data = random.Random(0).randbytes(400)
    _write(bucket, {"a.txt": data, "empty": b""})
    assert read_bytes(f"{bucket}/a.txt", 1000) == data
    assert read_bytes(f"{bucket}/a.txt", 1000, 3, 5) == data[3:8]
    assert read_bytes(f"{bucket}/empty", 10) == b""
    for arguments, reason in {
        (f"{bucket}/a.txt", 10): "too_large",
        (f"{bucket}/a.txt", 1000, len(data) - 2, 5): "truncated",
        (f"{bucket}/a.txt", 1000, 5000, 5): "truncated",
        (f"{bucket}/none", 10): "missing",
        ("gs://no-such-bucket-here/a", 10): "missing",
    }.items():
        with pytest.raises(RejectedInput, match=reason):
            read_bytes(*arguments)  # type: ignore[arg-type]


def test_objects_that_are_stored_with_gzip_are_decompressed_up_to_the_limit(bucket: str) -> None:
    def write(name: str, data: bytes) -> None:
        blob = gcs_client().bucket(bucket.removeprefix("gs://")).blob(name)
        blob.content_encoding = "gzip"
        blob.upload_from_string(data)

    photo, damaged = png(1), gzip.compress(random.Random(0).randbytes(10**5))[:50_000]
    write("photos/a.png", gzip.compress(photo))
    write("photos/bomb.png", gzip.compress(b"0" * 10**7))
    write("photos/damaged.png", damaged)
    write("list.csv", gzip.compress(f"path,id\n{bucket}/photos/a.png,7\n".encode()))
    write("damaged.csv", damaged)
    assert read_bytes(f"{bucket}/photos/a.png", 10**6) == open_storage(bucket).read("photos/a.png") == photo
    assert read_bytes(f"{bucket}/photos/damaged.png", 10**6) == damaged
    with pytest.raises(RejectedInput, match="too_large"):
        read_bytes(f"{bucket}/photos/bomb.png", 10**6)
    with pytest.raises(RejectedInput, match="stored with Content-Encoding: gzip"):
        read_bytes(f"{bucket}/photos/a.png", 1000, 3, 5)
    assert _images(f"{bucket}/list.csv").keys() == {"7"}
    with pytest.raises(UsageError, match=r"corpus \S+/damaged.csv cannot be used"):
        _images(f"{bucket}/damaged.csv")


def test_an_empty_object_with_the_name_of_a_folder_does_not_hide_it(bucket: str) -> None:
    _write(bucket, {"photos": b"", "photos/": b"", "photos/a.jpg": b"a", "empty.txt": b""})
    assert _images(f"{bucket}/photos").keys() == {"a.jpg"}
    assert _images(f"{bucket}/empty.txt") == {}


def test_names_to_leave_out_apply_to_objects(bucket: str) -> None:
    _write(bucket, dict.fromkeys(["a.jpg", ".thumbs/a.jpg", "b/@eaDir/c.jpg/x.jpg", "b/c.jpg"], b"x"))
    exclusion = Exclusion((".*", "@eaDir"))
    assert {item.id for item in list_images(bucket, exclusion)} == {"a.jpg", "b/c.jpg"}
    assert exclusion.count == 2


def test_a_missing_bucket_is_reported(bucket: str) -> None:
    with pytest.raises(UsageError, match=r"gs://no-such-bucket-here.* does not exist"):
        _images("gs://no-such-bucket-here/photos")
    assert _images(f"{bucket}/none") == {}
    with pytest.raises((UsageError, JobError)):
        _images("gs://No Bucket/x")


def test_what_a_bucket_refused_is_embedded_by_the_next_run(
    bucket: str, gcs_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(str(tmp_path / "workspace"))
    write_bundle(workspace)
    _write(bucket, {f"photos/{index:02}.png": png(index) for index in range(20)})
    config = embed_config(workspace, f"{bucket}/photos")
    with faulty_proxy(gcs_host) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        proxy.reset(lambda request: "403" if "07.png" in request.path else "")
        first = embed_images(config, "tiny")
        assert (first.rejected_by_reason, first.retryable, first.records) == ({"unreadable": 1}, 1, 19)
        proxy.reset(lambda request: "403" if "alt=media" in request.path else "")
        assert embed_images(config, "tiny") == first
        proxy.reset(lambda request: "")
        second = embed_images(config, "tiny")
    assert (second.embedded, second.reused, second.rejected) == (1, 19, 0)


def test_a_worker_reads_only_the_records_that_it_copies(
    bucket: str, gcs_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(f"{bucket}/workspace")
    write_bundle(workspace)
    config = embed_config(workspace, draw_photos(tmp_path / "photos"))
    manifest = embed_images(config, "tiny")
    shard, other = manifest.shards[:2]
    path = f"embeddings/{manifest.id}/{shard.name}"
    record = next(iterate_tfrecords(io.BytesIO(workspace.storage.read(path))))
    location = RecordLocation(manifest.id, shard.name, TFRECORD_HEADER, len(record))
    item = Item("moved", "photos/moved.png", "photos/moved.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "worker"))
    with faulty_proxy(gcs_host) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        outcome = Embedder(EmbedMethod(config, "tiny", "images").options("unused")).embed([Task((item,), location)])
        read = [request.path for request in proxy.requests if "embeddings" in request.path]
    (copied,) = outcome.records
    assert (copied.id, copied.embedding.tobytes()) == ("moved", EmbeddingRecord.from_bytes(record).embedding.tobytes())
    assert len(read) == 1 and shard.name in read[0] and other.name not in read[0]
