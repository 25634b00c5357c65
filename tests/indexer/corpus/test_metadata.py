"""Metadata for the device is canonical JSON, whether the compiled function or Python writes it."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from indexer.corpus.metadata import ID_ROOM, SCRATCH_ROWS, UNHANDLED, device_metadata, write_device_metadata
from searchforge.errors import UsageError


def compiled(text: bytes, id: str) -> bytes | None:
    """Returns what the compiled function writes, or None if it does not handle the input."""
    buffer = np.frombuffer(text + id.encode(), np.uint8)
    out = np.zeros(len(buffer) + ID_ROOM, np.uint8)
    keys = np.zeros((SCRATCH_ROWS, 2), np.int64)
    end = write_device_metadata(buffer, 0, len(text), len(text), len(buffer), out, 0, keys)
    return None if end == UNHANDLED else out[:end].tobytes()


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"album": 3},
        {"a": 1, "z": 2},
        {"i": 1, "ic": 2, "ie": 3},
        {"": "", "{": 1, "{}": 2},
        {"caption": 'a "dog"\nand\\or', "ключ": "日本 😀", "place": {"city": "x", "lat": -0.5, "lon": [1.25, 100.0]}},
        {"list": [], "nested": [[{}], {"a": []}], "word": [True, False, None]},
        {"big": 123456789012345678901234567890, "negative": -5, "tiny": 0.0001, "zero": [0, 0.0, -0.0]},
        {"long": "x" * 1_000_000},
    ],
)
def test_common_metadata_is_written_by_the_compiled_function(metadata: dict[str, Any]) -> None:
    for separators in ((", ", ": "), (",", ":"), (" ,\n\t", " : ")):
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True, separators=separators).encode()
        written = compiled(text, "a photo.jpg")
        assert written == device_metadata("a photo.jpg", metadata)
        assert json.loads(written) == {**metadata, "id": "a photo.jpg"}


@pytest.mark.parametrize(
    "text",
    [
        '{"b": 1, "a": 2}',
        '{"a": 1, "a": 2}',
        '{"x": {"b": 1, "a": 2}}',
        '{"id": "x"}',
        '{"a": "\\u00e9"}',
        '{"a": "\\/"}',
        '{"a\\n": 1, "a ": 2}',
        '{"a": 1.50}',
        '{"a": 1e5}',
        '{"a": 1E400}',
        '{"a": -0}',
        '{"a": 0.00001}',
        '{"a": 0.1000000000000000055}',
        '{"a": NaN}',
        '{"a": "tab\there"}',
        '{"a": 01}',
        '{"a": 1.}',
        '{"a": .5}',
        '{"a": -}',
        '{"a": tru}',
        '{"a": [1,]}',
        '{"a": 1,}',
        '{"a": [}]',
        '{"a"}',
        '{"a": 1',
        '{"a": "',
        '{"a": "\\',
        "{} {}",
        "[]",
        "3",
        '"x"',
        "null",
        "",
        '{"a": ' * 20 + "1" + "}" * 20,
    ],
)
def test_metadata_that_may_not_be_canonical_is_left_to_python(text: str) -> None:
    assert compiled(text.encode(), "x") is None


def test_an_id_that_needs_escaping_is_left_to_python() -> None:
    for id in ('a"b', "a\\b", "a\nb", "\x00"):
        assert compiled(b"{}", id) is None
        assert json.loads(device_metadata(id, {})) == {"id": id}


def test_random_json_is_written_like_python_writes_it_or_not_at_all() -> None:
    generator = random.Random(0)
    handled = 0
    for _ in range(5_000):
        value = _object(generator, 3)
        text = json.dumps(
            value,
            ensure_ascii=generator.random() < 0.2,
            sort_keys=generator.random() < 0.8,
            separators=generator.choice([(", ", ": "), (",", ":"), ("\n,", ": ")]),
        )
        if generator.random() < 0.3:
            at = generator.randrange(len(text))
            text = text[:at] + generator.choice('{}[]",:\\0.e- \x01') + text[at + generator.randrange(2) :]
        written = compiled(text.encode(), "id1")
        if written is not None:
            handled += 1
            assert written == device_metadata("id1", json.loads(text)), text
    assert handled > 1_000


def test_metadata_that_a_device_cannot_read_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"'x' has its own key 'id' \('y'\)"):
        device_metadata("x", {"id": "y"})
    for value in (float("nan"), float("inf"), "\ud800"):
        with pytest.raises(UsageError, match="'x' is not JSON that a device can read"):
            device_metadata("x", {"a": value})
    with pytest.raises(UsageError, match=r"'x' is '\[1\]', expected a JSON object"):
        device_metadata("x", [1])


def _object(generator: random.Random, depth: int) -> dict[str, Any]:
    keys = ("a", "b", "id", "i", "id2", "é", "z z", '"', "{", "", "\n", "日")
    return {generator.choice(keys[:2] + keys[3:]): _value(generator, depth) for _ in range(generator.randrange(4))}


def _value(generator: random.Random, depth: int) -> Any:
    kind = generator.randrange(8 if depth else 6)
    if kind == 6:
        return _object(generator, depth - 1)
    if kind == 7:
        return [_value(generator, depth - 1) for _ in range(generator.randrange(4))]
    return (
        generator.choice([True, False, None]),
        generator.randrange(-(10**6), 10**6),
        round(generator.uniform(-1000, 1000), generator.randrange(5)),
        10 ** generator.uniform(-8, 20),
        "".join(generator.choice('ab "\\\n\té日\x01\x7f') for _ in range(generator.randrange(6))),
        "",
    )[kind]
