"""Looks into a searcher file without the Task Library: its index is whole and holds exactly the corpus' items."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

from searchforge.encoder import EncoderInfo
from searchforge.manifest import Manifest
from serving_check.corpus import Corpus
from serving_check.leveldb_table import MAGIC, read_table


def examine_index(path: Path, corpus: Corpus) -> dict[str, float]:
    """Reads the index inside a searcher.

    Returns:
      `index_bytes`, and `bytes_per_image` of everything in it but the metadata.

    Raises:
      ValueError: there is no whole index, or it does not hold exactly the corpus' items.
      OSError: the file cannot be read.
    """
    table = _index_table(path.read_bytes())
    payload = 0
    indexed: Counter[str] = Counter()
    for key, value in read_table(table):
        if key.startswith(b"M_"):
            indexed[_item_id(value)] += 1
        else:
            payload += len(value)
    for what, ids in (
        ("are in the manifest, but not in the index", corpus.row_of.keys() - indexed.keys()),
        ("are in the index, but not in the manifest", indexed.keys() - corpus.row_of.keys()),
        ("are in the index more than once", {id for id, count in indexed.items() if count > 1}),
    ):
        if ids:
            raise ValueError(f"{len(ids)} items {what}, such as {min(ids)!r}")
    return {"index_bytes": len(table), "bytes_per_image": payload / len(corpus.ids)}


def fingerprint_faults(user_info: str, name: str, manifest: Manifest, bundle: EncoderInfo) -> list[str]:
    """Says where the index, the manifest and the encoder bundle do not belong to one another."""
    try:
        info = json.loads(user_info)
        indexed, images = info["fingerprint"], info["images"]
    except (ValueError, KeyError, TypeError):
        return [f"{name}: USER_INFO is {user_info[:80]!r}, expected JSON with fingerprint and images"]
    faults = [
        f"{name} was indexed for encoder {indexed[:16]}, {what} is of encoder {found[:16]}"
        for what, found in (("the manifest", manifest.fingerprint), ("the bundle", bundle.fingerprint))
        if indexed != found
    ]
    if images != manifest.embedded + manifest.reused:
        faults.append(f"{name} says {images} images, the manifest {manifest.embedded + manifest.reused}")
    return faults


def _item_id(metadata: bytes) -> str:
    try:
        return str(json.loads(metadata)["id"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"metadata of an item is {metadata[:80]!r}, expected a JSON object with an id") from None


def _index_table(model: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            for name in archive.namelist():
                if (data := archive.read(name)).endswith(MAGIC):
                    return data
    except zipfile.BadZipFile as error:
        raise ValueError(f"its associated files cannot be read: {error}") from None
    raise ValueError("no index is packed into it")
