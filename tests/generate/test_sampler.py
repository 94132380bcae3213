"""Samplers against the papers' formulas in float64, oracle denoisers, and data of known law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate import sampler

SHAPE = (2, 3, 3, 1)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def text(count):
    return jnp.zeros((count, 1), jnp.int32)


@pytest.mark.parametrize("spacing", sampler.SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 10, 37, 64])
def test_every_count_of_timesteps_falls_strictly(spacing, num_steps):
    """Regression: the first implementation walked towards more noise."""
    for count in range(1, num_steps + 1):
        steps = sampler.make_timesteps(num_steps, count, spacing)
        assert steps.shape == (count,)
        assert np.all(np.diff(steps) < 0)
        assert 0 <= steps[-1] <= steps[0] < num_steps


@pytest.mark.parametrize("spacing", sampler.SPACINGS)
def test_timesteps_of_the_usual_clock_fall_strictly(spacing):
    for count in [*range(1, 100), 333, 500, 501, 666, 667, 750, 900, 998, 999, 1000]:
        steps = sampler.make_timesteps(1000, count, spacing)
        assert steps.shape == (count,)
        assert np.all(np.diff(steps) < 0)
        assert steps[-1] >= 0
        if spacing == "trailing":
            assert steps[0] == 999
        if spacing == "leading":
            assert steps[-1] == 0


def test_spacings_are_those_of_table_2():
    """arXiv:2305.08891, table 2, T = 1000, S = 10; the paper counts steps from 1."""
    table = {
        "leading": range(1, 1000, 100),
        "linspace": (1, 112, 223, 334, 445, 556, 667, 778, 889, 1000),
        "trailing": range(100, 1001, 100),
    }
    for spacing, expected in table.items():
        steps = sampler.make_timesteps(1000, 10, spacing)
        assert [step + 1 for step in steps[::-1].tolist()] == list(expected)


@pytest.mark.parametrize("count", [0, 11])
def test_more_steps_than_the_clock_has_are_refused(count):
    with pytest.raises(ValueError, match="choose between 1 and 10"):
        sampler.make_timesteps(10, count, "leading")


def test_an_unknown_spacing_lists_the_known():
    with pytest.raises(ValueError, match="'even'.* one of leading, trailing, linspace"):
        sampler.make_timesteps(10, 5, "even")


def oracle(schedule, prediction, x0):
    """A denoiser that knows the video."""

    def predict(x_t, t, text):
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        eps = (x_t - objective.expand(alpha, 5) * x0) / objective.expand(sigma, 5)
        a, s = objective.expand(alpha, 5), objective.expand(sigma, 5)
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0}[prediction]

    return predict


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
@pytest.mark.parametrize("name", sampler.SAMPLERS)
def test_an_oracle_is_followed_to_its_video(prediction, name):
    """By eps without a zero terminal SNR, for at alpha = 0 noise says nothing of the video."""
    schedule = make_schedule("cosine", 100, zero_terminal_snr=prediction != "eps")
    x0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)), jnp.float32)
    for spacing in sampler.SPACINGS:
        for count in (1, 7):
            video = sampler.sample(
                oracle(schedule, prediction, x0),
                schedule,
                text(2),
                keys(2),
                shape=SHAPE,
                prediction=prediction,
                sampler=name,
                num_inference_steps=count,
                spacing=spacing,
                clip_x0=prediction != "eps",
            )
            np.testing.assert_allclose(video, x0, atol=2e-3 if prediction == "eps" else 1e-4)


def record(schedule, count, prediction="x0", **options):
    """Samples eagerly from a made-up denoiser; returns (x_t, t, output) of each call, and the end."""
    calls = []

    def predict(x_t, t, text):
        output = 0.5 * jnp.sin(3 * x_t) + 0.3 * jnp.cos(t / 10.0)[:, None, None, None, None]
        calls.append((np.float64(x_t), np.asarray(t), np.float64(output)))
        return output

    with jax.disable_jit():
        end = sampler.sample(
            predict,
            schedule,
            text(2),
            keys(2, seed=5),
            shape=SHAPE,
            prediction=prediction,
            num_inference_steps=count,
            **options,
        )
    return calls, np.float64(end)


def noise(t):
    """The normal numbers that a video's key gives for a step."""
    draws = [jax.random.normal(jax.random.fold_in(key, t), SHAPE) for key in keys(2, seed=5)]
    return np.float64(np.stack(draws))


def levels(schedule, t):
    """alpha-bar of DDPM (alpha of DDIM) at step t in float64; 1 beyond the last."""
    return 1.0 if t < 0 else float(schedule.alpha[t]) ** 2


