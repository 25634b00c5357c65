"""Listing of corpora: every file, line and row becomes an item or a reject with a reason."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from beam_jobs.corpus.corpus import list_images, list_texts
from beam_jobs.corpus.items import Item
from beam_jobs.corpus.patterns import Exclusion
from beam_jobs.corpus.reading import read_bytes
from searchforge.captions.formats import MAX_LINE
from searchforge.config import load_config
from searchforge.errors import JobError, UsageError
from searchforge.image_decoding import RejectedInput
from searchforge.storage import buckets
from searchforge.storage.gcs_client import RetryPolicy
from tests.beam_jobs.corpus.test_archives import tar_bytes


def _images(source: Path | str) -> dict[str, Item]:
    items = list(list_images(str(source)))
    found = {item.id: item for item in items}
    assert len(found) == len(items)
    return found


def _texts(source: Path | str) -> dict[str, Item]:
    return {item.id: item for item in list_texts(str(source))}


def _rejects(items: dict[str, Item]) -> dict[str, str]:
    return {id: item.reject for id, item in items.items() if item.reject}


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_a_folder_lists_every_file_below_it(tmp_path: Path) -> None:
    names = {"a.jpg", "b/c.jpg", "b/d/e.jpg", ".hidden", "b/Käfer.png", "no extension"}
    _write(tmp_path, *names)
    items = _images(tmp_path)
    assert items.keys() == names
    for id, item in items.items():
        status = (tmp_path / id).stat()
        assert item.uri == item.file == str(tmp_path / id)
        assert (item.size, item.version) == (status.st_size, f"{status.st_size}:{status.st_mtime_ns}")
        assert (item.offset, item.content, item.metadata, item.reject, item.text) == (None, "", {}, "", None)


def test_files_and_folders_are_left_out_by_name(tmp_path: Path) -> None:
    kept = {"a.jpg", "sub/b.jpg", "sub/deep/raw/x.jpg", "eaDir/c.jpg"}
    thumbnails = {".thumbnails/a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "sub/@eaDir/b.jpg"}
    _write(tmp_path, *kept, *thumbnails, "._a.jpg", "Thumbs.db", "sub/Thumbs.db", "raw/y.jpg", "sub/draft-1.jpg")
    exclusion = Exclusion((*load_config(None, {}).corpus.exclude, "raw/*", "sub/draft-*.jpg/"))
    assert {item.id for item in list_images(str(tmp_path), exclusion)} == kept
    assert exclusion.count == 8, "a folder counts once"
    globbed = Exclusion(("@eaDir",))
    assert {item.id for item in list_images(f"{tmp_path}/**/b.jpg", globbed)} == {"sub/b.jpg"}


def test_names_to_leave_out_apply_to_members_of_archives_but_not_to_lists(tmp_path: Path) -> None:
    members = [("a.jpg", b"a"), ("__MACOSX/._a.jpg", b"b"), ("sub/.b.jpg", b"c")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    (tmp_path / ".hidden.jpg").write_bytes(b"d")
    (tmp_path / "list.txt").write_text(".hidden.jpg\n")
    kept = {"x.tar": {"x.tar/a.jpg"}, "": {"x.tar/a.jpg", "list.txt"}, "list.txt": {".hidden.jpg"}}
    for source, ids in kept.items():
        assert {item.id for item in list_images(str(tmp_path / source), Exclusion((".*", "__MACOSX")))} == ids


def test_a_pattern_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pattern '\*\*/\[z-a\]' is not valid"):
        Exclusion(("[z-a]",))
    with pytest.raises(UsageError, match=r"pattern '\[z-a\].jpg' is not valid"):
        _images(tmp_path / "[z-a].jpg")


def test_file_uris_are_paths_and_other_schemes_get_advice(tmp_path: Path) -> None:
    _write(tmp_path, "a b.jpg")
    lines = [f"file://{tmp_path}/a%20b.jpg", "https://example.org/c.jpg", "s3://bucket/d.jpg", "odd://e.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    items = _images(f"file://{tmp_path}/list.txt")
    assert read_bytes(items[lines[0]].file, 100) == b"a b.jpg"
    for line, advice in zip(lines[1:], ("download the images", r"apache-beam\[aws\]", "odd:// is not"), strict=True):
        with pytest.raises(RejectedInput, match=advice):
            read_bytes(items[line].file, 100)


def test_a_version_changes_with_the_file(tmp_path: Path) -> None:
    _write(tmp_path, "a", "b")
    before = _images(tmp_path)
    os.utime(tmp_path / "a", ns=(1, 1))
    after = _images(tmp_path)
    assert before["a"].version != after["a"].version
    assert before["b"] == after["b"]


def test_links_to_folders_are_listed_but_not_followed(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "sub/b.jpg")
    (tmp_path / "sub/up").symlink_to(tmp_path)
    (tmp_path / "file").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    items = _images(tmp_path)
    assert items.keys() == {"a.jpg", "sub/b.jpg", "sub/up", "file", "broken"}
    assert read_bytes(items["file"].file, 100) == b"a.jpg"
    assert items["broken"].version == ""
    with pytest.raises(RejectedInput, match="not_a_file"):
        read_bytes(items["sub/up"].file, 100)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", {"a.jpg", "b.jpg", "odd[1].jpg"}),
        ("?.png", {"c.png"}),
        ("[!a].jpg", {"b.jpg"}),
        ("[a-b].*", {"a.jpg", "b.jpg"}),
        ("*/a.jpg", {"x/a.jpg"}),
        ("x/*", {"a.jpg", "d.jpg"}),
        ("**/a.jpg", {"a.jpg", "x/a.jpg", "x/y/a.jpg"}),
        ("**", {"a.jpg", "b.jpg", "c.png", "x/a.jpg", "x/d.jpg", "x/y/a.jpg", "odd[1].jpg"}),
        ("x/**/a.jpg", {"a.jpg", "y/a.jpg"}),
        ("[x]/y/*", {"x/y/a.jpg"}),
    ],
)
def test_a_glob_lists_files_relative_to_its_fixed_part(tmp_path: Path, pattern: str, expected: set[str]) -> None:
    _write(tmp_path, "a.jpg", "b.jpg", "c.png", "x/a.jpg", "x/d.jpg", "x/y/a.jpg", "odd[1].jpg")
    assert _images(f"{tmp_path}/{pattern}").keys() == expected


def test_a_path_that_exists_is_not_a_glob(tmp_path: Path) -> None:
    _write(tmp_path, "set [1]/a.jpg", "set 1/b.jpg")
    assert _images(tmp_path / "set [1]").keys() == {"a.jpg"}


def test_a_leading_folder_that_exists_is_not_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "set [1]/a.jpg", "set [1]/sub/b.jpg", "set 1/c.jpg", "set 2/sub/d.jpg")
    assert _images(f"{tmp_path}/set [1]/sub/*.jpg").keys() == {"b.jpg"}
    assert _images(f"{tmp_path}/set [12]/**/*.jpg").keys() == {"set 1/c.jpg", "set 2/sub/d.jpg"}
    assert _images(f"{tmp_path}/set [[]1]/*.jpg").keys() == {"set [1]/a.jpg"}
    monkeypatch.chdir(tmp_path / "set [1]")
    assert _images("*.jpg").keys() == {"a.jpg"}
    assert _images("../set [12]/*.jpg").keys() == {"set 1/c.jpg"}
    with pytest.raises(UsageError, match="does not exist"):
        _images("gone.jpg")


def test_a_plain_list_names_files(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    _write(photos, "a.jpg", "sub/b.jpg")
    lines = ["a.jpg", "", "  ../photos/sub/b.jpg  ", "gone.jpg", f"{photos}/a.jpg", "http://localhost/x.jpg"]
    (photos / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    items = _images(photos / "list.txt")
    assert list(items) == [line.strip() for line in lines if line]
    assert [items[line.strip()].uri for line in lines if line] == [
        f"{photos}/a.jpg",
        f"{photos}/sub/b.jpg",
        f"{photos}/gone.jpg",
        f"{photos}/a.jpg",
        "http://localhost/x.jpg",
    ]
    assert items["gone.jpg"].version == ""
    assert items["a.jpg"].size == 5


@pytest.mark.parametrize("name", ["uri", "path", "file", "image", "file_name", "URL"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_names_files_with_metadata(tmp_path: Path, name: str, suffix: str) -> None:
    _write(tmp_path, "a.jpg", "b.jpg")
    delimiter = "," if suffix == "csv" else "\t"
    rows = [[name, "id", "author"], ["a.jpg", "17", "Ada"], ["b.jpg", "", '"Bo"']]
    (tmp_path / f"list.{suffix}").write_text("".join(f"{delimiter.join(row)}\n" for row in rows))
    items = _images(tmp_path / f"list.{suffix}")
    assert {id: item.metadata for id, item in items.items()} == {"17": {"author": "Ada"}, "b.jpg": {"author": "Bo"}}
    assert items["17"].file == str(tmp_path / "a.jpg")


def test_json_lines_name_files_with_metadata(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "b.jpg")
    rows = [{"path": "a.jpg", "id": 17, "ID": 18, "size": {"w": 3}}, {"file_name": "b.jpg", "id": None, "tags": ["ü"]}]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    items = _images(tmp_path / "list.jsonl")
    assert {id: item.metadata for id, item in items.items()} == {
        "17": {"ID": 18, "size": {"w": 3}},
        "b.jpg": {"tags": ["ü"]},
    }


def test_malformed_lines_are_rejected_with_their_number(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg")
    lines = [
        b'{"path": "a.jpg"}',
        b"{",
        b"[1]",
        b'{"author": "x"}',
        b'{"path": ""}',
        b'{"path": 7}',
        b'{"path": "a.jpg", "id": [1]}',
        b'{"path": "\xff"}',
        b'{"path": "\\ud800"}',
        b'{"path": "a\\u0000"}',
        b'{"path": "a.jpg", "x": NaN}',
    ]
    (tmp_path / "list.jsonl").write_bytes(b"\n".join(lines))
    items = _images(tmp_path / "list.jsonl")
    bad = {f"list.jsonl:{line}": "bad_line" for line in range(2, len(lines) + 1)}
    assert _rejects(items) == bad
    assert items.keys() - bad.keys() == {"a.jpg"}
    assert items["list.jsonl:2"].uri == f"{tmp_path}/list.jsonl:2"

    (tmp_path / "list.csv").write_bytes(b"path,x\na.jpg,1\n,2\nb.jpg\nc\xff.jpg,3\nd.jpg,%b\xff\n" % (b"x" * 99_999))
    assert _rejects(_images(tmp_path / "list.csv")) == {f"list.csv:{line}": "bad_line" for line in (3, 4, 5, 6)}
    (tmp_path / "list.txt").write_bytes(b"a.jpg\nc\xff.jpg\nnul\0.jpg\n")
    assert _rejects(_images(tmp_path / "list.txt")) == {f"list.txt:{line}": "bad_line" for line in (2, 3)}


def test_an_image_is_kept_without_oversized_row_metadata(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "b.jpg")
    rows = [{"path": "a.jpg", "x": "y" * 70_000}, {"path": "b.jpg", "x": "y" * 60_000}]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    items = _images(tmp_path / "list.jsonl")
    assert not _rejects(items)
    assert (items["a.jpg"].metadata, items["a.jpg"].metadata_error) == ({}, "more than 65536 bytes")
    assert (len(items["b.jpg"].metadata["x"]), items["b.jpg"].metadata_error) == (60_000, "")


def test_a_table_without_a_path_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("name,author\na.jpg,Ada\n")
    with pytest.raises(UsageError, match=r"list.csv has the columns 'name', 'author'; expected one of uri, path"):
        _images(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("path,author,author\na.jpg,Ada,Bo\n")
    with pytest.raises(UsageError, match="two columns 'author'"):
        _images(tmp_path / "list.csv")


@pytest.mark.parametrize("list_items", [list_images, list_texts])
def test_a_binary_file_is_not_a_list(tmp_path: Path, list_items: Callable[[str], object]) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    with pytest.raises(UsageError, match=r"photo.jpg .*first line is not UTF-8"):
        list(list_items(str(tmp_path / "photo.jpg")))  # type: ignore[call-overload]


def test_a_missing_corpus_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "none": "does not exist",
        "none/*.jpg": "does not exist",
        "pipe": "neither a file nor a folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            _images(tmp_path / name)
    with pytest.raises(
        UsageError, match="nothing:// is not supported; expected a path, file:///path or gs://bucket/name"
    ):
        _images("nothing://here")


def test_file_names_that_are_not_utf8_are_rejected(tmp_path: Path) -> None:
    _write(tmp_path, "a.txt", "b.txt", "d/b.txt")
    (tmp_path / "b.txt").rename(tmp_path / os.fsdecode(b"caf\xe9.txt"))
    (tmp_path / "d").rename(tmp_path / os.fsdecode(b"d\xe9"))
    for items in (_images(tmp_path), _texts(tmp_path)):
        assert _rejects(items) == {"caf\\xe9.txt": "not_utf8", "d\\xe9/b.txt": "not_utf8"}
        assert items["caf\\xe9.txt"].uri == f"{tmp_path}/caf\\xe9.txt"
        assert len(items) == 3
    with pytest.raises(UsageError, match=r"caf\\xe9.txt is not UTF-8; rename the file"):
        _images(tmp_path / os.fsdecode(b"caf\xe9.txt"))


def _fail_to_list(folder: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes listing a folder fail, also for root, who has every permission."""
    scandir = os.scandir

    def failing(path: str) -> Iterator[os.DirEntry[str]]:
        if os.path.normpath(path) == str(folder):
            raise OSError(error, os.strerror(error), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)


