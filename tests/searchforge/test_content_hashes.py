"""Remembered hashes are those of the files as they are now; what cannot be hashed is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from searchforge import content_hashes as module
from searchforge.content_hashes import content_hashes
from searchforge.hashing import sha256_bytes

OLD = (1_000_000_000, 1_000_000_000)


def _settled(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, OLD)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read; files count as settled at once."""
    found: list[Path] = []
    original = module.sha256_file

    def sha256_file(path: Path) -> str:
        found.append(path)
        return original(path)

    monkeypatch.setattr(module, "sha256_file", sha256_file)
    monkeypatch.setattr(module, "_SETTLED_NS", -1)
    return found


def test_unchanged_files_are_read_once(tmp_path: Path, reads: list[Path]) -> None:
    paths = [_settled(tmp_path / name, name.encode()) for name in "ab"]
    cache = tmp_path / "cache.json"
    expected = {path: sha256_bytes(path.name.encode()) for path in paths}
    assert content_hashes(paths, cache) == content_hashes([*paths, paths[0]], cache) == (expected, {})
    assert sorted(reads) == paths


def test_a_file_of_the_same_size_and_time_but_other_content_is_noticed(tmp_path: Path, reads: list[Path]) -> None:
    path = _settled(tmp_path / "a", b"one")
    content_hashes([path], tmp_path / "cache.json")
    _settled(path, b"two")
    assert content_hashes([path], tmp_path / "cache.json")[0] == {path: sha256_bytes(b"two")}


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    content_hashes([path], tmp_path / "cache.json")
    assert (tmp_path / "cache.json").read_text() == "{}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": [1, 2]}', b"\xff"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, reads: list[Path], content: bytes) -> None:
    path = _settled(tmp_path / "a", b"one")
    cache = tmp_path / "cache.json"
    cache.write_bytes(content)
    for _ in range(2):
        assert content_hashes([path], cache)[0] == {path: sha256_bytes(b"one")}
    assert reads == [path]


def test_missing_and_empty_files_are_said(tmp_path: Path) -> None:
    empty = _settled(tmp_path / "empty", b"")
    hashes, failed = content_hashes([empty, tmp_path / "gone", tmp_path], tmp_path / "cache.json")
    assert hashes == {}
    assert failed == {
        empty: "0 bytes",
        tmp_path / "gone": "No such file or directory",
        tmp_path: "Is a directory",
    }
