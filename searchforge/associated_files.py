"""The files that a TFLite model's metadata names: a ZIP archive behind the model's flatbuffer."""

from __future__ import annotations

import io
import zipfile

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file: equal contents give equal bytes, whenever they are written."""


def associated_files(model: bytes) -> dict[str, bytes]:
    """Returns the files behind the flatbuffer, by name."""
    file = io.BytesIO(model)
    if not zipfile.is_zipfile(file):
        return {}
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def without_dates(model: bytes) -> bytes:
    """Returns the model with files that are all of EPOCH."""
    files = associated_files(model)
    if not files:
        return model
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        flatbuffer = model[: min(entry.header_offset for entry in archive.infolist())]
    dated = io.BytesIO(flatbuffer)
    with zipfile.ZipFile(dated, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return dated.getvalue()