def test_a_folder_without_permission_to_list_it_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "a.txt", "lost+found/b.txt", "z/c.txt")
    _fail_to_list(tmp_path / "lost+found", errno.EACCES, monkeypatch)
    for items in (_images(tmp_path), _texts(tmp_path)):
        assert _rejects(items) == {"lost+found": "unlisted_folder"}
        assert items["lost+found"].uri == f"{tmp_path}/lost+found"
        assert len(items) == 3
    assert _images(f"{tmp_path}/*.txt").keys() == {"a.txt"}


def test_a_folder_that_cannot_be_listed_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "a.jpg", "sub/b.jpg")
    with monkeypatch.context() as patch:
        _fail_to_list(tmp_path / "sub", errno.EIO, patch)
        assert _images(f"{tmp_path}/*.jpg").keys() == {"a.jpg"}
        with pytest.raises(JobError, match=r"sub.* cannot be listed"):
            _images(tmp_path)
    _fail_to_list(tmp_path, errno.EACCES, monkeypatch)
    with pytest.raises(JobError, match=r"cannot be listed"):
        _images(tmp_path)


def test_each_line_of_a_file_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\n  Käfer \nlast")
    items = _texts(tmp_path / "a.txt")
    assert {id: item.text for id, item in items.items()} == {"1": "first", "3": "Käfer", "4": "last"}
    status = (tmp_path / "a.txt").stat()
    assert items["3"] == Item(
        "3",
        f"{tmp_path}/a.txt:3",
        f"{tmp_path}/a.txt",
        f"{status.st_size}:{status.st_mtime_ns}",
        len("Käfer".encode()),
        content=f"sha256:{hashlib.sha256('Käfer'.encode()).hexdigest()}",
        metadata={"text": "Käfer"},
        text="Käfer",
    )


