"""Samplers against the papers' formulas in float64, oracle denoisers, and each video on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import objective, times
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate import sampler

pytestmark = pytest.mark.slow

SHAPE = (2, 3, 3, 1)
SCHEDULES = {
    "steps": {"name": "cosine", "num_steps": 100, "zero_terminal_snr": True},
    "flow": {"name": "flow", "num_steps": 100},
    "edm": {"name": "edm", "num_steps": 100, "sigma_max": 80.0},
}


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def run(predict, schedule, seeds, prediction, clip_x0=True, return_all=False, **options):
    steps = sampler.make_steps(schedule, prediction, **options)
    x_t = sampler.init_noise(schedule, steps, seeds, SHAPE)
    return sampler.sample(
        predict,
        steps,
        x_t,
        seeds,
        {"text": jnp.zeros((len(seeds), 1), jnp.int32)},
        prediction=prediction,
        sigma_data=schedule.sigma_data,
        clip_x0=clip_x0,
        return_all=return_all,
    )


def oracle(schedule, prediction, x0):
    """A denoiser that knows the video."""

    def predict(x_t, t, condition):
        levels = schedule.alpha_sigma(t)
        alpha, sigma = (objective.expand(level, 5) for level in levels)
        eps = (x_t - alpha * x0) / sigma
        return objective.make_target(prediction, x0, eps, *levels, schedule.sigma_data)

    return predict


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
@pytest.mark.parametrize("name", sampler.SAMPLERS)
@pytest.mark.parametrize("clock", SCHEDULES)
def test_an_oracle_is_followed_to_its_video(prediction, name, clock):
    """By eps without a zero terminal SNR, for at alpha = 0 noise says nothing of the video."""
    options = dict(SCHEDULES[clock])
    if prediction == "eps" and clock == "steps":
        options["zero_terminal_snr"] = False
    schedule = make_schedule(**options)
    if (prediction == "eps" and clock == "flow") or (name == "ddpm" and clock != "steps"):
        pytest.skip("has no meaning")
    x0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)), jnp.float32)
    for spacing in times.SPACINGS:
        for count in (1, 7):
            video = run(
                oracle(schedule, prediction, x0),
                schedule,
                keys(2),
                prediction,
                clip_x0=prediction != "eps",
                sampler=name,
                num_inference_steps=count,
                spacing=spacing,
            )
            # dpmpp_2m reads pure noise at alpha = 2^-12, and is that much off where it starts there.
            atol = {"eps": 4e-3}.get(prediction, 1e-3 if name == "dpmpp_2m" else 2e-4)
            np.testing.assert_allclose(video, x0, atol=atol)


def record(schedule, count, prediction="x0", **options):
    """Samples eagerly from a made-up denoiser; returns (x_t, t, output) of each call, and the end."""
    calls = []

    def predict(x_t, t, condition):
        output = 0.5 * jnp.sin(3 * x_t) + 0.3 * jnp.cos(t / 10.0)[:, None, None, None, None]
        calls.append((np.float64(x_t), np.asarray(t), np.float64(output)))
        return output

    with jax.disable_jit():
        end = run(
            predict, schedule, keys(2, seed=5), prediction, num_inference_steps=count, **options
        )
    return calls, np.float64(end)


def noise(call):
    """The normal numbers that a video's key gives for a call of the model."""
    draws = [jax.random.normal(jax.random.fold_in(key, call), SHAPE) for key in keys(2, seed=5)]
    return np.float64(np.stack(draws))


def test_the_noise_that_sampling_starts_from_is_that_of_no_call():
    schedule = make_schedule("linear", 20)
    steps = sampler.make_steps(schedule, "v", sampler="ddpm", num_inference_steps=20)
    start = np.asarray(sampler.init_noise(schedule, steps, keys(2, seed=5), SHAPE))
    for call in range(len(steps.t)):
        assert abs(np.corrcoef(start.ravel(), noise(call).ravel())[0, 1]) < 0.9


