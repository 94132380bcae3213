"""Data of a known normal law, whose best denoiser and whose every path from noise are closed forms.

For x0 ~ N(m, S), x_t is N(alpha m, C), C = alpha^2 S + sigma^2, and E[x0 | x_t] = m + alpha S C^-1 (x_t - alpha m).
The deterministic flow keeps each sample at the same quantile: x_t = alpha m + C^(1/2) xi.
"""

import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate import sampler

MEAN = np.array([0.5, -1.0, 0.2])
COVARIANCE = np.array([[1.0, 0.5, 0.1], [0.5, 0.6, -0.2], [0.1, -0.2, 0.3]])
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)

SCHEDULES = {
    "linear": {"name": "linear"},
    "scaled_linear": {"name": "scaled_linear"},
    "cosine, zero SNR": {"name": "cosine", "zero_terminal_snr": True},
    "linear, continuous": {"name": "linear", "continuous": True},
    "scaled_linear, continuous": {"name": "scaled_linear", "continuous": True},
    "cosine, continuous": {"name": "cosine", "continuous": True},
    "flow": {"name": "flow", "shift": 2.0},
    "edm": {"name": "edm", "sigma_max": 80.0, "sigma_data": 0.8},
}


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
        alpha, sigma = schedule.alpha_sigma(t[0])
        share = 1 / (alpha**2 * jnp.asarray(VALUES) + sigma**2)
        whitened = (x_t - alpha * MEAN) @ VECTORS * share
        x0 = MEAN + (alpha * whitened * VALUES) @ VECTORS.T
        eps = (sigma * whitened) @ VECTORS.T
        return objective.make_target(
            prediction, x0, eps, *schedule.alpha_sigma(t), sigma_data=schedule.sigma_data
        )

    return predict


def run(schedule, prediction, name, count, count_samples, spacing="linspace", return_all=True):
    """Samples (N, 3) at each time, or at the last alone, from the exact law at the first; the levels; and their xi."""
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
            return_all=return_all,
        ),
        # Many samples and steps: for once it is worth optimizing.
        compiler_options={"xla_backend_optimization_level": 2},
    )(jnp.asarray(x_t))
    return np.asarray(each).reshape(-1, count_samples, 3), steps, xi


def prediction_of(schedule):
    """What models of this schedule usually predict."""
    return schedule.name if schedule.name in ("flow", "edm") else "v"


def measure_error(label, name, count, share=1.0):
    """Root mean square distance from the exact path after a share of the steps.

    All of them end at the last time before the clean video. That one stays where it is, but for dpmpp_2m, which leaves
    the very first step of the clock out: its orders are read after three quarters, at one time for all counts.
    """
    schedule = make_schedule(**SCHEDULES[label])
    each, steps, xi = run(schedule, prediction_of(schedule), name, count, 50)
    done = min(round(share * count), count - 1)
    call = np.flatnonzero(steps.arrives)[done - 1] + 1  # the one that sees x then
    expected = on_the_path(xi, steps.alpha[call], steps.sigma[call])
    return float(np.sqrt(np.mean((each[done - 1] - expected) ** 2)))
