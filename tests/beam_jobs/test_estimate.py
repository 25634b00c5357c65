"""Estimates extrapolate a measured sample to the corpus without writing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_jobs.embed_images import embed_images
from beam_jobs.estimate import estimate, summary
from beam_jobs.planning.distributions import Distribution
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import UsageError
from tests.beam_jobs.photos import draw_photos, embed_config
from tests.tiny_bundle import write_bundle


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(str(tmp_path / "workspace"))
    write_bundle(workspace)
    return workspace


def test_estimated_bytes_match_the_run(workspace: Workspace, tmp_path: Path) -> None:
    config = embed_config(workspace, draw_photos(tmp_path / "photos", 40))
    found = estimate(config, "tiny", "images", workers=1, sample=100)
    assert workspace.ids("embeddings") == []
    manifest = embed_images(config, "tiny")
    assert found.items == 40
    assert found.bytes_written == pytest.approx(sum(shard.bytes for shard in manifest.shards), rel=0.02)
    assert found.bytes_read == pytest.approx(sum(f.stat().st_size for f in tmp_path.rglob("photos/**/*.png")), rel=0.02)


def test_a_sample_is_extrapolated_to_the_corpus(workspace: Workspace, tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos", 60)
    for index in range(20):
        (photos / f"bad-{index}.png").write_bytes(b"?" * 300)
    found = estimate(embed_config(workspace, photos), "tiny", "images", workers=4, sample=32)
    assert (found.items, found.sample, found.workers) == (80, 32, 4)
    assert found.seconds == pytest.approx(80 / found.per_second / 4, rel=0.1, abs=0.1)
    assert 0.05 < found.reject_fraction < 0.6
    assert "80 items on 4 workers" in summary(found)


def test_an_empty_corpus_has_no_estimate(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is empty"):
        estimate(embed_config(workspace, tmp_path / "empty"), "tiny", "images", workers=1, sample=8)


def test_distributions_merge() -> None:
    parts = [Distribution.from_values(values) for values in ([3.0, 1.0], [], [7.0])]
    assert Distribution.merge(parts) == Distribution.from_values([3.0, 1.0, 7.0]) == Distribution(3, 11.0, 1.0, 7.0)
    assert Distribution.merge([]) == Distribution()
    assert Distribution.from_values([3.0, 1.0]).mean == 2.0
