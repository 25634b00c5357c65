"""TFRecords of captioned images written by TensorFlow are unpacked once, into files named by content hash."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import tensorflow as tf

from searchforge.artifacts.records import MAX_RECORD_BYTES, example_bytes, write_tfrecords
from searchforge.captions.dataset import corpus_source, load_captions, split_heldout
from searchforge.captions.tfrecords import is_tfrecord
from searchforge.config import Config, DataConfig
from searchforge.errors import UsageError
from searchforge.hashing import sha256_bytes

JPEG, PNG = b"\xff\xd8\xff first", b"\x89PNG second"


def _example(**features: list[bytes] | list[int] | list[float]) -> bytes:
    lists = {
        bytes: lambda values: tf.train.Feature(bytes_list=tf.train.BytesList(value=values)),
        int: lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values)),
        float: lambda values: tf.train.Feature(float_list=tf.train.FloatList(value=values)),
    }
    feature = {key: lists[type(values[0])](values) for key, values in features.items()}
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def _write(path: Path, *payloads: bytes, compression: str = "") -> Path:
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


def _config(tmp_path: Path, *files: Path) -> Config:
    data = DataConfig(captions=tuple(map(str, files)), max_reject_fraction=1)
    return Config(workspace=str(tmp_path / "workspace"), data=data)


FIRST = _example(image=[JPEG], caption=["eins 犬".encode(), b"two"], height=[3, -1], score=[0.5], split=[b"train"])
SECOND = _example(**{"image/encoded": [PNG], "captions/text": [b"three"], "split": [b"dev"]})


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_images_and_captions_are_unpacked(tmp_path: Path, compression: str) -> None:
    path = _write(tmp_path / "a.tfrecord-00000-of-00001", FIRST, SECOND, compression=compression)
    config = _config(tmp_path, path)
    split = split_heldout(load_captions(config), config)
    ((first,), (second,)) = split.train, split.heldout
    assert (first.id, first.captions) == (f"{sha256_bytes(JPEG)}.jpg", ("eins 犬", "two"))
    assert (second.id, second.captions) == (f"{sha256_bytes(PNG)}.png", ("three",))
    assert (Path(first.uri).read_bytes(), Path(second.uri).read_bytes()) == (JPEG, PNG)
    corpus = Path(corpus_source(config))
    assert sorted(path.name for path in corpus.iterdir()) == sorted([first.id, second.id])


def test_a_file_is_unpacked_once_until_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path / "a.tfrecord", FIRST)
    config = _config(tmp_path, path)
    (image,) = load_captions(config).images
    assert "unpacking" in capsys.readouterr().err
    assert load_captions(config).images == [image]
    assert "unpacking" not in capsys.readouterr().err
    _write(path, FIRST, SECOND)
    assert len(load_captions(config).images) == 2
    assert len(list(Path(corpus_source(config)).iterdir())) == 2


def test_records_with_the_same_image_are_merged(tmp_path: Path) -> None:
    again = _example(image=[JPEG], caption=[b"two", b"four"], split=[b"train"])
    captions = load_captions(_config(tmp_path, _write(tmp_path / "a.tfrecord", FIRST, again)))
    assert [image.captions for image in captions.images] == [("eins 犬", "two", "four")]
    assert captions.repeated == 1


def test_faulty_records_are_located_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulty = [
        _example(image=[JPEG]),
        _example(caption=[b"x"]),
        b"no example",
        _example(image=[JPEG], caption=[b"caf\xe9"]),
        _example(image=[JPEG], caption=[b" "]),
    ]
    path = _write(tmp_path / "a.tfrecord", FIRST, *faulty)
    captions = load_captions(_config(tmp_path, path))
    assert captions.rejected == {"malformed": 3, "not_utf8": 1, "empty_caption": 1}
    assert f"{path}: record 1: " in capsys.readouterr().err


def test_damaged_files_are_rejected(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tfrecord", FIRST, SECOND)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[40] ^= 1
    zipped = gzip.compress(whole)
    for data in (whole[:-3], bytes(flipped), b"nonsense" * 9, zipped[: len(zipped) // 2], zipped[:20] + bytes(40)):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"a\.tfrecord are damaged"):
            load_captions(_config(tmp_path, path))
    with pytest.raises(UsageError, match=r"none\.tfrecord cannot be read"):
        load_captions(_config(tmp_path, tmp_path / "none.tfrecord"))


def test_a_record_cannot_exhaust_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    with path.open("wb") as file:
        write_tfrecords(file, [b""])
    header = (MAX_RECORD_BYTES + 1).to_bytes(8, "little")
    import google_crc32c

    crc = google_crc32c.value(header)
    path.write_bytes(header + (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little"))
    with pytest.raises(UsageError, match=f"above the limit of {MAX_RECORD_BYTES}"):
        load_captions(_config(tmp_path, path))


def test_tfrecords_cannot_be_mixed_with_other_formats(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tfrecord", FIRST)
    (tmp_path / "c.csv").write_text("image,caption\n")
    config = _config(tmp_path, path, tmp_path / "c.csv")
    with pytest.raises(UsageError, match="mix TFRecords"):
        load_captions(config.model_copy(update={"data": config.data.model_copy(update={"images": str(tmp_path)})}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.tfrecord", True),
        ("a.tfrecords", True),
        ("a.tfrec", True),
        ("a.tfrecord.gz", True),
        ("coco-train.tfrecord-00000-of-00256", True),
        ("coco-train.tfrecord-*", True),
        ("coco-train.tfrecord*", True),
        ("a.tfrecord.json", False),
        ("tfrecord.csv", False),
    ],
)
def test_tfrecords_are_recognised_by_name(name: str, expected: bool) -> None:
    assert is_tfrecord(name) is expected


def test_bytes_features_are_found_among_other_features() -> None:
    assert example_bytes(FIRST) == {"image": [JPEG], "caption": ["eins 犬".encode(), b"two"], "split": [b"train"]}
    assert example_bytes(b"") == {}


@pytest.mark.parametrize("cut", range(1, 60, 3))
def test_a_truncated_example_is_rejected(cut: int) -> None:
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        example_bytes(FIRST[:-cut])
