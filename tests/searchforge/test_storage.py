"""Objects are whole or not there, stay inside their root, and a mutable one is replaced by one writer only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from searchforge.errors import ConflictError, JobError, UsageError
from searchforge.local_storage import LocalStorage, make_folder
from searchforge.storage import open_storage


def test_objects_are_written_and_listed(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("a/one.json", b"1")
    storage.write("b/c/two.json", b"2")
    assert storage.read("a/one.json") == b"1"
    assert storage.exists("b/c/two.json") and not storage.exists("b/c")
    assert storage.names("b") == ["c"]
    assert storage.names("none") == []


def test_a_failed_write_leaves_the_old_object_and_no_litter(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("x", b"old")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "missing", "x")
    assert storage.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ""])
def test_a_path_cannot_leave_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="leaves its storage"):
        LocalStorage(str(tmp_path)).write(path, b"")


@pytest.mark.parametrize("root", ["s3://bucket/x", "https://example.com"])
def test_other_schemes_are_refused(root: str) -> None:
    with pytest.raises(UsageError, match="expected a local folder or gs://"):
        open_storage(root)


def test_gcs_needs_a_bucket() -> None:
    with pytest.raises(UsageError, match="names no bucket"):
        open_storage("gs://")


def test_gcs_without_credentials_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="gcloud auth application-default login"):
        open_storage("gs://bucket/prefix")


def test_an_object_is_replaced_only_at_the_version_read(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    assert storage.read_version("current") == (None, "")
    storage.replace("current", b"1", "")
    with pytest.raises(ConflictError):
        storage.replace("current", b"2", "")
    _, version = storage.read_version("current")
    storage.replace("current", b"3", version)
    assert storage.read("current") == b"3"


def test_of_racing_writers_one_wins(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    _, version = storage.read_version("current")

    def write(index: int) -> bool:
        try:
            storage.replace("current", b"%d" % index, version)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(write, range(64))) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"file/sub cannot be created"):
        make_folder(tmp_path / "file" / "sub")


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere, so permissions alone show nothing
    with pytest.raises(JobError, match="is not writable"):
        make_folder(tmp_path)


def test_a_part_of_an_object_is_read(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("a/b", b"0123456789")
    assert storage.read("a/b", 3, 4) == b"3456"
    assert storage.read("a/b", 8, 10) == b"89"
