"""Finds faults of a searcher without running it: in its files, models, metadata and the provenance that it states."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import Manifest
from searchforge.hashing import sha256_file
from searchforge.preprocessing import Preprocessing
from serving_check.formats.searcher_file import FLOAT32, FULLY_CONNECTED, SearcherFile, differences

Matrix = npt.NDArray[np.float32]

_SCANN_INDEX_FILE = 6
"""AssociatedFileType of the metadata's schema."""


def file_faults(folder: Path, names: list[str], build: Mapping[str, Any]) -> list[str]:
    """Returns which searcher files are missing or differ from those that the build committed."""
    faults = []
    for name in names:
        listed, path = build.get("files", {}).get(name), folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif (found := sha256_file(path)) != listed:
            faults.append(f"{name} has SHA-256 {found[:16]}, build.json lists {str(listed)[:16]}")
    return faults


def bundle_faults(folder: Path, names: list[str], bundle: EncoderInfo) -> list[str]:
    """Returns which of the encoder's files differ from those that its bundle lists."""
    return [
        f"{name} of encoder {bundle.id} has SHA-256 {found[:16]}, encoder.json lists {bundle.files[name][:16]}"
        for name in names
        if bundle.files.get(name) and (found := sha256_file(folder / name)) != bundle.files[name]
    ]


def model_faults(searcher: SearcherFile, encoder: SearcherFile, dim: int) -> list[str]:
    """Returns how a searcher's model differs from the encoder followed by at most one matrix, the query map.

    Args:
      dim: Number of dimensions of the index; 0 if it is unknown.
    """
    faults = differences(searcher.inputs, encoder.inputs, "inputs")
    missing = sum((encoder.weights - searcher.weights).values())
    if missing:
        faults.append(f"{missing} of {sum(encoder.weights.values())} weights of the bundle's encoder are missing")
    if query_map(searcher, encoder) is None:
        faults.append(
            f"it has {len(searcher.operators)} operators, expected the {len(encoder.operators)} of the bundle's "
            "encoder and at most one more, a matrix multiplication"
        )
    if len(searcher.outputs) != 1 or searcher.outputs[0]["type"] != FLOAT32:
        faults.append(f"outputs are {searcher.outputs}, expected one of float32")
    elif dim and searcher.outputs[0]["shape"][-1:] != [dim]:
        faults.append(f"the output is {searcher.outputs[0]['shape']}, but the index has {dim} dimensions")
    return faults


def query_map(searcher: SearcherFile, encoder: SearcherFile) -> Matrix | None:
    """Returns the matrix [dim_out, dim] by which a searcher maps the encoder's embeddings.

    The matrix is the identity if the searcher adds nothing to the encoder; None if it adds anything else.
    """
    if searcher.operators == encoder.operators:
        return np.eye(encoder.outputs[0]["shape"][-1], dtype=np.float32) if encoder.outputs[0]["shape"] else None
    return searcher.last_kernel if searcher.operators == [*encoder.operators, FULLY_CONNECTED] else None


def metadata_faults(
    searcher: SearcherFile, encoder: SearcherFile, kind: Literal["text", "image"], preprocessing: str
) -> list[str]:
    """Returns how a searcher's metadata and files differ from the encoder's with the index added."""
    if searcher.metadata is None or encoder.metadata is None:
        return ["TFLITE_METADATA is missing"]
    found, expected = (copy.deepcopy(metadata) for metadata in (searcher.metadata, encoder.metadata))
    for metadata in (found, expected):
        metadata.pop("minParserVersion", None)  # the index needs a later one
    indexes = _remove_index_files(found)
    faults = differences(found, expected, "metadata")
    if [file["name"] for file in indexes] != [searcher.index_name]:
        faults.append(
            f"it lists the index files {[file['name'] for file in indexes]}, but contains {searcher.index_name!r}"
        )
    for name in sorted(searcher.files.keys() | encoder.files.keys()):
        if name not in searcher.files:
            faults.append(f"its file {name} is missing")
        elif searcher.files[name] != encoder.files.get(name):
            faults.append(f"its file {name} differs from that of the bundle's encoder")
    if kind == "image":
        faults += _image_faults(searcher, found, preprocessing)
    return faults


def user_info_faults(user_info: bytes, build: Mapping[str, Any], manifest: Manifest, bundle: EncoderInfo) -> list[str]:
    """Returns where the USER_INFO of the index contradicts the build, the manifest or the bundle."""
    expected = {
        "searcher": build["id"],
        "embeddings": manifest.id,
        "encoder": bundle.id,
        "fingerprint": bundle.fingerprint,
        "images": manifest.records,
        "preprocessing": bundle.preprocessing,
    }
    try:
        info = json.loads(user_info)
        found = {key: info[key] for key in expected}
    except (ValueError, KeyError, TypeError, RecursionError):
        start = user_info[:80].decode(errors="replace")
        return [f"USER_INFO is {start!r}, expected JSON with searcher, embeddings, encoder, fingerprint and images"]
    return [
        f"USER_INFO says {key} {found[key]!r}, expected {value!r}; build the index again"
        for key, value in expected.items()
        if found[key] != value
    ]


def encoder_faults(build: Mapping[str, Any], manifest: Manifest, bundle: EncoderInfo) -> list[str]:
    """Returns whether the embeddings or the build belong to a different encoder from the bundle."""
    return [
        f"{artifact} is of encoder {str(found)[:16]}, the bundle is encoder {bundle.fingerprint[:16]}; embed and index "
        "again with one encoder"
        for artifact, found in (("the manifest", manifest.fingerprint), ("the build", build["fingerprint"]))
        if found != bundle.fingerprint
    ]


def _remove_index_files(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Removes the index from the files of the output tensors, and returns the removed entries."""
    removed: list[dict[str, Any]] = []
    for graph in metadata.get("subgraphMetadata") or []:
        for tensor in graph.get("outputTensorMetadata") or []:
            files = tensor.get("associatedFiles") or []
            removed += [file for file in files if file["type"] == _SCANN_INDEX_FILE]
            tensor["associatedFiles"] = [file for file in files if file["type"] != _SCANN_INDEX_FILE] or None
    return removed


def _image_faults(searcher: SearcherFile, metadata: dict[str, Any], preprocessing: str) -> list[str]:
    expected = Preprocessing.parse(preprocessing)
    shape = [1, expected.height, expected.width, 3]
    faults = [f"the input is {t['shape']}, expected {shape}" for t in searcher.inputs if t["shape"] != shape]
    units = [
        unit["options"]
        for graph in metadata.get("subgraphMetadata") or []
        for tensor in graph.get("inputTensorMetadata") or []
        for unit in tensor.get("processUnits") or []
        if unit.get("options") and "mean" in unit["options"]
    ]
    if len(units) != 1:
        return [*faults, f"{len(units)} normalizations of the input, expected 1"]
    for name, values in (("mean", expected.mean), ("std", expected.std)):
        found = np.ravel(units[0][name])
        if len(found) not in (1, 3) or np.abs(found - values).max() > 1e-3:
            faults.append(f"the input's {name} is {units[0][name]}, expected {values.tolist()} for {preprocessing}")
    return faults
