"""Data of a known normal law, whose best denoiser and whose every path from noise are closed forms.

For x0 ~ N(m, S), x_t is N(alpha m, C), C = alpha^2 S + sigma^2, and E[x0 | x_t] = m + alpha S C^-1 (x_t - alpha m).
The deterministic flow keeps each sample at the same quantile: x_t = alpha m + C^(1/2) xi.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate import sampler

MEAN = np.array([0.5, -1.0, 0.2])
COVARIANCE = np.array([[1.0, 0.5, 0.1], [0.5, 0.6, -0.2], [0.1, -0.2, 0.3]])
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)

SCHEDULES = {
    "linear": {"name": "linear"},
    "cosine, zero SNR": {"name": "cosine", "zero_terminal_snr": True},
    "linear, continuous": {"name": "linear", "continuous": True},
    "scaled_linear, continuous": {"name": "scaled_linear", "continuous": True},
    "flow": {"name": "flow", "shift": 2.0},
    "edm": {"name": "edm", "sigma_max": 80.0, "sigma_data": 0.8},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def spectral(function, alpha, sigma):
    """A function of the eigenvalues of S, as a matrix."""
    return (VECTORS * function(VALUES, alpha, sigma)) @ VECTORS.T


def on_the_path(xi, alpha, sigma):
    """Where the exact flow has the sample xi (..., 3) at a noise level."""
    root = spectral(lambda s, a, e: np.sqrt(a**2 * s + e**2), alpha, sigma)
    return alpha * MEAN + xi @ root


def make_predict(schedule, prediction):
    """The best possible model of `prediction`."""

    def predict(x_t, t, condition):
        alpha, sigma = schedule.pair(t[0])
        share = 1 / (alpha**2 * jnp.asarray(VALUES) + sigma**2)
        whitened = (x_t - alpha * MEAN) @ VECTORS * share
        x0 = MEAN + (alpha * whitened * VALUES) @ VECTORS.T
        eps = (sigma * whitened) @ VECTORS.T
        return objective.make_target(
            prediction, x0, eps, *schedule.pair(t), sigma_data=schedule.sigma_data
        )

    return predict


def run(schedule, prediction, name, count, count_samples, spacing="linspace"):
    """Samples (N, 3) at each time from the exact law at the first; the levels; and their xi."""
    steps = sampler.make_steps(
        schedule, prediction, sampler=name, num_inference_steps=count, spacing=spacing
    )
    xi = np.random.default_rng(0).standard_normal((count_samples, 3))
    xi -= xi.mean(0)  # so that the samples have exactly the mean and the covariance
    xi = xi @ np.linalg.inv(np.linalg.cholesky(np.cov(xi.T, bias=True))).T
    x_t = on_the_path(xi, steps.alpha[0], steps.sigma[0]).reshape(1, 1, 1, -1, 3)
    keys = jax.random.split(jax.random.key(0), 1)
    each = jax.jit(
        lambda x: sampler.sample(
            make_predict(schedule, prediction),
            steps,
            x,
            keys,
            {},
            prediction=prediction,
            sigma_data=schedule.sigma_data,
            clip_x0=False,
            return_all=True,
        )
    )(jnp.asarray(x_t))
    return np.asarray(each).reshape(count, -1, 3), steps, xi


def all_cases():
    for label, options in SCHEDULES.items():
        for name in sampler.SAMPLERS:
            if name != "ddpm" or make_schedule(**options).preserves_variance:
                yield label, name


@pytest.mark.parametrize(("label", "name"), list(all_cases()))
def test_every_sampler_reproduces_mean_and_covariance(label, name):
    schedule = make_schedule(**SCHEDULES[label])
    prediction = {"flow": "flow", "edm": "edm"}.get(schedule.name, "v")
    count = {"ddpm": 1000, "ddim": 500, "euler": 500, "heun": 100, "dpmpp_2m": 100}[name]
    if name == "dpmpp_2m" and schedule.clock == "steps":
        count = 500
    samples = run(schedule, prediction, name, count, 20_000)[0][-1]
    # Of 20,000 samples the mean is good to 0.007 and the covariance to 1 %; Euler's steps add up to 1 %.
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T), COVARIANCE, atol=0.025)


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_what_the_model_predicts_makes_no_difference(prediction):
    schedule = make_schedule("linear", continuous=True)
    for name in ("ddim", "heun", "dpmpp_2m"):
        expected = run(schedule, "v", name, 20, 10)[0]
        got = run(schedule, prediction, name, 20, 10)[0]
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def slope(label, name, counts):
    """The order: how the error at the last time before the clean video falls with the steps."""
    schedule = make_schedule(**SCHEDULES[label])
    prediction = {"flow": "flow", "edm": "edm"}.get(schedule.name, "v")
    errors = []
    for count in counts:
        each, steps, xi = run(schedule, prediction, name, count, 50)
        expected = on_the_path(xi, steps.alpha[-1], steps.sigma[-1])
        errors.append(np.sqrt(np.mean((each[-2] - expected) ** 2)))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("label", "name", "order"),
    [
        ("linear, continuous", "ddim", 1),
        ("flow", "ddim", 1),
        ("flow", "euler", 1),
        ("edm", "euler", 1),
        ("linear, continuous", "heun", 2),
        ("flow", "heun", 2),
        ("edm", "heun", 2),
        ("edm", "dpmpp_2m", 2),
    ],
)
def test_the_error_falls_at_the_order_of_the_method(label, name, order):
    assert slope(label, name, [32, 64, 128, 256]) == pytest.approx(order, abs=0.25)