def test_each_row_of_several_files_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.csv").write_text('caption,id,year\n"two\nlines",17,2001\nplain,,2002\n"  ",,2003\n')
    (tmp_path / "b.tsv").write_text("sentence\tyear\nthree\t2004\n")
    (tmp_path / "sub/c.jsonl").write_text('{"text": "four", "id": "x"}\n{"document": "five"}\n{"text": null}\n{\n')
    (tmp_path / "d.txt").write_text("six\n")
    items = _texts(tmp_path)
    assert {id: item.text for id, item in items.items() if not item.reject} == {
        "17": "two\nlines",
        "a.csv:4": "plain",
        "b.tsv:2": "three",
        "x": "four",
        "sub/c.jsonl:2": "five",
        "d.txt:1": "six",
    }
    assert _rejects(items) == {"a.csv:5": "empty", "sub/c.jsonl:3": "empty", "sub/c.jsonl:4": "bad_line"}
    assert items["17"].metadata == {"text": "two\nlines", "year": "2001"}
    assert _texts(f"{tmp_path}/*.tsv").keys() == {"b.tsv:2"}


@pytest.mark.parametrize(
    ("name", "rows"),
    [("a.csv", "id,text\n,one\n2,two\n,three\n"), ("a.jsonl", '\n{"text": "one"}\n{"text": "two", "id": 2}\n{}\n')],
)
def test_rows_without_an_id_do_not_take_that_of_another_row(tmp_path: Path, name: str, rows: str) -> None:
    (tmp_path / name).write_text(rows)
    assert [item.id for item in list_texts(str(tmp_path / name))] == [f"{name}:2", "2", f"{name}:4"]


