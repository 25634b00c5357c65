"""Listing of archives: members are byte ranges, and damage is reported without losing the members before it."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.corpus.corpus import list_images
from beam_jobs.corpus.items import Item
from beam_jobs.corpus.reading import read_bytes
from searchforge.artifacts.records import write_tfrecords
from searchforge.errors import SearchforgeError, UsageError
from searchforge.hashing import sha256_bytes

Members = Iterable[tuple[str | tarfile.TarInfo, bytes]]


def tar_bytes(members: Members, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _special(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "x.jpg"
    return info, b""


def tf_example(**features: bytes | list[bytes] | int) -> bytes:
    import tensorflow as tf

    def feature(value: bytes | list[bytes] | int) -> Any:
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        values = value if isinstance(value, list) else [value]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    named = {key.replace("__", "/"): feature(value) for key, value in features.items()}
    data: bytes = tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()
    return data


def tfrecord_bytes(payloads: Iterable[bytes]) -> bytes:
    buffer = io.BytesIO()
    write_tfrecords(buffer, payloads)
    return buffer.getvalue()


def _list(folder: Path, data: bytes, name: str = "a.tar") -> dict[str, Item]:
    """Lists an archive; keys are ids relative to the archive, empty for the archive itself."""
    (folder / name).write_bytes(data)
    found: dict[str, Item] = {}
    for item in list_images(str(folder / name)):
        assert item.id.startswith(name)
        assert item.id not in found
        found[item.id.removeprefix(name).removeprefix("/")] = item
    return found


def _bytes(item: Item) -> bytes:
    return read_bytes(item.file, 10**6, item.offset, item.size)


def _rejects(items: dict[str, Item]) -> dict[str, str]:
    return {id: item.reject for id, item in items.items() if item.reject}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_in_a_tar_are_byte_ranges(tmp_path: Path, format: int) -> None:
    images = {"a.jpg": b"A" * 700, "sub/b.png": b"B" * 512, f"{'d' * 80}/{'n' * 90}.jpg": b"C", "empty.jpg": b""}
    items = _list(tmp_path, tar_bytes(images.items(), format))
    assert {id: _bytes(item) for id, item in items.items()} == images
    status = (tmp_path / "a.tar").stat()
    for id, item in items.items():
        assert item.uri == f"{tmp_path}/a.tar!{id}"
        assert item.version == f"{status.st_size}:{status.st_mtime_ns}"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_can_be_long_and_contain_any_unicode(tmp_path: Path, format: int) -> None:
    names = [f"{'ü' * 120}/{'本' * 60}.jpg", "./here.jpg"]
    items = _list(tmp_path, tar_bytes([(name, b"x") for name in names], format))
    assert list(items) == [names[0], "here.jpg"]


def test_members_with_the_same_stem_become_metadata(tmp_path: Path) -> None:
    members = [
        ("1.jpg", b"1"),
        ("1.json", b'{"author": "Ada", "id": 17, "tags": ["x"]}'),
        ("1.txt", "ein Käfer\n".encode()),
        ("2.json", b'{"author": "Bo"}'),
        ("2.jpg", b"2"),
        ("3.jpg", b"3"),
    ]
    items = _list(tmp_path, tar_bytes(members))
    assert {id: item.metadata for id, item in items.items()} == {
        "1.jpg": {"author": "Ada", "tags": ["x"], "text": "ein Käfer"},
        "2.jpg": {"author": "Bo"},
        "3.jpg": {},
    }


@pytest.mark.parametrize(
    "data",
    [b"[1]", b"{", b"", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 50_000],
)
def test_an_image_is_kept_without_unreadable_metadata(tmp_path: Path, data: bytes) -> None:
    members = [("1.jpg", b"1"), ("1.json", data), ("1.txt", b"caf\xe9"), ("1.cls", b"7"), ("2.jpg", b"2")]
    items = _list(tmp_path, tar_bytes(members))
    assert not _rejects(items)
    assert (items["1.jpg"].metadata, items["2.jpg"].metadata) == ({"cls": "7"}, {})
    assert "1.json: " in items["1.jpg"].metadata_error
    assert "1.txt: not UTF-8" in items["1.jpg"].metadata_error
    assert items["2.jpg"].metadata_error == ""


def test_metadata_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    items = _list(tmp_path, tar_bytes([("1.jpg", b"1"), ("1.json", bom + b'{"a": 1}'), ("1.txt", bom + b"x")]))
    assert (items["1.jpg"].metadata, items["1.jpg"].metadata_error) == ({"a": 1, "text": "x"}, "")


def test_an_image_is_kept_without_oversized_metadata(tmp_path: Path) -> None:
    fits, too_long = (f'{{"a": "{"x" * size}"}}'.encode() for size in (60_000, 65_536))
    items = _list(tmp_path, tar_bytes([("1.jpg", b"1"), ("1.json", too_long), ("2.jpg", b"2"), ("2.json", fits)]))
    assert not _rejects(items)
    assert items["1.jpg"].metadata == {}
    assert items["1.jpg"].metadata_error == "1.json: more than 65536 bytes"
    assert len(items["2.jpg"].metadata["a"]) == 60_000


def test_metadata_without_an_image_is_rejected(tmp_path: Path) -> None:
    items = _list(tmp_path, tar_bytes([("1.jpg", b"1"), ("lost.json", b"{}"), ("README.txt", b"read me")]))
    assert _rejects(items) == {"lost.json": "orphan_metadata", "README.txt": "orphan_metadata"}


def test_members_that_are_not_regular_files_are_rejected(tmp_path: Path) -> None:
    kinds = {"link.jpg": tarfile.SYMTYPE, "hard.jpg": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "dev": tarfile.CHRTYPE}
    members: list[Any] = [_special(name, kind) for name, kind in kinds.items()]
    items = _list(tmp_path, tar_bytes([_special("folder", tarfile.DIRTYPE), *members, ("x.jpg", b"x")]))
    assert _rejects(items) == dict.fromkeys(kinds, "not_a_file")
    assert _bytes(items["x.jpg"]) == b"x"


def test_paths_that_leave_the_archive_are_rejected(tmp_path: Path) -> None:
    names = ["../up.jpg", "/etc/passwd", "a/../../up.jpg"]
    items = _list(tmp_path, tar_bytes([(name, b"x") for name in names] + [("a..b/fine...jpg", b"x")]))
    assert _rejects(items) == dict.fromkeys(names, "unsafe_path")


def test_names_that_are_not_utf8_are_rejected(tmp_path: Path) -> None:
    data = tar_bytes([("caf\udce9.jpg", b"x"), ("y.jpg", b"y")], tarfile.GNU_FORMAT)
    assert _rejects(_list(tmp_path, data)) == {"caf\\xe9.jpg": "not_utf8"}


def test_nested_archives_are_rejected(tmp_path: Path) -> None:
    names = ["deep.tar", "deep.tar.gz", "deep.tfrecord"]
    items = _list(tmp_path, tar_bytes([(name, tar_bytes([("x.jpg", b"x")])) for name in names]))
    assert _rejects(items) == dict.fromkeys(names, "nested_archive")


def test_duplicate_members_are_both_listed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("x.jpg", b"1"), ("x.jpg", b"2")]))
    items = list(list_images(str(tmp_path / "a.tar")))
    assert [item.id for item in items] == ["a.tar/x.jpg"] * 2
    assert [_bytes(item) for item in items] == [b"1", b"2"]


def test_concatenated_tars_are_listed_to_the_end(tmp_path: Path) -> None:
    items = _list(tmp_path, tar_bytes([("1.jpg", b"1")]) + tar_bytes([("2.jpg", b"2")]))
    assert {id: _bytes(item) for id, item in items.items()} == {"1.jpg": b"1", "2.jpg": b"2"}


def test_sparse_members_are_rejected(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    items = _list(tmp_path, tar_bytes([(info, b"x" * 600), ("y.jpg", b"y")]))
    assert _rejects(items) == {"sparse.jpg": "not_a_file"}
    assert _bytes(items["y.jpg"]) == b"y"


def _with_checksum(header: bytes, signed: bool = False) -> bytes:
    blanked = header[:148] + b" " * 8 + header[156:]
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in blanked)
    return blanked[:148] + b"%06o\0 " % total + blanked[156:]


def test_old_and_unusual_headers_are_parsed(tmp_path: Path) -> None:
    plain = tarfile.TarInfo("x.jpg")
    plain.size = 3
    usual, data = plain.tobuf(tarfile.GNU_FORMAT), b"abc".ljust(512, b"\0")
    v7 = _with_checksum(b"old.jpg".ljust(100, b"\0") + usual[100:257] + bytes(255))
    binary = _with_checksum(b"b".ljust(100, b"\0") + usual[100:124] + b"\x80" + bytes(10) + b"\x03" + usual[136:])
    signed = _with_checksum("ü.jpg".encode().ljust(100, b"\0") + usual[100:], signed=True)
    sparse = bytearray(b"sparse".ljust(100, b"\0") + usual[100:])
    sparse[156], sparse[482] = ord("S"), 1
    more = bytes(504) + b"\1" + bytes(7) + bytes(512)
    archive = v7 + data + binary + data + _with_checksum(bytes(sparse)) + more + data + signed + data + bytes(1024)
    items = _list(tmp_path, archive)
    assert {id: _bytes(item) for id, item in items.items()} == dict.fromkeys(
        ["old.jpg", "b", "ü.jpg", "sparse"], b"abc"
    )
    assert _rejects(items) == {"sparse": "not_a_file"}


def test_a_header_cannot_make_the_reader_allocate_unbounded_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 2**40
    data = tar_bytes([("1.jpg", b"1")])[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    assert _rejects(_list(tmp_path, data)) == {"": "damaged_archive"}


def test_members_before_a_truncation_are_kept(tmp_path: Path) -> None:
    data = tar_bytes([(f"{index}.jpg", bytes([index]) * 600) for index in range(3)])
    end = 3 * (512 + 1024)
    for cut in (0, 1, 511, 512, 600, 1535, 1536, 2000, 3072, end - 1, end):
        items = _list(tmp_path, data[:cut])
        assert _rejects(items) == {"": "damaged_archive"}
        whole = sum(1 for index in range(3) if index * 1536 + 512 + 600 <= cut)
        assert list(items)[:-1] == [f"{index}.jpg" for index in range(whole)]
    assert not _rejects(_list(tmp_path, data[: end + 1000]))


def test_images_in_a_tfrecord_are_byte_ranges(tmp_path: Path) -> None:
    payloads = [
        tf_example(image__encoded=b"one", image__filename=b"a/1.jpg", image__format=b"jpeg", image__height=7),
        tf_example(jpeg=b"two" * 1000, key=b"k2", mask=b"\xff\xfe", long=b"x" * 5000, labels=[b"cat", b"dog"]),
        tf_example(image_raw=b"three"),
        tf_example(encoded=b"four", filename=b"4", id=b"17", text="Käfer".encode()),
    ]
    items = _list(tmp_path, tfrecord_bytes(payloads), "a.tfrecord")
    assert {id: _bytes(item) for id, item in items.items()} == {
        "a/1.jpg": b"one",
        "k2": b"two" * 1000,
        "#2": b"three",
        "4": b"four",
    }
    assert [item.metadata for item in items.values()] == [
        {"image/format": "jpeg"},
        {"labels": ["cat", "dog"]},
        {},
        {"text": "Käfer"},
    ]
    assert items["k2"].content == f"sha256:{sha256_bytes(b'two' * 1000)}"
    assert items["k2"].uri == f"{tmp_path}/a.tfrecord!k2"


def test_records_without_an_image_are_rejected(tmp_path: Path) -> None:
    payloads = [tf_example(other=b"x"), b"no example", tf_example(image=[b"1", b"2"]), tf_example(image=b"x")]
    payloads.append(tf_example(image=b"x", id=b"k", **{f"text{index}": b"x" * 1000 for index in range(70)}))
    items = _list(tmp_path, tfrecord_bytes(payloads), "a.tfrecords")
    rejects = {"#0": "no_image", "#1": "not_an_example", "#2": "no_image"}
    assert _rejects(items) == rejects
    assert "other" in items["#0"].detail
    assert (items["k"].metadata, items["k"].metadata_error) == ({}, "more than 65536 bytes of text")


def test_archives_are_opened_in_folders_and_lists(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/one.TAR").write_bytes(tar_bytes([("x.jpg", b"x")]))
    (tmp_path / "train.tfrecord-00000-of-00010").write_bytes(tfrecord_bytes([tf_example(image=b"y", id=b"y")]))
    (tmp_path / "train-00003-of-00010").write_bytes(tfrecord_bytes([tf_example(image=b"z", id=b"z")]))
    (tmp_path / "photo.jpg").write_bytes(b"p")
    (tmp_path / "list.csv").write_text("path,id,licence\nsub/one.TAR,one,CC0\nphoto.jpg,,\n")
    ids = {"sub/one.TAR/x.jpg", "train.tfrecord-00000-of-00010/y", "train-00003-of-00010/z", "photo.jpg", "list.csv"}
    assert {item.id for item in list_images(str(tmp_path))} == ids
    assert {item.id for item in list_images(f"{tmp_path}/**/*.TAR")} == {"sub/one.TAR/x.jpg"}
    listed = {item.id: item for item in list_images(str(tmp_path / "list.csv"))}
    assert listed["one/x.jpg"].metadata == {"licence": "CC0"}
    assert _bytes(listed["one/x.jpg"]) == b"x"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tfrecord.gz", "train-00000-of-00010.gz"])
def test_compressed_archives_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    (tmp_path / "list.txt").write_text(name)
    for source in (tmp_path, tmp_path / name, tmp_path / "list.txt"):
        with pytest.raises(UsageError, match=f"{name} is a compressed archive.*decompress it"):
            list(list_images(str(source)))


def test_an_archive_that_cannot_be_opened_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.tar").symlink_to(tmp_path / "folder")
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere")
    rejects = {item.id: item.reject for item in list_images(str(tmp_path))}
    assert rejects == {"folder.tar": "not_a_file", "gone.tar": "missing"}


def _mutations(data: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    """Yields damaged copies of the data, each with the offset of the first byte that may differ."""
    for seed in range(count):
        rng = random.Random(seed)
        position = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            yield position, data[:position]
        elif kind == 1:
            yield position, data[:position] + rng.randbytes(rng.randint(1, 20)) + data[position:]
        elif kind == 2:
            yield position, data[:position] + data[position + rng.randint(1, 600) :]
        else:
            changed = rng.randbytes(rng.randint(1, 8))
            yield position, data[:position] + changed + data[position + len(changed) :]


@pytest.mark.parametrize("name", ["a.tar", "a.tfrecord"])
def test_members_before_any_damage_are_kept(tmp_path: Path, name: str) -> None:
    if name == "a.tar":
        images = [(f"{index}{'-' * 60 * (index % 3)}", bytes([index]) * 700) for index in range(8)]
        data = tar_bytes([pair for stem, image in images for pair in ((f"{stem}.jpg", image), (f"{stem}.json", b"{}"))])
        whole = _list(tmp_path, data, name)
        ends = [item.offset + item.size for item in whole.values() if item.offset]
    else:
        payloads = [tf_example(image=bytes([index]) * 300, id=b"%d" % index, text=b"t") for index in range(8)]
        data = tfrecord_bytes(payloads)
        whole = _list(tmp_path, data, name)
        ends = [len(tfrecord_bytes(payloads[: index + 1])) for index in range(8)]
    assert len(whole) == len(ends) == 8 and not _rejects(whole)
    contents = {id: _bytes(item) for id, item in whole.items()}
    damaged = 0
    for position, changed in _mutations(data, 300):
        (tmp_path / name).write_bytes(changed)
        try:
            found = list(list_images(str(tmp_path / name)))
        except SearchforgeError as error:
            pytest.fail(f"a damaged archive must not end the listing: {error}")
        by_id = {item.id: item for item in found}
        for (id, item), end in zip(whole.items(), ends, strict=True):
            if position >= end:
                kept = by_id[item.id]
                assert (kept.offset, kept.size, _bytes(kept)) == (item.offset, item.size, contents[id])
        damaged += any(item.reject == "damaged_archive" for item in found)
    assert damaged > 100
