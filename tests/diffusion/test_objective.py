"""Prediction types and loss weights against their algebra in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import make_schedule

SHAPE = (3, 4, 2, 2, 3)
ALPHA = np.array([0.95, 0.6, 0.1])
SIGMA = np.sqrt(1 - ALPHA**2)


def clips():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, SHAPE), rng.standard_normal(SHAPE)


def rows(values):
    return values[:, None, None, None, None]


def targets():
    """(x0, eps, x_t, the target of each prediction), from the definitions, in float64."""
    x0, eps = clips()
    x_t = rows(ALPHA) * x0 + rows(SIGMA) * eps
    v = rows(ALPHA) * eps - rows(SIGMA) * x0
    # On a variance-preserving schedule with data of unit variance, EDM's network predicts v.
    return x0, eps, x_t, {"eps": eps, "x0": x0, "v": v, "flow": eps - x0, "edm": v}


def f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def test_noise_is_added_by_time_per_clip():
    x0, eps, x_t, _ = targets()
    np.testing.assert_allclose(objective.add_noise(*f32(x0, eps, ALPHA, SIGMA)), x_t, atol=1e-6)


def test_noise_is_added_by_time_per_frame():
    x0, eps = clips()
    alpha = np.random.default_rng(1).uniform(0.1, 0.9, SHAPE[:2])
    sigma = np.sqrt(1 - alpha**2)
    expected = np.empty(SHAPE)
    for b in range(SHAPE[0]):
        for t in range(SHAPE[1]):
            expected[b, t] = alpha[b, t] * x0[b, t] + sigma[b, t] * eps[b, t]
    np.testing.assert_allclose(
        objective.add_noise(*f32(x0, eps, alpha, sigma)), expected, atol=1e-6
    )


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_a_perfect_output_converts_back_to_video_and_noise(prediction):
    x0, eps, x_t, expected = targets()
    output = objective.make_target(prediction, *f32(x0, eps, ALPHA, SIGMA))
    np.testing.assert_allclose(output, expected[prediction], atol=1e-6)
    got_x0, got_eps = objective.to_x0_and_eps(prediction, output, *f32(x_t, ALPHA, SIGMA))
    np.testing.assert_allclose(got_x0, x0, atol=2e-5)
    np.testing.assert_allclose(got_eps, eps, atol=2e-5)


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_any_output_converts_to_video_and_noise_that_make_up_x_t(prediction):
    """alpha x0 + sigma eps = x_t holds for wrong outputs too, and prediction types convert to each other."""
    _, _, x_t, _ = targets()
    output = np.random.default_rng(2).standard_normal(SHAPE)
    x0, eps = objective.to_x0_and_eps(prediction, *f32(output, x_t, ALPHA, SIGMA))
    x0, eps = np.float64(x0), np.float64(eps)
    np.testing.assert_allclose(rows(ALPHA) * x0 + rows(SIGMA) * eps, x_t, atol=1e-5)
    for other in objective.PREDICTIONS:
        same = objective.make_target(other, *f32(x0, eps, ALPHA, SIGMA))
        again = objective.to_x0_and_eps(other, same, *f32(x_t, ALPHA, SIGMA))
        np.testing.assert_allclose(again[0], x0, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(again[1], eps, rtol=1e-4, atol=1e-4)


def test_velocity_to_noise_is_not_swapped():
    """Regression: the first implementation computed eps as sigma v + alpha x_t."""
    alpha, sigma, x0, eps = 0.6, 0.8, 0.5, -0.25
    x_t, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    got_x0, got_eps = objective.to_x0_and_eps(
        "v", jnp.full((1, 1), v), jnp.full((1, 1), x_t), jnp.array([alpha]), jnp.array([sigma])
    )
    np.testing.assert_allclose(got_eps, eps, atol=1e-6)
    np.testing.assert_allclose(got_x0, x0, atol=1e-6)
    assert abs(float(got_eps[0, 0]) - (sigma * v + alpha * x_t)) > 0.1


def error_weights(weighting, alpha, sigma, gamma=5.0):
    """Cost of an error of x0 by 1 under each prediction: weight x (d prediction / d x0)^2."""
    slope = {"x0": np.ones_like(alpha), "eps": alpha / sigma, "v": 1 / sigma}
    slope |= {"edm": slope["v"], "flow": 1 + alpha / sigma}
    return {
        name: np.float64(objective.loss_weight(weighting, name, *f32(alpha, sigma), gamma))
        * slope[name] ** 2
        for name in objective.PREDICTIONS
    }


def test_min_snr_weights_an_error_of_x0_equally_for_all_predictions():
    costs = error_weights("min_snr", ALPHA, SIGMA)
    expected = np.minimum(ALPHA**2 / SIGMA**2, 5.0)
    for cost in costs.values():
        np.testing.assert_allclose(cost, expected, rtol=1e-5)


def test_velocity_weights_equal_an_unweighted_loss_on_v():
    alpha = np.array([0.8, 0.7, 0.5])  # no weight reaches gamma here
    sigma = np.sqrt(1 - alpha**2)
    for cost in error_weights("velocity", alpha, sigma).values():
        np.testing.assert_allclose(cost, 1 / sigma**2, rtol=1e-5)


def test_weights_on_rectified_flow():
    """With alpha = 1 - t and sigma = t, an error of x0 by 1 is one of flow by 1 / t and of v by (alpha^2 + t^2) / t."""
    t = np.array([0.1, 0.4, 0.9])
    snr, levels = ((1 - t) / t) ** 2, f32(1 - t, t)
    slope = {"x0": np.ones(3), "eps": (1 - t) / t, "flow": 1 / t, "v": ((1 - t) ** 2 + t**2) / t}
    for prediction, each in slope.items():
        got = objective.loss_weight("min_snr", prediction, *levels)
        np.testing.assert_allclose(got, np.minimum(snr, 5) / each**2, rtol=1e-5)
        got = objective.loss_weight("velocity", prediction, *levels)
        np.testing.assert_allclose(got, np.minimum(slope["v"] ** 2 / each**2, 5), rtol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_weights_are_clipped_at_gamma(gamma):
    alpha, sigma = f32(np.array([0.9999, 0.5]), np.sqrt(1 - np.array([0.9999, 0.5]) ** 2))
    for weighting in ("min_snr", "velocity"):
        weight = objective.loss_weight(weighting, "x0", alpha, sigma, gamma)
        np.testing.assert_allclose(weight[0], gamma, rtol=1e-6)
    low = objective.loss_weight("min_snr", "x0", alpha, sigma, gamma)[1]
    np.testing.assert_allclose(low, min(1 / 3, gamma), rtol=1e-6)


@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
@pytest.mark.parametrize("weighting", objective.WEIGHTINGS)
def test_weights_are_finite_at_all_times(prediction, weighting):
    """Also at zero terminal SNR, where min-SNR for eps is 0 / 0 with the limit 1."""
    schedule = make_schedule("cosine", zero_terminal_snr=True, shift=8.0)
    levels = schedule.alpha_sigma(jnp.arange(1000))
    weight = np.asarray(objective.loss_weight(weighting, prediction, *levels))
    assert weight.shape == (1000,)
    assert np.all(np.isfinite(weight))
    assert np.all(weight >= 0)
    if weighting == "uniform":
        assert np.all(weight == 1)
    if weighting == "min_snr" and prediction == "eps":
        assert weight[-1] == 1


def edm_levels(sigma_data):
    """(sigma, c_skip, c_out, weight of an error of x0) of arXiv:2206.00364, table 1, with SVD's sign of c_out."""
    sigma = np.array([0.01, 0.5, 3.0, 600.0])
    total = sigma**2 + sigma_data**2
    weight = total / (sigma * sigma_data) ** 2
    return sigma, sigma_data**2 / total, -sigma * sigma_data / np.sqrt(total), weight


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_edm_is_the_preconditioning_of_the_paper(sigma_data):
    sigma, c_skip, c_out, weight = edm_levels(sigma_data)
    rng = np.random.default_rng(3)
    x0, eps = rng.standard_normal((2, 4, 5))
    x_t = x0 + sigma[:, None] * eps
    target = (x0 - c_skip[:, None] * x_t) / c_out[:, None]
    one = np.ones_like(sigma)
    with jax.enable_x64(True):
        got = objective.make_target(
            "edm", x0, eps, jnp.asarray(one), jnp.asarray(sigma), sigma_data
        )
        np.testing.assert_allclose(got, target, rtol=1e-6)
        output = rng.standard_normal(x_t.shape)
        got, _ = objective.to_x0_and_eps(
            "edm", output, x_t, jnp.asarray(one), jnp.asarray(sigma), sigma_data
        )
        np.testing.assert_allclose(got, c_skip[:, None] * x_t + c_out[:, None] * output, rtol=1e-9)
        on_edm = objective.loss_weight("edm", "edm", one, sigma, sigma_data=sigma_data)
        np.testing.assert_allclose(on_edm, 1, rtol=1e-9)  # weight x c_out^2
        on_x0 = objective.loss_weight("edm", "x0", one, sigma, sigma_data=sigma_data)
        np.testing.assert_allclose(on_x0, weight, rtol=1e-9)


