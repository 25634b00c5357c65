"""Texts have the tokens that the Task Library's RegexTokenizer gives them."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import random_texts

from ondevice.tests import echo_encoder
from searchforge.processes import isolated, task_library
from searchforge_reader import DamagedFile, Tokenizer, UnsupportedFile
from serving_check.gates.hostile_queries import hostile_texts

LENGTH = 12
TEXTS = [
    *random_texts.texts(150, seed=3),
    *(text for name, text in hostile_texts() if name != "lone surrogate"),
    "a\0b",
]

PATTERNS = [
    r"[^\w\']+",
    r"\W+",
    r"\s",
    r" |\.|,|-",
    r"[\s.,\-\]]+?",
    r"[]a-]|[^]\x{0}-\x7f]",
    r"(?:ab|a|b{2,3})+|[c-e]{2}|fg?h*?i",
    r"(a|ab)(c|bcd)?",
    r".{3}",
    r"[\d\D]{2,4}?",
    r"\x41|\x{1F469}|[\x{80}-\x{10FFFF}]+|\t|{|}|a{|x{,2}",
    r"[^\n]+\n|\S\s",
    "\u72ac|\u00e9+",
]

REPETITIONS = ["*", "+", "?", "{2}", "{1,2}", "{0,2}?", "*?", "+?", "??"]


@pytest.fixture(scope="module")
def embedder() -> Iterator[isolated.Session]:
    """A process that embeds texts with the Task Library."""
    with isolated.Session(task_library.MODULE) as session:
        yield session


def vocabulary(pieces: Sequence[str], start: bool = True) -> bytes:
    """Returns a vocabulary of all parts of the texts of one or two characters, with ids that are no line numbers."""
    words = sorted({text[at : at + size] for text in pieces for at in range(len(text)) for size in (1, 2)})
    words = [word for word in words if not {" ", "\n", "\0"} & {*word}]
    special = ["<PAD> 3", "", "<UNKNOWN> 1", "x 5", "x 6 7", *(["<START> 2"] if start else [])]
    return "\n".join([*special, *(f"{word} {100 + 3 * number}" for number, word in enumerate(words))]).encode()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_equal_the_task_librarys(embedder: isolated.Session, tmp_path: Path, pattern: str) -> None:
    require_equal(embedder, tmp_path, pattern, vocabulary(TEXTS), TEXTS)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("length", [1, 2])
def test_texts_are_cut_to_the_length_of_the_tensors(
    embedder: isolated.Session, tmp_path: Path, start: bool, length: int
) -> None:
    texts = ["", " ", "a", "a b", " a b c "]
    require_equal(embedder, tmp_path, r"\W+", vocabulary(texts, start), texts, length)


def test_the_mask_covers_what_is_not_padding() -> None:
    tokens = Tokenizer.regex(r"\W+", vocabulary(["ab"])).tokenize("a, b", 5)
    assert tokens.ids.tolist() == [2, 100, 106, 3, 3]
    assert tokens.mask.tolist() == [1, 1, 1, 0, 0]
    assert tokens.segment_ids.tolist() == [0] * 5


@pytest.mark.parametrize("pattern", ["(", ")", "a)(b", "[a", "[z-a]", "*", "a**", "a{3,2}", "a\\", r"\x4", "[\\w-"])
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"the regular expression .* bytes; correct it"):
        Tokenizer.regex(pattern, vocabulary([]))


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a*",
        "a|",
        "(a?)+b",
        "^a",
        "a$",
        r"\b",
        r"\pL",
        "(?i)a",
        "[[:alpha:]]",
        "a{99}" * 40,
        "((a{9}){9}){99}",
        "(" * 99,
    ],
)
def test_regular_expressions_beyond_the_librarys_means_are_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedFile, match=r"the regular expression .* does not support"):
        Tokenizer.regex(pattern, vocabulary([]))


@pytest.mark.parametrize("line", ["word", "word ", "word x", "word  1", "word 99999999999", "word -"])
def test_lines_without_an_id_are_an_error(line: str) -> None:
    with pytest.raises(DamagedFile, match=r"line 3 of the vocabulary .* is not a word, a blank and a number"):
        Tokenizer.regex(r"\W+", f"<PAD> 0\n<UNKNOWN> 1\n\n{line}\n".encode())


def test_a_vocabulary_without_padding_is_an_error() -> None:
    with pytest.raises(DamagedFile, match=r"the vocabulary lacks <PAD> or <UNKNOWN>"):
        Tokenizer.regex(r"\W+", b"<UNKNOWN> 1")


def test_random_expressions_match_what_pythons_own_do() -> None:
    generator = random.Random(1)
    words = ["".join(letters) for size in range(1, 8) for letters in itertools.product("ab", repeat=size)]
    listed = ["<PAD> 0", "<UNKNOWN> 1", *(f"{word} {number}" for number, word in enumerate(words, 2))]
    file = "\n".join(listed).encode()
    compared = 0
    for pattern in (expression(generator, 3) for _ in range(1_000)):
        try:
            tokenizer = Tokenizer.regex(pattern, file)
        except UnsupportedFile:  # it matches the empty string
            continue
        compared += 1
        for word in generator.sample(words, 20):
            tokens = [token for token in re.sub(pattern, " ", word).split(" ") if token]
            ids = [2 + words.index(token) for token in tokens]
            assert tokenizer.tokenize(word, 8).ids[: len(ids) + 1].tolist() == [*ids, 0], f"{pattern} {word}"
    assert compared > 500


def expression(generator: random.Random, depth: int) -> str:
    """Returns a random expression over the letters a and b."""
    kind = generator.random()
    if depth == 0 or kind < 0.3:
        return generator.choice(["a", "b", ".", "[ab]", "[^a]", "ab"])
    if kind < 0.5:
        return f"(?:{expression(generator, depth - 1)}|{expression(generator, depth - 1)})"
    if kind < 0.75:
        return expression(generator, depth - 1) + expression(generator, depth - 1)
    return f"({expression(generator, depth - 1)}){generator.choice(REPETITIONS)}"


def test_searching_takes_linear_time() -> None:
    """A backtracking matcher would take 2^60 steps."""
    tokenizer = Tokenizer.regex("(a|a)+b" + "|(x+x+)+y", vocabulary(["a"]))
    assert tokenizer.tokenize("a" * 60 + " " + "x" * 60, 3).mask.tolist() == [1, 1, 0]


def require_equal(
    session: isolated.Session, folder: Path, pattern: str, words: bytes, texts: Sequence[str], length: int = LENGTH
) -> None:
    model = echo_encoder.write_regex(folder / "echo.tflite", words, length, pattern)
    expected = echo_encoder.tokens(model, texts, length, session)[:, 0]
    tokenizer = Tokenizer.regex(pattern, words)
    for text, ids in zip(texts, expected, strict=True):
        np.testing.assert_array_equal(tokenizer.tokenize(text, length).ids, ids, repr(text))
