"""Writes are atomic, paths stay inside the root, and of concurrent replacements only one succeeds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.storage.base import Storage
from searchforge.storage.factory import open_storage
from searchforge.storage.files import make_folder
from searchforge.storage.local import LocalStorage
from tests.infra.memory_storage import MemoryStorage

# The contract of Storage. Other tests use the in-memory storage instead of a folder, so it is tested, too.


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return LocalStorage(str(tmp_path / "root")) if request.param == "folder" else MemoryStorage()


def test_objects_are_written_and_listed(storage: Storage) -> None:
    storage.write("a/one.json", b"1")
    storage.write("b/c/two.json", b"2")
    storage.write("b/three.json", b"3")
    assert storage.read("a/one.json") == b"1"
    assert storage.exists("b/c/two.json") and not storage.exists("b/c") and not storage.exists("b/c/none")
    assert (storage.list_folders("b"), storage.list_files("b")) == (["c"], ["three.json"])
    assert (storage.list_folders("none"), storage.list_files("none")) == ([], [])
    storage.write("a/one.json", b"again")
    assert storage.read("a/one.json") == b"again"


@pytest.mark.parametrize("read", ["read", "modified"])
def test_a_missing_object_is_not_found(storage: Storage, read: str) -> None:
    storage.write("a/one", b"1")
    with pytest.raises(FileNotFoundError):
        getattr(storage, read)("a/none")


def test_part_of_an_object_is_read(storage: Storage) -> None:
    storage.write("a/b", b"0123456789")
    assert storage.read("a/b", 3, 4) == b"3456"
    assert storage.read("a/b", 8, 10) == b"89"
    assert storage.read("a/b", 8) == b"89" and storage.read("a/b", 10, 5) == b""


def test_a_failed_write_keeps_the_old_object_and_leaves_no_temporary_file(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/x", b"old")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "missing", "a/x")
    assert storage.read("a/x") == b"old"
    assert storage.list_files("a") == ["x"]


def test_files_are_uploaded_and_folders_downloaded(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    storage.upload(tmp_path / "local", "a/x")
    storage.write("a/sub/y", b"below")
    storage.write("ab/z", b"elsewhere")
    storage.download_folder("a", tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*")}
    assert copied == {"x", "sub", "sub/y"}
    assert (tmp_path / "copy" / "x").read_bytes() == b"content"
    assert (tmp_path / "copy" / "sub" / "y").read_bytes() == b"below"


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ""])
def test_a_path_cannot_leave_the_root(storage: Storage, path: str) -> None:
    with pytest.raises(UsageError, match="leaves its storage"):
        storage.write(path, b"")
    with pytest.raises(UsageError, match="leaves its storage"):
        storage.read(path)


def test_an_object_is_replaced_only_at_the_version_read(storage: Storage) -> None:
    assert storage.read_version("current") == (None, "")
    storage.replace("current", b"1", "")
    with pytest.raises(ConflictError):
        storage.replace("current", b"2", "")
    content, version = storage.read_version("current")
    assert content == b"1"
    storage.replace("current", b"3", version)
    assert storage.read("current") == b"3"
    with pytest.raises(ConflictError):
        storage.replace("current", b"4", version)
    storage.delete("current")
    with pytest.raises(ConflictError):
        storage.replace("current", b"5", version)
    assert storage.read_version("current") == (None, "")


def test_equal_content_is_the_same_version(storage: Storage) -> None:
    storage.write("x", b"1")
    version = storage.read_version("x")[1]
    storage.write("x", b"2")
    storage.write("x", b"1")
    assert storage.read_version("x")[1] == version


def test_an_object_is_deleted_only_at_the_version_that_was_read(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/x", b"1")
    _, version = storage.read_version("a/x")
    storage.replace("a/x", b"2", version)
    storage.delete("a/x", version)
    assert storage.read("a/x") == b"2"
    storage.delete("a/x", storage.read_version("a/x")[1])
    storage.delete("a/x", version)
    storage.delete("a/x")
    assert not storage.exists("a/x") and storage.list_files("a") == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "the lock file is also deleted"


def test_one_of_several_racing_writers_wins(storage: Storage) -> None:
    _, version = storage.read_version("current")

    def write(index: int) -> bool:
        try:
            storage.replace("current", b"%d" % index, version)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(write, range(64))) == 1


def test_a_snapshot_contains_sizes_and_times(storage: Storage) -> None:
    before = storage.now()
    storage.write("a/x", b"123")
    storage.write("a/sub/y", b"")
    with storage.snapshot("a") as snapshot:
        assert {name: found.bytes for name, found in snapshot.objects.items()} == {"x": 3, "sub/y": 0}
        times = {name: found.modified for name, found in snapshot.objects.items()}
    assert times == {"x": storage.modified("a/x"), "sub/y": storage.modified("a/sub/y")}
    after, slack = storage.now(), timedelta(seconds=1)  # a file system's clock is coarse
    assert all(before - slack <= time <= after + slack and time.tzinfo == timezone.utc for time in times.values())
    with storage.snapshot("none") as snapshot:
        assert snapshot.objects == {}
        snapshot.delete()


@pytest.mark.parametrize("first", ["", "2"])
def test_a_snapshot_deletes_only_the_objects_it_listed(storage: Storage, first: str) -> None:
    for path in ("a/1", "a/2", "a/sub/3", "b/4"):
        storage.write(path, b"old")
    with storage.snapshot("a") as snapshot:
        storage.write("a/late", b"new")
        storage.write("a/sub/late", b"new")
        snapshot.delete(first)
    assert (storage.list_files("a"), storage.list_files("a/sub"), storage.list_files("b")) == (
        ["late"],
        ["late"],
        ["4"],
    )
    storage.delete_folder("a")
    storage.delete_folder("none")
    assert (storage.list_files("a"), storage.list_folders("a")) == ([], [])


# Features of the in-memory storage.


def test_clients_share_objects_and_forks_do_not() -> None:
    storage = MemoryStorage()
    storage.write("a/x", b"1")
    other, fork = storage.another_client(), storage.fork()
    other.write("a/x", b"2")
    fork.write("a/y", b"3")
    assert (storage.read("a/x"), fork.read("a/x"), storage.list_files("a")) == (b"2", b"1", ["x"])


def test_the_clock_of_the_in_memory_storage_can_be_advanced() -> None:
    storage = MemoryStorage()
    storage.write("x", b"1")
    written = storage.modified("x")
    storage.advance(timedelta(days=3))
    assert storage.modified("x") == written
    assert timedelta(days=3) <= storage.now() - written < timedelta(days=3, hours=1)


# Opening a storage, and local folders.


def test_a_failed_upload_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("x", b"old")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "missing", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("root", ["s3://bucket/x", "https://example.com"])
def test_other_schemes_are_refused(root: str) -> None:
    with pytest.raises(UsageError, match="expected a local folder or gs://"):
        open_storage(root)


def test_gcs_needs_a_bucket() -> None:
    with pytest.raises(UsageError, match="names no bucket"):
        open_storage("gs://")


def test_missing_gcs_credentials_are_reported_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="gcloud auth application-default login"):
        open_storage("gs://bucket/prefix")


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"file/sub cannot be created"):
        make_folder(tmp_path / "file" / "sub")


def test_a_folder_that_is_not_writable_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write regardless of permissions
    with pytest.raises(JobError, match="is not writable"):
        make_folder(tmp_path)
