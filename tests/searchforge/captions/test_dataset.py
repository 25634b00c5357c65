"""Every caption is used or counted, paths stay inside the folder, and no content is on both sides of a split."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from searchforge.captions.dataset import MAX_CAPTION, CaptionedImage, corpus_source, load_captions, split_heldout
from searchforge.config import Config, DataConfig
from searchforge.errors import UsageError

Rows = Iterable[tuple[Any, ...]]


def _config(tmp_path: Path, *names: str, **data: Any) -> Config:
    captions = tuple(str(tmp_path / name) for name in names)
    data = {"max_reject_fraction": 1.0, **data}
    return Config(
        workspace=str(tmp_path / "workspace"),
        data=DataConfig(captions=captions, images=str(tmp_path / "images"), **data),
    )


def _image(tmp_path: Path, name: str, content: bytes | None = None) -> Path:
    path = tmp_path / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode() if content is None else content)
    return path


def _rows(tmp_path: Path, rows: Rows, name: str = "captions.jsonl") -> None:
    keys = ("image", "caption", "split")
    lines = (json.dumps(dict(zip(keys, row, strict=False))) for row in rows)
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))


def _coco(tmp_path: Path, name: str, captions: dict[str, list[str]], first_id: int = 0, **more: Any) -> None:
    images = [{"id": first_id + i, "file_name": file, **more} for i, file in enumerate(captions)]
    annotations = [
        {"image_id": first_id + i, "caption": text} for i, texts in enumerate(captions.values()) for text in texts
    ]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(json.dumps({"images": images, "annotations": annotations}))


def _ids(images: Iterable[CaptionedImage]) -> list[str]:
    return [image.id for image in images]


def _rejects(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "workspace/cache/captions/rejects.jsonl").read_text().splitlines()]


def test_rows_of_an_image_are_joined(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg"):
        _image(tmp_path, name)
    _rows(tmp_path, [("b.jpg", " two   words\n"), ("a.jpg", "a", "dev"), ("a.jpg", "b", "dev"), ("a.jpg", "b", "dev")])
    captions = load_captions(_config(tmp_path, "captions.jsonl"))
    first, second = captions.images
    assert (first.id, first.split, first.captions) == ("a.jpg", "dev", ("a", "b"))
    assert (second.id, second.split, second.captions) == ("b.jpg", None, ("two words",))
    assert (captions.rows, captions.repeated) == (4, 1)


def test_published_coco_files_of_several_splits_are_read_together(tmp_path: Path) -> None:
    for split in ("train2014", "val2014"):
        _image(tmp_path, f"{split}/COCO_{split}_1.jpg")
        _coco(tmp_path, f"annotations/captions_{split}.json", {f"COCO_{split}_1.jpg": [f"of {split}"]})
    config = _config(tmp_path, "annotations/captions_train2014.json", "annotations/captions_val2014.json")
    split = split_heldout(load_captions(config), config)
    assert [(image.id, image.captions) for image in split.train] == [
        ("train2014/COCO_train2014_1.jpg", ("of train2014",))
    ]
    assert [(image.id, image.captions) for image in split.heldout] == [("val2014/COCO_val2014_1.jpg", ("of val2014",))]


def test_coco_images_may_share_one_folder(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        _image(tmp_path, name)
    _coco(tmp_path, "captions_train2017.json", {"1.jpg": ["x"]})
    _coco(tmp_path, "captions_val2017.json", {"2.jpg": ["x"]})
    config = _config(tmp_path, "captions_train2017.json", "captions_val2017.json")
    split = split_heldout(load_captions(config), config)
    assert (_ids(split.train), _ids(split.heldout)) == (["1.jpg"], ["2.jpg"])


def test_the_same_id_in_two_files_is_two_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        _image(tmp_path, name)
    _coco(tmp_path, "one.json", {"a.jpg": ["an a"]}, first_id=7)
    _coco(tmp_path, "two.json", {"b.jpg": ["a b"]}, first_id=7)
    images = load_captions(_config(tmp_path, "one.json", "two.json")).images
    assert [(image.id, image.captions) for image in images] == [("a.jpg", ("an a",)), ("b.jpg", ("a b",))]


def test_an_image_in_a_training_and_a_heldout_file_is_held_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        _image(tmp_path, name)
    _coco(tmp_path, "captions_train.json", {"a.jpg": ["for training"], "b.jpg": ["b"]})
    _coco(tmp_path, "captions_val.json", {"a.jpg": ["for measuring"]})
    config = _config(tmp_path, "captions_train.json", "captions_val.json")
    split = split_heldout(load_captions(config), config)
    assert _ids(split.train) == ["b.jpg"]
    assert [(image.id, image.captions) for image in split.heldout] == [("a.jpg", ("for measuring",))]
    assert split.leaked == 1


def test_an_explicit_split_overrides_the_file_name(tmp_path: Path) -> None:
    _image(tmp_path, "a.jpg")
    _coco(tmp_path, "captions_val.json", {"a.jpg": ["x"]}, split="train")
    (image,) = load_captions(_config(tmp_path, "captions_val.json")).images
    assert image.split == "train"


def test_a_pattern_matches_several_files(tmp_path: Path) -> None:
    for index in range(3):
        _image(tmp_path, f"{index}.jpg")
        _rows(tmp_path, [(f"{index}.jpg", "x")], f"part-{index}.jsonl")
    assert _ids(load_captions(_config(tmp_path, "part-*.jsonl")).images) == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(UsageError, match="match no file"):
        load_captions(_config(tmp_path, "none-*.jsonl"))


def test_an_unknown_format_is_rejected_with_the_known_ones(tmp_path: Path) -> None:
    _image(tmp_path, "a.jpg")
    formats = r"\.json, \.csv, \.tsv, \.jsonl, \.ndjson, \.tfrecord"
    with pytest.raises(UsageError, match=f"captions.txt .*expected .*{formats}"):
        load_captions(_config(tmp_path, "captions.txt"))


def test_missing_images_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _image(tmp_path, "a.jpg")
    (tmp_path / "images" / "folder.jpg").mkdir()
    _rows(tmp_path, [("a.jpg", "x"), ("gone.jpg", "y"), ("gone.jpg", "z"), ("folder.jpg", "w"), ("", "v")])
    captions = load_captions(_config(tmp_path, "captions.jsonl"))
    assert _ids(captions.images) == ["a.jpg"]
    assert captions.rejected == {"missing": 3, "no_image": 1}
    place = tmp_path / "captions.jsonl"
    assert {(reject["place"], reject["reason"], reject["captions"]) for reject in _rejects(tmp_path)} == {
        (f"{place}:2", "missing", 2),
        (f"{place}:4", "missing", 1),
        (f"{place}:5", "no_image", 1),
    }
    assert "4 of 5 are unusable" in capsys.readouterr().err


def test_a_limited_fraction_of_faults_is_tolerated(tmp_path: Path) -> None:
    for index in range(100):
        _image(tmp_path, f"{index}.jpg")
    rows = [(f"{index}.jpg", "x") for index in range(100)]
    _rows(tmp_path, [*rows, *[("gone.jpg", str(i)) for i in range(3)]])
    assert load_captions(_config(tmp_path, "captions.jsonl", max_reject_fraction=0.1)).rejected == {"missing": 3}
    _rows(tmp_path, [*rows[:9], *[("gone.jpg", str(i)) for i in range(3)]])
    with pytest.raises(
        UsageError, match=r"3 of 12 captions are unusable, more than data\.max_reject_fraction \(0\.1\)"
    ):
        load_captions(_config(tmp_path, "captions.jsonl", max_reject_fraction=0.1))


def test_an_error_explains_why_no_image_is_usable(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    _rows(tmp_path, [("gone.jpg", "x")])
    with pytest.raises(
        UsageError, match=r"match no image; 1 captions were read\n.*1 missing, such as .*:1: 'gone.jpg'"
    ):
        load_captions(_config(tmp_path, "captions.jsonl"))


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "a/../a.jpg"])
def test_a_file_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    _image(tmp_path, "a.jpg")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    _rows(tmp_path, [("a.jpg", "x"), (name, "y")])
    captions = load_captions(_config(tmp_path, "captions.jsonl"))
    assert _ids(captions.images) == ["a.jpg"]
    assert captions.rejected == {"outside": 1}


def test_an_absolute_name_inside_the_folder_is_used(tmp_path: Path) -> None:
    path = _image(tmp_path, "a/b.jpg")
    _rows(tmp_path, [(str(path), "x"), ("./a//b.jpg", "y")])
    (image,) = load_captions(_config(tmp_path, "captions.jsonl")).images
    assert (image.id, image.captions) == ("a/b.jpg", ("x", "y"))


def test_links_are_followed_inside_the_folder_only(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.jpg").write_bytes(b"x")
    inner = _image(tmp_path, "a.jpg")
    (tmp_path / "images" / "inside.jpg").symlink_to(inner)
    (tmp_path / "images" / "outside.jpg").symlink_to(tmp_path / "elsewhere" / "secret.jpg")
    (tmp_path / "images" / "folder").symlink_to(tmp_path / "elsewhere")
    _rows(tmp_path, [(name, "x") for name in ("inside.jpg", "outside.jpg", "folder/secret.jpg")])
    captions = load_captions(_config(tmp_path, "captions.jsonl"))
    assert _ids(captions.images) == ["inside.jpg"]
    assert captions.rejected == {"outside": 2}


def test_the_image_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.jpg").write_bytes(b"x")
    (tmp_path / "images").symlink_to(tmp_path / "store")
    _rows(tmp_path, [("a.jpg", "x")])
    assert _ids(load_captions(_config(tmp_path, "captions.jsonl")).images) == ["a.jpg"]


def test_unusual_file_names_and_scripts_are_kept(tmp_path: Path) -> None:
    names = ["ein foto.jpg", "写真.jpg", "a\nb.jpg", "$(rm -rf).jpg", "'\"<b>.jpg", "🐕.jpg", " leading.jpg", "-x.jpg"]
    texts = ["犬が走っている", "كلب يركض", "Hündchen", "собака бежит", "🐕 🏖️", "कुत्ता", "ein Hund", "e\u0301te\u0301"]
    for name in names:
        _image(tmp_path, name)
    _rows(tmp_path, zip(names, texts, strict=True))
    images = load_captions(_config(tmp_path, "captions.jsonl")).images
    assert {image.id: image.captions for image in images} == {n: (t,) for n, t in zip(names, texts, strict=True)}
    assert all(Path(image.uri).read_bytes() == image.id.encode() for image in images)


def test_names_match_whatever_their_unicode_normal_form(tmp_path: Path) -> None:
    nfc, nfd = "Übersee/café.jpg", "U\u0308bersee/cafe\u0301.jpg"
    for name in (f"train/{nfd}", nfd, "zwei\u0308.jpg", "zwe\u00ef.jpg", "e\u0301.jpg"):
        _image(tmp_path, name)
    texts = {nfc: "x", str(tmp_path / "images" / nfc): "y", "zwei\u0308.jpg": "z", "é.jpg": "v", "ü.jpg": "w"}
    _rows(tmp_path, texts.items())
    _rows(tmp_path, [(nfc, "u")], "train.jsonl")
    captions = load_captions(_config(tmp_path, "captions.jsonl", "train.jsonl", train_splits=("train",)))
    assert {image.id: image.captions for image in captions.images} == {
        nfd: ("x", "y"),
        "zwei\u0308.jpg": ("z",),
        "e\u0301.jpg": ("v",),
        f"train/{nfd}": ("u",),
    }
    assert captions.rejected == {"missing": 1}


def test_a_url_is_rejected_as_it_was_written(tmp_path: Path) -> None:
    _image(tmp_path, "a.jpg")
    url = "https://example.org//photos/a.jpg"
    _rows(tmp_path, [("a.jpg", "x"), (url, "y")])
    assert load_captions(_config(tmp_path, "captions.jsonl")).rejected == {"outside": 1}
    (reject,) = _rejects(tmp_path)
    assert reject["detail"] == f"{url!r} is a URL; download the image and name its file"


def test_a_caption_of_10_000_characters_is_truncated_and_counted(tmp_path: Path) -> None:
    _image(tmp_path, "a.jpg")
    _rows(tmp_path, [("a.jpg", "word " * 2000), ("a.jpg", "x" * MAX_CAPTION)])
    captions = load_captions(_config(tmp_path, "captions.jsonl"))
    assert captions.cut == 1
    assert [len(text) for text in captions.images[0].captions] == [MAX_CAPTION - 1, MAX_CAPTION]  # no space at the end


def test_every_caption_and_every_image_is_counted_once(tmp_path: Path) -> None:
    generator = random.Random(0)
    names = [f"{index}.jpg" for index in range(40)]
    for index, name in enumerate(names[:30]):
        _image(tmp_path, name, bytes([index % 20]) if index else b"")  # copies, an empty file; ten are missing
    rows = []
    for _ in range(2000):
        image = generator.choice([*names, "../x.jpg", "", None, 3])
        caption = generator.choice(["a", "b", "c", "d" * 5000, " ", "", None, 5, "\ud800"])
        heldout = ["val"] if image in names[::5] else []  # so that every combination of sides occurs
        rows.append((image, caption, generator.choice([None, "train", "other", 4, *heldout])))
    _rows(tmp_path, rows)
    config = _config(tmp_path, "captions.jsonl")
    captions = load_captions(config)
    assert captions.rows == 2000
    used = sum(len(image.captions) for image in captions.images)
    assert used + captions.repeated + sum(captions.rejected.values()) == 2000
    assert sum(reject["captions"] for reject in _rejects(tmp_path)) == sum(captions.rejected.values())
    split = split_heldout(captions, config)
    assert split.train and split.heldout and split.merged and split.leaked and split.unused
    sides = len(split.train) + len(split.heldout) + split.merged + split.leaked
    assert sides + split.unused + len(split.unreadable) == len(captions.images)
    assert {detail for _, detail in split.unreadable} == {"0 bytes"}
    contents = [image.content_hash for image in (*split.train, *split.heldout)]
    assert len(set(contents)) == len(contents)


def test_content_on_both_sides_is_held_out(tmp_path: Path) -> None:
    _image(tmp_path, "a.jpg", b"same")
    _image(tmp_path, "b.jpg", b"same")
    _image(tmp_path, "c.jpg", b"other")
    _rows(tmp_path, [("a.jpg", "x", "train"), ("b.jpg", "y", "dev"), ("c.jpg", "z", "train")])
    config = _config(tmp_path, "captions.jsonl")
    split = split_heldout(load_captions(config), config)
    assert (_ids(split.train), _ids(split.heldout), split.leaked) == (["c.jpg"], ["b.jpg"], 1)
    assert split.heldout[0].captions == ("y",)


def test_copies_on_one_side_are_merged_with_all_captions(tmp_path: Path) -> None:
    _image(tmp_path, "a.jpg", b"same")
    _image(tmp_path, "b.jpg", b"same")
    _rows(tmp_path, [("a.jpg", "x", "train"), ("b.jpg", "y", "train"), ("b.jpg", "x", "train")])
    config = _config(tmp_path, "captions.jsonl", holdout=0)
    (image,) = split_heldout(load_captions(config), config).train
    assert (image.id, image.captions) == ("a.jpg", ("x", "y"))


def test_without_splits_images_are_held_out_by_content(tmp_path: Path) -> None:
    for index in range(200):
        for copy in "ab":
            _image(tmp_path, f"{copy}{index}.jpg", str(index).encode())
    _rows(tmp_path, [(f"{copy}{index}.jpg", f"{copy} {index}") for index in range(200) for copy in "ab"])
    config = _config(tmp_path, "captions.jsonl")
    captions = load_captions(config)
    split = split_heldout(captions, config)
    assert len(split.train) + len(split.heldout) == split.merged == 200
    assert 8 <= len(split.heldout) <= 36
    assert all(
        image.captions == (f"a {image.id[1:-4]}", f"b {image.id[1:-4]}") for image in split.train + split.heldout
    )

    held = {image.content_hash for image in split.heldout}
    for index in range(200):  # renamed, and with additional images
        (tmp_path / "images" / f"a{index}.jpg").rename(tmp_path / "images" / f"z{index}.jpg")
    for index in range(200, 250):
        _image(tmp_path, f"z{index}.jpg", str(index).encode())
    _rows(tmp_path, [(f"z{index}.jpg", "x") for index in range(250)])
    again = split_heldout(load_captions(config), config)
    assert held == {image.content_hash for image in again.heldout if int(image.id[1:-4]) < 200}


def test_images_are_held_out_of_training_splits_if_there_are_no_others(tmp_path: Path) -> None:
    for index in range(200):
        _image(tmp_path, f"{index}.jpg")
    _rows(tmp_path, [(f"{index}.jpg", "x") for index in range(200)], "captions_train2014.jsonl")
    config = _config(tmp_path, "captions_train2014.jsonl")
    split = split_heldout(load_captions(config), config)
    assert split.train and 8 <= len(split.heldout) <= 36
    none = _config(tmp_path, "captions_train2014.jsonl", holdout=0)
    assert split_heldout(load_captions(none), none).heldout == []


def test_images_of_other_splits_are_counted_and_not_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        _image(tmp_path, name)
    _image(tmp_path, "c.jpg", b"")
    _rows(tmp_path, [("a.jpg", "x", "train"), ("b.jpg", "x", "dev"), ("c.jpg", "x", "restval")])
    config = _config(tmp_path, "captions.jsonl")
    split = split_heldout(load_captions(config), config)
    assert (_ids(split.train), _ids(split.heldout), split.unused, split.unreadable) == (["a.jpg"], ["b.jpg"], 1, [])


def test_captions_without_a_training_split_are_rejected(tmp_path: Path) -> None:
    _image(tmp_path, "a.jpg")
    _rows(tmp_path, [("a.jpg", "x", "fold1")])
    config = _config(tmp_path, "captions.jsonl")
    with pytest.raises(UsageError, match="the captions contain fold1"):
        split_heldout(load_captions(config), config)


def test_the_corpus_defaults_to_the_captioned_images(tmp_path: Path) -> None:
    config = _config(tmp_path, "captions.jsonl")
    assert corpus_source(config) == str(tmp_path / "images")
    with pytest.raises(UsageError, match="no corpus is configured"):
        corpus_source(Config())