def transitions(schedule, count, **options):
    calls, end = record(schedule, count, **options)
    times = [int(t[0]) for _, t, _ in calls]
    assert all(np.all(t == t[0]) for _, t, _ in calls)
    assert times == sampler.make_timesteps(schedule.num_steps, count, "linspace").tolist()
    followers = [x_t for x_t, _, _ in calls[1:]] + [end]
    for (x_t, _, output), t, s, x_s in zip(calls, times, [*times[1:], -1], followers, strict=True):
        yield x_t, output, t, levels(schedule, t), levels(schedule, s), x_s


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_each_step_is_equation_12_of_ddim(eta):
    schedule = make_schedule("linear", 50)
    steps = transitions(schedule, 6, prediction="eps", eta=eta, spacing="linspace", clip_x0=False)
    for x_t, eps, t, a_t, a_s, x_s in steps:
        tau = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)  # eq. 16
        x0 = (x_t - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
        expected = np.sqrt(a_s) * x0 + np.sqrt(1 - a_s - tau**2) * eps + tau * noise(t)
        np.testing.assert_allclose(x_s, expected, atol=2e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_clipped_step_keeps_video_and_noise_consistent(prediction):
    """After the clamp, the noise is read again from x_t, so that DDIM stays on its line."""
    schedule = make_schedule("linear", 50)
    clipped = 0
    for x_t, output, _, a_t, a_s, x_s in transitions(
        schedule, 6, prediction=prediction, spacing="linspace"
    ):
        x0 = output if prediction == "x0" else np.sqrt(a_t) * x_t - np.sqrt(1 - a_t) * output
        clipped += np.sum(np.abs(x0) > 1)
        x0 = np.clip(x0, -1, 1)
        eps = (x_t - np.sqrt(a_t) * x0) / np.sqrt(1 - a_t)
        np.testing.assert_allclose(x_s, np.sqrt(a_s) * x0 + np.sqrt(1 - a_s) * eps, atol=1e-3)
    assert clipped > 0 or prediction == "x0"


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"eta": 1.0}])
@pytest.mark.parametrize("count", [6, 20])
def test_eta_of_one_is_the_posterior_of_ddpm(options, count):
    """arXiv:2006.11239, eq. 6 and 7, with beta = 1 - alpha-bar_t / alpha-bar_s on the kept steps."""
    schedule = make_schedule("cosine", 20)
    for x_t, x0, t, a_t, a_s, x_s in transitions(
        schedule, count, spacing="linspace", clip_x0=False, **options
    ):
        beta = 1 - a_t / a_s
        mean = (
            np.sqrt(a_s) * beta / (1 - a_t) * x0 + np.sqrt(1 - beta) * (1 - a_s) / (1 - a_t) * x_t
        )
        variance = (1 - a_s) / (1 - a_t) * beta
        np.testing.assert_allclose(x_s, mean + np.sqrt(variance) * noise(t), atol=2e-4)


@pytest.mark.parametrize("name", sampler.SAMPLERS)
@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_gaussian_data_comes_out_with_its_mean_and_variance(name, prediction):
    """For x0 ~ N(mean, std^2) the best denoiser is a line, and sampling is exact in the limit."""
    mean, std, shape, batch = 0.4, 0.3, (2, 24, 24, 1), 16
    schedule = make_schedule("cosine", zero_terminal_snr=prediction != "eps")

    def predict(x_t, t, text):
        alpha, sigma = schedule.alpha[t[0]], schedule.sigma[t[0]]
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)
        # E[eps | x_t], written without a division by sigma.
        eps = sigma * (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]

    video = jax.jit(
        lambda: sampler.sample(
            predict,
            schedule,
            text(batch),
            keys(batch),
            shape=shape,
            prediction=prediction,
            sampler=name,
            num_inference_steps=500,
            clip_x0=False,
        )
    )()
    # 18432 numbers: the mean is good to 0.3 / sqrt(18432) = 0.002, the deviation to 0.5 %.
    np.testing.assert_allclose(np.mean(video), mean, atol=0.009)
    np.testing.assert_allclose(np.std(video), std, rtol=0.025)


def test_videos_differ_by_key_and_not_by_neighbour():
    schedule = make_schedule("cosine", 20, zero_terminal_snr=True)
    seeds = keys(3, seed=1)

    def run(seeds):
        return sampler.sample(
            lambda x_t, t, text: jnp.tanh(x_t),
            schedule,
            text(len(seeds)),
            seeds,
            shape=SHAPE,
            prediction="x0",
            sampler="ddpm",
            num_inference_steps=4,
        )

    together = run(seeds)
    np.testing.assert_array_equal(run(seeds[::-1])[::-1], together)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_combinations_without_meaning_are_refused():
    schedule = make_schedule("cosine", 20, zero_terminal_snr=True)

    def run(**options):
        options = {"prediction": "x0", "num_inference_steps": 4} | options
        sampler.sample(lambda x_t, t, text: x_t, schedule, text(1), keys(1), shape=SHAPE, **options)

    with pytest.raises(ValueError, match="'euler'.* one of ddim, ddpm"):
        run(sampler="euler")
    with pytest.raises(ValueError, match="ddpm always has 1"):
        run(sampler="ddpm", eta=0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        run(eta=1.5)
    with pytest.raises(ValueError, match="'noise'.* one of eps, x0, v"):
        run(prediction="noise")
    with pytest.raises(ValueError, match="eps.* pure noise"):
        run(prediction="eps", spacing="trailing")
    run(prediction="eps", spacing="leading")
