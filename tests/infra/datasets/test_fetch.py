"""`searchforge fetch` resumes interrupted downloads and accepts only archives with the expected content."""

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

from infra.cli.main import main
from infra.datasets.coco import DATASETS, Archive, Dataset
from infra.datasets.download import ATTEMPTS
from infra.datasets.fetch import FetchReport, fetch, summary
from searchforge.captions.dataset import load_captions, split_heldout
from searchforge.config import load_config
from searchforge.errors import JobError
from tests.infra.manual_clock import ManualClock


class _Server(ThreadingHTTPServer):
    """Serves `files` on the loopback interface like an object store, with faults that tests switch on.

    Attributes:
      files: Content by path.
      requests: Path and Range header of each request.
      ranges: Whether range requests are supported.
      stop_after: Number of bytes of each response after which the connection is closed.
      failures: Number of responses with status 503 to come.
      sent: Function called with the path after each response, before the connection is closed.
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
    """Puts small archives on the server and returns a dataset of them that resembles the real one."""
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
            "files": sum(map(real.selects, members)),
        }
        archives.append(Archive(**values))
    return Dataset("coco2014", 2014, tuple(archives))


def _fetch(dataset: Dataset, folder: Path, **options: Any) -> FetchReport:
    return fetch(dataset, folder, **{"clock": ManualClock(), **options})


def _files(folder: Path) -> dict[str, bytes]:
    """Returns the unpacked files."""
    paths = (path for part in ("annotations", "images") for path in (folder / part).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


EXPECTED = {
    name if name.startswith("annotations") else f"images/{name}": data
    for members in ARCHIVES.values()
    for name, data in members.items()
    if "instances" not in name
}


def test_a_dataset_is_unpacked_and_its_configuration_loads(server: _Server, tmp_path: Path) -> None:
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


def test_archives_are_described_as_published() -> None:
    for dataset in DATASETS.values():
        for archive in dataset.archives:
            assert archive.url.startswith("http://images.cocodataset.org/")
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
    images = [[a.files for a in dataset.archives if a.kind == "images"] for dataset in DATASETS.values()]
    assert images == [[82783, 40504], [118287, 5000]]  # both years hold the same 123,287 photographs
    fetch_parameter = next(p for p in main.commands["fetch"].params if p.name == "dataset")  # type: ignore[attr-defined]
    assert list(fetch_parameter.type.choices) == list(DATASETS)


def test_a_second_fetch_downloads_nothing(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    _fetch(dataset, tmp_path)
    server.requests.clear()
    assert _fetch(dataset, tmp_path).downloaded == ()
    assert server.requests == []
    lost = tmp_path / "images/val2014/COCO_val2014_000000000007.jpg"
    lost.unlink()
    assert _fetch(dataset, tmp_path).downloaded == ("val2014.zip",)
    assert lost.exists()


def test_an_interrupted_download_resumes(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    server.stop_after = 1500
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    asked = [int(span[6:-1]) for path, span in server.requests if path == "/train2014.zip" and span]
    size = len(server.files["/train2014.zip"])
    assert asked == list(range(1500, size, 1500))


def test_a_later_run_resumes_a_killed_one(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    part = tmp_path / ".fetch" / "train2014.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.files["/train2014.zip"][:2000])
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    assert [span for path, span in server.requests if path == "/train2014.zip"] == ["bytes=2000-"]


def test_a_run_killed_after_the_last_byte_requests_nothing_more(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    part = tmp_path / ".fetch" / "train2014.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.files["/train2014.zip"])
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    assert not any(path == "/train2014.zip" for path, _ in server.requests)


def test_a_server_without_ranges_sends_the_whole_file(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    part = tmp_path / ".fetch" / "train2014.zip.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 2000)
    server.ranges = False
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED


def test_a_changed_file_is_not_appended_to_its_old_part(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    correct = server.files["/val2014.zip"]
    server.files["/val2014.zip"] = bytes(len(correct))
    server.stop_after = 500

    def change(path: str) -> None:
        if path == "/val2014.zip":
            server.files[path] = correct
            server.stop_after = None

    server.sent = change
    _fetch(dataset, tmp_path)
    assert [span for path, span in server.requests if path == "/val2014.zip"] == [None, "bytes=500-"]
    assert _files(tmp_path) == EXPECTED


def test_server_errors_are_retried(server: _Server, tmp_path: Path) -> None:
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
        (_break_sha, r"train2014.zip is damaged or has been replaced \(SHA-256 \w+, expected \w+\) and was deleted"),
        (_make_longer, r"has \d+ bytes, expected \d+: the file has been replaced"),
        (_remove, "the server responded 404 Not Found"),
        (_cut_always, "run the same command again, which resumes at 0 of"),
    ],
)
def test_an_unexpected_archive_is_refused_in_one_line(
    server: _Server, tmp_path: Path, fault: Callable[[_Server], None], message: str
) -> None:
    dataset = _dataset(server)
    fault(server)
    with pytest.raises(JobError, match=message) as raised:
        _fetch(dataset, tmp_path, only="images", split="train")
    assert "\n" not in str(raised.value)
    assert _files(tmp_path) == {}
    repaired = _dataset(server)
    server.stop_after = None
    assert _fetch(repaired, tmp_path).files["train2014.zip"] == 6


@pytest.mark.parametrize(
    "name", ["../escaped.jpg", "/tmp/escaped.jpg", "train2014/../../escaped.jpg", "..\\escaped.jpg"]
)
def test_an_archive_that_writes_outside_is_refused(server: _Server, tmp_path: Path, name: str) -> None:
    dataset = _dataset(server, {"train2014.zip": {**ARCHIVES["train2014.zip"], name: b"x"}})
    with pytest.raises(JobError, match="could be written outside of the target folder"):
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
    with pytest.raises(JobError, match="is refused"):
        _fetch(Dataset("coco2014", 2014, archives), tmp_path)


def test_an_archive_with_unexpected_members_is_refused(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    archives = tuple(Archive(**{**vars(archive), "files": archive.files + 1}) for archive in dataset.archives)
    with pytest.raises(JobError, match="contains 2 files in annotations/, expected 3"):
        _fetch(Dataset("coco2014", 2014, archives), tmp_path)


def test_unpacking_keeps_intact_files_and_replaces_damaged_ones(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    folder = tmp_path / "images/train2014"
    folder.mkdir(parents=True)
    intact, damaged = (folder / f"COCO_train2014_{i:012d}.jpg" for i in (0, 1))
    intact.write_bytes(bytes(1000))
    damaged.write_bytes(b"y" * 1000)
    written = intact.stat().st_mtime_ns
    _fetch(dataset, tmp_path)
    assert _files(tmp_path) == EXPECTED
    assert intact.stat().st_mtime_ns == written


def test_only_the_requested_parts_are_fetched(server: _Server, tmp_path: Path) -> None:
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


def test_insufficient_disk_space_is_reported_before_the_download(server: _Server, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    captions, *images = _dataset(server).archives
    archives = (dataclasses.replace(captions, bytes=10 * free), *images)
    with pytest.raises(JobError, match=r"has \d+\.\d\d GB of disk space, but \d+\.\d\d GB are required"):
        _fetch(Dataset("coco2014", 2014, archives), tmp_path)
    assert server.requests == []


def test_an_unreachable_host_is_reported_in_one_line(server: _Server, tmp_path: Path) -> None:
    dataset = _dataset(server)
    server.shutdown()
    server.server_close()
    clock = ManualClock()
    with pytest.raises(JobError, match="Connection refused") as raised:
        _fetch(dataset, tmp_path, clock=clock)
    assert "\n" not in str(raised.value) and len(clock.slept) == ATTEMPTS - 1


def test_the_command_reports_a_failure_in_one_line(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "coco2014", _dataset(server))
    _remove(server)
    result = CliRunner().invoke(main, ["fetch", "coco2014", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the server responded 404" in errors[0]
    assert "Traceback" not in result.output


def test_the_command_prints_json(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "coco2014", _dataset(server))
    result = CliRunner().invoke(main, ["fetch", "coco2014", "--folder", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["data"]["images"] == str(tmp_path / "images")
