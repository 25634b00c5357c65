"""Fetching survives what happens to large downloads, and believes no archive whose content is not the known one."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from infra.cli.commands import main
from infra.datasets import ATTEMPTS, DATASETS, Archive, Dataset, FetchReport, fetch, summary
from searchforge.captions.dataset import load_captions, split_heldout
from searchforge.config import load_config
from searchforge.errors import JobError
from tests.infra.manual_clock import ManualClock


class _Server(ThreadingHTTPServer):
    """Serves `files` on the loopback, as object stores do it, with the faults that a test switches on.

    Attributes:
      requests: path and Range header of each.
      ranges: whether parts are sent.
      stop_after: bytes of each answer after which the connection is closed.
      failures: so many answers are 503.
      sent: is called after each answer with its path, before the connection is closed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.stop_after: int | None = None
        self.failures = 0
        self.sent: Callable[[str], object] = lambda path: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        data = server.files.get(self.path)
        if server.failures:
            server.failures -= 1
            self.send_error(503)
        elif data is None:
            self.send_error(404)
        else:
            self._send(data, wanted)

    def _send(self, data: bytes, wanted: str | None) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        if wanted and self.server.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = None if self.server.stop_after is None else start + self.server.stop_after
        self.wfile.write(data[start:end])
        self.server.sent(self.path)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return buffer.getvalue()


def _captions(split: str, numbers: range) -> bytes:
    images = [{"id": number, "file_name": f"COCO_{split}2014_{number:012d}.jpg"} for number in numbers]
    annotations = [{"image_id": number, "caption": f"picture {number}"} for number in numbers]
    return json.dumps({"images": images, "annotations": annotations}).encode()


ARCHIVES = {
    "annotations_trainval2014.zip": {
        "annotations/captions_train2014.json": _captions("train", range(6)),
        "annotations/captions_val2014.json": _captions("val", range(6, 8)),
        "annotations/instances_val2014.json": b"{}",
    },
    "train2014.zip": {f"train2014/COCO_train2014_{i:012d}.jpg": bytes([i]) * 1000 for i in range(6)},
    "val2014.zip": {f"val2014/COCO_val2014_{i:012d}.jpg": bytes([i]) * 1000 for i in range(6, 8)},
}


def _dataset(server: _Server, changed: dict[str, dict[str, bytes]] | None = None) -> Dataset:
    """Puts small archives on the server, and describes them as the real ones are described."""
    archives = []
    for real in DATASETS["coco2014"].archives:
        members = {**ARCHIVES, **(changed or {})}[real.name]
        data = _zip(members)
        server.files[f"/{real.name}"] = data
        values = {
            **vars(real),
            "url": f"{server.url}/{real.name}",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "files": sum(map(real.takes, members)),
        }
        archives.append(Archive(**values))
    return Dataset("coco2014", 2014, tuple(archives))


def _fetch(dataset: Dataset, folder: Path, **options: Any) -> FetchReport:
    return fetch(dataset, folder, **{"clock": ManualClock(), **options})