def test_the_text_in_metadata_is_truncated_between_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" + "ü" * 4000)
    (item,) = _texts(tmp_path / "a.txt").values()
    assert item.metadata["text"] == "x" + "ü" * 2047
    assert item.text == "x" + "ü" * 4000


def test_bad_texts_are_rejected(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "x", "more": "y" * 70_000}).encode(), b'{"text": "\xff"}', b'{"text": 1}', b"{}"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    items = _texts(tmp_path / "a.jsonl")
    assert _rejects(items) == {"a.jsonl:2": "bad_line", "a.jsonl:3": "bad_line", "a.jsonl:4": "empty"}
    assert (items["a.jsonl:1"].metadata, items["a.jsonl:1"].metadata_error) == ({"text": "x"}, "more than 65536 bytes")
    (tmp_path / "a.csv").write_text("title,year\nx,1\n")
    with pytest.raises(UsageError, match=r"a.csv has the columns 'title', 'year'; expected one of text, caption"):
        _texts(tmp_path / "a.csv")


def test_a_binary_file_in_a_text_corpus_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "c.bin").write_bytes(b"x" * MAX_LINE + b"\0")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert _rejects(_texts(tmp_path)) == {"b.jpg": "not_text", "c.bin:1": "bad_line", "gone.txt": "missing"}


