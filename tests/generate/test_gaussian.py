"""Every sampler on data of a known normal law (gaussian.py): its end, and how fast it gets there."""

import jax
import numpy as np
import pytest

from tests.generate.gaussian import COVARIANCE, MEAN, SCHEDULES, measure_error, prediction_of, run
from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate import sampler

pytestmark = pytest.mark.slow


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
    # The start has exactly its mean and covariance, and only ddpm draws noise on the way: of 20,000 samples the
    # mean is good to 0.007 and the covariance to 1 %. Euler's steps add up to 1 %.
    count_samples = 20_000 if name == "ddpm" else 200
    prediction = prediction_of(schedule)
    samples = run(schedule, prediction, name, count, count_samples, return_all=False)[0][-1]
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T, bias=True), COVARIANCE, atol=0.025)


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_what_the_model_predicts_makes_no_difference(prediction):
    schedule = make_schedule("linear", continuous=True)
    for name in ("ddim", "heun", "dpmpp_2m"):
        expected = run(schedule, "v", name, 20, 10)[0]
        got = run(schedule, prediction, name, 20, 10)[0]
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("label", "name", "share", "order"),
    [
        ("linear, continuous", "ddim", 1, 1),
        ("cosine, continuous", "ddim", 1, 1),
        ("flow", "ddim", 1, 1),
        ("flow", "euler", 1, 1),
        ("edm", "euler", 1, 1),
        ("linear, continuous", "heun", 1, 2),
        ("cosine, continuous", "heun", 1, 2),
        ("flow", "heun", 1, 2),
        ("edm", "heun", 1, 2),
        ("linear, continuous", "dpmpp_2m", 0.75, 2),
        ("scaled_linear, continuous", "dpmpp_2m", 0.75, 2),
        ("flow", "dpmpp_2m", 0.75, 2),
        ("edm", "dpmpp_2m", 0.75, 2),
        ("edm", "dpmpp_2m", 1, 2),
    ],
)
def test_the_error_falls_at_the_order_of_the_method(label, name, share, order):
    counts = [32, 64, 128, 256]
    errors = [measure_error(label, name, count, share) for count in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.25)
