"""Protobuf's wire format (https://protobuf.dev/programming-guides/encoding): fields are written and walked by number.

Generated classes are no alternative: those of tf.train.Example would load TensorFlow into every worker, and those of
tflite-support are for protobuf 3 and pure Python.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


def varint(value: int) -> bytes:
    """Encodes a non-negative integer: seven bits per byte, lowest first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Returns the integer encoded at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def tag(number: int, wire_type: int) -> bytes:
    """Encodes the tag of a field whose number is at most 15."""
    return bytes([number << 3 | wire_type])


def integer_field(number: int, value: int) -> bytes:
    """Encodes an integer field."""
    return tag(number, VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """Encodes a length-delimited field: bytes, a string, a message or packed numbers."""
    return tag(number, LENGTH_DELIMITED) + varint(len(value)) + value


def bytes_values(message: bytes, number: int) -> Iterator[bytes]:
    """Yields the length-delimited values of the field `number`, and skips other fields.

    Raises:
      ValueError, IndexError: The message is malformed or truncated.
    """
    position = 0
    while position < len(message):
        key, position = read_varint(message, position)
        wire_type = key & 7
        if wire_type == VARINT:
            _, position = read_varint(message, position)
            continue
        if wire_type in _FIXED_BYTES:
            length = _FIXED_BYTES[wire_type]
        elif wire_type == LENGTH_DELIMITED:
            length, position = read_varint(message, position)
        else:
            raise ValueError(f"unexpected wire type {wire_type}")
        if position + length > len(message):
            raise ValueError("truncated message")
        if key == number << 3 | LENGTH_DELIMITED:
            yield message[position : position + length]
        position += length