@pytest.mark.parametrize("name", ["flow", "steps"])
def test_dpm_solvers_first_level_is_on_the_schedule(name):
    """Near pure noise, which has no logSNR: alpha + sigma = 1 on flow, else their squares."""
    schedule = make_schedule(**SCHEDULES[name])
    steps = sampler.make_steps(schedule, "v", sampler="dpmpp_2m", num_inference_steps=5)
    power = 1 if name == "flow" else 2
    assert 0 < steps.alpha[0] < 1e-3
    assert abs(steps.alpha[0] ** power + steps.sigma[0] ** power - 1) < 1e-12


def level(schedule, t):
    """alpha-bar of DDPM (alpha of DDIM) at step t in float64; 1 beyond the last."""
    return 1.0 if t < 0 else float(schedule.alpha(t)) ** 2


def transitions(schedule, count, **options):
    calls, end = record(schedule, count, spacing="linspace", **options)
    steps = [int(t[0]) for _, t, _ in calls]
    assert all(np.all(t == t[0]) for _, t, _ in calls)
    assert steps == times.space_times(schedule, count, "linspace").tolist()
    followers = [x_t for x_t, _, _ in calls[1:]] + [end]
    rows = zip(calls, steps, [*steps[1:], -1], followers, strict=True)
    for call, ((x_t, _, output), t, s, x_s) in enumerate(rows):
        yield x_t, output, noise(call), level(schedule, t), level(schedule, s), x_s


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_each_step_is_equation_12_of_ddim(eta):
    schedule = make_schedule("linear", 50)
    for x_t, eps, z, a_t, a_s, x_s in transitions(
        schedule, 6, prediction="eps", eta=eta, clip_x0=False
    ):
        tau = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)  # eq. 16
        x0 = (x_t - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
        expected = np.sqrt(a_s) * x0 + np.sqrt(1 - a_s - tau**2) * eps + tau * z
        np.testing.assert_allclose(x_s, expected, atol=2e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_clipped_step_keeps_video_and_noise_consistent(prediction):
    """After the clamp, the noise is read again from x_t, so that DDIM stays on its line."""
    schedule = make_schedule("linear", 50)
    clipped = 0
    for x_t, output, _, a_t, a_s, x_s in transitions(schedule, 6, prediction=prediction):
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
    for x_t, x0, z, a_t, a_s, x_s in transitions(schedule, count, clip_x0=False, **options):
        beta = 1 - a_t / a_s
        mean = (
            np.sqrt(a_s) * beta / (1 - a_t) * x0 + np.sqrt(1 - beta) * (1 - a_s) / (1 - a_t) * x_t
        )
        variance = (1 - a_s) / (1 - a_t) * beta
        np.testing.assert_allclose(x_s, mean + np.sqrt(variance) * z, atol=2e-4)


def test_heun_is_algorithm_1_of_edm():
    """arXiv:2206.00364, algorithm 1, on made-up outputs: two calls a step, and one for the last."""
    schedule = make_schedule("edm", sigma_max=80.0)
    count = 4
    calls, end = record(
        schedule, count, prediction="x0", sampler="heun", spacing="linspace", clip_x0=False
    )
    assert len(calls) == 2 * count - 1
    sigma = [*times.space_times(schedule, count, "linspace").tolist(), 0.0]
    x = calls[0][0]
    for i in range(count):
        x_i, t, x0 = calls[2 * i]
        assert t[0] == pytest.approx(sigma[i], rel=1e-6)
        np.testing.assert_allclose(x_i, x, rtol=1e-5, atol=1e-5)
        slope = (x - x0) / sigma[i]
        following = x + (sigma[i + 1] - sigma[i]) * slope
        if sigma[i + 1]:
            x_next, t, x0_next = calls[2 * i + 1]
            assert t[0] == pytest.approx(sigma[i + 1], rel=1e-6)
            np.testing.assert_allclose(x_next, following, rtol=1e-4, atol=1e-4)
            slope_next = (following - x0_next) / sigma[i + 1]
            following = x + (sigma[i + 1] - sigma[i]) * (slope + slope_next) / 2
        x = following
    np.testing.assert_allclose(end, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sampler.SAMPLERS)
def test_every_step_is_handed_back_on_request(name):
    schedule = make_schedule("cosine", 20)
    options = {"sampler": name, "num_inference_steps": 5}
    model = lambda x_t, t, condition: jnp.tanh(x_t)  # noqa: E731
    last = run(model, schedule, keys(2), "x0", **options)
    each = run(model, schedule, keys(2), "x0", return_all=True, **options)
    assert each.shape == (5, 2, *SHAPE)
    np.testing.assert_allclose(each[-1], last, atol=1e-6)


def test_sampling_starts_from_noise_of_the_first_level():
    seeds = keys(400)
    for clock, deviation in (("steps", 1.0), ("flow", 1.0), ("edm", 80.0)):
        schedule = make_schedule(**SCHEDULES[clock])
        steps = sampler.make_steps(schedule, "v", num_inference_steps=5)
        noise = sampler.init_noise(schedule, steps, seeds, SHAPE)
        assert float(noise.std()) == pytest.approx(deviation, rel=0.03)


def test_videos_differ_by_key_and_not_by_neighbour():
    schedule = make_schedule("cosine", 20, zero_terminal_snr=True)
    seeds = keys(3, seed=1)

    def videos(seeds):
        model = lambda x_t, t, condition: jnp.tanh(x_t)  # noqa: E731
        return run(model, schedule, seeds, "x0", sampler="ddpm", num_inference_steps=4)

    together = videos(seeds)
    np.testing.assert_array_equal(videos(seeds[::-1])[::-1], together)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_the_noise_of_the_start_is_given_away():
    """Its memory becomes the video's: one buffer less."""
    schedule = make_schedule("cosine", 20)
    steps = sampler.make_steps(schedule, "x0", num_inference_steps=3)
    seeds = keys(2)
    x_t = sampler.init_noise(schedule, steps, seeds, SHAPE)

    def denoise(x_t):
        return sampler.sample(
            lambda x_t, t, condition: jnp.tanh(x_t), steps, x_t, seeds, {}, prediction="x0"
        )

    compiled = jax.jit(denoise, donate_argnums=0).lower(x_t).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == x_t.nbytes


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("steps", {"sampler": "plms"}, "'plms'.* one of ddim, ddpm, euler, heun, dpmpp_2m"),
        ("steps", {"sampler": "ddpm", "eta": 0.5}, "ddpm always has 1"),
        ("steps", {"sampler": "heun", "eta": 0.5}, "heun solves an ODE and has none"),
        ("steps", {"eta": 1.5}, "between 0 and 1"),
        ("steps", {"prediction": "eps", "spacing": "trailing"}, "eps.* pure noise"),
        ("flow", {"prediction": "eps"}, "eps.* pure noise"),
        ("flow", {"sampler": "ddpm"}, "ddpm goes back along .* choose euler, heun"),
        ("edm", {"sampler": "ddpm"}, "ddpm goes back along .* choose euler, heun"),
        ("flow", {"eta": 0.3}, "ddim with eta 0.3 goes back"),
    ],
)
def test_combinations_without_meaning_are_refused(schedule, options, message):
    options = {"prediction": "x0", "num_inference_steps": 4} | options
    with pytest.raises(ValueError, match=message):
        sampler.make_steps(make_schedule(**SCHEDULES[schedule]), **options)


def test_noise_can_be_followed_from_below_pure_noise():
    schedule = make_schedule(**SCHEDULES["steps"])
    sampler.make_steps(schedule, "eps", spacing="leading", num_inference_steps=4)


def test_an_unknown_prediction_lists_the_known():
    with pytest.raises(ValueError, match="'noise'.* one of eps, x0, v, flow, edm"):
        sampler.make_steps(make_schedule("linear"), "noise", num_inference_steps=2)
