"""Every step of every sampler against diffusers' schedulers, in float64.

diffusers computes in float32; here its modules see a torch whose float32 is float64, so that its own formulas run in
float64 and all differences are those of the methods. Where NumPy rounds inside it, the table is replaced by hand.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.diffusion.times import SPACINGS
from videogen_jax.generate import sampler

torch = pytest.importorskip("torch")
with warnings.catch_warnings():  # its own imports warn
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import (
        scheduling_ddim,
        scheduling_ddpm,
        scheduling_dpmsolver_multistep,
        scheduling_edm_euler,
        scheduling_euler_discrete,
        scheduling_flow_match_euler_discrete,
    )

BATCH, SHAPE = 2, (2, 3, 3, 2)
TOLERANCE = 1e-5
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

MATRIX = np.random.default_rng(0).standard_normal((SHAPE[-1], SHAPE[-1]))


class Float64Torch:
    """torch, whose float32 is float64."""

    def __getattr__(self, name):
        return getattr(torch, "float64" if name == "float32" else name)


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    for module in (
        scheduling_ddim,
        scheduling_ddpm,
        scheduling_dpmsolver_multistep,
        scheduling_edm_euler,
        scheduling_euler_discrete,
        scheduling_flow_match_euler_discrete,
    ):
        monkeypatch.setattr(module, "torch", Float64Torch())
    with jax.enable_x64(True):
        yield


def network(x, time, xp):
    """A fixed random network of video and time, the same in torch and JAX."""
    return xp.tanh(x @ xp.asarray(MATRIX)) + 0.3 * xp.sin(2 * x + time / 100.0) - 0.1 * x


def make_scheduler(kind, name, prediction, spacing, zero_snr, **options):
    scheduler = kind(
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero_snr,
        **BETAS[name],
        **options,
    )
    assert scheduler.alphas_cumprod.dtype == torch.float64
    return scheduler


def ours(schedule, prediction, keys, x_t, clip_x0=False, **options):
    """Every step of ours, and the schedule's times."""
    steps = sampler.make_steps(schedule, prediction, **options)

    def predict(x, t, condition):
        scaled = x * objective.expand(schedule.input_scale(t), x.ndim)
        time = objective.expand(schedule.model_time(t), x.ndim)
        return network(scaled, time, jnp)

    run = jax.jit(
        lambda x: sampler.sample(
            predict,
            steps,
            x,
            keys,
            {},
            prediction=prediction,
            sigma_data=schedule.sigma_data,
            clip_x0=clip_x0,
            return_all=True,
        )
    )
    return np.asarray(run(jnp.asarray(x_t, jnp.float64))), steps


def start():
    keys = jax.random.split(jax.random.key(7), BATCH)
    return keys, np.array(sampler.draw_noise(keys, 10_000, SHAPE), np.float64)


def noise(keys, call):
    return torch.from_numpy(np.array(sampler.draw_noise(keys, call, SHAPE), np.float64))


def assert_same_steps(ours, theirs):
    assert len(ours) == len(theirs)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        error = np.linalg.norm(mine - other) / np.linalg.norm(other)
        assert error < TOLERANCE, f"step {step}: {error}"


def has_meaning(prediction, spacing, zero_snr):
    """Noise says nothing of the video in pure noise, where other spacings than leading start."""
    return not (zero_snr and prediction == "eps" and spacing != "leading")


