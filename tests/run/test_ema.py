"""Moving averages against explicit sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.run import ema

STEPS = 3000


def random_walk(steps=STEPS, size=16, seed=0):
    """Parameters of a training that drifts and jitters, from a start far away."""
    rng = np.random.default_rng(seed)
    jitter = rng.standard_normal((steps, size))
    return 5 * np.exp(-np.arange(steps) / 500)[:, None] + np.cumsum(jitter, 0) * 0.05 + jitter


def track(path, widths):
    """Power averages after each step, (STEPS, size) each, as training moves them."""
    decays = ema.make_decays((), widths)

    def step(averages, inputs):
        averages = ema.update(averages, {"w": inputs[1]}, inputs[0], decays)
        return averages, averages

    first = {name: {"w": jnp.zeros(path.shape[1])} for name in decays}
    path = jnp.asarray(path, jnp.float32)
    _, averages = jax.jit(lambda first, path: jax.lax.scan(step, first, path))(
        first, (jnp.arange(len(path)), path)
    )
    return {width: np.asarray(averages[ema.width_name(width)]["w"]) for width in widths}


def profile(gamma, steps):
    """The weight of the parameters of each step, i = 1 ... steps, from the recursion itself."""
    weights = np.zeros(steps)
    for t in range(1, steps + 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        weights *= beta
        weights[t - 1] = 1 - beta
    return weights


def test_widths_and_exponents_of_the_paper():
    """EDM2, section 3.1: sigma_rel of 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert ema.width_to_gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert ema.width_to_gamma(0.10) == pytest.approx(6.94, abs=0.005)
    for width in (0.001, 0.05, 0.1, 0.25, 0.288):
        assert ema.gamma_to_width(ema.width_to_gamma(width)) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    weights = profile(ema.width_to_gamma(width), STEPS)
    place = (np.arange(STEPS) + 0.5) / STEPS
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    mean = weights @ place
    assert np.sqrt(weights @ (place - mean) ** 2) == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0.0, 0.2887, -0.1])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(ValueError, match="below 0.2887"):
        ema.make_decays((), (width,))


def test_the_warm_up_rises_to_the_decay():
    steps = np.arange(200)
    got = np.array([ema.warmup_decay(0.9, jnp.int32(n)) for n in steps])
    np.testing.assert_allclose(got, np.minimum(0.9, (1 + steps) / (10 + steps)), rtol=1e-6)


