"""The disk cache of the tests creates each folder once, and completely."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cached import cached


def test_concurrent_callers_create_the_folder_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "first").write_text("1")
        time.sleep(0.05)
        (folder / "second").write_text("2")

    def ask(_: int) -> list[str]:
        return sorted(path.name for path in cached("two-files", [1], make, tmp_path).iterdir())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [["first", "second"]] * 8
    assert len(made) == 1


def test_another_key_is_another_folder(tmp_path: Path) -> None:
    folders = {cached("empty", key, lambda folder: None, tmp_path) for key in ([1], [2], [1])}
    assert len(folders) == 2


def test_an_incomplete_folder_is_created_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        cached("whole", 0, fail, tmp_path)
    folder = cached("whole", 0, lambda folder: (folder / "all").touch(), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["all"]