CASES = [
    (name, prediction, spacing, zero_snr)
    for name in BETAS
    for prediction in (("eps", "x0", "v") if name == "linear" else ("eps", "v"))
    for spacing in SPACINGS
    for zero_snr in (False, True)
    if has_meaning(prediction, spacing, zero_snr)
]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", BETAS)
def test_the_tables_are_the_same(name, zero_snr):
    theirs = make_scheduler(diffusers.DDIMScheduler, name, "v", "leading", zero_snr)
    bars = theirs.alphas_cumprod.numpy()
    schedule, t = make_schedule(name, zero_terminal_snr=zero_snr), np.arange(1000)
    np.testing.assert_allclose(schedule.alpha(t) ** 2, bars, rtol=1e-10, atol=1e-16)
    np.testing.assert_allclose(schedule.sigma(t) ** 2, 1 - bars, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "prediction", "spacing", "zero_snr", "clip"),
    [(*case, False) for case in CASES]
    + [(name, "v", "trailing", True, True) for name in BETAS]
    + [("linear", "eps", "leading", False, True)],
)
def test_ddpm(name, prediction, spacing, zero_snr, clip, monkeypatch):
    keys, x_t = start()
    count = 13 if spacing == "linspace" else 10
    scheduler = make_scheduler(
        diffusers.DDPMScheduler, name, prediction, spacing, zero_snr, clip_sample=clip
    )
    scheduler.set_timesteps(count)
    x, theirs = torch.from_numpy(x_t), []
    for call, t in enumerate(scheduler.timesteps):
        given = noise(keys, call)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, given=given, **__: given)
        x = scheduler.step(network(x, int(t), torch), t, x).prev_sample
        theirs.append(x.numpy())
    schedule = make_schedule(name, zero_terminal_snr=zero_snr)
    options = {"sampler": "ddpm", "num_inference_steps": count, "spacing": spacing}
    mine, steps = ours(schedule, prediction, keys, x_t, clip, **options)
    np.testing.assert_array_equal(steps.t, scheduler.timesteps.numpy())
    assert_same_steps(mine, theirs)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("name", "prediction", "spacing", "zero_snr"), CASES)