def test_several_averages_are_tracked_at_once():
    decays = ema.make_decays((0.999, 0.9), (0.1,))
    assert list(decays) == ["decay_0.999", "decay_0.9", "width_0.1"]
    path = random_walk(300)
    averages = {name: {"w": jnp.asarray(path[0], jnp.float32)} for name in decays}
    update = jax.jit(lambda averages, params, step: ema.update(averages, params, step, decays))
    slow = fast = np.float64(path[0])
    for n, params in enumerate(path):
        averages = update(averages, {"w": jnp.asarray(params, jnp.float32)}, jnp.int32(n))
        warm = (1 + n) / (10 + n)
        slow = min(0.999, warm) * slow + (1 - min(0.999, warm)) * params
        fast = min(0.9, warm) * fast + (1 - min(0.9, warm)) * params
    np.testing.assert_allclose(averages["decay_0.999"]["w"], slow, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(averages["decay_0.9"]["w"], fast, rtol=1e-4, atol=1e-5)
    power = profile(ema.width_to_gamma(0.1), 300) @ path
    np.testing.assert_allclose(averages["width_0.1"]["w"], power, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def tracked():
    """A run's parameters, and its averages of two widths after each step."""
    path = random_walk()
    return path, track(path, (0.05, 0.1))


@pytest.mark.parametrize("width", [0.03, 0.04, 0.075, 0.15, 0.2, 0.23])
@pytest.mark.parametrize("every", [75, 100, 150])
@pytest.mark.parametrize("end", [3000, 2400])
def test_an_average_made_afterwards_is_the_one_tracked(tracked, width, every, end):
    """Two widths and some tens of snapshots make any other to 1 % (EDM2, section 3.2)."""
    path, averages = tracked
    grid = [(step, kept) for step in range(every, end + 1, every) for kept in averages]
    weights = ema.solve_weights([step for step, _ in grid], [kept for _, kept in grid], end, width)
    assert weights.dtype == np.float64 and weights.sum() == pytest.approx(1, abs=1e-12)
    got = ema.reconstruct(({"w": averages[kept][step - 1]} for step, kept in grid), weights)["w"]
    expected = profile(ema.width_to_gamma(width), end) @ path[:end]
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.01


def test_many_snapshots_are_solved_too():
    """Of 400 profiles most are nearly a mix of others; the weights stay small and the mix good."""
    steps, kept = np.repeat(np.arange(50, 10_001, 50), 2), np.tile([0.05, 0.1], 200)
    weights = ema.solve_weights(steps, kept, 10_000, 0.08)
    assert weights.sum() == pytest.approx(1, abs=1e-10) and np.abs(weights).sum() < 2
    mix = sum(
        weight * np.pad(np.diff((np.arange(step + 1) / step) ** (gamma + 1)), (0, 10_000 - step))
        for weight, step, gamma in zip(weights, steps, map(ema.width_to_gamma, kept), strict=True)
    )
    wanted = profile(ema.width_to_gamma(0.08), 10_000)
    assert np.linalg.norm(mix - wanted) / np.linalg.norm(wanted) < 1e-3


@pytest.mark.parametrize(("step", "width"), [(3080, 0.08), (3000, 0.005)])
def test_an_average_that_snapshots_cannot_make_is_refused(step, width):
    """They end before the step, or are all too wide."""
    steps, kept = np.repeat(np.arange(100, 3001, 100), 2), np.tile([0.05, 0.1], 30)
    with pytest.raises(ValueError, match=rf"width {width:g} at step {step} .* choose a step with"):
        ema.solve_weights(steps.tolist(), kept.tolist(), step, width)


def test_late_steps_keep_their_precision():
    """In float32 1 - 1/t has few digits left of 1/t, and a mix of two large numbers loses the small difference."""
    steps = np.array([130_000, 400_000, 777_777])
    gamma = ema.width_to_gamma(0.05)
    got = 1 - np.float64(ema.power_decay(gamma, jnp.asarray(steps)))
    exact = -np.expm1((gamma + 1) * np.log1p(-1 / (steps + 1)))
    np.testing.assert_allclose(got, exact, rtol=2e-3)

    rng = np.random.default_rng(0)
    average = rng.uniform(1, 2, 1000).astype(np.float32)
    params = (average + rng.uniform(-0.1, 0.1, 1000)).astype(np.float32)
    decay = np.float32(0.99998)
    moved = ema.update({"a": {"w": average}}, {"w": params}, 0, {"a": lambda step: decay})
    exact = np.float64(decay) * average + (1 - np.float64(decay)) * params
    assert np.abs(moved["a"]["w"] - exact).max() < 0.52 * np.finfo(np.float32).eps


def test_a_tracked_average_is_found_again():
    weights = ema.solve_weights([50, 100, 50, 100], [0.05, 0.05, 0.1, 0.1], 100, 0.1)
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-6)


def test_a_missing_snapshot_is_not_passed_over():
    trees = [{"w": np.ones(2)}, {"w": np.full(2, 3.0)}]
    np.testing.assert_array_equal(ema.reconstruct(trees, [-0.5, 1.5])["w"], 4.0)
    with pytest.raises(ValueError):
        ema.reconstruct(trees[:1], [-0.5, 1.5])


def test_averages_must_be_some_and_different():
    with pytest.raises(ValueError, match="no moving average"):
        ema.make_decays((), ())
    with pytest.raises(ValueError, match="twice"):
        ema.make_decays((0.9, 0.9), ())
    with pytest.raises(ValueError, match="has 1.0: choose decays"):
        ema.make_decays((1.0,), ())
