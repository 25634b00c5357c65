"""Encoders that were made elsewhere, without captions: each ends in a published release that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from infra.cli.main import main
from tests.trainer.importing.foreign_models import COLOURS, files

PHOTOS = 240


def _searchforge(*arguments: str | Path, workspace: Path) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments), "--workspace", str(workspace)])
    assert result.exit_code == 0, result.output
    return result.stdout


def _import(*arguments: str | Path, workspace: Path) -> str:
    id: str = json.loads(_searchforge("encoder", "import", *arguments, "--json", workspace=workspace))["id"]
    return id


def _search(query: str | Path, workspace: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_searchforge("search", query, "--json", workspace=workspace))
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, each of one colour with a little noise; the file names begin with the colour."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(PHOTOS):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        pixels = np.clip(np.array(colour) + random.normal(0, 30, 3) + random.normal(0, 20, (30, 40, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}-{number:03}.png")
    return folder


def test_two_encoders_and_a_folder_of_photos(photos: Path, tmp_path: Path) -> None:
    pair = ("--text", files() / "bert.tflite", "--vocabulary", files() / "bert_vocab.txt")
    encoder = _import(*pair, "--image", files() / "image.tflite", workspace=tmp_path)
    listed = _searchforge("encoder", "list", workspace=tmp_path)
    assert f"encoder {encoder}: text and image, 96 dimensions" in listed
    assert _searchforge("encoder", "show", encoder, workspace=tmp_path) == listed
    _searchforge("run", "--encoder", encoder, "--corpus", photos, workspace=tmp_path)
    for colour in COLOURS:
        assert [hit["id"].split("-")[0] for hit in _search(f"a {colour} car", tmp_path)] == [colour] * 10
    photo = photos / "red-008.png"
    assert _search(photo, tmp_path)[0]["id"] == photo.name
    done = json.loads(_searchforge("reindex", "--encoder", encoder, "--corpus", photos, "--json", workspace=tmp_path))
    assert done["plan"]["mode"] == "nothing"


def test_an_image_encoder_alone(photos: Path, tmp_path: Path) -> None:
    encoder = _import("--image", files() / "image_uint8.tflite", workspace=tmp_path)
    _searchforge("run", "--encoder", encoder, "--corpus", photos, workspace=tmp_path)
    photo = photos / "blue-002.png"
    assert _search(photo, tmp_path)[0]["id"] == photo.name
    refused = CliRunner().invoke(main, ["search", "red", "--workspace", str(tmp_path)])
    assert refused.exit_code == 2
    assert "searches by image only" in refused.output


def test_a_text_encoder_alone(tmp_path: Path) -> None:
    corpus, random = tmp_path / "texts.txt", np.random.default_rng(0)
    words = [*COLOURS, "dog", "beach", "snow", "car", "house", "flowers", "boat", "bicycle"]
    lines = sorted({" ".join(random.permutation(words)[: random.integers(2, 6)]) for _ in range(300)})
    corpus.write_text("\n".join(lines) + "\n")
    workspace = tmp_path / "workspace"
    _import("--text", files() / "regex.tflite", workspace=workspace)
    _searchforge("embed", "--texts", "--corpus", corpus, workspace=workspace)
    _searchforge("index", workspace=workspace)
    _searchforge("check", workspace=workspace)
    _searchforge("publish", workspace=workspace)
    hits = _search(lines[7], workspace)
    assert {frozenset(hit["metadata"]["text"].split()) for hit in hits[:1]} == {frozenset(lines[7].split())}


def test_an_encoder_that_does_not_embed_the_corpus_is_refused_before_work(photos: Path, tmp_path: Path) -> None:
    encoder = _import("--text", files() / "regex.tflite", workspace=tmp_path)
    command = ["run", "--encoder", encoder, "--corpus", str(photos), "--workspace", str(tmp_path)]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "does not embed images, only texts" in refused.output
    refused = CliRunner().invoke(main, ["run", "--encoder", "none", *command[3:]])
    assert refused.exit_code == 2
    assert f"encoders/none is not in workspace {tmp_path}; existing: {encoder}" in refused.output


def test_a_text_encoder_and_embeddings(tmp_path: Path) -> None:
    workspace, random = tmp_path / "workspace", np.random.default_rng(0)
    encoder = _import("--text", files() / "regex.tflite", workspace=workspace)
    (tmp_path / "colours.txt").write_text("".join(f"{colour}\n" for colour in COLOURS))
    _searchforge("embed", "--texts", "--corpus", tmp_path / "colours.txt", workspace=workspace)
    _searchforge("embeddings", "export", "--output", tmp_path / "export", workspace=workspace)
    exported = pq.read_table(tmp_path / "export")
    of_colour = dict(zip(exported["text"].to_pylist(), exported["embedding"].to_pylist(), strict=True))
    names = [f"{colour}-{number:03}" for number in range(PHOTOS // len(COLOURS)) for colour in COLOURS]
    colours = [name.split("-")[0] for name in names]
    vectors = [np.array(of_colour[colour]) + random.normal(0, 0.02, 96) for colour in colours]
    pq.write_table(pa.table({"id": names, "embedding": vectors, "text": colours}), tmp_path / "photos.parquet")
    arguments = ("embeddings", "import", tmp_path / "photos.parquet", "--encoder", encoder, "--modality", "texts")
    run = json.loads(_searchforge(*arguments, "--json", workspace=workspace))["id"]
    _searchforge("index", "--embeddings", run, workspace=workspace)
    _searchforge("check", workspace=workspace)
    _searchforge("publish", workspace=workspace)
    for colour in COLOURS:
        found = _search(colour, workspace)
        assert [hit["id"].split("-")[0] for hit in found] == [colour] * 10
        assert found[0]["metadata"]["text"] == colour
