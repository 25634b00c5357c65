"""A bounded cache returns what was stored, stays within its limit, and keeps what is in use."""

from __future__ import annotations

import copy
import os
from pathlib import Path

from searchforge.storage.bounded_cache import BoundedCache


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _age(folder: Path) -> None:
    """Makes every cached file look as if it was last used long ago, in the order of the names."""
    for index, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (1000 + index, 1000 + index))


def test_stored_files_are_returned_by_every_process(tmp_path: Path) -> None:
    cache = BoundedCache(tmp_path / "cache", 100)
    assert cache.read("a") is None
    assert cache.write("a", b"content") and cache.write("a", b"content")
    assert BoundedCache(tmp_path / "cache", 100).read("a") == copy.deepcopy(cache).read("a") == b"content"


def test_files_of_earlier_runs_make_room_the_oldest_first(tmp_path: Path) -> None:
    first = BoundedCache(tmp_path, 100)
    assert all(first.write(name, b"x" * 30) for name in "abc")
    _age(tmp_path)
    second = BoundedCache(tmp_path, 100)
    assert second.read("a") == b"x" * 30
    assert second.write("d", b"y" * 40)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c", "d"}
    assert _size(tmp_path) <= 100


def test_files_in_use_are_kept_and_further_ones_are_not_stored(tmp_path: Path) -> None:
    cache = BoundedCache(tmp_path, 100)
    assert cache.write("a", b"x" * 60)
    assert not cache.write("b", b"y" * 60)
    assert not cache.write("c", b"z" * 200)
    assert cache.write("d", b"z" * 40)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "d"}


def test_files_that_other_processes_store_count(tmp_path: Path) -> None:
    mine, other = BoundedCache(tmp_path, 1000), BoundedCache(tmp_path, 1000)
    stored = sum(
        cache.write(f"{number}-{index}", b"x" * 100)
        for index in range(10)
        for number, cache in enumerate((mine, other))
    )
    assert stored == 10
    assert _size(tmp_path) == 1000


def test_a_cache_of_no_size_stores_nothing(tmp_path: Path) -> None:
    assert not BoundedCache(tmp_path / "cache", 0).write("a", b"x")
    assert not (tmp_path / "cache").exists()
