"""The built library loads on devices: its segments are aligned to pages of 16 KB, and its interface is C's."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

LIBRARY = Path(__file__).parent.parent / "build" / "libsearchforge_reader.so"
HEADER = Path(__file__).parent.parent / "cpp" / "searchforge_reader.h"
PAGE = 16 * 1024
_LOAD = 1
"""Type of a program header that is mapped into memory."""


def test_segments_are_aligned_to_pages_of_16_kb() -> None:
    assert {alignment % PAGE for alignment in _load_alignments(LIBRARY.read_bytes())} == {0}


def test_the_library_exports_what_its_header_declares() -> None:
    listed = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in listed.splitlines()}
    assert exported == set(re.findall(r"^SF_API .*?\b(sf_\w+)\(", HEADER.read_text(), re.MULTILINE))


def test_the_header_is_c99() -> None:
    options = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c")
    checked = subprocess.run(["cc", *options, HEADER], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def _load_alignments(elf: bytes) -> list[int]:
    """Returns p_align of every loaded segment of a 64-bit little-endian ELF file (man 5 elf)."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (start,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    headers = [struct.unpack_from("<II6Q", elf, start + number * size) for number in range(count)]
    alignments = [header[7] for header in headers if header[0] == _LOAD]
    assert alignments
    return alignments
