"""Writes an embedding run as one matrix, `embeddings.npy`, beside `ids.jsonl` with everything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from beam_jobs.exchange.columns import ID, METADATA, texts
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.record_batches import RecordBatch

MATRIX, IDS = "embeddings.npy", "ids.jsonl"


def write_npy(
    batches: Iterable[RecordBatch], manifest: Manifest, folder: Path, advance: Callable[[int], None]
) -> list[Path]:
    """Writes both files into a folder and returns their paths.

    Row i of the matrix, [n, dim] float32, belongs to line i of ids.jsonl, a JSON object with the id and the other
    columns: an id may contain a line break, which JSON escapes.

    Args:
      advance: Is called with the number of records written since the last call.
    """
    matrix, ids = folder / MATRIX, folder / IDS
    with matrix.open("wb") as vectors, ids.open("w", encoding="utf-8", newline="\n") as lines:
        header = {"descr": "<f4", "fortran_order": False, "shape": (manifest.records, manifest.dim)}
        np.lib.format.write_array_header_1_0(vectors, header)
        for batch in batches:
            vectors.write(batch.vectors.astype("<f4", copy=False).tobytes())
            columns = {ID: batch.ids, **texts(batch)}
            for values, metadata in zip(zip(*columns.values(), strict=True), batch.metadata, strict=True):
                line = _to_json(dict(zip(columns, values, strict=True)))
                lines.write(f'{line[:-1]}, "{METADATA}": {metadata}}}\n')
            advance(len(batch.ids))
    return [matrix, ids]


_to_json = json.JSONEncoder(ensure_ascii=False).encode
