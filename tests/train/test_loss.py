"""The loss of a batch against float64 NumPy, for the objectives of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import times
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.train.step import make_clip_losses, make_loss, make_loss_by_noise_level

BATCH = 6

# name: schedule, objective, weight on the squared error of the prediction in float64
PAPERS = {
    "ddpm": (
        {"name": "linear"},
        {"prediction": "eps", "weighting": "uniform"},
        lambda alpha, sigma: np.ones_like(alpha),
    ),
    "min_snr": (
        {"name": "cosine", "zero_terminal_snr": True},
        {"prediction": "v", "weighting": "min_snr"},
        lambda alpha, sigma: np.minimum((alpha / sigma) ** 2, 5) / ((alpha / sigma) ** 2 + 1),
    ),
    "sd3": (
        {"name": "flow", "shift": 3.0},
        {"prediction": "flow", "weighting": "uniform", "time_distribution": "logit_normal"},
        lambda alpha, sigma: np.ones_like(alpha),
    ),
    "svd": (
        {"name": "edm", "sigma_data": 0.5},
        {"prediction": "edm", "weighting": "edm", "time_distribution": "log_normal"}
        | {"time_mean": 0.7, "time_std": 1.6},
        lambda alpha, sigma: np.ones_like(alpha),  # (sigma^2 + s^2) / (sigma s)^2 c_out^2
    ),
}


def target(prediction, x0, eps, alpha, sigma, sigma_data):
    """As the papers write it."""
    if prediction == "edm":
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = -sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
        return (x0 - c_skip * (x0 + sigma * eps)) / c_out
    return {"eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]


def batch():
    rng = np.random.default_rng(0)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (BATCH, 2, 4, 4, 3), np.uint8)),
        "text": jnp.asarray(rng.integers(3, 9, (BATCH, 5), np.int32)),
        "fps": jnp.arange(BATCH, dtype=jnp.float32),
    }


@pytest.mark.parametrize("paper", PAPERS)
def test_the_loss_is_the_weighted_square_of_the_papers_error(paper):
    schedule_options, objective, weight = PAPERS[paper]
    defaults = {"gamma": 5.0, "time_distribution": "uniform", "time_mean": 0.0, "time_std": 1.0}
    objective = defaults | {"stratified": True, "text_dropout": 0.0} | objective
    schedule = make_schedule(**schedule_options)
    seen = {}

    def apply(params, x_t, t, condition):
        seen.update(x_t=x_t, t=t, condition=condition)
        return jnp.sin(x_t) * params

    loss = make_loss(apply, schedule, jnp.zeros(5, jnp.int32), **objective)
    rng = jax.random.key(3)
    value = loss(jnp.float32(0.7), batch(), rng)

    rng_time, rng_eps, _ = jax.random.split(rng, 3)
    drawn = times.draw_times(
        rng_time,
        BATCH,
        schedule,
        distribution=objective["time_distribution"],
        mean=objective["time_mean"],
        std=objective["time_std"],
    )
    np.testing.assert_array_equal(seen["t"], drawn)
    assert set(seen["condition"]) == {"text", "fps"}
    alpha, sigma = (np.float64(level)[:, None, None, None, None] for level in schedule.pair(drawn))
    x0 = np.float64(batch()["video"]) / 127.5 - 1
    eps = np.float64(jax.random.normal(rng_eps, x0.shape))
    x_t = alpha * x0 + sigma * eps
    np.testing.assert_allclose(seen["x_t"], x_t, rtol=1e-5, atol=1e-5)
    data = schedule.sigma_data
    error = np.sin(x_t) * 0.7 - target(objective["prediction"], x0, eps, alpha, sigma, data)
    expected = np.mean(weight(alpha, sigma) * error**2)
    np.testing.assert_allclose(value, expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("schedule", "objective", "message"),
    [
        (
            {"name": "cosine", "zero_terminal_snr": True},
            {"prediction": "eps"},
            "ends in pure noise",
        ),
        ({"name": "flow"}, {"prediction": "eps"}, "ends in pure noise"),
        ({"name": "flow"}, {"time_distribution": "log_normal"}, "log_normal draws sigma"),
        ({"name": "edm"}, {"time_distribution": "logit_normal"}, "between 0 and 1"),
    ],
)
def test_objectives_without_meaning_are_refused_before_the_first_step(schedule, objective, message):
    defaults = {"prediction": "v", "weighting": "uniform", "gamma": 5.0, "time_mean": 0.0}
    defaults |= {"time_distribution": "uniform", "time_std": 1.0, "stratified": True}
    with pytest.raises(ValueError, match=message):
        make_loss(
            lambda *_: None,
            make_schedule(**schedule),
            jnp.zeros(5, jnp.int32),
            text_dropout=0.0,
            **defaults | objective,
        )


@pytest.mark.parametrize("paper", ["ddpm", "min_snr", "sd3", "svd"])
def test_the_loss_by_noise_level_is_float64s_at_times_spread_over_equal_parts_of_the_clock(paper):
    schedule_options, objective, weight = PAPERS[paper]
    schedule = make_schedule(**schedule_options)
    chosen = {name: objective[name] for name in ("prediction", "weighting")}
    guess = 0.25

    def apply(params, x_t, t, condition):
        return jnp.full_like(x_t, guess)

    clip_losses = make_clip_losses(apply, schedule, **chosen, gamma=5.0)
    losses = jax.jit(make_loss_by_noise_level(clip_losses, schedule, 4))
    rng = jax.random.key(3)
    found = losses(None, batch(), rng)
    x0 = np.asarray(batch()["video"], np.float64) / 127.5 - 1
    eps = np.asarray(jax.random.normal(rng, x0.shape), np.float64)
    share = (np.arange(4 * BATCH) + 0.5) / (4 * BATCH)  # 0 to 1, evenly
    if schedule.clock == "steps":
        share = np.floor(share * 1000).astype(int)
    elif schedule.clock == "sigma":
        low, high = 0.002 ** (1 / 7), 700 ** (1 / 7)
        share = (low + share * (high - low)) ** 7
    alpha, sigma = (np.asarray(level, np.float64) for level in schedule.pair(share))
    expected = []
    for level in range(4):
        rows = slice(level * BATCH, (level + 1) * BATCH)
        a, s = (one[rows].reshape(-1, 1, 1, 1, 1) for one in (alpha, sigma))
        wanted = target(chosen["prediction"], x0, eps, a, s, schedule.sigma_data)
        errors = np.mean((guess - wanted) ** 2, axis=(1, 2, 3, 4))
        expected.append(np.mean(weight(alpha[rows], sigma[rows]) * errors))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
