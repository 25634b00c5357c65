"""`searchforge fetch`: downloads, verifies and unpacks COCO from where its authors publish it; a killed run continues.

Sizes and SHA-256 digests are those that TensorFlow Datasets records for the same files (url_checksums/coco.txt), which
makes plain HTTP safe; the numbers of images are those that COCO states.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Literal

import yaml

from searchforge import progress
from searchforge.clock import Clock
from searchforge.errors import JobError
from searchforge.hashing import sha256_file
from searchforge.storage.files import make_folder

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""Failures in a row, each without a byte received, after which a download is given up."""

PAUSE_SECONDS = 1.0
"""Before a failed download is tried again; doubled with each failure in a row."""

TIMEOUT = 60.0
"""Seconds without an answer."""

_BLOCK = 2**20
_STATE = ".fetch"

Kind = Literal["captions", "images"]
SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class Archive:
    """A ZIP file on a server.

    Attributes:
      kind: what is taken from it.
      split: the images' split; None where it holds all.
      url: http or https.
      bytes, sha256: of the archive.
      into: folder below the data set's that it is unpacked into.
      folder: that its members are in.
      member: regular expression of the names, inside `folder`, that are unpacked; the rest stays in the archive.
      files: how many that are.
    """

    kind: Kind
    split: SplitName | None
    url: str
    bytes: int
    sha256: str
    into: str
    folder: str
    member: str
    files: int

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def takes(self, name: str) -> bool:
        folder, _, file = name.rpartition("/")
        return folder == self.folder and re.fullmatch(self.member, file) is not None


@dataclass(frozen=True)
class Dataset:
    """Archives that belong together; captions become annotations/captions_<split><year>.json."""

    name: str
    year: int
    archives: tuple[Archive, ...]


@dataclass(frozen=True)
class FetchReport:
    """What is there now.

    Attributes:
      downloaded: archives that this run received, wholly or the rest of.
      files: unpacked files by archive.
      data: the `data` section of a configuration that trains on it.
    """

    dataset: str
    folder: str
    downloaded: tuple[str, ...]
    files: dict[str, int]
    data: dict[str, str | list[str]]


def _coco(year: int, annotations: tuple[int, str], *images: tuple[SplitName, int, int, str, str]) -> Dataset:
    base = "http://images.cocodataset.org"
    url = f"{base}/annotations/annotations_trainval{year}.zip"
    captions = Archive("captions", None, url, *annotations, ".", "annotations", rf"captions_(train|val){year}\.json", 2)
    return Dataset(
        f"coco{year}",
        year,
        (
            captions,
            *(
                Archive(
                    "images", split, f"{base}/zips/{split}{year}.zip", size, sha, "images", f"{split}{year}", name, n
                )
                for split, n, size, sha, name in images
            ),
        ),
    )


