"""The tokenizer of a searcher is the one that its metadata names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_indexes

from indexer.device.worker import MODULE as PACKING
from ondevice.tests import echo_encoder
from searchforge.processes import isolated
from searchforge_reader import Index, UnsupportedFile
from tests.indexer.random_indexes import Case

LENGTH = 6
CASE = Case("float", [1, 2, 3], partitions=4, search_fraction=0.6, count=60)


@pytest.fixture(scope="module")
def packing() -> Iterator[isolated.Session]:
    """A process that packs an index into an encoder."""
    with isolated.Session(PACKING) as session:
        yield session


def pack(session: isolated.Session, encoder: Path) -> Path:
    searcher = encoder.with_name("searcher.tflite")
    index = small_indexes.write(CASE, encoder.parent)
    session.call({"step": "pack", "folded": str(encoder), "index": str(index), "searcher": str(searcher)})
    return searcher


def test_a_bert_tokenizer_is_found_with_its_vocabulary(packing: isolated.Session, tmp_path: Path) -> None:
    encoder = echo_encoder.write_bert(tmp_path / "echo.tflite", b"[CLS]\n[SEP]\n[UNK]\ndog\n##s", LENGTH)
    with Index(pack(packing, encoder)) as index:
        tokenizer = index.tokenizer()
    expected = echo_encoder.tokens(encoder, ["Dogs bark"], LENGTH)[0]
    assert expected[0].tolist() == [0, 3, 4, 2, 1, 0]
    np.testing.assert_array_equal(tokenizer.tokenize("Dogs bark", LENGTH), expected)


def test_a_regex_tokenizer_is_found_with_its_pattern_and_vocabulary(packing: isolated.Session, tmp_path: Path) -> None:
    encoder = echo_encoder.write_regex(tmp_path / "echo.tflite", b"<PAD> 7\n<UNKNOWN> 8\ndog 9", LENGTH, "[-x]+")
    with Index(pack(packing, encoder)) as index:
        tokenizer = index.tokenizer()
    expected = echo_encoder.tokens(encoder, ["dogx-cat-dog"], LENGTH)[0, 0]
    assert expected.tolist() == [9, 8, 9, 7, 7, 7]
    np.testing.assert_array_equal(tokenizer.tokenize("dogx-cat-dog", LENGTH).ids, expected)


def test_an_index_without_an_encoder_has_no_tokenizer(tmp_path: Path) -> None:
    with Index(small_indexes.write(CASE, tmp_path)) as index, pytest.raises(UnsupportedFile, match="has no tokenizer"):
        index.tokenizer()
