"""Guidance: its formula, its one call, its rows, and where it is off."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate.guidance import count_calls, guidance_conditions, guide

NULL = jnp.array([2, 0])
SCHEDULE = make_schedule("flow")


def make_predict(calls):
    def predict(x_t, t, condition):
        calls.append(x_t.shape[0])
        words = condition["text"].sum(1)[:, None, None, None, None]
        return x_t * words + t[:, None, None, None, None] * jnp.cos(x_t)

    return predict


def inputs():
    x_t = jax.random.normal(jax.random.key(0), (3, 2, 2, 2, 1))
    return x_t, jnp.array([0.5, 0.6, 0.7]), {"text": jnp.array([[3, 4], [5, 0], [7, 9]])}


def halves(null=(2, 2, 2)):
    """The model with and without its prompts, in float64."""
    x_t, t, condition = inputs()
    x, t = np.float64(x_t), np.float64(t)[:, None, None, None, None]
    words = np.float64(condition["text"].sum(1))[:, None, None, None, None]
    nulls = np.float64(null)[:, None, None, None, None]
    return x * words + t * np.cos(x), x * nulls + t * np.cos(x)


@pytest.mark.parametrize("scale", [0.0, 2.0, 7.5])
def test_guidance_goes_from_no_prompt_beyond_the_prompt(scale):
    calls = []
    got = guide(make_predict(calls), SCHEDULE, NULL, scale)(*inputs())
    assert calls == [6]  # both halves in one call
    conditional, unconditional = halves()
    expected = unconditional + scale * (conditional - unconditional)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_guidance_of_one_is_the_model_at_half_the_cost():
    calls = []
    predict = make_predict(calls)
    got = guide(predict, SCHEDULE, NULL, 1.0, rescale=0.7)(*inputs())
    np.testing.assert_array_equal(got, predict(*inputs()))
    assert calls == [3, 3]


def test_a_negative_prompt_takes_the_place_of_no_prompt():
    """One for all rows, or one for each."""
    for negative, sums in ((jnp.array([8, 1]), (9, 9, 9)), ([[1, 0], [2, 2], [6, 7]], (1, 4, 13))):
        got = guide(make_predict([]), SCHEDULE, jnp.asarray(negative), 3.0)(*inputs())
        conditional, unconditional = halves(sums)
        expected = unconditional + 3.0 * (conditional - unconditional)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_all_conditions_but_the_text_stay():
    x_t, t, condition = inputs()
    seen = {}

    def predict(x_t, t, condition):
        seen.update(condition)
        return x_t

    guide(predict, SCHEDULE, NULL, 3.0)(x_t, t, condition | {"fps": jnp.arange(3.0)})
    np.testing.assert_array_equal(seen["fps"], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(seen["text"], [[3, 4], [2, 0], [5, 0], [2, 0], [7, 9], [2, 0]])


def test_guidance_takes_a_time_per_frame():
    x_t, _, condition = inputs()
    shapes = []

    def predict(x_t, t, condition):
        shapes.append(t.shape)
        return x_t + t[:, :, None, None, None]

    t = jnp.arange(6.0).reshape(3, 2)
    got = guide(predict, SCHEDULE, NULL, 3.0)(x_t, t, condition)
    np.testing.assert_allclose(got, x_t + t[:, :, None, None, None], rtol=1e-6)
    assert shapes == [(6, 2)]


def test_the_scale_grows_evenly_over_the_frames():
    """arXiv:2311.15127: w = linspace(w_min, w_max, T), as diffusers' pipeline has it."""
    got = guide(make_predict([]), SCHEDULE, NULL, 3.0, first_frame_scale=1.0)(*inputs())
    conditional, unconditional = halves()
    for frame, scale in enumerate((1.0, 3.0)):
        expected = unconditional + scale * (conditional - unconditional)
        np.testing.assert_allclose(got[:, frame], expected[:, frame], rtol=1e-5, atol=1e-5)


def knowing_predict(calls):
    """A model that reads known frames and their mask, too."""
    plain = make_predict(calls)

    def predict(x_t, t, condition):
        mask = condition["mask"][:, :, None, None, None]
        return plain(x_t, t, condition) + jnp.sin(x_t) * mask + condition["known"]

    return predict


def thirds():
    """All that is told, the known frames alone, and nothing, in float64; and the condition."""
    x_t, _, condition = inputs()
    known = jax.random.normal(jax.random.key(1), x_t.shape)
    mask = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    conditional, nothing = halves()
    shown = np.sin(np.float64(x_t)) * np.float64(mask)[:, :, None, None, None] + np.float64(known)
    condition |= {"known": known, "mask": mask}
    return conditional + shown, nothing + shown, nothing, condition


