"""Diffusion times: the training distributions and the sampling timesteps."""

import statistics
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import times
from videogen_jax.diffusion.schedule import make_schedule

NORMAL = statistics.NormalDist()


def quantiles(count):
    """The median of each of `count` equally probable intervals of the standard normal distribution."""
    return np.array([NORMAL.inv_cdf((i + 0.5) / count) for i in range(count)])


def draw(name, count=1000, **options):
    """Sorted times of a batch."""
    schedule = make_schedule(name)
    return np.sort(times.draw_times(jax.random.key(3), count, schedule, **options))


def test_stratified_uniform_times_fall_one_into_each_interval():
    drawn = draw("linear", 10)
    assert drawn.dtype == np.int32
    np.testing.assert_array_equal(drawn // 100, np.arange(10))
    np.testing.assert_array_equal(np.floor(draw("flow", 10) * 10), np.arange(10))


def test_every_clip_of_a_batch_meets_all_intervals():
    """Not only that of its row: rows are not exchangeable where the shuffle window is smaller than a batch."""
    count, steps = 8, 2000
    schedule = make_schedule("flow")
    keys = jax.random.split(jax.random.key(1), steps)
    drawn = jax.vmap(lambda key: times.draw_times(key, count, schedule))(keys)  # (steps, B)
    interval = np.floor(np.asarray(drawn) * count).astype(int)
    np.testing.assert_array_equal(np.sort(interval, axis=1), [range(count)] * steps)
    for row in interval.T:
        found = np.bincount(row, minlength=count)
        assert (
            np.sum((found - steps / count) ** 2 / (steps / count)) < 29
        )  # chi-square of 7: p < 2e-4
    # Neighbours in the batch are not neighbours in time.
    steps_up = np.mean((interval[:, 1:] - interval[:, :-1]) % count == 1)
    assert abs(steps_up - 1 / count) < 0.02


def test_draws_with_evenly_spaced_offsets_are_stratified_together():
    schedule, count, parts = make_schedule("flow"), 6, 4
    offsets = (0.83 + np.arange(parts) / parts) % 1
    drawn = [
        times.draw_times(jax.random.key(i), count, schedule, offset=offset)
        for i, offset in enumerate(offsets)
    ]
    for part in drawn:
        np.testing.assert_array_equal(np.sort(np.floor(part * count)), np.arange(count))
    together = np.sort(np.concatenate(drawn))
    np.testing.assert_array_equal(np.floor(together * count * parts), np.arange(count * parts))


def test_unstratified_times_are_independent():
    drawn = draw("linear", 2000, stratified=False)
    np.testing.assert_allclose(np.bincount(drawn // 100), 200, atol=60)  # 4 standard deviations


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.4)])
def test_logit_normal_times_have_their_distribution(mean, std):
    """A stratified draw gives the quantiles of the distribution, each jittered within its interval."""
    middle = slice(20, -20)  # the outermost intervals are wide
    expected = 1 / (1 + np.exp(-mean - std * quantiles(1000)[middle]))
    options = {"distribution": "logit_normal", "mean": mean, "std": std}
    np.testing.assert_allclose(draw("flow", **options)[middle], expected, atol=2e-3)
    steps = draw("linear", **options)[middle]
    np.testing.assert_allclose((steps + 0.5) / 1000, expected, atol=3e-3)


def test_log_normal_times_have_the_distribution_of_svds_sigma():
    """ln sigma ~ N(0.7, 1.6^2)."""
    drawn = draw("edm", distribution="log_normal", mean=0.7, std=1.6)
    middle = slice(20, -20)  # the outermost intervals are wide
    expected = 0.7 + 1.6 * quantiles(1000)
    np.testing.assert_allclose(np.log(drawn)[middle], expected[middle], atol=0.05)


