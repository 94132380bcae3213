"""Against closed forms: the distance of two Gaussians whose covariances are known."""

import numpy as np
import pytest

from videogen_jax.evaluation import frechet


def draw(seed, count, width=6, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) * scale + shift


def whiten(features, ddof):
    """The same with mean 0 and covariance 1, exactly."""
    centred = features - features.mean(axis=0)
    covariance = centred.T @ centred / (len(features) - ddof)
    return centred @ np.linalg.inv(np.linalg.cholesky(covariance)).T


@pytest.mark.parametrize("ddof", [0, 1])
def test_two_gaussians_that_commute(ddof):
    """Of diagonal covariances, d = |gap|^2 + sum (s_a - s_b)^2."""
    deviations_a, deviations_b = np.arange(1.0, 7), np.array([2.0, 2, 2, 5, 5, 0.5])
    a = whiten(draw(0, 50), ddof) * deviations_a + 3
    b = whiten(draw(1, 40), ddof) * deviations_b
    expected = 6 * 9 + np.square(deviations_a - deviations_b).sum()
    assert frechet.distance(a, b, ddof) == pytest.approx(expected, rel=1e-10)


def test_two_gaussians_that_do_not_commute():
    """Of 2x2 matrices, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), here with M = C_a C_b."""
    mix_a, mix_b = np.array([[2.0, 0.5], [0.0, 1.0]]), np.array([[1.0, 0.0], [-0.7, 0.3]])
    a, b = whiten(draw(0, 30, 2), 1) @ mix_a.T, whiten(draw(1, 30, 2), 1) @ mix_b.T
    covariance_a, covariance_b = mix_a @ mix_a.T, mix_b @ mix_b.T
    product = covariance_a @ covariance_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(covariance_a + covariance_b) - 2 * root
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [5, 64])
def test_a_set_is_at_no_distance_from_itself(count):
    a = draw(0, count, width=32, scale=10)
    assert frechet.distance(a, a[::-1]) < 1e-6


@pytest.mark.parametrize(("count", "ddof"), [(40, 0), (40, 1), (300, 1)])
def test_the_exact_way_and_the_moments_agree(count, ddof):
    """Of fewer clips than features `distance` takes the one, of more the other."""
    a, b = draw(0, count, 64), draw(1, count + 7, 64, scale=2, shift=0.3)
    moments = frechet.distance_of_moments(frechet.measure(a), frechet.measure(b), ddof)
    small = [np.concatenate([x, np.zeros((len(x), 1000))], axis=1) for x in (a, b)]
    exact = frechet.distance(*small, ddof)  # zeros as features change nothing but the way taken
    assert exact == pytest.approx(moments, rel=1e-6)
    assert frechet.distance(a, b, ddof) == pytest.approx(exact, rel=1e-6)


def test_streaming_equals_the_whole():
    features = draw(0, 101, 5, scale=1e-3, shift=1e4)  # a mean that would drown the spread
    streamed = frechet.measure_stream(np.split(features, [1, 2, 40, 99]))
    assert streamed.count == 101
    np.testing.assert_allclose(streamed.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance(), np.cov(features.T), rtol=1e-6)
    np.testing.assert_allclose(streamed.covariance(0), np.cov(features.T, ddof=0), rtol=1e-6)


def test_the_interval_covers_as_often_as_it_says():
    """Of one feature, d = (gap of means)^2 + (gap of deviations)^2: here about 25, and linear around it."""
    hits = 0
    for trial in range(60):
        a, b = draw(trial, 80, 1, shift=5), draw(1000 + trial, 80, 1)
        low, high = frechet.bootstrap_interval(a, b, resamples=60, seed=trial)
        hits += low <= 25 <= high
    assert 52 <= hits <= 60  # 57 expected; the chance of fewer than 52 is 1 %


def test_the_interval_is_the_same_each_time_and_holds_the_value():
    a, b = draw(0, 20, 40), draw(1, 20, 40, shift=1)
    low, high = frechet.bootstrap_interval(a, b)
    assert (low, high) == frechet.bootstrap_interval(a, b)
    assert low < frechet.distance(a, b) < high


def test_what_has_no_covariance_is_refused():
    with pytest.raises(ValueError, match="at least 2 clips in each set, not 1"):
        frechet.distance(draw(0, 1), draw(1, 5))
    bad = draw(0, 5)
    bad[2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        frechet.distance(draw(1, 5), bad)