def _files(folder: Path) -> dict[str, bytes]:
    """What was unpacked."""
    paths = (path for part in ("annotations", "images") for path in (folder / part).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


EXPECTED = {
    name if name.startswith("annotations") else f"images/{name}": data
    for members in ARCHIVES.values()
    for name, data in members.items()
    if "instances" not in name
}


def test_what_is_fetched_is_unpacked_and_its_configuration_trains(server: _Server, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    report = _fetch(_dataset(server), folder)
    assert _files(folder) == EXPECTED
    assert report.files == {"annotations_trainval2014.zip": 2, "train2014.zip": 6, "val2014.zip": 2}
    shown = yaml.safe_load(summary(report).partition("configuration:\n")[2])
    config = load_config(
        None, {f"data.{key}": value for key, value in shown["data"].items()} | {"workspace": str(tmp_path / "w")}
    )
    split = split_heldout(load_captions(config), config)
    assert [image.id for image in split.train] == [f"train2014/COCO_train2014_{i:012d}.jpg" for i in range(6)]
    assert [image.captions for image in split.heldout] == [("picture 6",), ("picture 7",)]


def test_the_known_archives_are_described_as_published() -> None:
    for dataset in DATASETS.values():
        for archive in dataset.archives:
            assert archive.url.startswith("http://images.cocodataset.org/")
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
    images = [[a.files for a in dataset.archives if a.kind == "images"] for dataset in DATASETS.values()]
    assert images == [[82783, 40504], [118287, 5000]]  # both years hold the same 123,287 photographs
    fetch_parameter = next(p for p in main.commands["fetch"].params if p.name == "dataset")  # type: ignore[attr-defined]
    assert list(fetch_parameter.type.choices) == list(DATASETS)


def test_a_second_fetch_asks_for_nothing(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    _fetch(dataset, tmp_path)
    server.requests.clear()
    assert _fetch(dataset, tmp_path).downloaded == ()
    assert server.requests == []
    lost = tmp_path / "images/val2014/COCO_val2014_000000000007.jpg"
    lost.unlink()
    assert _fetch(dataset, tmp_path).downloaded == ("val2014.zip",)
    assert lost.exists()


def test_an_interrupted_download_goes_on_where_it_was(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    server.stop_after = 1500
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    asked = [int(span[6:-1]) for path, span in server.requests if path == "/train2014.zip" and span]
    size = len(server.files["/train2014.zip"])
    assert asked == list(range(1500, size, 1500))


def test_a_later_run_goes_on_where_the_killed_one_was(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    part = tmp_path / ".fetch" / "train2014.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.files["/train2014.zip"][:2000])
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    assert [span for path, span in server.requests if path == "/train2014.zip"] == ["bytes=2000-"]


def test_a_run_killed_after_the_last_byte_asks_for_no_more(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    part = tmp_path / ".fetch" / "train2014.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.files["/train2014.zip"])
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    assert not any(path == "/train2014.zip" for path, _ in server.requests)


def test_a_server_without_parts_sends_the_whole(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    part = tmp_path / ".fetch" / "train2014.zip.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 2000)
    server.ranges = False
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED


def test_a_file_that_changed_meanwhile_is_not_joined_with_its_old_part(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    right = server.files["/val2014.zip"]
    server.files["/val2014.zip"] = bytes(len(right))
    server.stop_after = 500

    def change(path: str) -> None:
        if path == "/val2014.zip":
            server.files[path] = right
            server.stop_after = None

    server.sent = change
    _fetch(dataset, tmp_path)
    assert [span for path, span in server.requests if path == "/val2014.zip"] == [None, "bytes=500-"]
    assert _files(tmp_path) == EXPECTED


def test_failures_of_the_server_are_tried_again(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    server.failures = ATTEMPTS - 1
    clock = ManualClock()
    _fetch(dataset, tmp_path, clock=clock)
    assert _files(tmp_path) == EXPECTED
    assert clock.slept == [2.0, 4.0, 8.0, 16.0]


def _break_sha(server: _Server) -> None:
    data = bytearray(server.files["/train2014.zip"])
    data[100] ^= 1
    server.files["/train2014.zip"] = bytes(data)


def _make_longer(server: _Server) -> None:
    server.files["/train2014.zip"] += b"x"


def _remove(server: _Server) -> None:
    del server.files["/train2014.zip"]


def _cut_always(server: _Server) -> None:
    server.stop_after = 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_break_sha, r"train2014.zip is damaged or another file \(SHA-256 \w+, expected \w+\); it is deleted"),
        (_make_longer, r"has \d+ bytes, expected \d+: it is another file"),
        (_remove, "the server says 404 Not Found"),
        (_cut_always, "run the same command again, which goes on at 0 of"),
    ],
)
def test_what_is_not_the_known_archive_is_refused_in_one_line(
    server: _Server, tmp_path: Path, fault: Callable[[_Server], None], message: str
) -> None:
    dataset = _dataset(server)
    fault(server)
    with pytest.raises(JobError, match=message) as raised:
        _fetch(dataset, tmp_path, only="images", split="train")
    assert "\n" not in str(raised.value)
    assert _files(tmp_path) == {}
    mended = _dataset(server)
    server.stop_after = None
    assert _fetch(mended, tmp_path).files["train2014.zip"] == 6


@pytest.mark.parametrize(
    "name", ["../escaped.jpg", "/tmp/escaped.jpg", "train2014/../../escaped.jpg", "..\\escaped.jpg"]
)
def test_an_archive_that_writes_outside_is_refused(server: _Server, tmp_path: Path, name: str) -> None:
    dataset = _dataset(server, {"train2014.zip": {**ARCHIVES["train2014.zip"], name: b"x"}})
    with pytest.raises(JobError, match="would be written outside of its folder"):
        _fetch(dataset, tmp_path / "coco")
    assert not list(tmp_path.rglob("*escaped*"))
    assert not (tmp_path / "coco/images/train2014").exists()


def test_a_link_in_an_archive_is_refused(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        info = zipfile.ZipInfo("train2014/COCO_train2014_000000000000.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "/etc/passwd")
    data = buffer.getvalue()
    server.files["/train2014.zip"] = data
    changed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "files": 1}
    archives = tuple(Archive(**{**vars(a), **(changed if a.name == "train2014.zip" else {})}) for a in dataset.archives)
    with pytest.raises(JobError, match="it is refused"):
        _fetch(Dataset("coco2014", 2014, archives), tmp_path)


def test_an_archive_with_other_members_is_refused(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    archives = tuple(Archive(**{**vars(archive), "files": archive.files + 1}) for archive in dataset.archives)
    with pytest.raises(JobError, match="holds 2 files of annotations/, expected 3"):
        _fetch(Dataset("coco2014", 2014, archives), tmp_path)


def test_unpacking_keeps_whole_files_and_replaces_damaged_ones(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    folder = tmp_path / "images/train2014"
    folder.mkdir(parents=True)
    whole, damaged = (folder / f"COCO_train2014_{i:012d}.jpg" for i in (0, 1))
    whole.write_bytes(bytes(1000))
    damaged.write_bytes(b"y" * 1000)
    written = whole.stat().st_mtime_ns
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    assert whole.stat().st_mtime_ns == written


def test_only_what_is_asked_for_is_fetched(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    report = _fetch(dataset, tmp_path, split="val", keep_archives=True)
    assert set(report.files) == {"annotations_trainval2014.zip", "val2014.zip"}
    assert (tmp_path / ".fetch/val2014.zip").read_bytes() == server.files["/val2014.zip"]
    config = load_config(
        None, {f"data.{key}": value for key, value in report.data.items()} | {"workspace": str(tmp_path / "w")}
    )
    split = split_heldout(load_captions(config), config)
    assert len(split.train) + len(split.heldout) == 2
    assert set(_fetch(dataset, tmp_path / "other", only="captions").files) == {"annotations_trainval2014.zip"}


def test_too_little_room_is_said_before_anything_is_fetched(server: _Server, tmp_path: Path) -> None:
    room = shutil.disk_usage(tmp_path).free
    captions, *images = _dataset(server).archives
    archives = (dataclasses.replace(captions, bytes=10 * room), *images)
    with pytest.raises(JobError, match=r"has room for \d+\.\d\d GB, but \d+\.\d\d GB are needed"):
        _fetch(Dataset("coco2014", 2014, archives), tmp_path)
    assert server.requests == []


def test_an_unreachable_host_is_said_in_one_line(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    server.shutdown()
    server.server_close()
    clock = ManualClock()
    with pytest.raises(JobError, match="Connection refused") as raised:
        _fetch(dataset, tmp_path, clock=clock)
    assert "\n" not in str(raised.value) and len(clock.slept) == ATTEMPTS - 1


def test_the_command_says_a_failure_in_one_line(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "coco2014", _dataset(server))
    _remove(server)
    result = CliRunner().invoke(main, ["fetch", "coco2014", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the server says 404" in errors[0]
    assert "Traceback" not in result.output


def test_the_command_prints_json(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "coco2014", _dataset(server))
    result = CliRunner().invoke(main, ["fetch", "coco2014", "--folder", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["data"]["images"] == str(tmp_path / "images")
