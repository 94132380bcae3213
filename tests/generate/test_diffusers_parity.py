"""Every step of every sampler against diffusers' schedulers, in float64.

diffusers computes in float32; here its modules see a torch whose float32 is float64, so that its own formulas run in
float64 and all differences are those of the methods. Where NumPy rounds inside it, the table is replaced by hand.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.diffusion.times import SPACINGS, space_times
from videogen_jax.generate import sampler

pytestmark = pytest.mark.slow

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


@functools.cache
def start():
    keys = jax.random.split(jax.random.key(7), BATCH)
    return keys, np.array(sampler.draw_noise(keys, 1000, SHAPE), np.float64)


@functools.cache
def noise(call):
    """What our sampler draws for a call, for theirs."""
    return torch.from_numpy(np.array(sampler.draw_noise(start()[0], call, SHAPE), np.float64))


class Gap:
    """Stands for DDIM's number of steps: it goes to t - 1000 // number, whatever the next time of its own is."""

    def __init__(self, gap):
        self.gap = gap

    def __rfloordiv__(self, num_train_timesteps):
        return self.gap


def assert_same_steps(ours, theirs):
    assert len(ours) == len(theirs)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        error = np.linalg.norm(mine - other) / np.linalg.norm(other)
        assert error < TOLERANCE, f"step {step}: {error}"


def has_meaning(prediction, spacing, zero_snr):
    """Noise says nothing of the video in pure noise, where other spacings than leading start."""
    return not (zero_snr and prediction == "eps" and spacing != "leading")


COUNTS = {"leading": 13, "linspace": 9, "trailing": 16}  # by none of them can 1000 be divided
CASES = [
    (name, prediction, spacing, zero_snr)
    for name in BETAS
    for prediction in (("eps", "x0", "v") if name == "linear" else ("eps", "v"))
    for spacing in SPACINGS
    for zero_snr in (False, True)
    if has_meaning(prediction, spacing, zero_snr)
]
CLIPPED = [(name, "v", "trailing", True) for name in BETAS] + [("linear", "eps", "leading", False)]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", BETAS)
def test_the_tables_are_the_same(name, zero_snr):
    theirs = make_scheduler(diffusers.DDIMScheduler, name, "v", "leading", zero_snr)
    bars = theirs.alphas_cumprod.numpy()
    schedule, t = make_schedule(name, zero_terminal_snr=zero_snr), np.arange(1000)
    np.testing.assert_allclose(schedule.alpha(t) ** 2, bars, rtol=1e-12, atol=1e-16)
    # A bar near 1 leaves 1 - bar good to the last bit of 1.
    np.testing.assert_allclose(schedule.sigma(t) ** 2, 1 - bars, rtol=1e-12, atol=3e-16)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_the_times_are_the_same_for_every_number_of_steps(kind, spacing):
    schedule, above_first = make_schedule("linear"), kind.startswith("DPM")
    theirs = getattr(diffusers, kind)(timestep_spacing=spacing)
    for count in [*range(1, 130), 160, 250, 333, 500, 640, 800, 998]:
        theirs.set_timesteps(count)
        mine = space_times(schedule, count, spacing, above_first)
        # By fractions, its np.arange can give one time more than asked for.
        np.testing.assert_array_equal(mine, theirs.timesteps[:count], err_msg=str(count))


@pytest.mark.parametrize(
    ("kind", "name", "tolerance"),
    [
        ("DDPMScheduler", "linear", 1e-12),
        ("DDIMScheduler", "linear", 1e-12),
        ("DPMSolverMultistepScheduler", "linear", 1e-12),
        ("FlowMatchEulerDiscreteScheduler", "flow", 1e-12),
        # Its noise has the deviation sqrt(700^2 + 1); ours, as SVD's own code has it, 700.
        ("EDMEulerScheduler", "edm", 1.1e-6),
    ],
)
def test_the_start_is_the_same(kind, name, tolerance):
    options = {"sigma_max": 700.0} if name == "edm" else {}
    theirs = getattr(diffusers, kind)(**options)
    keys, normal = start()
    schedule = make_schedule(name)
    steps = sampler.make_steps(schedule, "v", num_inference_steps=5)
    # Flow has no such number: its pipelines start from plain noise.
    expected = float(getattr(theirs, "init_noise_sigma", 1.0)) * normal
    got = sampler.init_noise(schedule, steps, keys, SHAPE)
    np.testing.assert_allclose(got, expected, rtol=tolerance)


