"""Damaged files give errors, queries allocate nothing, and every kind of source and processor gives the same answer.

The programs beside this file prove it on small files, under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_indexes

from indexer.device.worker import MODULE as PACKING
from searchforge.processes import isolated
from searchforge_reader import DamagedFile, Index
from tests.indexer.random_indexes import Case, make_arrays, make_queries

PROGRAMS = Path(__file__).parent.parent / "build" / "sanitized"
MUTATIONS = 2_500
CASE = Case("float", [1, 2, 3], partitions=4, search_fraction=0.6, count=60)


def ours(session: isolated.Session, folder: Path) -> Path:
    return small_indexes.write(CASE, folder)


def theirs(session: isolated.Session, folder: Path) -> Path:
    """Writes a compressed index of the Task Library's own builder."""
    path, arrays = folder / "theirs.ldb", folder / "arrays.npz"
    np.savez(arrays, **make_arrays(Case("int8", [1, 2, 3], partitions=4, search_fraction=0.6, count=300)))
    settings = {"lut_type": "int8", "search_fraction": 0.6, "compression": True, "user_info": "theirs"}
    session.call({"do": "write_index", "arrays": str(arrays), "index": str(path), **settings})
    return path


def searcher(session: isolated.Session, folder: Path) -> Path:
    """Packs an index into an encoder's file."""
    queries, encoder = folder / "queries.npy", folder / "encoder.tflite"
    np.save(queries, make_queries(CASE, 4))
    session.call({"do": "write", "vectors": str(queries), "encoder": str(encoder)})
    path = folder / "searcher.tflite"
    request = {"folded": str(encoder), "index": str(ours(session, folder)), "searcher": str(path)}
    isolated.call(PACKING, {"step": "pack", **request})
    return path


KINDS = {"ours": ours, "theirs": theirs, "searcher": searcher}
Write = Callable[[isolated.Session, Path], Path]


@pytest.mark.parametrize("write", KINDS.values(), ids=KINDS)
def test_damaged_files_give_errors(write: Write, task_library: isolated.Session, tmp_path: Path) -> None:
    run("damage", write(task_library, tmp_path), MUTATIONS, 1)


@pytest.mark.parametrize("write", KINDS.values(), ids=KINDS)
def test_queries_allocate_nothing_once_memory_is_warm(
    write: Write, task_library: isolated.Session, tmp_path: Path
) -> None:
    run("allocations", write(task_library, tmp_path))


@pytest.mark.parametrize("write", KINDS.values(), ids=KINDS)
def test_every_source_gives_the_same_answer(write: Write, task_library: isolated.Session, tmp_path: Path) -> None:
    run("sources", write(task_library, tmp_path), tmp_path / "larger")


def test_all_kernels_give_the_same_results() -> None:
    run("kernels")


def test_a_searcher_contains_its_index_and_its_files(task_library: isolated.Session, tmp_path: Path) -> None:
    path = searcher(task_library, tmp_path)
    query = make_queries(CASE, 2)[1]
    with Index(path) as packed, Index(tmp_path / "index.ldb") as alone:
        assert packed.search(query) == alone.search(query)
        assert packed.user_info == alone.user_info == small_indexes.USER_INFO
        assert list(packed.files()) == ["encoder.txt"]
        assert packed.files()["encoder.txt"].startswith(b"q0 0\nq1 1\n")


def test_messages_say_what_is_wrong_with_a_file(task_library: isolated.Session, tmp_path: Path) -> None:
    path = searcher(task_library, tmp_path)
    with pytest.raises(ValueError, match="the file is a model without an index; open a searcher"):
        Index(tmp_path / "encoder.tflite")
    with pytest.raises(OSError, match="absent cannot be opened: No such file"):
        Index(tmp_path / "absent")
    with pytest.raises(ValueError, match="is not a file"):
        Index(tmp_path)
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=r"on_device_scann_index.ldb is missing; download the file again"):
        Index(cut)
    table = tmp_path / "index.ldb"
    data = bytearray(table.read_bytes())
    data[40] ^= 1  # a code
    table.write_bytes(data)
    with pytest.raises(DamagedFile, match="the checksum of the block at byte 0 is wrong"):
        Index(table)


def test_any_bytes_are_a_vocabulary_and_a_text() -> None:
    run("tokens", 1_000, 1)


def test_any_bytes_are_a_regular_expression_or_an_error() -> None:
    run("regexes", 3_000, 1)


def test_any_string_is_preprocessing_or_an_error_and_colours_survive_resizing() -> None:
    run("images", 200, 1)


def run(program: str, *arguments: object) -> None:
    ran = subprocess.run([PROGRAMS / program, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-4_000:]
    print(ran.stdout)
