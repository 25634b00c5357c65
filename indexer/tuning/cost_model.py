"""Cost model of an index: estimates its bytes and its search time from the parameters."""

from __future__ import annotations

from indexer.quantization.codebooks import CODEBOOK_SIZE
from indexer.tuning.parameters import IndexParameters

_KEY_BYTES = 6
"""Approximate overhead of the table per item's metadata."""

# Milliseconds through the Task Library on one thread of an x86-64 server core, fitted to indexes of 100,000 and
# 1,000,000 items. Times on a phone are proportional.
_MS_BASE = 0.07
_MS_PER_CENTROID_DIM = 1.8e-7
_MS_PER_TABLE_ENTRY = 8.0e-7
_MS_PER_ITEM = 1.5e-6
_MS_PER_CODE_BYTE = 6.2e-7


def payload_bytes(items: int, dim: int, parameters: IndexParameters) -> int:
    """Returns the bytes of an index without metadata: codes, centroids and codebooks, with their protobuf framing."""
    centroids = parameters.partitions * (4 * dim + 6)
    codebooks = CODEBOOK_SIZE * (4 * dim + 4 * parameters.code_bytes)
    return items * parameters.code_bytes + centroids + codebooks


def file_bytes(payload: int, items: int, metadata_bytes: int) -> int:
    """Returns the bytes of an index file whose metadata does not compress."""
    return payload + metadata_bytes + items * _KEY_BYTES


def search_ms(dim: int, parameters: IndexParameters, scored: float) -> float:
    """Returns the expected milliseconds of a search, excluding query encoding.

    Args:
      scored: Expected number of items in the partitions searched.
    """
    return (
        _MS_BASE
        + _MS_PER_CENTROID_DIM * parameters.partitions * dim
        + _MS_PER_TABLE_ENTRY * CODEBOOK_SIZE * parameters.code_bytes
        + scored * (_MS_PER_ITEM + _MS_PER_CODE_BYTE * parameters.code_bytes)
    )
