"""Fetches a dataset: downloads its archives, verifies them, and unpacks them; the next run resumes a killed one."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from infra.datasets.coco import Archive, Dataset, Kind, SplitName
from infra.datasets.download import download
from searchforge import progress
from searchforge.clock import Clock
from searchforge.errors import JobError
from searchforge.hashing import sha256_file
from searchforge.storage.files import make_folder

_STATE = ".fetch"
_BLOCK = 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchReport:
    """Result of a fetch.

    Attributes:
      downloaded: Archives that this run downloaded or finished downloading.
      files: Number of unpacked files by archive.
      data: `data` section of a configuration that trains on the dataset.
    """

    dataset: str
    folder: str
    downloaded: tuple[str, ...]
    files: dict[str, int]
    data: dict[str, str | list[str]]


def fetch(
    dataset: Dataset,
    folder: Path,
    only: Kind | None = None,
    split: SplitName | None = None,
    keep_archives: bool = False,
    clock: Clock = time,
) -> FetchReport:
    """Fetches a dataset into `folder` (annotations/ and images/<split><year>/); complete parts are kept.

    Args:
      only: Kind of files to fetch; both kinds by default.
      split: Split of the images to fetch; all by default.
      keep_archives: Whether to keep archives after they are unpacked.
      clock: Clock that waits before retries.

    Raises:
      JobError: A server cannot be reached or has other files, an archive is damaged, or disk space is missing.
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
        with _lock(state / "lock", folder):
            missing = [archive for archive in archives if not _is_complete(archive, folder)]
            _announce(dataset, missing, folder)
            for archive in archives:
                if archive in missing:
                    path = state / archive.name
                    if not path.exists():
                        download(archive.url, path, archive.bytes, clock)
                        downloaded.append(archive.name)
                    _verify(archive, path)
                    _unpack(archive, path, folder)
                    _marker(archive, folder).write_text(json.dumps({"sha256": archive.sha256}))
                    if not keep_archives:
                        path.unlink()
                files[archive.name] = archive.files
    except OSError as error:
        reason = error.strerror or error
        raise JobError(f"{folder} cannot be written: {reason}; free disk space or choose another --folder") from None
    return FetchReport(dataset.name, str(folder), tuple(downloaded), files, _data_config(dataset, folder, split))


def summary(report: FetchReport) -> str:
    """Returns the fetched archives and a configuration that trains on them."""
    lines = [f"{report.dataset} is in {report.folder}"]
    lines += [f"  {name}: {count} files, verified" for name, count in report.files.items()]
    if all(Path(path).exists() for path in (*report.data["captions"], str(report.data["images"]))):
        lines += ["configuration:", yaml.safe_dump({"data": report.data}, sort_keys=False).rstrip()]
    return "\n".join(lines)


def _data_config(dataset: Dataset, folder: Path, split: SplitName | None) -> dict[str, str | list[str]]:
    splits = (split,) if split else ("train", "val")
    captions = [str(folder / "annotations" / f"captions_{name}{dataset.year}.json") for name in splits]
    data: dict[str, str | list[str]] = {"captions": captions, "images": str(folder / "images")}
    if split == "val":  # train on it, with the fraction data.holdout held out
        data |= {"train_splits": [f"val{dataset.year}"], "heldout_splits": []}
    return data


def _announce(dataset: Dataset, missing: list[Archive], folder: Path) -> None:
    """Logs the size of the missing archives.

    Raises:
      JobError: There is not enough disk space for them.
    """
    if not missing:
        logger.info(f"fetch: {dataset.name} is complete in {folder}")
        return
    total = sum(archive.bytes for archive in missing)
    # Photos do not compress: unpacked files are as large as their archive, and one archive at a time is kept with them.
    required = total + max(archive.bytes for archive in missing)
    logger.info(
        f"fetch: {dataset.name}, {total / 1e9:.2f} GB in {len(missing)} archives, into {folder}; "
        f"about {total / 10e6 / 60:.0f} min at 10 MB/s; requires {required / 1e9:.2f} GB of disk space"
    )
    present = sum(path.stat().st_size for path in (folder / _STATE).iterdir() if path.is_file())
    present += sum(path.stat().st_size for archive in missing for path in _unpacked(archive, folder))
    available = shutil.disk_usage(folder).free + present
    if available < required:
        raise JobError(
            f"{folder} has {available / 1e9:.2f} GB of disk space, but {required / 1e9:.2f} GB are required; free "
            "some, choose another --folder, or fetch less with --split or --only"
        )


@contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another fetch is writing to {folder}; wait for it to finish") from None
        yield


def _marker(archive: Archive, folder: Path) -> Path:
    """Returns the path of the file that is written once an archive is unpacked."""
    return folder / _STATE / f"{archive.name}.json"


def _unpacked(archive: Archive, folder: Path) -> list[Path]:
    """Returns the archive's files that have been unpacked."""
    target = folder / archive.target / archive.folder
    paths = target.iterdir() if target.is_dir() else ()
    return [path for path in paths if archive.selects(f"{archive.folder}/{path.name}")]


def _is_complete(archive: Archive, folder: Path) -> bool:
    """Returns whether an archive was unpacked and all of its files still exist."""
    try:
        marker = json.loads(_marker(archive, folder).read_text())
    except (OSError, ValueError):
        return False
    return marker == {"sha256": archive.sha256} and len(_unpacked(archive, folder)) == archive.files


def _verify(archive: Archive, path: Path) -> None:
    logger.info(f"  verifying {archive.name}")
    found = sha256_file(path)
    if found != archive.sha256:
        path.unlink()
        raise JobError(
            f"{archive.name} is damaged or has been replaced (SHA-256 {found}, expected {archive.sha256}) and was "
            "deleted; run the same command again"
        )


def _unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Unpacks the files that are missing or damaged; each is written atomically after its CRC-32 is checked."""
    target = folder / archive.target
    try:
        with zipfile.ZipFile(path) as zipped:
            members = [info for info in zipped.infolist() if not info.is_dir()]
            for info in members:
                _require_safe(info, archive)
            selected = [info for info in members if archive.selects(info.filename)]
            if len({info.filename for info in selected}) != archive.files:
                raise JobError(
                    f"{archive.name} contains {len(selected)} files in {archive.folder}/, expected {archive.files}"
                )
            make_folder(target / archive.folder)
            with progress.track(f"unpacking {archive.name}", len(selected), "file") as advance:
                for info in selected:
                    if not _is_intact(target / info.filename, info):
                        _extract(zipped, info, target / info.filename)
                    advance(1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        path.unlink()
        raise JobError(
            f"{archive.name} cannot be unpacked ({error}) and was deleted; run the same command again"
        ) from None


def _require_safe(info: zipfile.ZipInfo, archive: Archive) -> None:
    name = info.filename
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if is_link or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise JobError(f"{archive.name} is refused: its member {name!r} could be written outside of the target folder")


def _is_intact(path: Path, info: zipfile.ZipInfo) -> bool:
    """Returns whether a file equals a member of the archive, by size and CRC-32."""
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc == info.CRC


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.part")
    with zipped.open(info) as source, temporary.open("wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
    temporary.replace(path)
