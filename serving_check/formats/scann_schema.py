"""Loads the protobuf message ScannOnDeviceConfig from tflite-support.

tflite-support's generated module requires protobuf 3, so only the descriptor inside it is read.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

_MODULE = "tensorflow_lite_support.scann_ondevice.cc.core.serialized_searcher_pb2"
_MESSAGE = "tflite.scann_ondevice.core.ScannOnDeviceConfig"


@functools.cache
def scann_on_device_config() -> Any:
    """Returns the message class."""
    from google.protobuf import descriptor_pb2, message_factory

    spec = importlib.util.find_spec(_MODULE)
    assert spec and spec.origin
    nodes = ast.walk(ast.parse(Path(spec.origin).read_bytes()))
    literal = next(node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "serialized_pb")
    file = descriptor_pb2.FileDescriptorProto.FromString(ast.literal_eval(literal))
    return message_factory.GetMessages([file])[_MESSAGE]
