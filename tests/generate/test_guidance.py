"""Guidance: its formula, its one call, and its rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.generate.guidance import guide

NULL = jnp.array([2, 0])


def make_predict(calls):
    def predict(x_t, t, text):
        calls.append(x_t.shape[0])
        return x_t * text.sum(1)[:, None, None, None, None] + t[:, None, None, None, None]

    return predict


def inputs():
    x_t = jax.random.normal(jax.random.key(0), (3, 2, 2, 2, 1))
    return x_t, jnp.array([5.0, 6.0, 7.0]), jnp.array([[3, 4], [5, 0], [7, 9]])


@pytest.mark.parametrize("scale", [0.0, 2.0, 7.5])
def test_guidance_goes_from_no_prompt_beyond_the_prompt(scale):
    x_t, t, text = inputs()
    calls = []
    got = guide(make_predict(calls), NULL, scale)(x_t, t, text)
    assert calls == [6]  # both halves in one call
    x, times = np.float64(x_t), np.float64(t)[:, None, None, None, None]
    conditional = x * np.array([7.0, 5.0, 16.0])[:, None, None, None, None] + times
    unconditional = x * 2.0 + times
    expected = unconditional + scale * (conditional - unconditional)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_guidance_of_one_is_the_model_at_half_the_cost():
    x_t, t, text = inputs()
    calls = []
    predict = make_predict(calls)
    np.testing.assert_array_equal(guide(predict, NULL, 1.0)(x_t, t, text), predict(x_t, t, text))
    assert calls == [3, 3]


def test_guidance_takes_a_time_per_frame():
    x_t, _, text = inputs()
    shapes = []

    def predict(x_t, t, text):
        shapes.append(t.shape)
        return x_t + t[:, :, None, None, None]

    t = jnp.arange(6.0).reshape(3, 2)
    got = guide(predict, NULL, 3.0)(x_t, t, text)
    np.testing.assert_allclose(got, x_t + t[:, :, None, None, None], rtol=1e-6)
    assert shapes == [(6, 2)]
