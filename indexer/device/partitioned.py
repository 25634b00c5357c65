"""One index for each value of a metadata field: for corpora larger than a device should carry.

All indexes share the quantizer, and so the encoders: what a device downloads for an album, a region or a user is its
index alone, which it opens beside the encoder (the Task Library's SearchOptions.index_file).

    text_encoder.tflite, image_encoder.tflite    with the query map folded in
    indexes/000000.ldb ...                       one for each value
    indexes.json                                 which value each is of, with items, bytes and SHA-256

A value with few items is one partition, searched whole: exact but for the codes. A larger one keeps the corpus'
partitions, as far as they are not empty, of which a query searches as many as `max_latency_ms` allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.device.index_writer import write_index
from indexer.encoding.encoded_shards import Merged
from indexer.quantization.quantizer import Quantizer
from indexer.tuning.cost_model import search_ms
from indexer.tuning.settings import Setting
from searchforge import progress
from searchforge.config import IndexConfig
from searchforge.errors import UsageError
from searchforge.hashing import sha256_file

INDEXES, LISTING = "indexes", "indexes.json"


@dataclass(frozen=True)
class _Group:
    """The items of one value, in device order."""

    value: str | int | float | bool | None
    items: npt.NDArray[np.int64]


def write_partitioned(
    merged: Merged,
    quantizer: Quantizer,
    setting: Setting,
    config: IndexConfig,
    user_info: Mapping[str, Any],
    folder: Path,
    threads: int,
) -> dict[str, int]:
    """Writes the index of every value of `config.partition_by`, and the listing.

    Returns:
      Number of indexes, and the sums of their parts' sizes in bytes.

    Raises:
      UsageError: an item's value is an object or a list.
    """
    (folder / INDEXES).mkdir()
    bounds = np.concatenate([[0], np.cumsum(merged.partition_sizes)])
    groups = list(_groups(merged, str(config.partition_by)))

    def write(number: int) -> tuple[dict[str, Any], dict[str, int]]:
        group = groups[number]
        part, centroids, searched = _restricted(merged, quantizer, setting, config, group.items, bounds)
        path = folder / INDEXES / f"{number:06d}.ldb"
        info = {**user_info, "partition_by": config.partition_by, "value": group.value, "images": len(group.items)}
        sizes = write_index(
            part,
            centroids,
            quantizer.codebooks,
            setting.lut_type,
            searched.search_fraction,
            config.compression,
            json.dumps({**info, "parameters": searched.to_json()}, sort_keys=True),
            path,
        )
        entry = {"value": group.value, "file": f"{INDEXES}/{path.name}", "images": len(group.items)}
        return {**entry, "bytes": sizes["index_file"], "sha256": sha256_file(path)}, sizes

    entries, totals = [], dict.fromkeys(("codes", "centroids_and_codebooks", "metadata", "user_info", "index_file"), 0)
    with ThreadPoolExecutor(threads) as pool, progress.track("indexes", len(groups)) as advance:
        for entry, sizes in pool.map(write, range(len(groups))):
            entries.append(entry)
            for name, size in sizes.items():
                totals[name] += size
            advance(1)
    (folder / LISTING).write_text(
        json.dumps({"partition_by": config.partition_by, "indexes": entries}, indent=1) + "\n"
    )
    return {"indexes": len(groups), **totals}


def _groups(merged: Merged, field: str) -> Iterator[_Group]:
    """Yields the groups of all values, by the values' JSON; items without the field have the value None."""
    members: dict[str, list[int]] = {}
    for item in range(len(merged.order)):
        found = json.loads(merged.metadata(item))
        value = found.get(field)
        if isinstance(value, (dict, list)):
            raise UsageError(
                f"metadata {field!r} of {found['id']!r} is {json.dumps(value)[:80]}, expected a text or a number to "
                "partition by; choose another field for index.partition_by"
            )
        members.setdefault(json.dumps(value), []).append(item)
    for key in sorted(members):
        yield _Group(json.loads(key), np.array(members[key]))


def _restricted(
    merged: Merged,
    quantizer: Quantizer,
    setting: Setting,
    config: IndexConfig,
    items: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
) -> tuple[Merged, npt.NDArray[np.float32], Setting]:
    """Returns the corpus of some items, its centroids, and what of it is searched."""
    dim = quantizer.transform.shape[1]
    limit = config.max_latency_ms if config.max_latency_ms is not None else np.inf
    whole = Setting(setting.code_bytes, 1, 1, setting.lut_type)
    if search_ms(dim, whole, len(items)) <= limit:
        sizes, searched = np.array([len(items)]), whole
        centroids = quantizer.centroids.mean(axis=0, keepdims=True)
    else:
        all_sizes = np.bincount(np.searchsorted(bounds, items, "right") - 1, minlength=len(bounds) - 1)
        filled = np.flatnonzero(all_sizes)
        sizes, centroids = all_sizes[filled], quantizer.centroids[filled]
        most = max(
            (
                step
                for step in range(1, len(filled) + 1)
                if search_ms(dim, Setting(setting.code_bytes, len(filled), step, setting.lut_type), step * sizes.mean())
                <= limit
            ),
            default=1,
        )
        searched = Setting(setting.code_bytes, len(filled), most, setting.lut_type)
    part = Merged(merged.codes[items], sizes, merged.metadata_blob, merged.metadata_offsets, merged.order[items], 0.0)
    return part, centroids, searched
