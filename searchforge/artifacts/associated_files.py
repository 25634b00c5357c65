"""Associated files of a TFLite model: a ZIP archive appended to the model's flatbuffer."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Modification time of every file, so that equal contents give equal bytes."""


def split(model: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Returns the model's flatbuffer, and its associated files by name."""
    file = io.BytesIO(model)
    if not zipfile.is_zipfile(file):
        return model, {}
    with zipfile.ZipFile(file) as archive:
        start = min((entry.header_offset for entry in archive.infolist()), default=len(model))
        return model[:start], {name: archive.read(name) for name in archive.namelist()}


def write_files(archive: zipfile.ZipFile, files: Mapping[str, bytes]) -> None:
    """Adds files to the archive, with EPOCH as their modification time."""
    for name, data in files.items():
        archive.writestr(zipfile.ZipInfo(name, EPOCH), data)


def without_dates(model: bytes) -> bytes:
    """Returns the model with EPOCH as the modification time of its associated files."""
    flatbuffer, files = split(model)
    if not files:
        return model
    output = io.BytesIO(flatbuffer)
    with zipfile.ZipFile(output, "a", zipfile.ZIP_STORED) as archive:
        write_files(archive, files)
    return output.getvalue()
