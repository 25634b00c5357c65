"""Thumbnails come from the embedded image, are small and carry no metadata; otherwise there is a helpful error."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.serve.request_error import RequestError
from infra.serve.thumbnails import SIZES, Thumbnails
from infra.source_table import table_path
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.records import EmbeddingRecord
from searchforge.artifacts.workspace import Workspace
from searchforge.hashing import sha256_bytes
from tests.indexer.tiny_corpus import DIM, TinyCorpus, commit_embeddings, make_corpus
from tests.infra.serve.serve_world import wait_for

MAX_PIXELS = 10_000_000


@pytest.fixture
def corpus(tmp_path: Path) -> TinyCorpus:
    return make_corpus(tmp_path, 12)


def _record(id: str, uri: str, data: bytes, byte_range: str = "") -> EmbeddingRecord:
    embedding = np.zeros(DIM, np.float32)
    embedding[0] = 1
    return EmbeddingRecord(id, embedding, uri, sha256_bytes(data), {}, byte_range=byte_range)


def _photo(size: tuple[int, int], **saving: object) -> bytes:
    file = io.BytesIO()
    pixels = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", **saving)  # type: ignore[arg-type]
    return file.getvalue()


def _ready(workspace: Workspace, embeddings: str = "corpus") -> Thumbnails:
    thumbnails = Thumbnails([workspace], embeddings, MAX_PIXELS)
    thumbnails.start()
    wait_for(lambda: thumbnails.state.name != "preparing")
    return thumbnails


def _error(thumbnails: Thumbnails, id: str) -> RequestError:
    with pytest.raises(RequestError) as raised:
        thumbnails.read(id, "small")
    return raised.value


def test_the_source_table_is_built_in_the_background(corpus: TinyCorpus) -> None:
    thumbnails = Thumbnails([corpus.workspace], "corpus", MAX_PIXELS)
    error = _error(thumbnails, "00003.png")
    assert (error.status, error.retry_after) == (503, 2) and "being prepared" in error.reason
    thumbnails.start()
    wait_for(lambda: thumbnails.state.name == "ready")
    assert thumbnails.read("00003.png", "small").startswith(b"\xff\xd8")
    again = Thumbnails([corpus.workspace], "corpus", MAX_PIXELS)
    again.start()
    assert again.state.name == "ready"


def test_a_photo_is_rotated_shrunk_and_stripped_of_metadata(corpus: TinyCorpus, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    exif[0x010E] = "a private description"
    data = _photo((2000, 1000), exif=exif, comment="a private comment")
    (tmp_path / "photo.jpg").write_bytes(data)
    commit_embeddings(corpus.workspace, [_record("photo", str(tmp_path / "photo.jpg"), data)], "photos", 1)
    thumbnails = _ready(corpus.workspace, "photos")
    for size, side in SIZES.items():
        encoded = thumbnails.read("photo", size)
        with Image.open(io.BytesIO(encoded)) as image:
            assert image.size == (side // 2, side)
            assert not image.getexif()
        assert b"private" not in encoded


def test_a_member_of_an_archive_is_read_in_place(corpus: TinyCorpus, tmp_path: Path) -> None:
    first, second = _photo((30, 20)), _photo((20, 30))
    archive = tmp_path / "photos.tar"
    archive.write_bytes(bytes(512) + first + second)
    records = [
        _record("a", f"{archive}/a.jpg", first, f"512+{len(first)}@{archive}"),
        _record("b", f"{archive}/b.jpg", second, f"{512 + len(first)}+{len(second)}@{archive}"),
    ]
    commit_embeddings(corpus.workspace, records, "members", 1)
    thumbnails = _ready(corpus.workspace, "members")
    sizes = [Image.open(io.BytesIO(thumbnails.read(id, "small"))).size for id in "ab"]
    assert sizes == [(30, 20), (20, 30)]


def test_images_that_cannot_be_decoded_are_refused(corpus: TinyCorpus, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (5000, 5000)).save(bomb, "PNG")
    records = []
    for name, data in (("bomb", bomb.getvalue()), ("text", b"no image")):
        (tmp_path / name).write_bytes(data)
        records.append(_record(name, str(tmp_path / name), data))
    commit_embeddings(corpus.workspace, records, "odd", 1)
    thumbnails = _ready(corpus.workspace, "odd")
    for name, reason in (("bomb", "too_many_pixels"), ("text", "not_an_image")):
        error = _error(thumbnails, name)
        assert error.status == 404 and reason in error.reason


def test_a_damaged_run_is_reported(corpus: TinyCorpus) -> None:
    folder = corpus.workspace.local("embeddings", "corpus")
    shard = next(folder.glob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    thumbnails = _ready(corpus.workspace)
    assert thumbnails.state.name == "none" and shard.name in thumbnails.state.reason
    error = _error(thumbnails, "00003.png")
    assert error.status == 404 and shard.name in error.reason
    assert not table_path(corpus.workspace, "corpus").exists()


def test_texts_have_no_thumbnails(corpus: TinyCorpus) -> None:
    manifest = Manifest.model_validate(corpus.workspace.marker("embeddings", "corpus"))
    with corpus.workspace.create("embeddings", "texts") as staging:
        staging.commit(manifest.model_dump() | {"id": "texts", "modality": "texts"})
    thumbnails = _ready(corpus.workspace, "texts")
    assert _error(thumbnails, "00003.png").reason == "thumbnails are not available: the corpus consists of texts"


def test_closing_stops_the_background_process(corpus: TinyCorpus) -> None:
    thumbnails = Thumbnails([corpus.workspace], "corpus", MAX_PIXELS)
    thumbnails.start()
    start = time.monotonic()
    thumbnails.close()
    assert time.monotonic() - start < 60
    assert _ready(corpus.workspace).read("00000.png", "small")
