"""Index parameters are interpreted as on the device, and contradictory settings are rejected."""

from __future__ import annotations

import math

import numpy as np
import pytest

from indexer.tuning.parameters import IndexParameters, default_partitions, require_valid_settings
from searchforge.config import IndexConfig
from searchforge.errors import UsageError


def test_the_default_number_of_partitions_is_about_the_square_root_of_the_items() -> None:
    for items, partitions in ((1, 1), (2, 1), (15, 3), (1_000, 31), (123_287, 351), (1_000_000, 1_000)):
        assert default_partitions(items) == partitions


def test_the_fraction_makes_the_device_search_exactly_that_many_partitions() -> None:
    for partitions in (1, 2, 3, 31, 316, 351, 1_000, 3_162):
        for searched in {1, 2, 4, 7, 22, 250, partitions - 1, partitions} - {0}:
            if searched <= partitions:
                fraction = np.float32(IndexParameters(64, partitions, searched, "float").search_fraction)
                assert math.ceil(np.float32(partitions) * fraction) == searched


def test_an_error_about_too_many_partitions_names_both_numbers_and_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"partitions is 64, but the corpus has 10 items; .*at most 10"):
        require_valid_settings(IndexConfig(partitions=64), 10, 128)


def test_more_code_bytes_than_dimensions_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"code_bytes is 17, but embeddings have 16 dimensions"):
        require_valid_settings(IndexConfig(code_bytes=17), 100, 16)