@pytest.mark.parametrize(
    ("name", "prediction", "spacing", "zero_snr", "clip"),
    [(*case, False) for case in CASES] + [(*case, True) for case in CLIPPED],
)
def test_ddpm(name, prediction, spacing, zero_snr, clip, monkeypatch):
    keys, x_t = start()
    count = COUNTS[spacing]
    scheduler = make_scheduler(
        diffusers.DDPMScheduler, name, prediction, spacing, zero_snr, clip_sample=clip
    )
    scheduler.set_timesteps(count)
    x, theirs = torch.from_numpy(x_t), []
    for call, t in enumerate(scheduler.timesteps):
        given = noise(call)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, given=given, **__: given)
        x = scheduler.step(network(x, int(t), torch), t, x).prev_sample
        theirs.append(x.numpy())
    schedule = make_schedule(name, zero_terminal_snr=zero_snr)
    options = {"sampler": "ddpm", "num_inference_steps": count, "spacing": spacing}
    mine, steps = ours(schedule, prediction, keys, x_t, clip, **options)
    np.testing.assert_array_equal(steps.t, scheduler.timesteps.numpy())
    assert_same_steps(mine, theirs)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("name", "prediction", "spacing", "zero_snr", "clip"),
    [(*case, False) for case in CASES] + [(*case, True) for case in CLIPPED],
)
def test_ddim(name, prediction, spacing, zero_snr, clip, eta):
    keys, x_t = start()
    count = COUNTS[spacing]
    scheduler = make_scheduler(
        diffusers.DDIMScheduler, name, prediction, spacing, zero_snr, clip_sample=clip
    )
    scheduler.set_timesteps(count)
    times = scheduler.timesteps.tolist()
    # From pure noise at eta 1 it takes the root of 1 - alpha'^2 - tau^2 = 0, which rounding can put below 0.
    their_eta = eta - 1e-15 if zero_snr and eta == 1 else eta
    x, theirs = torch.from_numpy(x_t), []
    for call, (t, s) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        scheduler.num_inference_steps = Gap(t - s)
        options = {"eta": their_eta, "use_clipped_model_output": clip}
        output, given = network(x, t, torch), noise(call)
        x = scheduler.step(output, t, x, variance_noise=given, **options).prev_sample
        theirs.append(x.numpy())
    schedule = make_schedule(name, zero_terminal_snr=zero_snr)
    options = {"num_inference_steps": count, "spacing": spacing, "eta": eta}
    mine, steps = ours(schedule, prediction, keys, x_t, clip, **options)
    np.testing.assert_array_equal(steps.t, times)
    assert_same_steps(mine, theirs)


# torch has not NumPy 2's signature yet.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize(("name", "prediction", "spacing", "zero_snr"), CASES)
def test_dpm_solver_2m(name, prediction, spacing, zero_snr):
    keys, x_t = start()
    count = COUNTS[spacing]  # one of them is above 15, where it ends in its own way
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


@pytest.mark.parametrize(("prediction_type", "sign"), [("v_prediction", 1), ("epsilon", -1)])
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_edm_euler(sigma_data, name, prediction_type, sign):
    """v_prediction is the sign of c_out that Stable Video Diffusion has; epsilon is the paper's."""
    keys, x_t = start()
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=sigma_data, prediction_type=prediction_type
    )
    scheduler.set_timesteps(12)
    x, theirs = torch.from_numpy(80.0 * x_t), []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), float(t), torch)
        x = scheduler.step(sign * output, t, x).prev_sample
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
    # arXiv:2206.00364, eq. 5
    high, low = 700 ** (1 / 7), 0.002 ** (1 / 7)
    exact = (high + np.arange(15) / 14 * (low - high)) ** 7
    np.testing.assert_allclose(scheduler.sigmas[:-1], exact, rtol=1e-6)  # NumPy rounded them
    np.testing.assert_allclose(scheduler.timesteps, np.log(exact) / 4, rtol=1e-6, atol=1e-6)
    scheduler.sigmas[:-1] = torch.from_numpy(exact)
    scheduler.timesteps = torch.from_numpy(np.log(exact) / 4)
    x, theirs = torch.from_numpy(700.0 * x_t), []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), float(t), torch)
        x = scheduler.step(output, t, x).prev_sample
        theirs.append(x.numpy())
    options = {"sampler": "euler", "num_inference_steps": 15, "spacing": "linspace"}
    mine, steps = ours(make_schedule("edm"), "edm", keys, 700.0 * x_t, **options)
    np.testing.assert_allclose(steps.sigma, exact, rtol=1e-12)
    assert_same_steps(mine, theirs)
