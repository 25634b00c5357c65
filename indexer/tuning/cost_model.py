"""What a setting costs: the bytes and the milliseconds of an index that is not built yet."""

from __future__ import annotations

from indexer.quantization.codebooks import CODEBOOK_SIZE
from indexer.tuning.settings import Setting

_KEY_BYTES = 6
"""What the table takes to find an item's metadata, about."""

# Milliseconds through the Task Library on one thread of an x86-64 server core, fitted to indexes of 100,000 and
# 1,000,000 items (tests/bench/search_costs.py). What a phone takes is in proportion.
_MS_BASE = 0.07
_MS_PER_CENTROID_DIM = 1.8e-7
_MS_PER_TABLE_ENTRY = 8.0e-7
_MS_PER_ITEM = 1.5e-6
_MS_PER_CODE_BYTE = 6.2e-7


def payload_bytes(items: int, dim: int, setting: Setting) -> int:
    """Returns the bytes of an index without metadata: codes, centroids, codebooks."""
    # The rest is protobuf's tags and lengths.
    centroids = setting.partitions * (4 * dim + 6)
    codebooks = CODEBOOK_SIZE * (4 * dim + 4 * setting.code_bytes)
    return items * setting.code_bytes + centroids + codebooks


def with_metadata(payload: int, items: int, metadata_bytes: int) -> int:
    """Returns the bytes of an index file, if its metadata does not compress."""
    return payload + metadata_bytes + items * _KEY_BYTES


def search_ms(dim: int, setting: Setting, scored: float) -> float:
    """Returns the expected time of a search, the encoding of the query apart.

    Args:
      scored: items in the partitions that a query searches.
    """
    return (
        _MS_BASE
        + _MS_PER_CENTROID_DIM * setting.partitions * dim
        + _MS_PER_TABLE_ENTRY * CODEBOOK_SIZE * setting.code_bytes
        + scored * (_MS_PER_ITEM + _MS_PER_CODE_BYTE * setting.code_bytes)
    )
