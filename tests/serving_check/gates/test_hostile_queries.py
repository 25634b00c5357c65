"""The size of hostile images is configurable, and is part of a check's id only if it is not the default."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from searchforge.config import CheckConfig, load_config
from searchforge.errors import UsageError
from serving_check.gates.hostile_queries import hostile_images


@pytest.mark.parametrize("megapixels", [CheckConfig().hostile_megapixels, 0.3, 1e-9])
def test_the_largest_images_have_the_configured_size(tmp_path: Path, megapixels: float) -> None:
    files = dict(hostile_images(tmp_path, megapixels))
    assert len(set(files.values())) == len(files) == 12
    for kind in ("JPEG", "PNG"):
        with Image.open(files[f"{megapixels:g} megapixels, {kind}"]) as image:
            assert image.format == kind
            assert image.width * image.height == pytest.approx(max(1, megapixels * 1e6), rel=0.01)


@pytest.mark.parametrize("megapixels", [0, -1, 100.1])
def test_an_unsupported_size_is_rejected(megapixels: float) -> None:
    with pytest.raises(UsageError, match=r"check\.hostile_megapixels: "):
        load_config(None, {"check.hostile_megapixels": megapixels})


def test_the_default_size_does_not_change_a_checks_id() -> None:
    assert CheckConfig(hostile_megapixels=50).changed() == {}
    assert CheckConfig(hostile_megapixels=3).changed() == {"hostile_megapixels": 3}
