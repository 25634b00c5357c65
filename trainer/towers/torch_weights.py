"""Reads the tensors of a PyTorch .pth file (a state dict) as NumPy arrays, safely and without torch.

A .pth file is a pickle, and unpickling can run arbitrary code. This reader maps the few names that a state dict needs
to harmless substitutes and refuses all others, so a file can only produce arrays. It supports both layouts: the zip
archive of torch 1.6 and later, and the older stream of pickles.
"""

from __future__ import annotations

import collections
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from searchforge.errors import UsageError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, with offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Returns the tensors of a .pth file by name, C-contiguous and with their original dtypes.

    Raises:
      UsageError: The file is not a state dict, contains anything but tensors, or is damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            tensors, storages = _read_zip(path)
        else:
            with path.open("rb") as file:
                tensors, storages = _read_legacy(file)
        return {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise almost any type
        raise UsageError(f"{path} is not a readable state dict ({type(error).__name__}: {error})") from error


def _read_zip(path: Path) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (pickled,) = [name for name in names if name.endswith("data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise UsageError("contains big-endian tensors, expected little-endian")
        with archive.open(pickled) as file:
            tensors = _state_dict(_Unpickler(file).load())
        keys = {tensor.storage.key for tensor in tensors.values()}
        return tensors, {key: archive.read(f"{root}data/{key}") for key in keys}


def _read_legacy(file: BinaryIO) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    magic, _protocol, system = (_Unpickler(file).load() for _ in range(3))
    if magic != _LEGACY_MAGIC or not system.get("little_endian"):
        raise UsageError("does not start like a little-endian .pth file")
    tensors = _state_dict(_Unpickler(file).load())
    known = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    storages = {}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        if key not in known or count != known[key].count:
            raise UsageError(f"storage {key!r} has {count} elements, which does not match any tensor")
        storages[key] = file.read(count * known[key].dtype.itemsize)
    return tensors, storages


def _state_dict(value: Any) -> dict[str, _Tensor]:
    if not isinstance(value, dict) or not all(isinstance(item, _Tensor) for item in value.values()):
        raise UsageError("contains something other than a flat dictionary of tensors")
    return {str(name): tensor for name, tensor in value.items()}


def _array(tensor: _Tensor, storages: dict[str, bytes]) -> npt.NDArray[Any]:
    flat = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    last = tensor.offset + sum(max(n - 1, 0) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    # as_strided does not check bounds, so a forged view could read memory outside the storage.
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or (0 not in tensor.shape and last >= flat.size):
        raise UsageError(
            f"tensor of shape {tensor.shape} extends beyond its storage of {flat.size} elements; the file is damaged"
        )
    strides = [stride * flat.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.array(view, order="C")


class _Unpickler(pickle.Unpickler):
    """Unpickler that allows only the names of a state dict, resolved to substitutes that a pickle cannot modify."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise UsageError(f"refers to {module}.{name}, which a file of tensors does not need; refusing to load it")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise UsageError(f"refers to {kind!r}, expected a tensor storage")
        return _Storage(str(key), dtype, int(count))

    def _rebuild_tensor(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_unused: Any
    ) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise UsageError("contains a tensor without a storage")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