def test_text_and_known_frames_have_scales_of_their_own():
    """arXiv:2211.09800, eq. 3."""
    everything, frames, nothing, condition = thirds()
    x_t, t, _ = inputs()
    for first in (None, 1.0):
        calls = []
        guided = guide(
            knowing_predict(calls), SCHEDULE, NULL, 4.0, first_frame_scale=first, known_scale=1.5
        )
        got = guided(x_t, t, condition)
        assert calls == [9]
        text = np.array([4.0 if first is None else first, 4.0])[:, None, None, None]
        expected = nothing + 1.5 * (frames - nothing) + text * (everything - frames)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_one_scale_of_both_asks_twice_and_grows_over_the_frames():
    """As Stable Video Diffusion: both are told, or neither."""
    everything, _, nothing, condition = thirds()
    x_t, t, _ = inputs()
    calls = []
    guided = guide(
        knowing_predict(calls), SCHEDULE, NULL, 3.0, first_frame_scale=1.0, known_scale=3.0
    )
    got = guided(x_t, t, condition)
    assert calls == [6]
    scale = np.array([1.0, 3.0])[:, None, None, None]
    np.testing.assert_allclose(got, nothing + scale * (everything - nothing), rtol=1e-5, atol=2e-5)


def test_known_frames_are_told_in_both_halves_where_they_have_no_scale():
    everything, frames, _, condition = thirds()
    x_t, t, _ = inputs()
    got = guide(knowing_predict([]), SCHEDULE, NULL, 3.0)(x_t, t, condition)
    np.testing.assert_allclose(got, frames + 3 * (everything - frames), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("scales", "calls"),
    [
        ((1.0, None, None), 1),
        ((1.0, 1.0, 1.0), 1),
        ((2.0, None, None), 2),
        ((1.0, 3.0, None), 2),
        ((2.0, None, 2.0), 2),
        ((2.0, None, 1.0), 2),
        ((2.0, None, 1.5), 3),
        ((1.0, None, 2.0), 3),
    ],
)
def test_the_model_is_asked_no_more_often_than_the_scales_want(scales, calls):
    _, _, _, condition = thirds()
    assert count_calls(*scales) == calls == len(guidance_conditions(condition, NULL, *scales))


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescale_brings_the_deviation_back(rescale):
    """arXiv:2305.08891, eq. 15 and 16: at 1 the deviation is that of the conditional half."""
    got = np.float64(guide(make_predict([]), SCHEDULE, NULL, 7.5, rescale=rescale)(*inputs()))
    conditional, unconditional = halves()
    guided = unconditional + 7.5 * (conditional - unconditional)
    for row in range(3):
        factor = conditional[row].std() / guided[row].std()
        expected = rescale * guided[row] * factor + (1 - rescale) * guided[row]
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-4)
    if rescale == 1:
        np.testing.assert_allclose(got.std((1, 2, 3, 4)), conditional.std((1, 2, 3, 4)), rtol=1e-5)


def test_rescale_is_that_of_diffusers():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():  # its own imports warn
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
    conditional, unconditional = halves()
    guided = unconditional + 5.0 * (conditional - unconditional)
    # torch takes the deviation of a sample of a larger whole: alike but for the factor n / (n - 1).
    expected = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(conditional), 0.7)
    got = guide(make_predict([]), SCHEDULE, NULL, 5.0, rescale=0.7)(*inputs())
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.18, True), (0.6, True), (0.7, False)])
def test_outside_of_its_interval_guidance_is_off(t, inside):
    """On flow, sigma / alpha is t / (1 - t): 0.11, 0.22, 1.5 and 2.33."""
    x_t, _, condition = inputs()
    calls = []
    predict = make_predict(calls)
    t = jnp.full(3, t)
    guided = jax.jit(guide(predict, SCHEDULE, NULL, 4.0, interval=(0.2, 2.0)))(x_t, t, condition)
    assert calls == [6, 3]  # both are compiled; one is run
    plain = predict(x_t, t, condition)
    always = guide(predict, SCHEDULE, NULL, 4.0)(x_t, t, condition)
    np.testing.assert_allclose(guided, always if inside else plain, rtol=1e-5, atol=1e-5)


def test_pure_noise_is_inside_an_interval_without_an_end_alone():
    x_t, _, condition = inputs()
    t = jnp.ones(3)
    predict = make_predict([])
    for high, expected in ((np.inf, guide(predict, SCHEDULE, NULL, 4.0)), (1e9, predict)):
        got = guide(predict, SCHEDULE, NULL, 4.0, interval=(0.2, high))(x_t, t, condition)
        np.testing.assert_allclose(got, expected(x_t, t, condition), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale": 1.5}, "guidance_rescale is 1.5"),
        ({"interval": (2.0, 1.0)}, "guidance_interval is .* the lower first"),
        ({"interval": (2.0,)}, "give two noise levels"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        guide(make_predict([]), SCHEDULE, NULL, 2.0, **options)
