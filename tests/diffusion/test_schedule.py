"""Schedules against explicit float64 products and closed forms."""

import math

import numpy as np
import pytest

from videogen_jax.diffusion.schedule import SCHEDULES, make_schedule


def explicit_alpha(betas):
    """sqrt of the running product of 1 - beta, one Python float at a time."""
    product, alphas = 1.0, []
    for beta in betas:
        product *= 1.0 - beta
        alphas.append(math.sqrt(product))
    return np.array(alphas)


def test_linear_is_the_product_of_ddpms_betas():
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    np.testing.assert_allclose(make_schedule("linear").alpha, explicit_alpha(betas), rtol=2e-7)


def test_scaled_linear_is_linear_in_the_root_of_beta():
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    betas = [(low + (high - low) * i / 999) ** 2 for i in range(1000)]
    alpha = make_schedule("scaled_linear").alpha
    np.testing.assert_allclose(alpha, explicit_alpha(betas), rtol=2e-7)


def test_cosine_telescopes_to_its_closed_form_up_to_the_clipped_last_beta():
    schedule = make_schedule("cosine")
    time = np.arange(1, 1000) / 1000
    start = math.cos(0.008 / 1.008 * math.pi / 2)
    expected = np.cos((time + 0.008) / 1.008 * np.pi / 2) / start
    np.testing.assert_allclose(schedule.alpha[:-1], expected, rtol=2e-6)
    np.testing.assert_allclose(schedule.alpha[-1], expected[-1] * math.sqrt(0.001), rtol=2e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_variance_is_preserved_and_noise_only_grows(name, zero_terminal_snr, shift):
    schedule = make_schedule(name, 250, zero_terminal_snr, shift)
    alpha, sigma = np.float64(schedule.alpha), np.float64(schedule.sigma)
    assert schedule.num_steps == 250 == len(sigma)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=2e-7)
    assert np.all(np.diff(alpha / sigma) < 0)
    assert np.all(np.diff(alpha) < 0)


def test_sigma_keeps_its_digits_where_the_video_is_nearly_clean():
    """In float32, 1 - alpha^2 at the first step would be off by a part in a thousand."""
    np.testing.assert_allclose(make_schedule("linear").sigma[0], 0.01, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_zero_terminal_snr_ends_in_pure_noise_and_leaves_the_first_step(name, shift):
    plain = make_schedule(name, shift=shift)
    rescaled = make_schedule(name, zero_terminal_snr=True, shift=shift)
    assert rescaled.alpha[-1] == 0
    assert rescaled.sigma[-1] == 1
    np.testing.assert_allclose(rescaled.alpha[0], plain.alpha[0], rtol=2e-7)
    np.testing.assert_allclose(rescaled.sigma[0], plain.sigma[0], rtol=1e-5)


def test_zero_terminal_snr_moves_alpha_along_a_line():
    """Algorithm 1 of arXiv:2305.08891 is one affine map of alpha."""
    plain = np.float64(make_schedule("linear").alpha)
    rescaled = np.float64(make_schedule("linear", zero_terminal_snr=True).alpha)
    slope = np.diff(rescaled) / np.diff(plain)
    np.testing.assert_allclose(slope, plain[0] / (plain[0] - plain[-1]), rtol=1e-2)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("shift", [0.5, 4.0, 8.0])
def test_shift_lowers_the_log_snr_by_twice_its_logarithm(name, shift):
    def log_snr(schedule):
        return 2 * np.log(np.float64(schedule.alpha) / np.float64(schedule.sigma))

    moved = log_snr(make_schedule(name, 100, shift=shift)) - log_snr(make_schedule(name, 100))
    np.testing.assert_allclose(moved, -2 * math.log(shift), atol=1e-5)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'sigmoid'.* one of linear, scaled_linear, cosine"):
        make_schedule("sigmoid")


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_a_shift_that_is_not_positive_is_refused(shift):
    with pytest.raises(ValueError, match="above 0"):
        make_schedule("cosine", shift=shift)