def test_ddim(name, prediction, spacing, zero_snr, eta):
    keys, x_t = start()
    count = 10
    scheduler = make_scheduler(
        diffusers.DDIMScheduler, name, prediction, spacing, zero_snr, clip_sample=False
    )
    scheduler.set_timesteps(count)
    times = scheduler.timesteps.tolist()
    x, theirs = torch.from_numpy(x_t), []
    for call, (t, s) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        # It goes to t - 1000 // count, which is not the next time of its own linspace.
        scheduler.num_inference_steps = next(n for n in range(1, 1001) if 1000 // n <= t - s)
        if 1000 // scheduler.num_inference_steps != t - s:
            assert s == -1  # any step below 0 is the clean video
            scheduler.num_inference_steps = 1
        output = network(x, t, torch)
        x = scheduler.step(output, t, x, eta=eta, variance_noise=noise(keys, call)).prev_sample
        theirs.append(x.numpy())
    if zero_snr and eta == 1 and np.isnan(theirs[0]).any():
        pytest.skip("diffusers takes the root of a rounded 0 that fell below it")
    schedule = make_schedule(name, zero_terminal_snr=zero_snr)
    options = {"num_inference_steps": count, "spacing": spacing, "eta": eta}
    mine, steps = ours(schedule, prediction, keys, x_t, **options)
    np.testing.assert_array_equal(steps.t, times)
    assert_same_steps(mine, theirs)


# torch has not NumPy 2's signature yet.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize(
    ("name", "prediction", "spacing", "zero_snr", "count"),
    [(*case, 9) for case in CASES] + [(name, "v", "trailing", True, 20) for name in BETAS],
)
def test_dpm_solver_2m(name, prediction, spacing, zero_snr, count):
    keys, x_t = start()
    scheduler = make_scheduler(
        diffusers.DPMSolverMultistepScheduler, name, prediction, spacing, zero_snr
    )
    scheduler.set_timesteps(count)
    bars = scheduler.alphas_cumprod[scheduler.timesteps]  # NumPy rounded them
    exact = torch.cat([((1 - bars) / bars) ** 0.5, torch.zeros(1, dtype=torch.float64)])
    np.testing.assert_allclose(scheduler.sigmas, exact, rtol=1e-6)
    scheduler.sigmas = exact
    x, theirs = torch.from_numpy(x_t), []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, int(t), torch), t, x).prev_sample
        theirs.append(x.numpy())
    schedule = make_schedule(name, zero_terminal_snr=zero_snr)
    options = {"sampler": "dpmpp_2m", "num_inference_steps": count, "spacing": spacing}
    mine, steps = ours(schedule, prediction, keys, x_t, **options)
    np.testing.assert_array_equal(steps.t, scheduler.timesteps.numpy())
    assert_same_steps(mine, theirs)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_flow_euler(shift, spacing, name):
    keys, x_t = start()
    count = 11
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    # As its pipelines hand them in: by itself it would shift the last one twice.
    plain = {"linspace": np.linspace(1, 1e-3, count), "trailing": np.linspace(1, 1 / count, count)}
    scheduler.set_timesteps(sigmas=plain[spacing])
    exact = torch.from_numpy(shift * plain[spacing] / (1 + (shift - 1) * plain[spacing]))
    np.testing.assert_allclose(scheduler.sigmas[:-1], exact, rtol=1e-6)  # NumPy rounded them
    scheduler.timesteps = 1000 * exact
    scheduler.sigmas = torch.cat([exact, torch.zeros(1, dtype=torch.float64)])
    x, theirs = torch.from_numpy(x_t), []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t), torch), t, x).prev_sample
        theirs.append(x.numpy())
    schedule = make_schedule("flow", shift=shift)
    options = {"sampler": name, "num_inference_steps": count, "spacing": spacing}
    mine, steps = ours(schedule, "flow", keys, x_t, **options)
    np.testing.assert_allclose(steps.sigma, exact, rtol=1e-12)
    np.testing.assert_allclose(schedule.model_time(steps.t), scheduler.timesteps, rtol=1e-12)
    assert_same_steps(mine, theirs)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_edm_euler(sigma_data, name):
    """v_prediction is the sign of c_out that Stable Video Diffusion has."""
    keys, x_t = start()
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=sigma_data, prediction_type="v_prediction"
    )
    # It scales by 1 / sqrt(sigma^2 + sigma_data^2), and takes sigma_max^2 + 1 for the variance at the start.
    assert scheduler.init_noise_sigma == pytest.approx(80.0, rel=1e-4)
    scheduler.set_timesteps(12)
    x, theirs = torch.from_numpy(80.0 * x_t), []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), float(t), torch)
        x = scheduler.step(output, t, x).prev_sample
        theirs.append(x.numpy())
    schedule = make_schedule("edm", sigma_max=80.0, sigma_data=sigma_data)
    options = {"sampler": name, "num_inference_steps": 12, "spacing": "linspace"}
    mine, steps = ours(schedule, "edm", keys, 80.0 * x_t, **options)
    np.testing.assert_allclose(steps.sigma, scheduler.sigmas[:-1], rtol=1e-12)
    np.testing.assert_allclose(
        schedule.model_time(steps.t), scheduler.timesteps, rtol=1e-9, atol=1e-12
    )
    assert_same_steps(mine, theirs)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_euler_as_stable_video_diffusion_has_it():
    """Its scheduler: v_prediction, Karras steps from 700 to 0.002, and ln(sigma) / 4 for the time."""
    keys, x_t = start()
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(15)
    exact = make_schedule("edm").at(np.linspace(999, 0, 15))
    np.testing.assert_allclose(scheduler.sigmas[:-1], exact, rtol=1e-6)  # NumPy rounded them
    scheduler.sigmas[:-1] = torch.from_numpy(exact)
    x, theirs = torch.from_numpy(700.0 * x_t), []
    for t, sigma in zip(scheduler.timesteps, exact, strict=True):
        output = network(scheduler.scale_model_input(x, t), np.log(sigma) / 4, torch)
        x = scheduler.step(output, t, x).prev_sample
        theirs.append(x.numpy())
    options = {"sampler": "euler", "num_inference_steps": 15, "spacing": "linspace"}
    mine, _ = ours(make_schedule("edm"), "edm", keys, 700.0 * x_t, **options)
    assert_same_steps(mine, theirs)
