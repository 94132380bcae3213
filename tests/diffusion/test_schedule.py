"""Schedules against explicit float64 products, closed forms and integrals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion.schedule import SCHEDULES, make_schedule, size_shift

PRESERVING = ("linear", "scaled_linear", "cosine")


def explicit_alpha(betas):
    """sqrt of the running product of 1 - beta, one Python float at a time."""
    product, alphas = 1.0, []
    for beta in betas:
        product *= 1.0 - beta
        alphas.append(math.sqrt(product))
    return np.array(alphas)


def levels(schedule):
    """alpha and sigma at every step."""
    return schedule.alpha_sigma(schedule.time_of_step(np.arange(schedule.num_steps)))


def test_linear_is_the_product_of_ddpms_betas():
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    alpha, _ = levels(make_schedule("linear"))
    np.testing.assert_allclose(alpha, explicit_alpha(betas), rtol=1e-12)


def test_scaled_linear_is_linear_in_the_root_of_beta():
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    betas = [(low + (high - low) * i / 999) ** 2 for i in range(1000)]
    alpha, _ = levels(make_schedule("scaled_linear"))
    np.testing.assert_allclose(alpha, explicit_alpha(betas), rtol=1e-12)


def test_cosine_telescopes_to_its_closed_form_up_to_the_clipped_last_beta():
    alpha, _ = levels(make_schedule("cosine"))
    time = np.arange(1, 1000) / 1000
    start = math.cos(0.008 / 1.008 * math.pi / 2)
    expected = np.cos((time + 0.008) / 1.008 * np.pi / 2) / start
    np.testing.assert_allclose(alpha[:-1], expected, rtol=1e-9)
    np.testing.assert_allclose(alpha[-1], expected[-1] * math.sqrt(0.001), rtol=1e-9)


@pytest.mark.parametrize("name", PRESERVING)
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_variance_is_preserved_and_noise_increases(name, continuous, zero_terminal_snr, shift):
    schedule = make_schedule(
        name, 250, continuous=continuous, zero_terminal_snr=zero_terminal_snr, shift=shift
    )
    assert schedule.preserves_variance and schedule.num_steps == 250
    alpha, sigma = levels(schedule)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-12)
    assert np.all(np.diff(schedule.log_snr(schedule.time_of_step(np.arange(250)))) < 0)
    assert np.all(np.diff(alpha) < 0)


@pytest.mark.parametrize("name", PRESERVING)
def test_continuous_time_is_the_limit_of_discrete_steps(name):
    """The error is at most half a step, and halves with twice as many steps."""
    errors = []
    for num_steps in (1000, 2000):
        if name == "cosine":
            discrete = levels(make_schedule(name, num_steps))[0]
        else:  # the betas are those of 1000 steps: with more steps they shrink
            low, high = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[name]
            power = 2 if name == "scaled_linear" else 1
            betas = np.linspace(low ** (1 / power), high ** (1 / power), num_steps) ** power
            discrete = explicit_alpha(betas * 1000 / num_steps)
        t = np.arange(1, num_steps + 1) / num_steps
        alpha = make_schedule(name, continuous=True).alpha(t)
        errors.append(np.abs(alpha - discrete)[:-1].max())
    assert errors[0] < 2e-3
    assert errors[1] < 0.6 * errors[0] or errors[1] < 1e-9


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_continuous_time_integrates_the_rate(name):
    """log alpha^2 is minus the integral of 1000 beta(t): arXiv:2011.13456, eq. 29, by the midpoint rule."""
    t = (np.arange(100_000) + 0.5) / 100_000
    rate = 0.1 + 19.9 * t
    if name == "scaled_linear":
        rate = (0.85**0.5 + (12**0.5 - 0.85**0.5) * t) ** 2
    integral = np.cumsum(rate) / 100_000
    schedule = make_schedule(name, continuous=True)
    at = np.array([999, 49_999, 99_999])
    np.testing.assert_allclose(
        np.log(schedule.alpha((at + 1) / 100_000) ** 2), -integral[at], rtol=1e-8
    )
    tiny = np.array([1e-6])
    np.testing.assert_allclose(schedule.sigma(tiny) ** 2, rate[0] * tiny, rtol=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("continuous", [False, True])
def test_traced_times_agree_with_the_host(name, continuous):
    schedule = make_schedule(name, continuous=continuous)
    t = schedule.time_of_step(np.linspace(0, 990, 34).round())
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.model_time):
        traced = jax.jit(function)(jnp.asarray(t))
        assert isinstance(function(t), np.ndarray)
        np.testing.assert_allclose(traced, function(t), rtol=2e-4, atol=2e-6)


def test_sigma_is_precise_at_low_noise():
    """In float32, 1 - alpha^2 at the first step would have a relative error of 1e-3."""
    for continuous, t in ((False, jnp.array(0)), (True, jnp.float32(1e-3))):
        schedule = make_schedule("linear", continuous=continuous)
        exact = schedule.sigma(np.asarray(t))
        np.testing.assert_allclose(schedule.sigma(t), exact, rtol=1e-6)


@pytest.mark.parametrize("name", PRESERVING)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step(name, shift):
    plain = make_schedule(name, shift=shift)
    rescaled = make_schedule(name, zero_terminal_snr=True, shift=shift)
    assert rescaled.alpha(999) == 0 and rescaled.sigma(999) == 1
    assert rescaled.log_snr(np.array(999)) == -np.inf
    assert rescaled.ends_in_pure_noise and not plain.ends_in_pure_noise
    np.testing.assert_allclose(rescaled.alpha(0), plain.alpha(0), rtol=1e-12)
    np.testing.assert_allclose(rescaled.sigma(0), plain.sigma(0), rtol=1e-9)


def test_zero_terminal_snr_is_an_affine_map_of_alpha():
    """As algorithm 1 of arXiv:2305.08891."""
    plain, _ = levels(make_schedule("linear"))
    rescaled, _ = levels(make_schedule("linear", zero_terminal_snr=True))
    slope = np.diff(rescaled) / np.diff(plain)
    np.testing.assert_allclose(slope, plain[0] / (plain[0] - plain[-1]), rtol=1e-6)


@pytest.mark.parametrize("name", ("flow", *PRESERVING))
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("shift", [0.5, 4.0, 8.0])
def test_shift_lowers_log_snr_by_twice_its_logarithm(name, continuous, shift):
    def log_snr(schedule):
        return schedule.log_snr(schedule.time_of_step(np.arange(98)))

    options = {"name": name, "num_steps": 100, "continuous": continuous}
    moved = log_snr(make_schedule(**options, shift=shift)) - log_snr(make_schedule(**options))
    np.testing.assert_allclose(moved, -2 * math.log(shift), atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_linear_with_the_shift_of_sd3(shift):
    schedule = make_schedule("flow", shift=shift)
    t = np.array([0.001, 0.25, 0.5, 1.0])
    shifted = shift * t / (1 + (shift - 1) * t)  # arXiv:2403.03206, eq. 23
    np.testing.assert_allclose(schedule.sigma(t), shifted, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha(t), 1 - shifted, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(schedule.model_time(t), 1000 * shifted, rtol=1e-12)
    assert schedule.ends_in_pure_noise and not schedule.preserves_variance


def test_size_shift_is_the_square_root_of_the_token_ratio():
    assert size_shift(4096, 1024) == 2.0


def test_size_shift_of_a_picture_is_1():
    """Not 0.25, with which 0.02 % of logit-normal times lie above 0.9."""
    assert size_shift(1024, 16_384) == size_shift(16_384, 16_384) == 1.0


@pytest.mark.parametrize("name", PRESERVING)
def test_the_models_time_is_the_step_in_continuous_time_too(name):
    schedule, steps = make_schedule(name, continuous=True), np.arange(1000)
    np.testing.assert_allclose(schedule.model_time(schedule.time_of_step(steps)), steps, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_edm_has_sigma_as_time_and_its_preconditioning(sigma_data):
    """arXiv:2206.00364, table 1: c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_noise = ln(sigma) / 4, and eq. 5."""
    schedule = make_schedule("edm", sigma_min=0.002, sigma_max=80.0, sigma_data=sigma_data)
    sigma = np.array([0.002, 1.0, 80.0])
    np.testing.assert_array_equal(schedule.alpha(sigma), 1)
    np.testing.assert_array_equal(schedule.sigma(sigma), sigma)
    np.testing.assert_allclose(schedule.input_scale(sigma), (sigma**2 + sigma_data**2) ** -0.5)
    np.testing.assert_allclose(schedule.model_time(sigma), np.log(sigma) / 4)
    i, n = np.arange(18), 18
    steps = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedule.time_of_step(np.linspace(999, 0, n)), steps, rtol=1e-9)


def test_only_edm_scales_its_input():
    for name in ("flow", "linear"):
        np.testing.assert_array_equal(make_schedule(name).input_scale(np.array([1])), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sigmoid"}, "'sigmoid'.* one of linear, scaled_linear, cosine, flow, edm"),
        ({"name": "cosine", "shift": 0.0}, "above 0"),
        ({"name": "cosine", "shift": -1.0}, "above 0"),
        ({"name": "cosine", "num_steps": 1, "zero_terminal_snr": True}, "at least 2"),
        ({"name": "edm", "zero_terminal_snr": True}, "never in pure noise"),
        ({"name": "edm", "shift": 2.0}, "does not apply to edm"),
        ({"name": "edm", "sigma_min": 90.0, "sigma_max": 80.0}, "sigma_min less than"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**options)
