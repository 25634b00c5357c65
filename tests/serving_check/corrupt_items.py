"""Corruptions of the content of an index: items, ids, metadata, and the provenance in USER_INFO."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from searchforge.artifacts.manifest import Manifest, read_shards
from tests.indexer.tiny_corpus import commit_embeddings
from tests.serving_check.searcher_parts import Entries, Index
from tests.serving_check.specimen import COUNT, Specimen, caught_by


def _pair(specimen: Specimen) -> tuple[int, int]:
    i, j = specimen.random.choice(COUNT, 2, replace=False)
    return int(i), int(j)


@caught_by("items", runs=True)
def half_of_the_corpus_is_missing(specimen: Specimen) -> None:
    """The index of the other half is valid, and states its size."""

    def halve(index: Index) -> None:
        index.select(np.flatnonzero(specimen.random.random(COUNT) < 0.5).tolist())
        index.change_user_info(images=len(index.metadata))

    specimen.change_index(halve)


@caught_by("items")
def one_item_is_missing(specimen: Specimen) -> None:
    lost = int(specimen.random.integers(COUNT))
    specimen.change_index(lambda index: index.select([item for item in range(COUNT) if item != lost]))


@caught_by("items")
def the_last_item_is_missing(specimen: Specimen) -> None:
    specimen.change_index(lambda index: index.select(range(COUNT - 1)))


@caught_by("items")
def an_item_occurs_twice(specimen: Specimen) -> None:
    twice = int(specimen.random.integers(COUNT))
    specimen.change_index(lambda index: index.select(sorted([*range(COUNT), twice])))


@caught_by("items")
def an_id_occurs_twice_and_another_is_missing(specimen: Specimen) -> None:
    i, j = _pair(specimen)

    def copy(index: Index) -> None:
        index.metadata[i] = index.metadata[j]

    specimen.change_index(copy)


@caught_by("items", runs=True)
def an_item_is_not_in_the_manifest(specimen: Specimen) -> None:
    def rename(index: Index) -> None:
        index.change_item(int(specimen.random.integers(COUNT)), lambda metadata: {**metadata, "id": "withdrawn.png"})

    specimen.change_index(rename)


@caught_by("items")
def all_ids_are_paths(specimen: Specimen) -> None:
    def rename(index: Index) -> None:
        for item in range(COUNT):
            index.change_item(item, lambda metadata: {**metadata, "id": f"/photos/{metadata['id']}"})

    specimen.change_index(rename)


@caught_by("items")
def the_index_is_of_another_corpus_of_the_same_size(specimen: Specimen) -> None:
    index = specimen.index(specimen.other)
    index.user_info = specimen.index().user_info
    specimen.replace_index(index)


@caught_by("codes")
def the_index_is_of_other_images_under_the_same_names(specimen: Specimen) -> None:
    """Every photo has been replaced since the index was built."""
    index = specimen.index(specimen.other)
    index.user_info = specimen.index().user_info
    for item in range(COUNT):
        index.change_item(item, lambda metadata: {**metadata, "id": metadata["id"].removeprefix("other-")})
    specimen.replace_index(index)


@caught_by("item_metadata")
def the_metadata_of_two_items_is_swapped(specimen: Specimen) -> None:
    """Their ids are unchanged."""
    i, j = _pair(specimen)

    def swap(index: Index) -> None:
        first, second = (json.loads(index.metadata[item]) for item in (i, j))
        index.change_item(i, lambda metadata: {**second, "id": first["id"]})
        index.change_item(j, lambda metadata: {**first, "id": second["id"]})

    specimen.change_index(swap)


@caught_by("item_metadata")
def all_metadata_is_outdated(specimen: Specimen) -> None:
    def outdate(index: Index) -> None:
        for item in range(COUNT):
            index.change_item(item, lambda metadata: {**metadata, "number": metadata["number"] - 1})

    specimen.change_index(outdate)


@caught_by("item_metadata")
def an_item_has_lost_its_metadata(specimen: Specimen) -> None:
    def forget(index: Index) -> None:
        index.change_item(int(specimen.random.integers(COUNT)), lambda metadata: {"id": metadata["id"]})

    specimen.change_index(forget)


@caught_by("item_metadata")
def an_item_has_more_metadata_than_its_record(specimen: Specimen) -> None:
    """A path of the machine that built the index must not reach devices."""

    def add(index: Index) -> None:
        item = int(specimen.random.integers(COUNT))
        index.change_item(item, lambda metadata: {**metadata, "uri": "/home/someone/photo.png"})

    specimen.change_index(add)


def _metadata(value: bytes) -> Callable[[Specimen], None]:
    """Returns a corruption that replaces the metadata of one item."""

    def apply(specimen: Specimen) -> None:
        def replace(entries: Entries) -> None:
            entries[b"M_%d" % specimen.random.integers(COUNT)] = value

        specimen.change_entries(replace)

    return apply


@caught_by("item_metadata")
def the_metadata_of_an_item_is_not_json(specimen: Specimen) -> None:
    _metadata(b'{"id": "00003.png", "number"')(specimen)


@caught_by("item_metadata")
def the_metadata_of_an_item_is_empty(specimen: Specimen) -> None:
    _metadata(b"")(specimen)


@caught_by("item_metadata", runs=True)
def the_metadata_of_an_item_is_a_list(specimen: Specimen) -> None:
    _metadata(b'["00003.png"]')(specimen)


@caught_by("item_metadata")
def the_metadata_of_an_item_is_not_text(specimen: Specimen) -> None:
    _metadata(b"\xff\xfe\x00\x01")(specimen)


@caught_by("item_metadata", runs=True)
def the_metadata_of_an_item_is_nested_too_deeply(specimen: Specimen) -> None:
    _metadata(b"[" * 200_000)(specimen)


@caught_by("codes")
def the_ids_of_two_items_are_swapped(specimen: Specimen) -> None:
    i, j = _pair(specimen)

    def swap(index: Index) -> None:
        index.metadata[i], index.metadata[j] = index.metadata[j], index.metadata[i]

    specimen.change_index(swap)


@caught_by("codes")
def all_ids_are_shifted_by_one(specimen: Specimen) -> None:
    def rotate(index: Index) -> None:
        index.metadata = index.metadata[1:] + index.metadata[:1]

    specimen.change_index(rotate)


@caught_by("images_find_themselves")
def all_ids_are_shuffled(specimen: Specimen) -> None:
    def shuffle(index: Index) -> None:
        index.metadata = [index.metadata[item] for item in specimen.random.permutation(COUNT)]

    specimen.change_index(shuffle)


@caught_by("embeddings")
def the_embeddings_are_those_of_other_images(specimen: Specimen) -> None:
    """The embedding job mixed up its results: embeddings and index agree, but both are wrong."""
    workspace = specimen.workspace
    manifest = Manifest.model_validate(workspace.marker("embeddings", "corpus"))
    records = sorted(read_shards(workspace, manifest), key=lambda record: record.id)
    vectors = [record.embedding for record in records[7:] + records[:7]]
    mixed = [dataclasses.replace(record, embedding=v) for record, v in zip(records, vectors, strict=True)]
    shutil.rmtree(workspace.local("embeddings", "corpus"))
    commit_embeddings(workspace, mixed)
    holder_of = {records[(number + 7) % COUNT].id: record for number, record in enumerate(records)}

    def rename(index: Index) -> None:
        for item in range(COUNT):
            holder = holder_of[json.loads(index.metadata[item])["id"]]
            index.change_item(item, lambda _, record=holder: {**record.metadata, "id": record.id})  # type: ignore[misc]

    specimen.change_index(rename)


def _user_info(**values: Any) -> Callable[[Specimen], None]:
    return lambda specimen: specimen.change_index(lambda index: index.change_user_info(**values))


@caught_by("fingerprint")
def the_index_states_another_encoder(specimen: Specimen) -> None:
    _user_info(fingerprint="e" * 64)(specimen)


@caught_by("fingerprint")
def the_index_states_another_searcher(specimen: Specimen) -> None:
    _user_info(searcher="0123456789abcdef")(specimen)


@caught_by("fingerprint")
def the_index_states_other_embeddings(specimen: Specimen) -> None:
    _user_info(embeddings="yesterday")(specimen)


@caught_by("fingerprint")
def the_index_states_one_image_more(specimen: Specimen) -> None:
    _user_info(images=COUNT + 1)(specimen)


@caught_by("fingerprint")
def the_index_states_another_preprocessing(specimen: Specimen) -> None:
    """An app would use it for query images."""
    _user_info(preprocessing="decode|resize(8,8,bilinear)|scale(0,1)")(specimen)


@caught_by("fingerprint")
def the_index_has_no_user_info(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.pop(b"USER_INFO"))


@caught_by("fingerprint")
def the_user_info_is_not_json(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.update({b"USER_INFO": b"built by hand\xff"}))


@caught_by("fingerprint", runs=True)
def the_user_info_is_nested_too_deeply(specimen: Specimen) -> None:
    specimen.change_entries(lambda entries: entries.update({b"USER_INFO": b"[" * 200_000}))


@caught_by("fingerprint")
def the_embeddings_are_of_a_retrained_encoder(specimen: Specimen) -> None:
    specimen.change_marker("embeddings", "corpus", lambda manifest: manifest.update({"fingerprint": "e" * 64}))


@caught_by("fingerprint")
def the_bundle_is_of_a_retrained_encoder(specimen: Specimen) -> None:
    specimen.change_marker("encoders", "tiny", lambda bundle: bundle.update({"fingerprint": "e" * 64}))


@caught_by("fingerprint")
def the_build_is_of_a_retrained_encoder(specimen: Specimen) -> None:
    specimen.change_marker("searchers", specimen.searcher, lambda build: build.update({"fingerprint": "e" * 64}))
