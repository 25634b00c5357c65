"""Tests that the reader of .pth files builds arrays, and nothing else."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchforge.errors import UsageError
from trainer.towers.torch_weights import read_state_dict


class _Storage:
    def __init__(self, key: str, values: np.ndarray) -> None:
        self.key, self.values = key, values


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    """Writes the same pickle as torch, given substitutes for its modules."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return "storage", sys.modules["torch"].FloatStorage, value.key, "cpu", len(value.values), None
        return None


@pytest.fixture(autouse=True)
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})  # type: ignore[attr-defined]

    def _rebuild_tensor_v2(*_arguments: Any) -> None:
        raise AssertionError("the real function must not be called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def _legacy(path: Path, value: Any, storages: list[_Storage]) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    data = b"".join(_pickled(part) for part in (0x1950A86A20F9469CFC6C, 1001, system, value))
    data += _pickled([storage.key for storage in storages])
    for storage in storages:
        data += struct.pack("<q", len(storage.values)) + storage.values.astype("<f4").tobytes()
    path.write_bytes(data)
    return path


def _zipped(path: Path, value: Any, storages: list[_Storage]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", _pickled(value))
        for storage in storages:
            archive.writestr(f"weights/data/{storage.key}", storage.values.astype("<f4").tobytes())
    return path


@pytest.mark.parametrize("write", [_legacy, _zipped])
def test_reads_both_layouts_and_strided_views(write: Any, tmp_path: Path) -> None:
    storage = _Storage("7", np.arange(12, dtype=np.float32))
    state = collections.OrderedDict(
        plain=_Tensor(storage, 0, (3, 4), (4, 1)), transposed=_Tensor(storage, 2, (2, 3), (1, 4))
    )
    tensors = read_state_dict(write(tmp_path / "weights.pth", state, [storage]))
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(tensors["plain"], whole)
    np.testing.assert_array_equal(tensors["transposed"], whole[:, 2:].T)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("write", [_legacy, _zipped])
def test_refuses_a_pickle_that_runs_code(write: Any, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path / "weights.pth", {"weight": _Malicious(marker)}, [])
    with pytest.raises(UsageError, match=r"refers to (posix|nt)\.system"):
        read_state_dict(path)
    assert not marker.exists()


def test_refuses_a_view_outside_its_storage(tmp_path: Path) -> None:
    storage = _Storage("0", np.zeros(4, np.float32))
    state = {"weight": _Tensor(storage, 0, (1000,), (1,))}
    with pytest.raises(UsageError, match="beyond its storage of 4 elements"):
        read_state_dict(_zipped(tmp_path / "weights.pth", state, [storage]))


def test_the_error_names_a_damaged_file(tmp_path: Path) -> None:
    storage = _Storage("0", np.zeros(400, np.float32))
    path = _legacy(tmp_path / "weights.pth", {"weight": _Tensor(storage, 0, (400,), (1,))}, [storage])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"weights\.pth"):
        read_state_dict(path)
