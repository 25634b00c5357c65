"""Fuzzing of image decoding: every damaged image is embedded or rejected with a reason."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beam_jobs.embed_images import embed_images
from searchforge.artifacts.workspace import Workspace
from tests.beam_jobs.photos import embed_config, records
from tests.tiny_bundle import write_bundle

MUTATIONS = 1200
REASONS = {"empty", "not_an_image", "truncated", "unreadable", "too_many_pixels", "too_large"}


def _originals() -> list[bytes]:
    """Returns an image of every format and of every unusual mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    rgba = Image.fromarray(pixels, "RGBA")
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    images: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgb, "JPEG", {"quality": 90}),
        (rgb, "JPEG", {"exif": exif, "progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (grey, "JPEG", {}),
        (rgba, "PNG", {}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (rgb.convert("P"), "PNG", {}),
        (rgba, "WEBP", {}),
        (rgb, "WEBP", {"lossless": True}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "GIF", {"save_all": True, "append_images": [grey.convert("P")]}),
    ]
    found = []
    for image, format, options in images:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        found.append(buffer.getvalue())
    return found


def _mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Truncates the data, or overwrites, removes, repeats or flips bits in a part of it."""
    start = int(generator.integers(0, len(data)))
    stop = min(len(data), start + int(generator.integers(1, 64)))
    noise = generator.integers(0, 256, stop - start, np.uint8).tobytes()
    kind = generator.integers(0, 6)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + noise + data[stop:]
    if kind == 2:
        return data[:start] + data[stop:]
    if kind == 3:
        return data[:stop] + data[start:]
    flipped = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        # Headers are short but contain the sizes, so they are hit as often as the pixels.
        offset = int(generator.integers(0, len(data) if kind == 4 else min(64, len(data))))
        flipped[offset] ^= 1 << int(generator.integers(0, 8))
    return bytes(flipped)


def test_every_mutated_image_is_accounted_for(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photos, originals = tmp_path / "photos", _originals()
    photos.mkdir()
    for index in range(MUTATIONS):
        (photos / f"{index:04d}.jpg").write_bytes(_mutate(originals[index % len(originals)], generator))
    for index, data in enumerate(originals):
        (photos / f"whole-{index}.jpg").write_bytes(data)
    workspace = Workspace(str(tmp_path / "workspace"))
    write_bundle(workspace)
    config = embed_config(workspace, photos, corpus__max_reject_fraction=1.0, corpus__max_pixels=1_000_000)
    manifest = embed_images(config, "tiny")
    folder = workspace.local("embeddings", manifest.id)
    rejects = [json.loads(line) for name in manifest.rejects for line in (folder / name).read_text().splitlines()]
    embedded = records(workspace, manifest)
    rejected = {reject["id"] for reject in rejects}
    assert embedded.keys() | rejected == {path.name for path in photos.iterdir()}
    assert not embedded.keys() & rejected and len(rejected) == len(rejects) == manifest.rejected
    assert {reject["reason"] for reject in rejects} <= REASONS
    assert all(reject["detail"] for reject in rejects)
    assert {f"whole-{index}.jpg" for index in range(len(originals))} <= embedded.keys()
    assert manifest.rejected > MUTATIONS / 10, "the mutations damage too few images"
    for record in embedded.values():
        assert np.linalg.norm(record.embedding) == pytest.approx(1, abs=1e-4)
