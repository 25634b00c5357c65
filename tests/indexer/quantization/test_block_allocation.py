"""Dimensions are divided into the blocks with the least expected error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from indexer.quantization.block_allocation import block_widths

SPECTRA = {
    "geometric": 0.9 ** np.arange(64.0),
    "power law": np.arange(1, 65) ** -1.5,
    "linear": np.linspace(1, 0.01, 64),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("blocks", [1, 7, 16, 33, 64])
def test_every_dimension_is_in_exactly_one_block(name: str, blocks: int) -> None:
    widths = block_widths(SPECTRA[name], blocks)
    assert len(widths) == blocks
    assert min(widths) >= 1
    assert sum(widths) == 64


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("blocks", [4, 12, 20, 40])
def test_blocks_grow_wider_as_variances_fall(name: str, blocks: int) -> None:
    widths = block_widths(SPECTRA[name], blocks)
    assert widths == sorted(widths)


def test_a_steep_spectrum_gives_its_large_dimensions_blocks_of_their_own() -> None:
    widths = block_widths(0.5 ** np.arange(32.0), 8)
    assert widths[0] < 32 / 8 < widths[-1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_no_cut_has_a_smaller_expected_error(seed: int, blocks: int) -> None:
    """The spectra span few and many orders of magnitude, so that some blocks leave dimensions without bits."""
    spread = (0.5, 1, 2, 5, 30)[seed]
    variances = np.sort(np.exp(spread * np.random.default_rng(seed).normal(size=9)))[::-1]
    errors = {widths: water_filling(variances, widths) for widths in all_cuts(9, blocks)}
    chosen = errors[tuple(block_widths(variances, blocks))]
    assert chosen == pytest.approx(min(errors.values()), rel=1e-6)


def test_with_as_many_blocks_as_dimensions_each_has_its_own() -> None:
    assert block_widths(SPECTRA["geometric"], 64) == [1] * 64


@pytest.mark.parametrize(("dim", "blocks"), [(64, 16), (64, 7), (13, 5)])
def test_equal_variances_are_cut_evenly(dim: int, blocks: int) -> None:
    widths = block_widths(np.full(dim, 0.3), blocks)
    assert max(widths) - min(widths) <= 1


@pytest.mark.parametrize("blocks", [0, 65])
def test_more_blocks_than_dimensions_and_zero_blocks_are_rejected(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"{blocks} blocks of 64 dimensions, expected 1 to 64"):
        block_widths(SPECTRA["linear"], blocks)


@pytest.mark.parametrize("zeros", [1, 30, 63, 64])
def test_dimensions_without_variance_are_in_a_block(zeros: int) -> None:
    widths = block_widths(np.repeat([1.0, 0.0], [64 - zeros, zeros]), 16)
    assert (len(widths), sum(widths)) == (16, 64)


def test_dimensions_without_variance_take_no_block_from_the_others() -> None:
    assert block_widths(np.repeat([1.0, 0.0], [4, 60]), 4)[:3] == [1, 1, 1]


def all_cuts(dim: int, blocks: int) -> list[tuple[int, ...]]:
    """Returns the block widths of every division of dimensions into blocks."""
    inner = itertools.combinations(range(1, dim), blocks - 1)
    return [tuple(np.diff([0, *ends, dim]).tolist()) for ends in inner]


def water_filling(variances: np.ndarray, widths: tuple[int, ...]) -> float:
    """Returns the sum of min(variance, level) over all dimensions, where a block's level gives it a rate of 8 bits."""
    total = 0.0
    for block in np.split(variances, np.cumsum(widths)[:-1]):
        low, high = 0.0, float(block.max())
        for _ in range(100):
            level = (low + high) / 2
            rate = np.log2(np.maximum(block / max(level, 1e-300), 1)).sum() / 2
            low, high = (level, high) if rate > 8 else (low, level)
        total += float(np.minimum(block, high).sum())
    return total
