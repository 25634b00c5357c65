"""Cached hashes are those of the current files, and files that cannot be hashed are reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from searchforge.captions.content_hashes import MIN_AGE_SECONDS, content_hashes
from searchforge.captions.image_folder import LocalImageFolder
from searchforge.hashing import sha256_bytes
from tests.opened_files import opened_files

OLD = (1_000_000_000, 1_000_000_000)


def _write_old(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, OLD)
    return path


def _hashes(paths: list[Path], cache: Path, min_age_seconds: float = 0) -> tuple[dict[Path, str], dict[Path, str]]:
    """Hashes files and by default caches all hashes, whatever the age of the file."""
    folder = LocalImageFolder(paths[0].parent)
    hashes, failed = content_hashes(folder, map(str, paths), cache, min_age_seconds)
    return {Path(uri): hash for uri, hash in hashes.items()}, {Path(uri): why for uri, why in failed.items()}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def test_unchanged_files_are_read_once(files: Path, tmp_path: Path) -> None:
    paths = [_write_old(files / name, name.encode()) for name in "ab"]
    cache = tmp_path / "cache.json"
    expected = {path: sha256_bytes(path.name.encode()) for path in paths}
    with opened_files(files) as opened:
        assert _hashes(paths, cache) == _hashes([*paths, paths[0]], cache) == (expected, {})
    assert sorted(opened) == paths


def test_changed_content_of_the_same_size_and_time_is_detected(tmp_path: Path) -> None:
    path = _write_old(tmp_path / "a", b"one")
    _hashes([path], tmp_path / "cache.json")
    _write_old(path, b"two")
    assert _hashes([path], tmp_path / "cache.json")[0] == {path: sha256_bytes(b"two")}


def test_the_hash_of_a_recently_written_file_is_not_cached(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    _hashes([path], tmp_path / "cache.json", MIN_AGE_SECONDS)
    assert (tmp_path / "cache.json").read_text() == "{}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": [1, 2]}', b"\xff"])
def test_a_damaged_cache_is_replaced(files: Path, tmp_path: Path, content: bytes) -> None:
    path = _write_old(files / "a", b"one")
    cache = tmp_path / "cache.json"
    cache.write_bytes(content)
    with opened_files(files) as opened:
        for _ in range(2):
            assert _hashes([path], cache)[0] == {path: sha256_bytes(b"one")}
    assert opened == [path]


def test_missing_and_empty_files_are_reported(tmp_path: Path) -> None:
    empty = _write_old(tmp_path / "empty", b"")
    hashes, failed = _hashes([empty, tmp_path / "gone", tmp_path], tmp_path / "cache.json")
    assert hashes == {}
    assert failed == {
        empty: "0 bytes",
        tmp_path / "gone": "No such file or directory",
        tmp_path: "Is a directory",
    }


def test_a_killed_run_keeps_what_it_has_hashed(files: Path, tmp_path: Path) -> None:
    class Killed(LocalImageFolder):
        def sha256(self, uri: str) -> str:
            if uri == last:
                raise KeyboardInterrupt
            return super().sha256(uri)

    paths = [_write_old(files / f"{index:04}", b"%d" % index) for index in range(1200)]
    cache, last = tmp_path / "cache.json", str(paths[-1])
    with pytest.raises(KeyboardInterrupt):
        content_hashes(Killed(files), map(str, paths), cache, min_age_seconds=0)
    with cache.open("ab") as file:
        file.write(b'{"cut')
    with opened_files(files) as opened:
        hashes, failed = _hashes(paths, cache)
    assert sorted(opened) == paths[1000:]
    assert (hashes, failed) == ({path: sha256_bytes(path.read_bytes()) for path in paths}, {})