DATASETS = {
    dataset.name: dataset
    for dataset in (
        _coco(
            2014,
            (252872794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
            (
                "train",
                82783,
                13510573713,
                "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
                r"COCO_train2014_\d{12}\.jpg",
            ),
            (
                "val",
                40504,
                6645013297,
                "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                r"COCO_val2014_\d{12}\.jpg",
            ),
        ),
        _coco(
            2017,
            (252907541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
            (
                "train",
                118287,
                19336861798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                r"\d{12}\.jpg",
            ),
            (
                "val",
                5000,
                815585330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                r"\d{12}\.jpg",
            ),
        ),
    )
}
"""What can be fetched, by name."""


def fetch(
    dataset: Dataset,
    folder: Path,
    only: Kind | None = None,
    split: SplitName | None = None,
    keep_archives: bool = False,
    clock: Clock = time,
) -> FetchReport:
    """Brings a data set into `folder`: annotations/ and images/<split><year>/. What is there already is kept.

    Args:
      only, split: leave the rest out.
      keep_archives: do not delete an archive after it is unpacked.
      clock: waits before a failed download is tried again.

    Raises:
      JobError: a server cannot be reached or has other files, an archive is damaged, or there is no room.
    """
    archives = [
        archive
        for archive in dataset.archives
        if only in (None, archive.kind) and (split is None or archive.split in (None, split))
    ]
    state = folder / _STATE
    make_folder(state)
    downloaded, files = [], {}
    try:
        with _locked(state / "lock", folder):
            missing = [archive for archive in archives if not _present(archive, folder)]
            _announce(dataset, missing, folder)
            for archive in archives:
                if archive in missing:
                    if not (state / archive.name).exists():
                        _download(archive, state, clock)
                        downloaded.append(archive.name)
                    _verify(archive, state / archive.name)
                    _unpack(archive, state / archive.name, folder)
                    _marker(archive, folder).write_text(json.dumps({"sha256": archive.sha256}))
                    if not keep_archives:
                        (state / archive.name).unlink()
                files[archive.name] = archive.files
    except OSError as error:
        raise JobError(f"{folder} cannot be written: {error.strerror or error}; make room or change --folder") from None
    return FetchReport(dataset.name, str(folder), tuple(downloaded), files, _data(dataset, folder, split))


def summary(report: FetchReport) -> str:
    """Returns what is there, with the configuration that trains on it."""
    lines = [f"{report.dataset} is in {report.folder}"]
    lines += [f"  {name}: {count} files, verified" for name, count in report.files.items()]
    if all(Path(path).exists() for path in (*report.data["captions"], str(report.data["images"]))):
        lines += ["configuration:", yaml.safe_dump({"data": report.data}, sort_keys=False).rstrip()]
    return "\n".join(lines)


def _data(dataset: Dataset, folder: Path, split: SplitName | None) -> dict[str, str | list[str]]:
    splits = (split,) if split else ("train", "val")
    captions = [str(folder / "annotations" / f"captions_{name}{dataset.year}.json") for name in splits]
    data: dict[str, str | list[str]] = {"captions": captions, "images": str(folder / "images")}
    if split == "val":  # alone, it trains too, but for the share that data.holdout holds out
        data |= {"train_splits": [f"val{dataset.year}"], "heldout_splits": []}
    return data


def _announce(dataset: Dataset, missing: list[Archive], folder: Path) -> None:
    if not missing:
        logger.info(f"fetch: {dataset.name} is complete in {folder}")
        return
    total = sum(archive.bytes for archive in missing)
    # Photographs do not compress: what is unpacked is as large as its archive, and one archive is kept meanwhile.
    needed = total + max(archive.bytes for archive in missing)
    logger.info(
        f"fetch: {dataset.name}, {total / 1e9:.2f} GB in {len(missing)} archives, into {folder}; "
        f"about {total / 10e6 / 60:.0f} min at 10 MB/s; {needed / 1e9:.2f} GB of room are needed"
    )
    state = folder / _STATE
    there = sum(path.stat().st_size for path in state.iterdir() if path.is_file())
    for archive in missing:  # and what was unpacked of them
        place = folder / archive.into / archive.folder
        if place.is_dir():
            there += sum(p.stat().st_size for p in place.iterdir() if archive.takes(f"{archive.folder}/{p.name}"))
    free = shutil.disk_usage(folder).free + there
    if free < needed:
        raise JobError(
            f"{folder} has room for {free / 1e9:.2f} GB, but {needed / 1e9:.2f} GB are needed; make room there, "
            "choose another --folder, or fetch less with --split or --only"
        )


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another fetch writes to {folder}; wait for it to end") from None
        yield


def _marker(archive: Archive, folder: Path) -> Path:
    return folder / _STATE / f"{archive.name}.json"


def _present(archive: Archive, folder: Path) -> bool:
    """Whether an archive was unpacked, and all of its files are there still."""
    try:
        done = json.loads(_marker(archive, folder).read_text())
    except (OSError, ValueError):
        return False
    place = folder / archive.into / archive.folder
    if done != {"sha256": archive.sha256} or not place.is_dir():
        return False
    return sum(archive.takes(f"{archive.folder}/{path.name}") for path in place.iterdir()) == archive.files


def _download(archive: Archive, state: Path, clock: Clock) -> None:
    """Receives an archive into a .part file, which a later attempt or run goes on with."""
    part = state / f"{archive.name}.part"
    failures = 0
    while _size(part) != archive.bytes:
        before, reason = _size(part), "the connection was closed"
        try:
            _receive(archive, part)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing lies after what is there
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise JobError(
                    f"{archive.url} cannot be fetched: the server says {error.code} {error.reason}"
                ) from None
            reason = f"the server says {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (ConnectionError, TimeoutError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        if _size(part) == archive.bytes:
            break
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise JobError(
                f"{archive.url} cannot be fetched: {reason}; check the connection and run the same command again, "
                f"which goes on at {_size(part)} of {archive.bytes} bytes"
            )
        clock.sleep(PAUSE_SECONDS * 2**failures)
    part.replace(state / archive.name)
    _tag_file(part).unlink(missing_ok=True)


def _receive(archive: Archive, part: Path) -> None:
    start, tag = _size(part), _tag_file(part)
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag.exists():
            headers["If-Range"] = tag.read_text()
    with urllib.request.urlopen(urllib.request.Request(archive.url, headers=headers), timeout=TIMEOUT) as response:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status == 206 and (not span or int(span[1]) != start):
            part.unlink()
            raise HTTPException("the server sent another part than was asked for")
        total = span[2] if response.status == 206 and span else response.headers.get("Content-Length", "*")
        if total != "*" and int(total) != archive.bytes:
            raise JobError(
                f"{archive.url} has {total} bytes, expected {archive.bytes}: it is another file than the known one"
            )
        if response.status != 206:
            if start:
                logger.info(f"  {archive.name} changed, or its server sends no parts: from the beginning")
            start = 0
        _remember(response, tag)
        with (
            part.open("ab" if start else "wb") as file,
            progress.track(f"MB of {archive.name}", _mb(archive.bytes)) as show,
        ):
            show(_mb(start))
            while block := _read(response, min(_BLOCK, archive.bytes + 1 - start)):
                file.write(block)
                show(_mb(start + len(block)) - _mb(start))
                start += len(block)
    if start > archive.bytes:
        part.unlink()
        raise JobError(f"{archive.url} has more than {archive.bytes} bytes: it is another file than the known one")


def _read(response: HTTPResponse, count: int) -> bytes:
    try:
        return response.read(count)
    except OSError as error:  # of the network, not of the disk
        raise HTTPException(error.strerror or str(error)) from error


def _remember(response: HTTPResponse, tag: Path) -> None:
    """Keeps what names this version of the file; only strong validators do (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    if validator:
        tag.write_text(validator)
    else:
        tag.unlink(missing_ok=True)


def _verify(archive: Archive, path: Path) -> None:
    logger.info(f"  verifying {archive.name}")
    found = sha256_file(path)
    if found != archive.sha256:
        path.unlink()
        raise JobError(
            f"{archive.name} is damaged or another file (SHA-256 {found}, expected {archive.sha256}); it is deleted: "
            "run the same command again"
        )


def _unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Unpacks what is not there; each file appears whole, its CRC-32 checked."""
    target = folder / archive.into
    try:
        with zipfile.ZipFile(path) as zipped:
            members = [info for info in zipped.infolist() if not info.is_dir()]
            for info in members:
                _require_safe(info, archive)
            taken = [info for info in members if archive.takes(info.filename)]
            if len({info.filename for info in taken}) != archive.files:
                raise JobError(
                    f"{archive.name} holds {len(taken)} files of {archive.folder}/, expected {archive.files}"
                )
            make_folder(target / archive.folder)
            with progress.track(f"files of {archive.name}", len(taken)) as advance:
                for info in taken:
                    if not _same(target / info.filename, info):
                        _extract(zipped, info, target / info.filename)
                    advance(1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        path.unlink()
        raise JobError(
            f"{archive.name} cannot be unpacked: {error}; it is deleted: run the same command again"
        ) from None


def _require_safe(info: zipfile.ZipInfo, archive: Archive) -> None:
    name = info.filename
    link = stat.S_ISLNK(info.external_attr >> 16)
    if link or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise JobError(f"{archive.name} holds {name!r}, which would be written outside of its folder; it is refused")


def _same(path: Path, info: zipfile.ZipInfo) -> bool:
    if _size(path) != info.file_size or not path.is_file():
        return False
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc == info.CRC


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    partial = path.with_name(f".{path.name}.part")
    with zipped.open(info) as source, partial.open("wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
    partial.replace(path)


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mb(count: int) -> int:
    return count // 10**6
