"""KVD's estimate against its definition pair by pair, its expectation, and its interval."""

import numpy as np
import pytest

from videogen_jax.evaluation import kernel_distance


def features(count, size=6, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, size)) + shift


def naive(a, b):
    """The definition, one pair at a time in float64."""

    def kernel(x, y):
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(c):
        pairs = [kernel(x, y) for i, x in enumerate(c) for j, y in enumerate(c) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(between) / len(between)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 7), (5, 9)])
def test_equal_to_the_definition(n, m):
    a, b = features(n), features(m, seed=1, shift=0.5)
    assert kernel_distance.distance(a, b) == pytest.approx(naive(a, b), rel=1e-12)


def test_float32_features_are_computed_in_float64():
    a, b = np.float32(features(8)) * 100, np.float32(features(8, seed=1)) * 100
    assert kernel_distance.distance(a, b) == pytest.approx(naive(a, b), rel=1e-12)


def test_expectation_is_zero_for_equal_distributions_whatever_the_number_of_clips():
    for count in (4, 16):
        values = [
            kernel_distance.distance(features(count, seed=s), features(count, seed=10_000 + s))
            for s in range(600)
        ]
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert abs(np.mean(values)) < 4 * error
        assert min(values) < 0  # unbiased: no value is cut off


def test_closed_form_of_constant_sets():
    """k(x, x) + k(y, y) - 2 k(x, y) for two points: x = 0, y = (2, 2): 1 + 125 - 2."""
    a, b = np.zeros((3, 2)), np.full((4, 2), 2.0)
    assert kernel_distance.distance(a, b) == pytest.approx(124, rel=1e-12)
    low, high = kernel_distance.bootstrap_interval(a, b, resamples=20)
    assert low == pytest.approx(124) and high == pytest.approx(124)


def test_order_of_clips_and_sets_does_not_matter():
    a, b = features(9), features(11, seed=1, shift=0.3)
    value = kernel_distance.distance(a, b)
    assert kernel_distance.distance(a[::-1], b[::-1]) == pytest.approx(value, rel=1e-12)
    assert kernel_distance.distance(b, a) == pytest.approx(value, rel=1e-12)


def test_interval_has_the_width_of_the_spread_of_the_distance():
    """Sets of different distributions, where the bootstrap is consistent."""
    pairs = [(features(64, seed=s), features(64, seed=1000 + s, shift=1.0)) for s in range(100)]
    values = [kernel_distance.distance(a, b) for a, b in pairs]
    bounds = [kernel_distance.bootstrap_interval(a, b, resamples=100) for a, b in pairs[:20]]
    widths = [high - low for low, high in bounds]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.3)
    for value, (low, high) in zip(values, bounds, strict=False):
        assert (low + high) / 2 == pytest.approx(value, rel=1e-9)
    assert kernel_distance.bootstrap_interval(*pairs[0], resamples=100) == bounds[0]


def test_resamples_do_not_count_pairs_of_a_clip_with_itself():
    """Otherwise far apart clips, each near to itself only, would raise the distance of resampled sets."""
    a = np.eye(40) * 1e3
    low, high = kernel_distance.bootstrap_interval(a[:20], a[20:], resamples=50)
    assert low == high == pytest.approx(0, abs=1e-9)


def test_too_few_clips_and_damaged_features_are_errors():
    with pytest.raises(ValueError, match="A kernel distance needs at least 2 clips .* not 1"):
        kernel_distance.distance(features(1), features(3))
    broken = features(3)
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance.distance(features(3), broken)
