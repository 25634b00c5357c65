"""Prepares a process for tflite-support: blocks TensorFlow, loads libusb and selects a protobuf implementation."""

from __future__ import annotations

import ctypes
import os
import sys

from searchforge.errors import JobError


def prepare() -> None:
    """Prepares this process for importing tflite_support. Call it before the import, in a process without TensorFlow.

    Raises:
      JobError: TensorFlow is loaded, or libusb is missing.
    """
    if sys.modules.get("tensorflow") is not None:
        raise JobError(
            "tflite-support cannot be loaded into a process with TensorFlow; use searchforge.processes.isolated"
        )
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    # Of later protobuf releases, only this implementation accepts classes that were generated for protobuf 3.
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    import libusb_package

    library = libusb_package.get_library_path()
    if library is None:
        raise JobError("package libusb-package has no libusb-1.0 for this platform; install libusb-1.0 manually")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
