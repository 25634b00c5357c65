"""Lists the members of tar shards and TFRecord files, which workers later read by byte range.

Formats: the POSIX.1-2017 pax interchange format and the older ustar, v7 and GNU headers (GNU tar manual, "Basic Tar
Format"), and TFRecords of tf.train.Example as in searchforge/artifacts/records.py. Python's tarfile is not used because
it keeps all members in memory, takes a damaged header for the end of the archive, and trusts the lengths in headers.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from beam_jobs.corpus.files import File
from beam_jobs.corpus.items import Item
from beam_jobs.corpus.metadata import MAX_METADATA, is_too_long, parse_object
from beam_jobs.corpus.reading import open_file
from searchforge.artifacts.records import TFRECORD_FRAMING, TFRECORD_HEADER, example_bytes, iterate_tfrecords
from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes
from searchforge.image_decoding import RejectedInput

_TAR = re.compile(r"\.tar$", re.IGNORECASE)
_TFRECORD = re.compile(r"(\.tfrecords?|-\d{3,}-of-\d{3,})$", re.IGNORECASE)
_COMPRESSED = re.compile(
    r"(\.(tgz|tbz2?|txz)|(\.tar|\.tfrecords?|-\d{3,}-of-\d{3,})\.(gz|bz2|xz|zst|lz4|snappy|zlib|z))$", re.IGNORECASE
)
_SUFFIXES = {"tar", "tfrecord", "tfrecords", "tgz", "tbz", "tbz2", "txz"}
_SUFFIXES |= {"gz", "bz2", "xz", "zst", "lz4", "snappy", "zlib", "z"}
"""Suffixes of archives. Files with other suffixes that do not end in a digit skip the slower patterns above."""


class _DamagedError(ValueError):
    """The archive is damaged, so nothing after this point can be read."""


def is_archive(path: str) -> bool:
    """Returns whether a file is an archive, judging by its name.

    Raises:
      UsageError: The archive is compressed.
    """
    suffix = path[path.rfind(".") + 1 :].lower()
    if suffix not in _SUFFIXES and not suffix[-1:].isdigit():
        return False
    # An error rather than a reject, because an unknown number of images would be lost. Members of a compressed archive
    # have no byte range of their own.
    if _COMPRESSED.search(path):
        raise UsageError(f"{path} is a compressed archive, whose members cannot be read individually; decompress it")
    return bool(_TAR.search(path) or _TFRECORD.search(path))


def list_archive(archive: File, metadata: dict[str, Any]) -> Iterator[Item]:
    """Yields an item for every image in an archive; unusable members are yielded as rejects.

    If the archive is damaged, the last item is a reject of the archive, and members after the damage are not listed.

    Args:
      metadata: Metadata of the archive, which its members inherit.

    Raises:
      UsageError, JobError: The bucket cannot be used.
    """
    list_members = _list_tar if _TAR.search(archive.path) else _list_tfrecord
    try:
        with open_file(archive.path, archive.version) as stream:
            try:
                yield from list_members(archive, metadata, stream)
            except _DamagedError as error:
                detail = f"{error}; later members were not listed"
                yield _rejected_archive(archive, RejectedInput("damaged_archive", detail))
    except RejectedInput as error:
        yield _rejected_archive(archive, error)


def _rejected_archive(archive: File, error: RejectedInput) -> Item:
    return Item(archive.id, archive.path, archive.path, archive.version, archive.size).rejected(error)


def _item(archive: File, name: str, offset: int, size: int, **others: Any) -> Item:
    return Item(f"{archive.id}/{name}", f"{archive.path}!{name}", archive.path, archive.version, size, offset, **others)


# Tar shards in the layout of WebDataset (https://github.com/webdataset/webdataset): the members of a sample share a
# stem and are adjacent.

_TEXT_MEMBERS = {".txt": "text", ".cls": "cls"}
"""Metadata key for the text of members with these extensions."""

_MAX_OPEN_SAMPLES = 64
"""Number of samples kept open at a time, for members that are not strictly adjacent."""


@dataclass
class _Sample:
    images: list[_TarMember] = field(default_factory=list)
    metadata_members: list[_TarMember] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    length: int = 0
    errors: list[str] = field(default_factory=list)


def _list_tar(archive: File, metadata: dict[str, Any], stream: BinaryIO) -> Iterator[Item]:
    samples: OrderedDict[str, _Sample] = OrderedDict()
    damage: Exception | None = None
    try:
        for member in _tar_members(stream, archive.size):
            reason, detail = _reject_reason(member)
            if reason:
                yield _rejected(archive, member, reason, detail)
                continue
            stem, dot, extension = member.name.rpartition(".")
            if not dot or "/" in extension:
                stem, extension = member.name, ""
            sample = samples.setdefault(stem, _Sample())
            extension = f".{extension.lower()}"
            if extension == ".json" or extension in _TEXT_MEMBERS:
                _add_metadata(sample, member, extension, stream)
            else:
                sample.images.append(member)
            if max(len(samples), len(sample.images), len(sample.metadata_members)) > _MAX_OPEN_SAMPLES:
                yield from _items_of_sample(archive, metadata, samples.popitem(last=False)[1])
    except (_DamagedError, OSError) as error:
        damage = error
    for sample in samples.values():
        yield from _items_of_sample(archive, metadata, sample)
    if damage:
        raise damage


def _reject_reason(member: _TarMember) -> tuple[str, str]:
    if member.kind:
        return "not_a_file", f"a {member.kind}"
    if not member.name or member.name.startswith("/") or ".." in member.name.split("/"):
        return "unsafe_path", "the path leaves the archive"
    if not member.utf8:
        return "not_utf8", "the name is not UTF-8"
    if _TAR.search(member.name) or _TFRECORD.search(member.name) or _COMPRESSED.search(member.name):
        return "nested_archive", "nested archives are not opened; unpack it"
    return "", ""


def _add_metadata(sample: _Sample, member: _TarMember, extension: str, stream: BinaryIO) -> None:
    """Adds a JSON or text member to the metadata of its sample, or an error if it cannot be read or is too long."""
    sample.metadata_members.append(member)
    if sample.length + member.size > MAX_METADATA:
        sample.errors.append(f"{member.name}: more than {MAX_METADATA} bytes")
        return
    sample.length += member.size
    stream.seek(member.offset)
    data = stream.read(member.size)
    try:
        if extension == ".json":
            sample.metadata |= parse_object(data)
        else:
            sample.metadata[_TEXT_MEMBERS[extension]] = data.decode("utf-8-sig").strip()
    except ValueError as error:
        reason = "not UTF-8; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        sample.errors.append(f"{member.name}: {reason}")


def _items_of_sample(archive: File, metadata: dict[str, Any], sample: _Sample) -> Iterator[Item]:
    found = {**metadata, **sample.metadata}
    found.pop("id", None)  # the device stores the item's id under this key
    for image in sample.images:
        error = "; ".join(sample.errors)
        yield _item(archive, image.name, image.offset, image.size, metadata=found, metadata_error=error)
    if not sample.images:
        for member in sample.metadata_members:
            stem = member.name.rpartition(".")[0]
            detail = (
                f"no neighbouring member is an image {stem}.<extension>, with the same name up to the last dot; store "
                "the members of a sample next to each other"
            )
            yield _rejected(archive, member, "orphan_metadata", detail)


def _rejected(archive: File, member: _TarMember, reason: str, detail: str) -> Item:
    return _item(archive, member.name, member.offset, member.size, reject=reason, detail=detail)


_BLOCK = 512
_END = bytes(_BLOCK)
_MAX_EXTENDED = 2**20
"""Maximum number of bytes of an extended header; Linux limits paths to 4,096 bytes."""

_MAX_SIZE = 2**62

_FILE_KINDS = (b"0", b"\0", b"7")
_EXTENDED_KINDS = (b"x", b"X", b"g", b"L", b"K")
_NON_MEMBER_KINDS = (b"D", b"V")
"""GNU tar's directory listings and volume labels, which are not members."""

