"""Fréchet distances against closed forms for Gaussians with known covariances."""

import numpy as np
import pytest

from videogen_jax.evaluation import frechet


def draw(seed, count, width=6, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) * scale + shift


def whiten(features, ddof):
    """The features with exactly zero mean and identity covariance."""
    centred = features - features.mean(axis=0)
    covariance = centred.T @ centred / (len(features) - ddof)
    return centred @ np.linalg.inv(np.linalg.cholesky(covariance)).T


@pytest.mark.parametrize("ddof", [0, 1])
def test_gaussians_with_commuting_covariances(ddof):
    """For diagonal covariances, d = |gap|^2 + sum (s_a - s_b)^2."""
    deviations_a, deviations_b = np.arange(1.0, 7), np.array([2.0, 2, 2, 5, 5, 0.5])
    a = whiten(draw(0, 50), ddof) * deviations_a + 3
    b = whiten(draw(1, 40), ddof) * deviations_b
    expected = 6 * 9 + np.square(deviations_a - deviations_b).sum()
    assert frechet.distance(a, b, ddof) == pytest.approx(expected, rel=1e-10)


def test_gaussians_with_non_commuting_covariances():
    """For 2x2 matrices, tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), here with M = C_a C_b."""
    mix_a, mix_b = np.array([[2.0, 0.5], [0.0, 1.0]]), np.array([[1.0, 0.0], [-0.7, 0.3]])
    a, b = whiten(draw(0, 30, 2), 1) @ mix_a.T, whiten(draw(1, 30, 2), 1) @ mix_b.T
    covariance_a, covariance_b = mix_a @ mix_a.T, mix_b @ mix_b.T
    product = covariance_a @ covariance_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(covariance_a + covariance_b) - 2 * root
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [5, 64])
def test_a_set_has_distance_zero_to_itself(count):
    a = draw(0, count, width=32, scale=10)
    assert frechet.distance(a, a[::-1]) < 1e-6


@pytest.mark.parametrize(("count", "ddof"), [(40, 0), (40, 1), (300, 1)])
def test_distances_from_singular_values_and_from_moments_agree(count, ddof):
    """With fewer clips than features `distance` uses singular values, otherwise moments."""
    a, b = draw(0, count, 64), draw(1, count + 7, 64, scale=2, shift=0.3)
    moments = frechet.distance_of_moments(
        frechet.compute_moments(a), frechet.compute_moments(b), ddof
    )
    small = [np.concatenate([x, np.zeros((len(x), 1000))], axis=1) for x in (a, b)]
    exact = frechet.distance(*small, ddof)  # constant features change only the method chosen
    assert exact == pytest.approx(moments, rel=1e-6)
    assert frechet.distance(a, b, ddof) == pytest.approx(exact, rel=1e-6)


def test_moments_of_batches_equal_those_of_the_whole_set():
    features = draw(0, 101, 5, scale=1e-3, shift=1e4)  # a mean far above the standard deviation
    streamed = frechet.compute_moments_of_batches(np.split(features, [1, 2, 40, 99]))
    assert streamed.count == 101
    np.testing.assert_allclose(streamed.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance(), np.cov(features.T), rtol=1e-6)
    np.testing.assert_allclose(streamed.covariance(0), np.cov(features.T, ddof=0), rtol=1e-6)


def test_the_interval_has_its_nominal_coverage():
    """For one feature, d = (gap of means)^2 + (gap of deviations)^2: here about 25, and linear around it."""
    hits = 0
    for trial in range(60):
        a, b = draw(trial, 80, 1, shift=5), draw(1000 + trial, 80, 1)
        low, high = frechet.bootstrap_interval(a, b, resamples=60, seed=trial)
        hits += low <= 25 <= high
    assert 52 <= hits <= 60  # 57 expected; the probability of fewer than 52 is 1 %


def test_the_interval_is_deterministic_and_contains_the_distance():
    a, b = draw(0, 20, 40), draw(1, 20, 40, shift=1)
    low, high = frechet.bootstrap_interval(a, b)
    assert (low, high) == frechet.bootstrap_interval(a, b)
    assert low < frechet.distance(a, b) < high


def test_too_few_clips_and_non_finite_features_are_errors():
    with pytest.raises(ValueError, match="at least 2 clips in each set, not 1"):
        frechet.distance(draw(0, 1), draw(1, 5))
    bad = draw(0, 5)
    bad[2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        frechet.distance(draw(1, 5), bad)
