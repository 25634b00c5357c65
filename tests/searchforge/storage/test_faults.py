"""A full disk, missing permissions, or a stopped or killed writer gives one message and leaves objects unchanged."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from searchforge.errors import JobError
from searchforge.storage.files import locked
from searchforge.storage.local import LocalStorage

NOBODY = 65534


def _run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    prelude = "import os, sys\nfrom pathlib import Path\nfrom searchforge.errors import SearchforgeError\n"
    prelude += "from searchforge.storage.local import LocalStorage\nstorage = LocalStorage(sys.argv[1])\n"
    body = "".join(f"    {line}\n" for line in code.splitlines())
    guarded = f"{prelude}try:\n{body}except SearchforgeError as error:\n    sys.exit(f'error: {{error}}')\n"
    command = [sys.executable, "-c", guarded, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("call", ["write('x', b'n' * 100_000)", "replace('x', b'n' * 100_000, version)", "upload"])
def test_a_disk_that_fills_up_keeps_the_old_object(tmp_path: Path, call: str) -> None:
    """A file size limit simulates a full disk: the write fails midway."""
    storage = LocalStorage(str(tmp_path / "root"))
    storage.write("x", b"old")
    (tmp_path / "large").write_bytes(b"n" * 100_000)
    call = f"upload(Path({str(tmp_path / 'large')!r}), 'x')" if call == "upload" else call
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n_, version = storage.read_version('x')\nstorage.{call}"  # noqa: E501
    result = _run(code, storage.root)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "root/x cannot be used: File too large" in result.stderr
    assert storage.read("x") == b"old"
    assert {path.name for path in Path(storage.root).iterdir()} <= {"x", ".x.lock"}


def test_a_full_disk_is_reported_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(JobError, match=r"x cannot be used: No space left on device; free some space"):
        storage.write("x", b"new")
    assert storage.read("x") == b"old" and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
@pytest.mark.parametrize(
    "call",
    [
        "write('a/x', b'new')",
        "replace('a/x', b'new', '')",
        "delete('a/x')",
        "read('a/x')",
        "exists('a/x')",
        "now()",
        "list_files('a')",
    ],
)
def test_missing_permissions_are_reported(tmp_path: Path, call: str) -> None:
    storage = LocalStorage(str(tmp_path / "root"))
    storage.write("a/x", b"old")
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/") and path.stat().st_mode & 0o001 == 0 and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    (tmp_path / "root" / "a").chmod(0o700)
    (tmp_path / "root").chmod(0o755)
    result = _run(f"os.setuid({NOBODY})\nstorage.{call}", storage.root)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert f"{storage.root}" in result.stderr
    assert "not writable" in result.stderr or "Permission denied" in result.stderr
    assert storage.read("a/x") == b"old"


def _holder(storage: LocalStorage) -> subprocess.Popen[str]:
    """Starts a process that never finishes replacing `x`."""
    code = (
        "import sys, time\nfrom searchforge.storage.local import LocalStorage\n"
        "storage = LocalStorage(sys.argv[1])\n_, version = storage.read_version('x')\n"
        "storage.write = lambda *_: (print('inside', flush=True), time.sleep(600))\n"
        "storage.replace('x', b'never', version)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, storage.root], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "inside\n"
    return process


def test_a_stopped_writer_is_reported_and_does_not_block_forever(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path), lock_seconds=0.3)
    storage.write("x", b"old")
    _, version = storage.read_version("x")
    holder = _holder(storage)
    try:
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(JobError, match=rf"\.x\.lock has been locked for .* by process {holder.pid}; if it is"):
            storage.replace("x", b"new", version)
        assert storage.read("x") == b"old"
        storage.replace("y", b"other", "")
    finally:
        holder.kill()
        holder.wait()
    storage.replace("x", b"new", version)
    assert storage.read("x") == b"new"


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    _, version = storage.read_version("x")
    holder = _holder(storage)
    holder.kill()
    holder.wait()
    storage.replace("x", b"new", version)
    assert storage.read("x") == b"new"


def test_deleting_a_lock_never_admits_two_writers(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(30):
            with locked(tmp_path / "x") as lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1
                if rng.random() < 0.5:
                    lock.unlink()  # the last action of a holder

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert most == [1]


@pytest.mark.parametrize("gone", ["1", "sub", "sub/3"])
def test_a_snapshot_lacks_only_files_deleted_while_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    storage = LocalStorage(str(tmp_path))
    for name in ("1", "2", "sub/2", "sub/3"):
        storage.write(f"a/{name}", b"data")
    list_folder = os.scandir

    def delete_after_listing(folder: int) -> contextlib.AbstractContextManager[list[os.DirEntry[str]]]:
        with list_folder(folder) as entries:
            listed = list(entries)
        if gone.rpartition("/")[2] in {entry.name for entry in listed}:
            (tmp_path / "a" / gone).rename(tmp_path / "gone")
        return contextlib.nullcontext(listed)

    monkeypatch.setattr(os, "scandir", delete_after_listing)
    with storage.snapshot("a") as snapshot:
        remaining = {name for name in ("1", "2", "sub/2", "sub/3") if name != gone and not name.startswith(f"{gone}/")}
        assert snapshot.objects.keys() == remaining


def test_a_snapshot_deletes_only_the_files_it_listed(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    for path in ("a/1", "a/sub/2", "a/sub/3"):
        storage.write(path, b"old")
    with storage.snapshot("a") as snapshot:
        assert snapshot.objects.keys() == {"1", "sub/2", "sub/3"}
        (tmp_path / "a").rename(tmp_path / "moved")
        storage.write("a/1", b"new")
        snapshot.delete(first="1")
    assert storage.read("a/1") == b"new" and storage.list_files("moved") == []
    with storage.snapshot("a") as snapshot:
        storage.write("a/late", b"new")
        snapshot.delete()
    assert storage.list_files("a") == ["late"]
    storage.delete_folder("a")
    storage.delete_folder("none")
    assert not (tmp_path / "a").exists()
