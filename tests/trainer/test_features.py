"""Features are computed once, whatever is killed or added, and inputs that cannot be read are reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from searchforge.hashing import sha256_bytes
from tests.trainer import tiny_towers
from trainer import features
from trainer.features import Extractor, extract
from trainer.towers import TowerSpec

TEXTS = {sha256_bytes(text.encode()): text for text in (f"caption number {i}" for i in range(10))}


class _Runner:
    """Stands in for the Ray actors: gives [length of the text], and dies after some chunks."""

    def __init__(self, chunks_before_death: int = 1000) -> None:
        self.computed: list[str] = []
        self._left = chunks_before_death

    def __call__(self, _spec: TowerSpec, chunks: Any, _workers: int, _threads: int) -> Iterator[Any]:
        for chunk in chunks:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.computed += [text for _, text in chunk]
            yield [key for key, _ in chunk], np.array([[len(text)] for _, text in chunk], np.float32), []


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(features.CHUNK, "text", 4)


def _extract(monkeypatch: pytest.MonkeyPatch, runner: _Runner, texts: dict[str, str], cache: Path) -> Any:
    monkeypatch.setattr(features, "_run", runner)
    return extract(TowerSpec("text", "any"), "fingerprint", texts, cache, workers=1, threads=1)


def test_a_killed_run_redoes_only_the_chunk_in_flight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _extract(monkeypatch, _Runner(chunks_before_death=2), TEXTS, tmp_path)
    again = _Runner()
    found = _extract(monkeypatch, again, TEXTS, tmp_path)
    assert again.computed == list(TEXTS.values())[8:]
    assert [found.values[found.rows[key], 0] for key in TEXTS] == [len(text) for text in TEXTS.values()]


def test_a_changed_corpus_adds_only_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _extract(monkeypatch, _Runner(), TEXTS, tmp_path)
    keys = list(TEXTS)[3:]
    changed = {key: TEXTS[key] for key in keys} | {"f" * 64: "a new one"}
    runner = _Runner()
    found = _extract(monkeypatch, runner, changed, tmp_path)
    assert runner.computed == ["a new one"]
    assert set(found.rows) == set(changed) and len(found.values) == len(changed)


def test_a_damaged_file_is_computed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _extract(monkeypatch, _Runner(), TEXTS, tmp_path)
    damaged = sorted(tmp_path.rglob("*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:50])
    runner = _Runner()
    assert len(_extract(monkeypatch, runner, TEXTS, tmp_path).rows) == 10
    assert 0 < len(runner.computed) <= 4


def test_images_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"not an image")
    spec = TowerSpec("image", f"saved_model:{tiny_towers.save_fixed_image_model(tmp_path / 'model')}")
    paths = [(name, str(tmp_path / name)) for name in ("empty.jpg", "good.png", "missing.png", "text.jpg")]
    keys, values, rejected = Extractor(spec).extract(paths)
    assert (keys, values.shape) == (["good.png"], (1, tiny_towers.IMAGE_WIDTH))
    reasons = {item.key: item.reason for item in rejected}
    assert reasons == {"empty.jpg": "empty", "missing.png": "unreadable", "text.jpg": "not_an_image"}
