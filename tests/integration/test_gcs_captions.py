"""Captioned images in a bucket of a real Google Cloud Storage server train like those on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from searchforge.captions.dataset import CaptionedImage, image_reader, load_captions, split_heldout
from searchforge.config import Config, load_config
from searchforge.errors import UsageError
from searchforge.storage.factory import open_storage
from searchforge.storage.gcs_client import gcs_client
from tests.beam_jobs.photos import png

pytestmark = pytest.mark.integration

IMAGES = {
    "a.png": png(1),
    "sub/b.png": png(2),
    "train2014/COCO_1.png": png(3),
    "val2014/COCO_2.png": png(4),
    "val2014/copy of a.png": png(1),
    "Kä.png": png(5),  # decomposed
    "empty.png": b"",
    "unused.png": png(6),
}

CAPTIONS = {
    "captions.csv": "image,caption,split\na.png,one,train\na.png,two,train\nsub/b.png,three,train\nKä.png,four,train\n"
    "empty.png,five,train\ngone.png,six,train\n../a.png,seven,train\n",
    "captions_train2014.json": json.dumps(
        {
            "images": [{"id": 1, "file_name": "COCO_1.png"}],
            "annotations": [{"image_id": 1, "caption": "eight"}],
        }
    ),
    "captions_val2014.json": json.dumps(
        {
            "images": [{"id": 2, "file_name": "COCO_2.png"}, {"id": 3, "file_name": "copy of a.png"}],
            "annotations": [{"image_id": 2, "caption": "nine"}, {"image_id": 3, "caption": "ten"}],
        }
    ),
}


def _write(root: str) -> None:
    storage = open_storage(root)
    for name, data in IMAGES.items():
        storage.write(f"photos/{name}", data)
    for name, text in CAPTIONS.items():
        storage.write(name, text.encode())


def _config(root: str, workspace: Path, **values: object) -> Config:
    data = {
        "data.captions": [f"{root}/captions.csv", f"{root}/captions_*.json"],
        "data.images": f"{root}/photos/",
        "data.max_reject_fraction": 0.5,
    }
    return load_config(None, {"workspace": str(workspace), **data, **values})


def _without_uris(images: list[CaptionedImage]) -> list[CaptionedImage]:
    return [dataclasses.replace(image, uri="") for image in images]


def test_captions_and_images_in_a_bucket_are_those_of_the_same_folder_on_disk(bucket: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    for root in (bucket, str(local)):
        _write(root)
    splits, counts = [], []
    for root in (bucket, str(local)):
        config = _config(root, tmp_path / f"workspace-{root[:2].strip('/')}")
        captions = load_captions(config)
        split = split_heldout(captions, config)
        splits.append((_without_uris(split.train), _without_uris(split.heldout), split.merged, split.leaked))
        counts.append((captions.rows, captions.repeated, captions.rejected))
        for image in [*split.train, *split.heldout]:
            assert image.uri == f"{root}/photos/{image.id}"
            assert image_reader(config).read(image.uri, image.content_hash) == IMAGES[image.id]
        assert [(image.id, why) for image, why in split.unreadable] == [("empty.png", "0 bytes")]
    assert splits[0] == splits[1]
    assert counts[0] == counts[1] == (10, 0, {"missing": 1, "outside": 1})
    assert splits[0][3] == 1, "a copy of a.png is held out"


def test_unchanged_objects_are_read_once_and_replaced_ones_again(bucket: str, tmp_path: Path) -> None:
    _write(bucket)
    config = _config(bucket, tmp_path / "workspace")
    before = split_heldout(load_captions(config), config)
    open_storage(bucket).write("photos/a.png", png(9))
    after = split_heldout(load_captions(config), config)
    changed = {image.id for image in after.train} ^ {image.id for image in before.train}
    assert changed == {"a.png"}, "it is no longer a copy of a held-out image"
    reader = image_reader(config)
    kept = {image.id: image for image in after.train}["sub/b.png"]
    gcs_client().bucket(bucket.removeprefix("gs://")).blob(f"photos/{kept.id}").delete()
    assert reader.read(kept.uri, kept.content_hash) == IMAGES[kept.id], "it is cached"
    with pytest.raises(FileNotFoundError, match="No such object"):
        reader.read(kept.uri)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.images": "{}/nothing"}, r"image folder \S+/nothing contains no objects; set data.images"),
        ({"data.captions": ["{}/none.csv"]}, r"captions \S+/none.csv do not exist"),
        ({"data.captions": ["{}/none-*.csv"]}, r"captions \S+/none-\*.csv match no file"),
        ({"data.captions": ["{}/photos/a.png"]}, "unknown format"),
        ({"data.captions": ["{}/bad.csv"]}, r"captions gs://\S+/bad.csv start with"),
        ({"data.images": "s3://bucket/photos"}, "s3://bucket/photos is not supported"),
    ],
)
def test_what_is_missing_or_unusable_is_named_by_its_url(
    bucket: str, tmp_path: Path, values: dict[str, str | list[str]], message: str
) -> None:
    _write(bucket)
    open_storage(bucket).write("bad.csv", b"a,b\n1,2\n")
    given = {
        key: value.format(bucket) if isinstance(value, str) else [one.format(bucket) for one in value]
        for key, value in values.items()
    }
    with pytest.raises(UsageError, match=message):
        load_captions(_config(bucket, tmp_path / "workspace", **given))
