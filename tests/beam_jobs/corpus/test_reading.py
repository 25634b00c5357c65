"""Reading of items: only regular files, within the size limit, and without decompression."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from beam_jobs.corpus.reading import open_file, read_bytes
from searchforge.image_decoding import RejectedInput


def _reason(file: Path | str, *arguments: int) -> str:
    with pytest.raises(RejectedInput) as caught:
        read_bytes(str(file), *(arguments or (100,)))
    return caught.value.reason


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "empty").touch()
    assert read_bytes(str(tmp_path / "a"), 10) == b"0123456789"
    assert read_bytes(str(tmp_path / "empty"), 10) == b""


def test_nothing_is_decompressed(tmp_path: Path) -> None:
    data = gzip.compress(b"text", mtime=0)
    (tmp_path / "photo.jpg.gz").write_bytes(data)
    assert read_bytes(str(tmp_path / "photo.jpg.gz"), 100) == data


def test_a_range_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_bytes(str(tmp_path / "a"), 4, 3, 4) == b"3456"
    assert read_bytes(str(tmp_path / "a"), 4, 3, 0) == b""


def test_oversized_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert _reason(tmp_path / "a", 9) == "too_large"
    assert _reason(tmp_path / "a", 3, 0, 4) == "too_large"


def test_a_range_beyond_the_end_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert _reason(tmp_path / "a", 100, 8, 4) == "truncated"
    assert _reason(tmp_path / "a", 100, 80, 4) == "truncated"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "pipe.tar", tmp_path / "link", "/dev/zero"):
        assert _reason(path) == "not_a_file"
        with pytest.raises(RejectedInput, match="not_a_file"), open_file(str(path), ""):
            pass


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("none", "a/b", "broken"):
        assert _reason(tmp_path / name) == "missing"


def test_an_invalid_path_is_unreadable(tmp_path: Path) -> None:
    assert _reason(tmp_path / ("x" * 300)) == "unreadable"
    assert _reason(f"{tmp_path}/\0") == "unreadable"
    assert _reason("http://localhost/photo.jpg") == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "a").chmod(0)
    assert _reason(tmp_path / "a") == "unreadable"
