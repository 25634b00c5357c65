"""Images in archives are embedded, re-read by the check and embedded incrementally, just as plain files are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from beam_jobs.embed import compact
from beam_jobs.embed_images import embed_images
from searchforge.artifacts.records import write_tfrecords
from searchforge.artifacts.workspace import Workspace
from serving_check.measurement.corpus import load_corpus
from serving_check.measurement.queries import image_queries
from tests.beam_jobs.photos import embed_config, png, records
from tests.tiny_bundle import write_bundle


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Returns a folder with a tar and a TFRecord file of five images each, and one more image."""
    import tensorflow as tf

    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for index in range(5):
            for name, data in ((f"{index}.png", png(index)), (f"{index}.json", b'{"album": %d}' % index)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with (folder / "b.tfrecord").open("wb") as file:
        for index in range(5, 10):
            values = {"image/encoded": png(index), "image/filename": f"{index}.png".encode()}
            features = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for key, v in values.items()}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            write_tfrecords(file, [example.SerializeToString()])
    (folder / "10.png").write_bytes(png(10))
    return folder


def test_members_are_embedded_and_can_be_reread(shards: Path, tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "workspace"))
    write_bundle(workspace)
    config = embed_config(workspace, shards)
    manifest = embed_images(config, "tiny")
    found = records(workspace, manifest)
    assert found.keys() == {
        *(f"a.tar/{index}.png" for index in range(5)),
        *(f"b.tfrecord/{index}.png" for index in range(5, 10)),
        "10.png",
    }
    assert found["a.tar/3.png"].metadata == {"album": 3}
    corpus = load_corpus(workspace, manifest)
    images, _ = image_queries(corpus, 100, 0, tmp_path)
    read = {corpus.ids[row]: Path(path).read_bytes() for path, row in zip(images.values, images.targets, strict=True)}
    assert read == {id: png(int(Path(id).stem)) for id in found}


def test_only_the_new_member_of_an_extended_archive_is_embedded(shards: Path, tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "workspace"))
    write_bundle(workspace)
    config = embed_config(workspace, shards)
    embed_images(config, "tiny")
    with tarfile.open(shards / "a.tar", "a") as tar:
        info = tarfile.TarInfo("99.png")
        info.size = len(png(99))
        tar.addfile(info, io.BytesIO(png(99)))
    manifest = embed_images(config, "tiny")
    assert (manifest.inputs, manifest.embedded, manifest.reused) == (12, 1, 11)
    compacted = compact(config, manifest.id)
    assert {id: record.to_bytes() for id, record in records(workspace, compacted).items()} == {
        id: record.to_bytes() for id, record in records(workspace, manifest).items()
    }
