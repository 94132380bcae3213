"""Comparison of motion scores against closed forms and SciPy."""

import numpy as np
import pytest
from scipy import stats

from videogen_jax.evaluation import motion


def test_comparison_in_closed_form():
    """1, 2, 3, 4 against 0, 6: means 2.5 and 3, variances 5/3 and 18."""
    found = motion.compare_motion([3.0, 1.0, 4.0, 2.0], np.float32([6, 0]))
    assert (found.generated.count, found.reference.count) == (4, 2)
    assert (found.generated.mean, found.reference.mean) == (2.5, 3)
    assert found.generated.deviation == pytest.approx(np.sqrt(5 / 3), rel=1e-12)
    assert found.reference.deviation == pytest.approx(np.sqrt(18), rel=1e-12)
    assert found.difference == -0.5
    assert found.standard_error == pytest.approx(np.sqrt(5 / 12 + 9), rel=1e-12)
    # The distribution functions differ by 1/2, 1/4, 0, 1/4, 1/2 over 0-1, 1-2, 2-3, 3-4, 4-6.
    assert found.wasserstein == pytest.approx(0.5 + 0.25 + 0 + 0.25 + 1, rel=1e-12)
    assert found.generated.quantiles == {
        "0.05": pytest.approx(1.15),
        "0.25": pytest.approx(1.75),
        "0.5": pytest.approx(2.5),
        "0.75": pytest.approx(3.25),
        "0.95": pytest.approx(3.85),
    }


def test_wasserstein_distance_of_a_shifted_set_is_the_shift():
    scores = np.random.default_rng(0).gamma(2.0, size=101)
    assert motion.wasserstein(scores, scores) == 0
    assert motion.wasserstein(scores + 0.3, scores) == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (50, 7), (300, 301)])
def test_wasserstein_distance_equals_scipy(n, m):
    """Some scores are equal, like those of still videos."""
    rng = np.random.default_rng(n)
    one, other = rng.gamma(2.0, size=n), rng.gamma(3.0, 0.5, size=m)
    one[: n // 2] = other[: m // 2 + 1][0]
    expected = stats.wasserstein_distance(one, other)
    assert expected > 0.05
    assert motion.wasserstein(one, other) == pytest.approx(expected, rel=1e-12)
    assert motion.wasserstein(other, one) == pytest.approx(expected, rel=1e-12)


def test_the_standard_error_is_the_deviation_of_the_difference():
    """Over 4,000 pairs of sets, within 4 % (three standard deviations of that estimate are 3.4 %)."""
    rng = np.random.default_rng(0)
    found = [motion.compare_motion(rng.normal(1, 1, 20), rng.normal(0, 3, 40)) for _ in range(4000)]
    spread = np.std([each.difference for each in found])
    assert spread == pytest.approx(np.sqrt(1 / 20 + 9 / 40), rel=0.04)
    assert np.mean([each.standard_error**2 for each in found]) == pytest.approx(spread**2, rel=0.08)


def test_sets_of_fewer_than_two_videos_are_an_error():
    with pytest.raises(ValueError, match="The reference set has 1 videos: .* needs 2 or more"):
        motion.compare_motion([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="The generated set has 0 videos"):
        motion.compare_motion([], [1.0, 2.0])


def test_ratio_of_means_and_its_error():
    """Against the spread of ratios of drawn means, and by hand."""
    ours = motion.describe_motion(np.array([1.0, 2, 3]))
    theirs = motion.describe_motion(np.array([2.0, 4, 6, 8]))
    found = motion.find_ratio(ours, theirs)
    variance = 1 / 3 / 25 + 0.4**2 * (20 / 3) / 4 / 25
    assert found == (pytest.approx(0.4), pytest.approx(np.sqrt(variance), rel=1e-12))
    assert motion.find_ratio(ours, motion.describe_motion(np.zeros(2))) is None
    rng = np.random.default_rng(0)
    draws = [
        motion.find_ratio(*(motion.describe_motion(rng.gamma(4, scale, 50)) for scale in (1, 2)))
        for _ in range(400)
    ]
    spread = np.std([draw.value for draw in draws])
    assert np.mean([draw.standard_error for draw in draws]) == pytest.approx(spread, rel=0.1)
