"""The archives of COCO, at the addresses where its authors publish them.

Sizes and SHA-256 digests are those that TensorFlow Datasets records (url_checksums/coco.txt) and make plain HTTP safe.
File counts are those that COCO states.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["captions", "images"]
SplitName = Literal["train", "val"]

_BASE = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Archive:
    """A ZIP file on a server.

    Attributes:
      kind: Kind of the files that are unpacked.
      split: Split of the images; None if the archive covers all splits.
      url: HTTP or HTTPS URL.
      bytes: Size of the archive.
      sha256: SHA-256 of the archive.
      target: Folder to unpack into, relative to the dataset's folder.
      folder: Folder inside the archive from which files are unpacked.
      pattern: Regular expression of the names of those files; other members are not unpacked.
      files: Number of those files.
    """

    kind: Kind
    split: SplitName | None
    url: str
    bytes: int
    sha256: str
    target: str
    folder: str
    pattern: str
    files: int

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]

    def selects(self, member: str) -> bool:
        """Returns whether a member of the archive is unpacked."""
        folder, _, file = member.rpartition("/")
        return folder == self.folder and re.fullmatch(self.pattern, file) is not None


@dataclass(frozen=True)
class Dataset:
    """Archives that belong together; their captions are annotations/captions_<split><year>.json."""

    name: str
    year: int
    archives: tuple[Archive, ...]


def _captions(year: int, size: int, sha256: str) -> Archive:
    url = f"{_BASE}/annotations/annotations_trainval{year}.zip"
    pattern = rf"captions_(train|val){year}\.json"
    return Archive("captions", None, url, size, sha256, ".", "annotations", pattern, 2)


def _images(split: SplitName, year: int, files: int, size: int, sha256: str) -> Archive:
    name = f"{split}{year}"
    pattern = (rf"COCO_{name}_" if year == 2014 else "") + r"\d{12}\.jpg"
    return Archive("images", split, f"{_BASE}/zips/{name}.zip", size, sha256, "images", name, pattern, files)


_COCO2014 = (
    _captions(2014, 252872794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
    _images("train", 2014, 82783, 13510573713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    _images("val", 2014, 40504, 6645013297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
)
_COCO2017 = (
    _captions(2017, 252907541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
    _images("train", 2017, 118287, 19336861798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    _images("val", 2017, 5000, 815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
)
DATASETS = {"coco2014": Dataset("coco2014", 2014, _COCO2014), "coco2017": Dataset("coco2017", 2017, _COCO2017)}
"""Datasets that can be fetched, by name."""
