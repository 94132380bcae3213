"""The loss of a batch against float64 NumPy, for the objectives of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_keys import watch_keys
from videogen_jax.diffusion import tasks as clip_tasks
from videogen_jax.diffusion import times
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.train import step
from videogen_jax.train.loss import make_clip_losses, make_loss, make_loss_by_noise_level

pytestmark = pytest.mark.slow

BATCH = 6


def make(apply, schedule, null_text, tasks=None, *, prediction, weighting, gamma, **draws):
    """The loss of a batch, from the model on."""
    chosen = {"prediction": prediction, "weighting": weighting, "gamma": gamma}
    clip_losses = make_clip_losses(apply, schedule, tasks, **chosen)
    return make_loss(clip_losses, schedule, null_text, **draws)


# name: schedule, objective, weight on the squared error of the prediction in float64
PAPERS = {
    "ddpm": (
        {"name": "linear"},
        {"prediction": "eps", "weighting": "uniform"},
        lambda alpha, sigma: np.ones_like(alpha),
    ),
    "min_snr": (
        {"name": "cosine", "zero_terminal_snr": True},
        {"prediction": "v", "weighting": "min_snr", "gamma": 3.0},  # not the default of 5
        lambda alpha, sigma: np.minimum((alpha / sigma) ** 2, 3) / ((alpha / sigma) ** 2 + 1),
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

    loss = make(apply, schedule, jnp.zeros(5, jnp.int32), **objective)
    rng = jax.random.key(3)
    value = loss(jnp.float32(0.7), batch(), rng)

    rng_time, rng_clips, _ = jax.random.split(rng, 3)
    rng_eps, _ = jax.random.split(rng_clips)
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
    alpha, sigma = (
        np.float64(level)[:, None, None, None, None] for level in schedule.alpha_sigma(drawn)
    )
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
        make(
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

    clip_losses = make_clip_losses(apply, schedule, **chosen, gamma=objective.get("gamma", 5.0))
    losses = jax.jit(make_loss_by_noise_level(clip_losses, schedule, 4))
    rng = jax.random.key(3)
    found = losses(None, batch(), rng)
    x0 = np.asarray(batch()["video"], np.float64) / 127.5 - 1
    eps = np.asarray(jax.random.normal(jax.random.split(rng)[0], x0.shape), np.float64)
    share = (np.arange(4 * BATCH) + 0.5) / (4 * BATCH)  # 0 to 1, evenly
    if schedule.clock == "steps":
        share = np.floor(share * 1000).astype(int)
    elif schedule.clock == "sigma":
        low, high = 0.002 ** (1 / 7), 700 ** (1 / 7)
        share = (low + share * (high - low)) ** 7
    alpha, sigma = (np.asarray(level, np.float64) for level in schedule.alpha_sigma(share))
    expected = []
    for level in range(4):
        rows = slice(level * BATCH, (level + 1) * BATCH)
        a, s = (one[rows].reshape(-1, 1, 1, 1, 1) for one in (alpha, sigma))
        wanted = target(chosen["prediction"], x0, eps, a, s, schedule.sigma_data)
        errors = np.mean((guess - wanted) ** 2, axis=(1, 2, 3, 4))
        expected.append(np.mean(weight(alpha[rows], sigma[rows]) * errors))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


X0 = {"prediction": "x0", "weighting": "uniform", "gamma": 5.0}
DRAWN = X0 | {"time_distribution": "uniform", "time_mean": 0.0, "time_std": 1.0, "stratified": True}


def make_tasks(**shares):
    """Clips of four frames, two in each latent frame."""
    shares = {name: shares.get(name, 0.0) for name in clip_tasks.TASKS}
    return clip_tasks.Tasks(shares, 2, True, -3.0, 0.5, (1,), prefix_noise=0.1, time_cycle=6)


def clips(count, frames=4, side=8):
    rng = np.random.default_rng(0)
    return {
        "video": rng.standard_normal((count, frames, side, side, 1)).astype(np.float16),
        "text": np.full((count, 1), 7, np.int32),
    }


def test_a_clean_prefix_is_nearly_clean_labelled_clean_and_not_learned():
    """With x0 predicted as `guess`, each clip's loss is the mean of (guess - x0)^2 over its noisy frames."""
    count = 12
    batch = clips(count)
    schedule = make_schedule("flow")
    seen = {}

    def apply(params, x_t, t, condition):
        seen.update(condition, x_t=x_t, t=t)
        return params

    losses = make_clip_losses(apply, schedule, make_tasks(prefix=0.5, text=0.5), **X0)
    times_drawn = jnp.linspace(0.3, 0.9, count)
    guess = jnp.full(batch["video"].shape, 0.25)
    value = losses(guess, batch, times_drawn, jax.random.key(2))
    told = jax.device_get(seen)
    clean = told["mask"] == 1  # (B, F)
    assert {tuple(row) for row in clean.tolist()} == {(False,) * 4, (True, True, False, False)}

    square = np.mean((0.25 - np.float64(batch["video"])) ** 2, axis=(2, 3, 4))
    expected = [square[b][~clean[b]].mean() for b in range(count)]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gradient = jax.grad(
        lambda guess: jnp.sum(losses(guess, batch, times_drawn, jax.random.key(2)))
    )(guess)
    assert np.all(gradient[clean] == 0) and np.all(gradient[~clean] != 0)

    # The noise is there, at 0.1 of the clock, though the model is told of none.
    level = np.where(clean, 0.1, np.asarray(times_drawn)[:, None])[..., None, None, None]
    noise = (told["x_t"] - (1 - level) * np.float64(batch["video"])) / level
    assert abs(noise[clean].std() - 1) < 0.1 and abs(noise[~clean].std() - 1) < 0.1
    expected = np.where(clean[:, ::2], 0.001, np.asarray(times_drawn)[:, None])
    np.testing.assert_allclose(told["t"], expected, rtol=1e-6)
    assert told["start"].max() < 6 and np.all(told["known"] == 0)


