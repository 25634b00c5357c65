"""Corruptions of files, as they happen when bytes are stored, copied or packed."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable

from searchforge.artifacts.searcher import IMAGE_SEARCHER, TEXT_SEARCHER
from tests.serving_check.searcher_parts import INDEX_NAME, SearcherFile
from tests.serving_check.specimen import BOTH, Specimen, caught_by


def _cut(name: str, length: Callable[[SearcherFile, int], int]) -> Callable[[Specimen], None]:
    """Returns a corruption that truncates a file; `length` returns how many bytes to keep of the file and its size."""

    def apply(specimen: Specimen) -> None:
        data = specimen.path(name).read_bytes()
        specimen.path(name).write_bytes(data[: length(SearcherFile.read(specimen.path(name)), len(data))])

    return apply


for title, file, gate, length in (
    ("the_text_searcher_is_empty", TEXT_SEARCHER, "opens", lambda parts, size: 0),
    ("the_image_searcher_is_truncated_to_100_bytes", IMAGE_SEARCHER, "opens", lambda parts, size: 100),
    (
        "the_text_searcher_is_truncated_inside_its_model",
        TEXT_SEARCHER,
        "model",
        lambda parts, size: len(parts.model) // 2,
    ),
    ("the_image_searcher_is_truncated_after_its_model", IMAGE_SEARCHER, "index", lambda parts, size: len(parts.model)),
    ("the_text_searcher_is_truncated_inside_its_index", TEXT_SEARCHER, "opens", lambda parts, size: size - 9_000),
    ("the_image_searcher_lacks_its_last_byte", IMAGE_SEARCHER, "index", lambda parts, size: size - 1),
):
    caught_by(gate, name=title)(_cut(file, length))


@caught_by("files", signed=False)
def half_of_the_text_searcher_was_uploaded(specimen: Specimen) -> None:
    _cut(TEXT_SEARCHER, lambda parts, size: size // 2)(specimen)


@caught_by("files", signed=False)
def the_last_byte_of_the_text_searcher_was_not_uploaded(specimen: Specimen) -> None:
    _cut(TEXT_SEARCHER, lambda parts, size: size - 1)(specimen)


@caught_by("files", runs=True)
def the_text_searcher_is_missing(specimen: Specimen) -> None:
    specimen.path(TEXT_SEARCHER).unlink()


@caught_by("files")
def both_searchers_are_missing(specimen: Specimen) -> None:
    for name in BOTH:
        specimen.path(name).unlink()


@caught_by("files", signed=False, runs=True)
def a_bit_of_the_text_searcher_has_rotted(specimen: Specimen) -> None:
    data = bytearray(specimen.path(TEXT_SEARCHER).read_bytes())
    data[specimen.random.integers(len(data))] ^= 1 << int(specimen.random.integers(8))
    specimen.path(TEXT_SEARCHER).write_bytes(data)


@caught_by("files", signed=False)
def a_sector_of_the_image_searcher_is_zeros(specimen: Specimen) -> None:
    data = bytearray(specimen.path(IMAGE_SEARCHER).read_bytes())
    start = 512 * int(specimen.random.integers(len(data) // 512 - 1))
    data[start : start + 512] = bytes(512)
    specimen.path(IMAGE_SEARCHER).write_bytes(data)


@caught_by("files", signed=False)
def an_earlier_builds_file_was_left_in_place(specimen: Specimen) -> None:
    """The text searcher is another one, which is valid on its own."""
    shutil.copy(specimen.workspace.local("searchers", specimen.other) / TEXT_SEARCHER, specimen.folder)


@caught_by("files", signed=False)
def bytes_were_appended_to_the_text_searcher(specimen: Specimen) -> None:
    with specimen.path(TEXT_SEARCHER).open("ab") as file:
        file.write(b"\n")


@caught_by("files")
def the_build_lists_no_image_searcher(specimen: Specimen) -> None:
    specimen.change_marker("searchers", specimen.searcher, lambda build: build["files"].pop(IMAGE_SEARCHER))


@caught_by("opens")
def the_text_searcher_is_random_bytes(specimen: Specimen) -> None:
    size = specimen.path(TEXT_SEARCHER).stat().st_size
    specimen.path(TEXT_SEARCHER).write_bytes(specimen.random.bytes(size))


@caught_by("opens")
def the_image_searcher_is_a_web_page(specimen: Specimen) -> None:
    """A proxy returned an error page instead of the file."""
    specimen.path(IMAGE_SEARCHER).write_text("<!DOCTYPE html><title>403 Forbidden</title>")


@caught_by("model", runs=True)
def text_and_image_searcher_are_swapped(specimen: Specimen) -> None:
    text, image = (specimen.path(name).read_bytes() for name in BOTH)
    specimen.path(TEXT_SEARCHER).write_bytes(image)
    specimen.path(IMAGE_SEARCHER).write_bytes(text)


@caught_by("index", runs=True)
def the_index_is_missing(specimen: Specimen) -> None:
    specimen.change_file(TEXT_SEARCHER, lambda file: file.files.pop(INDEX_NAME))  # type: ignore[arg-type, return-value]


@caught_by("metadata")
def the_vocabulary_is_missing(specimen: Specimen) -> None:
    specimen.change_file(TEXT_SEARCHER, lambda file: file.files.pop("vocab.txt"))  # type: ignore[arg-type, return-value]


@caught_by("metadata")
def two_words_of_the_vocabulary_are_swapped(specimen: Specimen) -> None:
    def swap(file: SearcherFile) -> None:
        words = file.files["vocab.txt"].split(b"\n")
        i, j = specimen.random.choice(range(4, len(words) - 1), 2, replace=False)  # after [PAD], [UNK], [CLS], [SEP]
        words[i], words[j] = words[j], words[i]
        file.files["vocab.txt"] = b"\n".join(words)

    specimen.change_file(TEXT_SEARCHER, swap)


@caught_by("metadata")
def half_of_the_vocabulary_is_missing(specimen: Specimen) -> None:
    def halve(file: SearcherFile) -> None:
        words = file.files["vocab.txt"].split(b"\n")
        file.files["vocab.txt"] = b"\n".join(words[: len(words) // 2])

    specimen.change_file(TEXT_SEARCHER, halve)


@caught_by("metadata")
def the_vocabulary_has_other_line_ends(specimen: Specimen) -> None:
    """The line ends are those of Windows, with which the tokenizer recognizes no word."""
    specimen.change_file(
        TEXT_SEARCHER,
        lambda file: file.files.update({"vocab.txt": file.files["vocab.txt"].replace(b"\n", b"\r\n")}),
    )


@caught_by("opens")
def the_archive_is_compressed(specimen: Specimen) -> None:
    """A ZIP program rewrote the archive, but the device maps the index without decompressing it."""
    file = SearcherFile.read(specimen.path(TEXT_SEARCHER))
    packed = io.BytesIO(file.model)
    packed.seek(len(file.model))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in file.files.items():
            archive.writestr(name, data)
    specimen.path(TEXT_SEARCHER).write_bytes(packed.getvalue())