def test_uniform_times_of_edm_follow_its_step_spacing():
    schedule = make_schedule("edm", sigma_max=80.0)
    drawn = np.sort(times.draw_times(jax.random.key(0), 1000, schedule))
    fraction = (np.arange(1000) + 0.5) / 1000
    expected = (0.002 ** (1 / 7) + fraction * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    np.testing.assert_allclose(drawn[5:], expected[5:], rtol=0.05)


def test_a_fraction_of_discrete_time_is_rounded_down_to_a_step():
    fraction = jnp.array([0.0, 0.00095, 0.0011, 0.5004, 0.99985, 1.0])
    steps = times.times_at_fraction(fraction, make_schedule("linear"))
    np.testing.assert_array_equal(steps, [0, 0, 1, 500, 999, 999])


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_extreme_draws_are_valid_times(distribution, monkeypatch):
    for extreme in (0.0, 1.0):
        monkeypatch.setattr(jax.random, "uniform", lambda *_, e=extreme: jnp.asarray(e))
        for name in ("linear", "flow"):
            drawn = draw(name, 1, distribution=distribution)
            assert np.all(np.isfinite(drawn)) and np.all(drawn >= 0)
            assert np.all(drawn <= (999 if name == "linear" else 1))
        if distribution == "uniform":
            assert 0 < draw("edm", 1, distribution="log_normal") < np.inf


@pytest.mark.parametrize(
    ("name", "distribution", "message"),
    [
        ("linear", "gamma", "'gamma': choose one of uniform, logit_normal, log_normal"),
        ("flow", "log_normal", "choose objective.time_distribution uniform or logit_normal"),
        ("linear", "log_normal", "or schedule.name=edm"),
        ("edm", "logit_normal", "log_normal or uniform"),
    ],
)
def test_distributions_that_do_not_fit_the_schedule_are_rejected(name, distribution, message):
    with pytest.raises(ValueError, match=message):
        draw(name, 4, distribution=distribution)


# --------------------------------------------------------------------------------- sampling steps


@pytest.mark.parametrize("spacing", times.SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 10, 37, 64])
def test_timesteps_decrease_strictly_for_every_count(spacing, num_steps):
    """Regression: the first implementation went towards more noise."""
    schedule = make_schedule("linear", num_steps)
    for count in range(1, num_steps + 1):
        steps = times.space_times(schedule, count, spacing)
        assert steps.shape == (count,) and steps.dtype == np.int32
        assert np.all(np.diff(steps) < 0)
        assert 0 <= steps[-1] <= steps[0] < num_steps


@pytest.mark.parametrize("spacing", times.SPACINGS)
def test_timesteps_of_1000_steps_decrease_strictly(spacing):
    schedule = make_schedule("linear")
    for count in [*range(1, 100), 333, 500, 501, 666, 667, 750, 900, 998, 999, 1000]:
        steps = times.space_times(schedule, count, spacing)
        assert steps.shape == (count,)
        assert np.all(np.diff(steps) < 0)
        assert steps[-1] >= 0
        if spacing == "trailing":
            assert steps[0] == 999
        if spacing == "leading":
            assert steps[-1] == 0


def test_spacings_match_table_2_of_the_paper():
    """arXiv:2305.08891, table 2, T = 1000, S = 10; the paper counts steps from 1."""
    table = {
        "leading": range(1, 1000, 100),
        "linspace": (1, 112, 223, 334, 445, 556, 667, 778, 889, 1000),
        "trailing": range(100, 1001, 100),
    }
    for spacing, expected in table.items():
        steps = times.space_times(make_schedule("linear"), 10, spacing)
        assert [step + 1 for step in steps[::-1].tolist()] == list(expected)
        real = times.space_times(make_schedule("linear", continuous=True), 10, spacing)
        np.testing.assert_allclose(1000 * real[::-1], list(expected))


@pytest.mark.parametrize("count", [7, 16, 32, 64, 80, 999])
def test_trailing_rounds_before_subtracting_one(count):
    """arXiv:2305.08891, table 2, round(flip(arange(T, 0, -T / S))) from 1: halves round to the even step."""
    expected = [round(1000 - i * Fraction(1000, count)) - 1 for i in range(count)]
    steps = times.space_times(make_schedule("linear"), count, "trailing")
    assert steps.tolist() == expected


def test_above_first_skips_the_first_step():
    schedule = make_schedule("linear")
    for spacing, last in (("leading", 100), ("linspace", 100), ("trailing", 110)):
        steps = times.space_times(schedule, 9, spacing, above_first=True)
        assert len(steps) == 9 and steps[-1] == pytest.approx(last, abs=11) and steps[-1] > 0


@pytest.mark.parametrize("count", [0, 11])
def test_more_inference_steps_than_the_schedule_has_are_rejected(count):
    with pytest.raises(ValueError, match="choose between 1 and 10"):
        times.space_times(make_schedule("linear", 10), count, "leading")
    with pytest.raises(ValueError, match="choose between 1 and 9"):
        times.space_times(make_schedule("linear", 10), 10, "leading", above_first=True)


def test_the_error_for_an_unknown_spacing_lists_the_choices():
    with pytest.raises(ValueError, match="'even'.* one of leading, trailing, linspace"):
        times.space_times(make_schedule("linear", 10), 5, "even")
