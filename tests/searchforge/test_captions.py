"""Captions files are validated before any work; all captions of an image stay on one side of the split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from searchforge.captions import load_captions, split_heldout
from searchforge.config import DataConfig
from searchforge.errors import UsageError


def _data(tmp_path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> DataConfig:
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for image in images:
        if image.pop("write", True):
            (folder / Path(str(image["file_name"])).name).write_bytes(b"x")
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return DataConfig(captions=(str(path),), images=str(folder))


def _image(id: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "file_name": name, **more}


def test_captions_are_joined_and_what_is_not_used_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _data(
        tmp_path,
        [_image(7, "b.jpg"), _image(3, "a.jpg", split="dev"), _image(4, "uncaptioned.jpg")],
        [
            {"image_id": 7, "caption": " two   words\n"},
            {"image_id": 3, "caption": "a"},
            {"image_id": 3, "caption": "b"},
            {"image_id": 3, "caption": "  "},
        ],
    )
    first, second = load_captions(data)
    assert (first.id, first.split, first.captions) == ("a.jpg", "dev", ("a", "b"))
    assert (second.id, second.split, second.captions) == ("b.jpg", None, ("two words",))
    assert "1 images without a caption and 1 empty captions are not used" in capsys.readouterr().err


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    images = [_image(1, "a.jpg"), _image(2, "gone.jpg", write=False)]
    data = _data(tmp_path, images, [{"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}])
    with pytest.raises(
        UsageError, match=r"1 of 2 captioned images are missing in the image folder, such as 'gone.jpg'"
    ):
        load_captions(data)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg"])
def test_a_file_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    data = _data(tmp_path, [_image(1, name, write=False)], [{"image_id": 1, "caption": "x"}])
    with pytest.raises(UsageError, match="leaves the image folder"):
        load_captions(data)


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    data = _data(tmp_path, [_image(1, "a.jpg"), _image(2, "a.jpg")], [{"image_id": i, "caption": "x"} for i in (1, 2)])
    with pytest.raises(UsageError, match=r"'a.jpg' is listed twice"):
        load_captions(data)


def test_an_annotation_without_image_is_refused(tmp_path: Path) -> None:
    data = _data(tmp_path, [_image(1, "a.jpg")], [{"image_id": 9, "caption": "x"}])
    with pytest.raises(UsageError, match=r"1 annotations name image ids that are not listed, such as \['9'\]"):
        load_captions(data)


@pytest.mark.parametrize("text", ["[]", "{}", "nonsense", '{"images": 3, "annotations": []}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    data = _data(tmp_path, [], [])
    Path(data.captions[0]).write_text(text)
    with pytest.raises(UsageError, match="captions"):
        load_captions(data)


def test_given_splits_are_kept(tmp_path: Path) -> None:
    images = [_image(1, "a.jpg", split="train"), _image(2, "b.jpg", split="dev"), _image(3, "c.jpg", split="restval")]
    data = _data(tmp_path, images, [{"image_id": i, "caption": "x"} for i in (1, 2, 3)])
    train, heldout = split_heldout(load_captions(data), data)
    assert [image.id for image in train] == ["a.jpg"]
    assert [image.id for image in heldout] == ["b.jpg"]


def test_without_splits_a_share_is_held_out_always_the_same(tmp_path: Path) -> None:
    images = [_image(i, f"{i}.jpg") for i in range(400)]
    data = _data(tmp_path, images, [{"image_id": i, "caption": "x"} for i in range(400)])
    train, heldout = split_heldout(load_captions(data), data)
    assert len(train) + len(heldout) == 400
    assert 20 <= len(heldout) <= 60
    again = split_heldout(load_captions(data)[::-1], data)[1]
    assert {image.id for image in again} == {image.id for image in heldout}


def test_no_training_split_is_refused(tmp_path: Path) -> None:
    data = _data(tmp_path, [_image(1, "a.jpg", split="fold1")], [{"image_id": 1, "caption": "x"}])
    with pytest.raises(UsageError, match="the captions hold fold1"):
        split_heldout(load_captions(data), data)