class _Mounted(LocalFileSystem):
    """A file system that is accessible only through Beam: `mounted://` and a local path."""

    @classmethod
    def scheme(cls) -> str:
        return "mounted"

    def _list(self, folder: str) -> list[FileMetadata]:
        local = folder.removeprefix("mounted:/")
        return [FileMetadata(f"mounted:/{found.path}", found.size_in_bytes, 1.5) for found in super()._list(local)]

    def metadata(self, path: str) -> FileMetadata:
        found = super().metadata(path.removeprefix("mounted:/"))
        return FileMetadata(path, found.size_in_bytes, 1.5)

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> object:
        return super().open(path.removeprefix("mounted:/"), mime_type, compression_type)


def test_a_corpus_can_be_in_any_file_system_of_beam(tmp_path: Path) -> None:
    _write(tmp_path, "a.jpg", "sub/b.jpg", "sub/c.png")
    (tmp_path / "list.txt").write_text("sub/b.jpg\ngone.jpg\n")
    root = f"mounted:/{tmp_path}"
    assert _images(root).keys() == {"a.jpg", "sub/b.jpg", "sub/c.png", "list.txt"}
    assert _images(f"{root}/sub/*.jpg").keys() == {"b.jpg"}
    items = _images(f"{root}/list.txt")
    assert items["sub/b.jpg"].version == "9:1.500000"
    assert items["gone.jpg"].version == ""
    assert read_bytes(items["sub/b.jpg"].file, 100) == b"sub/b.jpg"
    assert read_bytes(items["sub/b.jpg"].file, 100, 4, 3) == b"b.j"
    with pytest.raises(RejectedInput, match="missing"):
        read_bytes(items["gone.jpg"].file, 100)
    with pytest.raises(UsageError, match="does not exist"):
        _images(f"{root}/none")


def test_an_unreachable_bucket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(buckets, "POLICY", RetryPolicy(retry_seconds=0.5))
        (tmp_path / "list.txt").write_text("gs://photos/a.jpg\n")
        for source in ("gs://photos/folder", "gs://photos", "gs://photos/*.jpg", str(tmp_path / "list.txt")):
            with pytest.raises(JobError, match=r"gs://photos cannot be reached .*check the network"):
                _images(source)
        with pytest.raises(RejectedInput, match="unreadable"):
            read_bytes("gs://photos/a.jpg", 100)
    with pytest.raises(UsageError, match="names no bucket"):
        _images("gs://")