def test_a_task_of_text_alone_changes_no_loss():
    """Nor what the model sees, but that it is told of no known frames."""
    batch, seen = clips(6), []

    def apply(params, x_t, t, condition):
        seen.append((x_t, t, condition))
        return jnp.sin(x_t)

    values = [
        make(
            apply, make_schedule("flow"), jnp.zeros(1, jnp.int32), tasks, text_dropout=0.3, **DRAWN
        )(None, batch, jax.random.key(1))
        for tasks in (None, make_tasks(text=1.0))
    ]
    assert values[0] == values[1]
    (x_t, t, plain), (same_x_t, same_t, told) = seen
    np.testing.assert_array_equal(x_t, same_x_t)
    np.testing.assert_array_equal(t, same_t)
    np.testing.assert_array_equal(plain["text"], told["text"])
    assert set(told) - set(plain) == {"known", "mask", "augmentation", "start"}
    assert np.all(told["known"] == 0) and np.all(told["mask"] == 0)


@pytest.mark.parametrize("parts", [1, 2])
def test_no_random_key_of_a_step_is_used_twice(monkeypatch, parts):
    """With all tasks, and over the parts of accumulation: a shared key would correlate what is drawn."""
    apply = lambda params, x_t, t, condition: params * x_t  # noqa: E731
    tasks = make_tasks(text=0.25, image=0.25, frames=0.25, prefix=0.25)
    shares = {"text_dropout": 0.1, "known_dropout": 0.2, "joint_dropout": 0.3}
    options = DRAWN | shares
    loss = make(apply, make_schedule("flow"), jnp.zeros(1, jnp.int32), tasks, **options)
    batch = jax.tree.map(jnp.asarray, clips(4, side=1))
    with watch_keys(monkeypatch) as reused, jax.disable_jit():
        step.accumulate_gradients(loss, jnp.float32(1), batch, jax.random.key(0), parts, 1.0)
    assert not reused()


def test_the_parts_of_a_batch_are_stratified_by_themselves_and_together():
    schedule, seen = make_schedule("flow"), []

    def apply(params, x_t, t, condition):
        seen.append(np.asarray(t))
        return params * x_t

    loss = make(apply, schedule, jnp.zeros(1, jnp.int32), text_dropout=0.0, **DRAWN)
    batch = jax.tree.map(jnp.asarray, clips(12, side=1))
    with jax.disable_jit():
        step.accumulate_gradients(loss, jnp.float32(1), batch, jax.random.key(4), 3, 1.0)
    for t in seen:
        np.testing.assert_array_equal(np.sort(np.floor(t * 4)), np.arange(4))
    together = np.sort(np.concatenate(seen))
    np.testing.assert_array_equal(np.floor(together * 12), np.arange(12))
    # Another draw within its intervals and another order in each part.
    assert len({tuple(np.argsort(t)) for t in seen}) > 1


def test_text_and_known_frames_are_dropped_apart_and_together():
    count, null = 6000, 2
    batch, seen = clips(count, side=1), {}

    def apply(params, x_t, t, condition):
        seen.update(condition)
        return x_t

    shares = {"text_dropout": 0.1, "known_dropout": 0.2, "joint_dropout": 0.3}
    loss = make(
        apply, make_schedule("flow"), jnp.array([null]), make_tasks(image=1.0), **shares, **DRAWN
    )
    loss(None, batch, jax.random.key(5))
    no_text = np.asarray(seen["text"])[:, 0] == null
    unknown = np.asarray(seen["mask"]).sum(1) == 0
    for found, share in (
        (no_text & ~unknown, 0.1),
        (~no_text & unknown, 0.2),
        (no_text & unknown, 0.3),
    ):
        assert abs(found.mean() - share) < 5 * np.sqrt(share * (1 - share) / count)
