"""Confidence intervals have their nominal coverage, although queries of one image are not independent."""

from __future__ import annotations

import numpy as np
import pytest

from searchforge.reporting.intervals import median_interval, share_interval


def test_an_interval_covers_the_true_share_in_95_of_100_samples() -> None:
    """Captions of one image are correlated: each image has its own probability of success."""
    random = np.random.default_rng(0)
    images, covered, samples = np.repeat(np.arange(200), 5), 0, 400
    for _ in range(samples):
        chances = np.repeat(random.beta(1.4, 0.6, 200), 5)  # mean 0.7
        low, high = share_interval(random.random(1000) < chances, images)
        covered += low <= 0.7 <= high
    assert 0.92 <= covered / samples <= 0.98


def test_copies_of_a_caption_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    hits, images = random.random(80) < 0.6, np.arange(80)
    assert share_interval(np.repeat(hits, 5), np.repeat(images, 5)) == pytest.approx(share_interval(hits, images))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_success_in_every_query_leaves_uncertainty(count: int) -> None:
    low, high = share_interval(np.ones(count, bool), np.arange(count))
    assert high == 1.0
    assert low == pytest.approx(count / (count + 1.959964**2))  # Wilson's interval if all succeed


def test_the_interval_contains_the_median() -> None:
    ranks = np.random.default_rng(0).geometric(0.1, 500)
    low, high = median_interval(ranks, np.arange(500))
    assert 1 <= low <= np.median(ranks) <= high <= 12
    assert low < high
    assert median_interval(np.array([4]), np.array([0])) == (4, 4)


def test_several_answers_per_query_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    images = np.arange(200)
    shares = random.binomial(10, 0.9, 200) / 10
    narrow, wide = share_interval(shares, images, 10), share_interval(random.random(200) < 0.9, images)
    assert narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])
    assert narrow[0] < shares.mean() < narrow[1]
