"""Writes one index for each value of a metadata field, for corpora too large for a single device.

All indexes share one quantizer and thus one pair of encoders. For an album, a region or a user, a device downloads only
that index and opens it with the encoder (the Task Library's SearchOptions.index_file).

    text_encoder.tflite, image_encoder.tflite    encoders with the query map folded in
    indexes/000000.ldb ...                       one index per value
    indexes.json                                 value, number of images, bytes and SHA-256 of each index

A value with few items becomes a single partition that is scanned completely. One with many items keeps the corpus's
non-empty partitions, of which a query searches as many as `max_latency_ms` allows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.device.index_writer import write_index
from indexer.encoding.encoded_shards import EncodedCorpus
from indexer.quantization.quantizer import Quantizer
from indexer.tuning.cost_model import search_ms
from indexer.tuning.parameters import IndexParameters
from searchforge import progress
from searchforge.config import IndexConfig
from searchforge.errors import UsageError
from searchforge.hashing import sha256_file

INDEXES, LISTING = "indexes", "indexes.json"


@dataclass(frozen=True)
class _Group:
    """Items with one value of the field, in device order."""

    value: str | int | float | bool | None
    items: npt.NDArray[np.int64]


def write_partitioned(
    encoded: EncodedCorpus,
    quantizer: Quantizer,
    parameters: IndexParameters,
    config: IndexConfig,
    user_info: Mapping[str, Any],
    folder: Path,
    threads: int,
) -> dict[str, int]:
    """Writes the index of every value of `config.partition_by`, and the listing.

    Returns:
      Number of indexes, and total sizes of their parts in bytes.

    Raises:
      UsageError: An item's value is an object or a list.
    """
    (folder / INDEXES).mkdir()
    bounds = np.concatenate([[0], np.cumsum(encoded.partition_sizes)])
    groups = list(_groups(encoded, str(config.partition_by)))

    def write(number: int) -> tuple[dict[str, Any], dict[str, int]]:
        group = groups[number]
        part, centroids, searched = _restricted(encoded, quantizer, parameters, config, group.items, bounds)
        path = folder / INDEXES / f"{number:06d}.ldb"
        info = {**user_info, "partition_by": config.partition_by, "value": group.value, "images": len(group.items)}
        sizes = write_index(
            part,
            centroids,
            quantizer.codebooks,
            parameters.lut_type,
            searched.search_fraction,
            config.compression,
            json.dumps({**info, "parameters": searched.to_json()}, sort_keys=True),
            path,
        )
        entry = {"value": group.value, "file": f"{INDEXES}/{path.name}", "images": len(group.items)}
        return {**entry, "bytes": sizes["index_file"], "sha256": sha256_file(path)}, sizes

    entries, totals = [], dict.fromkeys(("codes", "centroids_and_codebooks", "metadata", "user_info", "index_file"), 0)
    with ThreadPoolExecutor(threads) as pool, progress.track("writing indexes", len(groups)) as advance:
        for entry, sizes in pool.map(write, range(len(groups))):
            entries.append(entry)
            for name, size in sizes.items():
                totals[name] += size
            advance(1)
    (folder / LISTING).write_text(
        json.dumps({"partition_by": config.partition_by, "indexes": entries}, indent=1) + "\n"
    )
    return {"indexes": len(groups), **totals}


def _groups(encoded: EncodedCorpus, field: str) -> Iterator[_Group]:
    """Yields one group per value, sorted by the value's JSON; items without the field have the value None."""
    members: dict[str, list[int]] = {}
    for item in range(len(encoded.order)):
        found = json.loads(encoded.metadata(item))
        value = found.get(field)
        if isinstance(value, (dict, list)):
            raise UsageError(
                f"metadata {field!r} of {found['id']!r} is {json.dumps(value)[:80]}, expected a string, number or "
                "boolean; choose another field for index.partition_by"
            )
        members.setdefault(json.dumps(value), []).append(item)
    for key in sorted(members):
        yield _Group(json.loads(key), np.array(members[key]))


def _restricted(
    encoded: EncodedCorpus,
    quantizer: Quantizer,
    parameters: IndexParameters,
    config: IndexConfig,
    items: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
) -> tuple[EncodedCorpus, npt.NDArray[np.float32], IndexParameters]:
    """Returns the encoded corpus of some items, with its centroids and parameters."""
    dim = quantizer.transform.shape[1]
    limit = config.max_latency_ms if config.max_latency_ms is not None else np.inf
    whole = dataclasses.replace(parameters, partitions=1, partitions_searched=1)
    if search_ms(dim, whole, len(items)) <= limit:
        sizes, searched = np.array([len(items)]), whole
        centroids = quantizer.centroids.mean(axis=0, keepdims=True)
    else:
        all_sizes = np.bincount(np.searchsorted(bounds, items, "right") - 1, minlength=len(bounds) - 1)
        filled = np.flatnonzero(all_sizes)
        sizes, centroids = all_sizes[filled], quantizer.centroids[filled]
        kept = dataclasses.replace(parameters, partitions=len(filled))
        most = max(
            (
                step
                for step in range(1, len(filled) + 1)
                if search_ms(dim, dataclasses.replace(kept, partitions_searched=step), step * sizes.mean()) <= limit
            ),
            default=1,
        )
        searched = dataclasses.replace(kept, partitions_searched=most)
    part = EncodedCorpus(
        encoded.codes[items], sizes, encoded.metadata_blob, encoded.metadata_offsets, encoded.order[items], 0.0
    )
    return part, centroids, searched
