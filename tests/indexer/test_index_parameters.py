"""The resolved parameters of an index."""

from __future__ import annotations

import math

import numpy as np
import pytest

from indexer.parameters import MIN_SCORED, resolve
from searchforge.config import IndexConfig, load_config
from searchforge.errors import UsageError


def test_the_recipe_has_the_originals_parameters() -> None:
    config = load_config(None, {"index.preset": "recipe2022"}).index
    parameters = resolve(config, images=123_287, dim=128)
    assert (parameters.partitions, parameters.partitions_searched) == (351, 4)
    assert (parameters.dims_per_block, parameters.anisotropic_threshold) == (1, 0.2)
    assert parameters.lookup == "int8"
    assert (parameters.partition_iterations, parameters.codebook_iterations) == (12, 10)
    assert (parameters.training_sample, parameters.min_partition_size) == (100_000, 50)


def test_partitions_are_about_the_square_root_of_the_corpus() -> None:
    for images, partitions in ((1, 1), (2, 1), (15, 3), (1_000, 31), (1_000_000, 1_000)):
        assert resolve(IndexConfig(), images, 128).partitions == partitions


def test_small_corpora_are_searched_whole() -> None:
    for images in (1, 2, 10, 1_000, MIN_SCORED):
        parameters = resolve(IndexConfig(), images, 128)
        assert parameters.partitions_searched == parameters.partitions


def test_large_corpora_score_enough_images() -> None:
    parameters = resolve(IndexConfig(), 200_000, 128)
    assert parameters.partitions_searched < parameters.partitions
    assert parameters.partitions_searched / parameters.partitions * 200_000 >= MIN_SCORED


def test_the_fraction_makes_the_device_search_exactly_that_many_partitions() -> None:
    for partitions in (1, 2, 3, 31, 316, 351, 1_000, 3_162):
        for searched in {1, 2, 4, 7, 22, 250, partitions - 1, partitions} - {0}:
            if searched <= partitions:
                config = IndexConfig(partitions=partitions, partitions_searched=searched)
                fraction = np.float32(resolve(config, 10_000, 128).search_fraction)
                assert math.ceil(np.float32(partitions) * fraction) == searched


def test_fewer_images_than_partitions_names_both_numbers_and_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"partitions is 64, but the corpus has 10 images; .*for 3"):
        resolve(IndexConfig(partitions=64), 10, 128)


def test_more_partitions_searched_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match=r"partitions_searched is 9, but index.partitions is 8"):
        resolve(IndexConfig(partitions=8, partitions_searched=9), 100, 128)


def test_a_preset_that_searches_more_partitions_than_a_tiny_corpus_has_searches_all() -> None:
    assert resolve(IndexConfig(partitions_searched=4), 4, 128).partitions_searched == 2


def test_blocks_wider_than_the_embedding_are_refused() -> None:
    with pytest.raises(UsageError, match="embeddings have 16 dimensions"):
        resolve(IndexConfig(dims_per_block=17), 100, 16)
