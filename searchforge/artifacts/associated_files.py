"""The files that a TFLite model's metadata names: a ZIP archive behind the model's flatbuffer."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file: equal contents give equal bytes, whenever they are written."""


def split(model: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Returns the model's flatbuffer, and the files behind it by name."""
    file = io.BytesIO(model)
    if not zipfile.is_zipfile(file):
        return model, {}
    with zipfile.ZipFile(file) as archive:
        start = min((entry.header_offset for entry in archive.infolist()), default=len(model))
        return model[:start], {name: archive.read(name) for name in archive.namelist()}


def write_files(archive: zipfile.ZipFile, files: Mapping[str, bytes]) -> None:
    """Writes files of EPOCH."""
    for name, data in files.items():
        archive.writestr(zipfile.ZipInfo(name, EPOCH), data)


def without_dates(model: bytes) -> bytes:
    """Returns the model with files that are all of EPOCH."""
    flatbuffer, files = split(model)
    if not files:
        return model
    dated = io.BytesIO(flatbuffer)
    with zipfile.ZipFile(dated, "a", zipfile.ZIP_STORED) as archive:
        write_files(archive, files)
    return dated.getvalue()
