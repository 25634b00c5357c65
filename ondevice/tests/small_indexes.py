"""Index files of random codes, as the project's indexer writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from indexer.device.index_writer import write_index
from indexer.encoding.encoded_shards import EncodedCorpus
from tests.indexer.random_indexes import Case, codebooks, make_arrays, sizes

USER_INFO = '{"images": "a few"}'


def write(case: Case, folder: Path, compression: bool = True) -> Path:
    """Writes index.ldb; the metadata of an item is its number in decimal."""
    arrays = make_arrays(case)
    values = [b"%d" % item for item in range(case.count)]
    blob = folder / "blob"
    blob.write_bytes(b"".join(values))
    encoded = EncodedCorpus(
        codes=arrays["codes"],
        partition_sizes=sizes(arrays),
        metadata_blob=np.memmap(blob, np.uint8, "r"),
        metadata_offsets=np.cumsum([0, *map(len, values)]),
        order=np.arange(case.count),
        squared_error=0.0,
    )
    path = folder / "index.ldb"
    given = (arrays["centroids"], codebooks(arrays), case.lut_type, case.search_fraction, compression, USER_INFO)
    write_index(encoded, *given, path)
    return path