_OTHER_KINDS = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "pipe",
    b"M": "continuation of another volume's file",
}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"6")


class _TarMember(NamedTuple):
    """A member of a tar archive.

    Attributes:
      name: Decoded name; bytes that are not UTF-8 are escaped.
      utf8: Whether the name is valid UTF-8.
      kind: Human-readable kind of a special member; empty for a regular file.
      offset, size: Byte range of the data in the archive.
    """

    name: str
    utf8: bool
    kind: str
    offset: int
    size: int


def _tar_members(stream: BinaryIO, archive_size: int) -> Iterator[_TarMember]:
    """Yields the members in order, skipping their data.

    Raises:
      _DamagedError: The archive is damaged or truncated.
    """
    position = 0
    ended = False
    extended: dict[str, bytes] = {}
    while header := stream.read(_BLOCK):
        start, position = position, position + _BLOCK
        if header == _END[: len(header)]:  # not necessarily the end: archives can be concatenated
            ended = ended or len(header) == _BLOCK
            continue
        ended = False
        if len(header) < _BLOCK:
            raise _DamagedError(f"it ends within the header at byte {start}")
        if not _checksum_matches(header):
            raise _DamagedError(f"no tar header at byte {start}")
        kind, size = header[156:157], _tar_number(header[124:136])
        if kind in _EXTENDED_KINDS:
            data = stream.read(_padded(size)) if size <= _MAX_EXTENDED else b""
            if not data or len(data) < size:
                raise _DamagedError(f"the extended header at byte {start} claims {size} bytes")
            position += len(data)
            if kind == b"L":
                extended["path"] = data[:size].rstrip(b"\0")
            elif kind in (b"x", b"X"):
                extended |= _pax_records(data[:size])
            continue
        name = extended.get("path") or _tar_name(header)
        if "size" in extended:
            size = _digits(extended["size"], 10)
        sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in extended)
        extended = {}
        more = kind == b"S" and header[482] != 0
        while more:  # the sparse map continues in the next block
            block = stream.read(_BLOCK)
            position += len(block)
            more = len(block) == _BLOCK and block[504] != 0
        folder = kind == b"5" or (kind == b"\0" and name.endswith(b"/"))
        if kind in _WITHOUT_DATA or folder:
            size = 0
        if position + size > archive_size >= 0:
            printable = name.decode(errors="backslashreplace")
            raise _DamagedError(f"it ends {position + size - archive_size} bytes before member {printable!r} does")
        if not folder and kind not in _NON_MEMBER_KINDS:
            special = "sparse file" if sparse else _OTHER_KINDS.get(kind, "" if kind in _FILE_KINDS else f"{kind!r}")
            yield _TarMember(*_decode_name(name), special, position, size)
        position += _padded(size)
        stream.seek(position)
    if not ended:
        raise _DamagedError(f"it ends at byte {position} without an end-of-archive marker")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _checksum_matches(header: bytes) -> bool:
    field = header[148:156]
    found = sum(header) - sum(field) + 8 * ord(" ")
    try:
        expected = _digits(field, 8)
    except _DamagedError:
        return False
    # Some old implementations summed signed characters.
    return expected == found or expected == found - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _tar_number(data: bytes) -> int:
    """Parses a number in a header: octal digits or, in the GNU format, big-endian binary."""
    if data[0] == 0x80:
        number = int.from_bytes(data[1:], "big")
        if number > _MAX_SIZE:
            raise _DamagedError(f"a header claims {number} bytes")
        return number
    return _digits(data, 8)


