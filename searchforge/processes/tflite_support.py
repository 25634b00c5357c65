"""Prepares a process for tflite-support: without TensorFlow, with libusb, with the protobuf that it needs."""

from __future__ import annotations

import ctypes
import os
import sys

from searchforge.errors import JobError


def prepare() -> None:
    """Makes this process able to import tflite_support; call before the import, in a process without TensorFlow.

    Raises:
      JobError: TensorFlow is already loaded.
    """
    if sys.modules.get("tensorflow") is not None:
        raise JobError(
            "TensorFlow is loaded in this process, so tflite-support cannot be; use searchforge.processes.isolated"
        )
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    # Its generated classes are of protobuf 3; later releases of protobuf take them in this implementation only.
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    import libusb_package

    library = libusb_package.get_library_path()
    if library is None:
        raise JobError("package libusb-package has no libusb-1.0 for this platform; install libusb-1.0 by hand")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
