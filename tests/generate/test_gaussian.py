"""Every sampler on data of a known normal law (gaussian.py): its end, and how fast it gets there."""

import jax
import numpy as np
import pytest

from tests.generate.gaussian import COVARIANCE, MEAN, SCHEDULES, measure_error, prediction_of, run
from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate import sampler


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def all_cases():
    for label, options in SCHEDULES.items():
        for name in sampler.SAMPLERS:
            if name != "ddpm" or make_schedule(**options).preserves_variance:
                yield label, name


@pytest.mark.parametrize(("label", "name"), list(all_cases()))
def test_every_sampler_reproduces_mean_and_covariance(label, name):
    schedule = make_schedule(**SCHEDULES[label])
    count = {"ddpm": 1000, "ddim": 500, "euler": 500, "heun": 100, "dpmpp_2m": 100}[name]
    if name == "dpmpp_2m" and schedule.clock == "steps":
        count = 500
    samples = run(schedule, prediction_of(schedule), name, count, 20_000)[0][-1]
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
    counts = [32, 64, 128, 256]
    errors = [measure_error(label, name, count) for count in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.25)