def _digits(data: bytes, base: int) -> int:
    text = data.strip(b" \0")
    if not text:
        return 0
    if len(text) > 20 or not text.isdigit():
        raise _DamagedError(f"{text[:20]!r} is not a number")
    try:
        return min(int(text, base), _MAX_SIZE)
    except ValueError:
        raise _DamagedError(f"{text!r} is not a number") from None


def _tar_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    # The old GNU format, which has a blank in the magic, stores timestamps in the prefix field.
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _decode_name(name: bytes) -> tuple[str, bool]:
    while name.startswith(b"./"):
        name = name[2:]
    try:
        return name.decode(), True
    except UnicodeDecodeError:
        return name.decode(errors="backslashreplace"), False


def _pax_records(data: bytes) -> dict[str, bytes]:
    """Parses pax records, `<length> <key>=<value>\\n`, where the length covers the whole record."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 20)
        length = _digits(data[position:blank], 10) if blank > 0 else 0
        end = position + length
        if end > len(data) or end <= blank or data[end - 1 : end] != b"\n":
            raise _DamagedError("an extended header is malformed")
        key, _, value = data[blank + 1 : end - 1].partition(b"=")
        records[key.decode(errors="replace")] = value
        position = end
    return records


# TFRecords of tf.train.Example, with the keys of TensorFlow Datasets, the Object Detection API and ImageNet scripts.

_IMAGE_KEYS = ("image/encoded", "image", "jpeg", "jpg", "png", "image_raw", "encoded", "bytes", "image_bytes")
_ID_KEYS = ("image/filename", "filename", "id", "image/id", "image/source_id", "key")
_MAX_TEXT = 1024
"""Maximum number of bytes of a feature that counts as text; longer ones are taken for data."""


def _list_tfrecord(archive: File, metadata: dict[str, Any], stream: BinaryIO) -> Iterator[Item]:
    start = 0
    records = iterate_tfrecords(stream)
    for index in itertools.count():
        try:
            payload = next(records, None)
        except ValueError as error:
            raise _DamagedError(str(error)) from None
        if payload is None:
            return
        yield _example_item(archive, metadata, index, payload, start + TFRECORD_HEADER)
        start += len(payload) + TFRECORD_FRAMING


def _example_item(archive: File, metadata: dict[str, Any], index: int, payload: bytes, start: int) -> Item:
    def reject(reason: str, detail: str) -> Item:
        return _item(archive, f"#{index}", start, len(payload), reject=reason, detail=detail)

    try:
        features = example_bytes(payload)
    except ValueError as error:
        return reject("not_an_example", str(error))
    key = next((key for key in _IMAGE_KEYS if key in features), None)
    if key is None:
        found = ", ".join(sorted(features)[:20]) or "none"
        return reject("no_image", f"found the bytes features {found}; expected one of {', '.join(_IMAGE_KEYS)}")
    values = features.pop(key)
    if len(values) != 1:
        return reject("no_image", f"feature {key!r} has {len(values)} values, expected one")
    texts = {name: text for name, values in sorted(features.items()) if (text := _short_text(values)) is not None}
    id_key = next((name for name in _ID_KEYS if isinstance(texts.get(name), str) and texts[name]), "")
    name = str(texts.pop(id_key, f"#{index}"))
    texts.pop("id", None)  # the device stores the item's id under this key
    omitted = ""
    if is_too_long(texts, sum(len(text) for values in features.values() for text in values)):
        texts, omitted = {}, f"more than {MAX_METADATA} bytes of text"
    # The first occurrence of these bytes in the record may be an earlier one, which is just as good.
    offset = start + payload.find(values[0])
    content = f"sha256:{sha256_bytes(values[0])}"
    combined = {**metadata, **texts}
    return _item(archive, name, offset, len(values[0]), content=content, metadata=combined, metadata_error=omitted)


def _short_text(values: list[bytes]) -> str | list[str] | None:
    """Returns the values of a feature as text, or None if they are long or not text."""
    if not values or sum(map(len, values)) > _MAX_TEXT:
        return None
    try:
        texts = [value.decode() for value in values]
    except UnicodeDecodeError:
        return None
    if any("\0" in text for text in texts):
        return None
    return texts[0] if len(texts) == 1 else texts