@pytest.mark.parametrize("name", ["flow", "edm", "linear"])
@pytest.mark.parametrize("prediction", objective.PREDICTIONS)
def test_any_prediction_converts_on_any_schedule(name, prediction):
    schedule = make_schedule(name, continuous=True)
    t = schedule.time_of_step(np.array([1.0, 400.0, 950.0]))
    x0, eps = clips()
    with jax.enable_x64(True):
        levels = [jnp.asarray(level) for level in schedule.alpha_sigma(t)]
        x_t = objective.add_noise(x0, eps, *levels)
        output = objective.make_target(prediction, x0, eps, *levels, sigma_data=0.7)
        got = objective.to_x0_and_eps(prediction, output, x_t, *levels, sigma_data=0.7)
    np.testing.assert_allclose(got[0], x0, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got[1], eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{"name": "cosine", "zero_terminal_snr": True}, {"name": "flow"}]
)
def test_eps_prediction_is_rejected_at_zero_terminal_snr(options):
    schedule = make_schedule(**options)
    with pytest.raises(ValueError, match="ends in pure noise.* v, x0 or flow"):
        objective.check_objective(schedule, "eps")
    objective.check_objective(schedule, "v")
    objective.check_objective(make_schedule("linear"), "eps")


def test_errors_for_unknown_names_list_the_choices():
    one = jnp.ones(1)
    with pytest.raises(ValueError, match="'noise'.* one of eps, x0, v, flow, edm"):
        objective.make_target("noise", one, one, one, one)
    with pytest.raises(ValueError, match="'noise'.* one of eps, x0, v, flow, edm"):
        objective.to_x0_and_eps("noise", one, one, one, one)
    with pytest.raises(ValueError, match="'snr'.* one of uniform, min_snr, velocity, edm"):
        objective.loss_weight("snr", "v", one, one)
