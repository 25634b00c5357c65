"""Texts have the tokens that they have in the Task Library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import random_texts

from ondevice.tests import echo_encoder
from ondevice.tools import write_delimiters
from searchforge.processes import isolated, task_library
from searchforge_reader import Tokenizer
from serving_check.gates.hostile_queries import hostile_texts

LENGTH = 24
TEXTS = random_texts.texts(3_000, seed=1)
VOCABULARY = random_texts.vocabulary(TEXTS[:1_000], seed=2)


@pytest.fixture(scope="module")
def embedder() -> Iterator[isolated.Session]:
    """A process that embeds texts with the Task Library."""
    with isolated.Session(task_library.MODULE) as session:
        yield session


def test_tokens_of_texts_over_all_of_unicode_equal_the_task_librarys(
    embedder: isolated.Session, tmp_path: Path
) -> None:
    require_equal(embedder, tmp_path, VOCABULARY, TEXTS)


def test_tokens_of_hostile_queries_equal_the_task_librarys(embedder: isolated.Session, tmp_path: Path) -> None:
    texts = [text for name, text in hostile_texts() if name != "lone surrogate"]  # it refuses what is not UTF-8
    require_equal(embedder, tmp_path, VOCABULARY, [*texts, "a dog\0a dog", "x" * 100, "x" * 101, "dog " * 100])


@pytest.mark.parametrize("length", [2, 3])
def test_texts_are_cut_to_the_length_of_the_tensors(embedder: isolated.Session, tmp_path: Path, length: int) -> None:
    require_equal(embedder, tmp_path, VOCABULARY, ["", "a", "a b", "dogs dogs", "a\u72ac\u72ac"], length)


@pytest.mark.parametrize(
    "vocabulary", [b"a", b"\n\n", b"[UNK]", b"\xff\n##\xff\na\n\xe7\x8a\n##\xac", b"##\n#\n##a\na"]
)
def test_odd_vocabularies_are_read_alike(embedder: isolated.Session, tmp_path: Path, vocabulary: bytes) -> None:
    require_equal(embedder, tmp_path, vocabulary, ["", "a", "aa b", "#", "##", "\u72ac"])


def test_every_character_is_a_delimiter_or_not_as_the_table_says() -> None:
    """The table itself was compared with the Task Library, character by character."""
    points = np.array([point for point in range(0x80, 0x110000) if not 0xD800 <= point < 0xE000])
    delimiter = np.isin(points, list(write_delimiters.delimiters()))
    lengths = np.where(delimiter, 3, 1)
    ends = lengths.cumsum()
    expected = np.ones(ends[-1], np.int32)  # the unknown token
    expected[ends[delimiter] - 3] = expected[ends[delimiter] - 1] = 2
    text = "".join([f"a{chr(point)}a " for point in points])
    ids = Tokenizer.bert(b"[PAD]\n[UNK]\na").tokenize(text, len(expected) + 2).ids
    np.testing.assert_array_equal(ids[1:-1], expected)


def test_the_table_of_delimiters_is_what_its_script_writes() -> None:
    assert write_delimiters.OUTPUT.read_text() == write_delimiters.text()


def test_text_that_is_not_utf_8_is_unknown() -> None:
    tokenizer = Tokenizer.bert(b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n.\n\xe2\x80\x94")
    assert tokenizer.tokenize(b"a\xff a \xe2\x80 .\xf0\xe2\x80\x94\xed\xa0\x80", 12).ids.tolist()[:8] == [
        2, 1, 4, 1, 5, 1, 6, 1,
    ]  # fmt: skip
    assert tokenizer.tokenize("a \ud800", 4).ids.tolist() == [2, 4, 1, 3]


def test_tensors_without_room_for_a_text_are_refused() -> None:
    with pytest.raises(ValueError, match="tensors of 1 tokens; expected at least 2"):
        Tokenizer.bert(VOCABULARY).tokenize("a", 1)


def require_equal(
    session: isolated.Session, folder: Path, vocabulary: bytes, texts: Sequence[str], length: int = LENGTH
) -> None:
    model = echo_encoder.write_bert(folder / "echo.tflite", vocabulary, length)
    expected = echo_encoder.tokens(model, texts, length, session)
    tokenizer = Tokenizer.bert(vocabulary)
    for text, tokens in zip(texts, expected, strict=True):
        np.testing.assert_array_equal(tokenizer.tokenize(text, length), tokens, repr(text))
