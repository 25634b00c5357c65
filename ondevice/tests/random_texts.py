"""Random texts over all of Unicode, and vocabularies that know some of their characters."""

from __future__ import annotations

import random

BLOCK = 128
"""Code points that a text draws from: Unicode's blocks are multiples of 16 in size, most of 128 or more."""

_JOINTS = (
    " ",
    " ",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u200b",
    ".",
    ",",
    "-",
    "'",
    "#",
    "##",
    "$",
    "\u2019",
    "",
)
_WORDS = (
    "a",
    "the",
    "dog",
    "Dog",
    "running",
    "BEACH",
    "caf\u00e9",
    "[CLS]",
    "[UNK]",
    "##ing",
    "\u0130stanbul",
    "x" * 101,
)
_SURROGATES = range(0xD800, 0xE000)


def text(generator: random.Random) -> str:
    """Returns a text of about 1 to 60 characters, most of them of one block of Unicode, none of them U+0000."""
    block = generator.randrange(0x110000 // BLOCK) * BLOCK
    if generator.random() < 0.5:  # most characters are in the first two planes
        block = generator.randrange(0x20000 // BLOCK) * BLOCK
    pieces = []
    for _ in range(generator.randint(1, 8)):
        kind = generator.random()
        if kind < 0.6:
            points = (generator.randrange(max(block, 1), block + BLOCK) for _ in range(generator.randint(1, 6)))
            pieces.append("".join(chr(point) for point in points if point not in _SURROGATES))
        elif kind < 0.8:
            pieces.append(generator.choice(_WORDS))
        else:
            pieces.append("".join(chr(generator.randrange(1, 128)) for _ in range(generator.randint(1, 6))))
        pieces.append(generator.choice(_JOINTS))
    return "".join(pieces)


def texts(count: int, seed: int) -> list[str]:
    """Returns `count` texts."""
    generator = random.Random(seed)
    return [text(generator) for _ in range(count)]


def vocabulary(known: list[str], seed: int) -> bytes:
    """Returns a vocabulary with the special tokens, and with parts of the texts `known` as whole words and as suffixes.

    It has what a careless writer leaves in such a file: empty lines, repeated words and a Windows line ending.
    """
    generator = random.Random(seed)
    words = [
        "[PAD]",
        "",
        *"abcdefghijklmnopqrstuvwxyz",
        "##s",
        "##ing",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "dog",
        "dog\r",
        "dog",
    ]
    for sample in filter(None, known):
        for _ in range(3):
            start, length = generator.randrange(len(sample)), generator.randint(1, 3)
            part = sample[start : start + length].replace("\n", "")
            words += [part, f"##{part}", *(f"##{character}" for character in part if generator.random() < 0.7)]
    return "\n".join(words).encode()
