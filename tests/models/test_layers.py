"""Layers against float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import apply, random_params
from videogen_jax.models import layers
from videogen_jax.models.linear import Modulation


def f64(tree):
    return jax.tree.map(np.float64, tree)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_time_embeddings_are_cosines_then_sines(shape):
    t = np.array([0.0, 1.0, 17.0, 500.0, 999.0])
    times = np.broadcast_to(t, shape)
    got = layers.timestep_embedding(jnp.asarray(times), 16)
    assert got.shape == (*shape, 16) and got.dtype == jnp.float32
    for i, value in enumerate(t):
        angles = [value * 10_000 ** (-k / 8) for k in range(8)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        np.testing.assert_allclose(
            got[..., i, :], np.broadcast_to(expected, got[..., i, :].shape), atol=1e-4
        )


def test_times_may_be_integers():
    t = jnp.arange(0, 1000, 111)
    np.testing.assert_array_equal(
        layers.timestep_embedding(t, 8), layers.timestep_embedding(t.astype(jnp.float32), 8)
    )


def test_modulate_is_a_layer_norm_with_the_conditions_scale_and_shift():
    x = normal(2, 3, 4, 6) * 3 + 5
    shift, scale = normal(2, 3, 1, 6, seed=1), normal(2, 1, 1, 6, seed=2)
    x64 = np.float64(x)
    mean = x64.mean(-1, keepdims=True)
    normed = (x64 - mean) / np.sqrt(((x64 - mean) ** 2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layers.layer_norm(x), normed, atol=2e-5)
    expected = normed * (1 + np.float64(scale)) + np.float64(shift)
    np.testing.assert_allclose(layers.modulate(x, Modulation(shift, scale)), expected, atol=5e-5)


def test_norms_are_computed_in_float32():
    """The square of 300 exceeds float16's range."""
    x = jnp.full((1, 4), 300.0, jnp.float16).at[0, 0].set(-300)
    out = layers.RMSNorm().apply({"params": {"scale": jnp.ones(4)}}, x)
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out, [[-1, 1, 1, 1]], atol=2e-3)
    np.testing.assert_allclose(layers.layer_norm(x), [[-(3**0.5)] + [3**-0.5] * 3], atol=1e-3)


def plain_layer_norm(x):
    x = x - jnp.mean(x, -1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def plain_rms_norm(x, scale):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def plain_gelu(x):
    return x / 2 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


PLAIN = {
    "layer_norm": (layers.layer_norm, plain_layer_norm, ()),
    "rms_norm": (layers.rms_norm, plain_rms_norm, (normal(8, seed=1),)),
    "unscaled rms_norm": (
        lambda x: layers.rms_norm(x, None),
        lambda x: plain_rms_norm(x, 1.0),
        (),
    ),
    "gelu": (layers.gelu, plain_gelu, ()),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)],
)
def test_gradients_are_those_of_the_formula_in_float64(name, dtype, tolerance):
    """JAX's own gradient of the formula."""
    ours, plain, args = PLAIN[name]
    x, gradient = jnp.asarray(normal(3, 5, 2, 8) * 2 + 1, dtype), normal(3, 5, 2, 8, seed=2)
    y, backward = jax.vjp(ours, x, *args)
    gradient = jnp.asarray(gradient, y.dtype)
    found = (y, *backward(gradient))
    with jax.enable_x64():
        x64, gradient64, args64 = f64((x, gradient, args))
        y64, backward64 = jax.vjp(plain, jnp.asarray(x64), *map(jnp.asarray, args64))
        expected = jax.tree.map(np.asarray, (y64, *backward64(jnp.asarray(gradient64))))
    assert found[1].dtype == dtype
    if (name, dtype) == ("gelu", jnp.float32):
        tolerance *= 5  # XLA's tanh; nn.gelu's own gradient differs as much
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(f64(got), wanted, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", PLAIN)
def test_the_backward_pass_saves_the_input_alone(name):
    function, _, args = PLAIN[name]
    x = jnp.asarray(normal(3, 8), jnp.bfloat16)
    saved = jax.tree.leaves(jax.vjp(function, x, *args)[1])
    arrays = [leaf for leaf in saved if leaf.shape == x.shape]
    assert len(arrays) == 1 and arrays[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(f64(arrays[0]), f64(x))


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def attention(query, key, value, params, mask, qk_norm=True):
    """softmax(norm(q) norm(k) / sqrt(Dh)) v in float64, one head and query at a time."""
    if qk_norm:
        query = rms_norm(query, params["query_norm"]["scale"])
        key = rms_norm(key, params["key_norm"]["scale"])
    batch, count, heads, dim = query.shape
    out = np.empty(query.shape)
    for b in range(batch):
        for h in range(heads):
            for n in range(count):
                scores = key[b, :, h] @ query[b, n, h] / math.sqrt(dim)
                weight = np.exp(scores - scores.max()) * mask[b, n]
                out[b, n, h] = weight @ value[b, :, h] / weight.sum()
    return np.einsum("bnkd,kde->bne", out, params["out"]["kernel"]) + params["out"]["bias"]


# Options of attention, and the keys that each of 5 queries attends to.
MASKS = {
    "none": lambda keys: ({}, True),
    "lengths": lambda keys: (
        {"lengths": np.array([2, keys], np.int32)},
        (np.arange(keys) < np.array([[2], [keys]]))[:, None],
    ),
    "mask": lambda keys: ({"mask": np.tri(5, keys, dtype=bool)[None]}, np.tri(5, keys, dtype=bool)),
    "causal": lambda keys: ({"causal": True}, np.tri(5, keys, dtype=bool)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_softmax_over_queries_and_keys(mask, cross, qk_norm):
    x, context = normal(2, 5, 12), normal(2, 3, 8, seed=1) if cross else None
    keys = 3 if cross else 5
    options, allowed = MASKS[mask](keys)
    module = layers.Attention(num_heads=2, qk_norm=qk_norm)
    params = random_params(module, x, context)
    assert ("query_norm" in params) == ("key_norm" in params) == qk_norm
    got = apply(module, params, x, context, **options)

    p, x64 = f64(params), np.float64(x)
    if cross:
        query = np.einsum("bnd,dkh->bnkh", x64, p["query"]["kernel"]) + p["query"]["bias"]
        pair = np.einsum("bnd,dckh->bnckh", np.float64(context), p["key_value"]["kernel"])
        pair = pair + p["key_value"]["bias"]
        key, value = pair[:, :, 0], pair[:, :, 1]
    else:
        qkv = np.einsum("bnd,dckh->bnckh", x64, p["qkv"]["kernel"]) + p["qkv"]["bias"]
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    allowed = np.broadcast_to(allowed, (2, 5, keys))
    expected = attention(query, key, value, p, allowed, qk_norm)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("cross", [False, True])
def test_groups_of_sequences_equal_single_sequences(cross):
    x, context = normal(2, 3, 5, 12), normal(2, 4, 8, seed=1) if cross else None
    lengths = np.array([2, 4], np.int32)
    module = layers.Attention(num_heads=2)
    params = random_params(module, x, context)
    got = apply(module, params, x, context, lengths=lengths)
    for group in range(3):
        one = apply(module, params, x[:, group], context, lengths=lengths)
        np.testing.assert_allclose(got[:, group], one, atol=1e-6)


def test_queries_and_keys_are_normalized():
    """QK-norm: ten times larger queries and keys change nothing."""
    x = normal(1, 4, 8)
    module = layers.Attention(num_heads=2)
    params = random_params(module, x)
    factor = np.array([10, 10, 1], np.float32)[:, None, None]
    larger = params | {"qkv": jax.tree.map(lambda leaf: leaf * factor, params["qkv"])}
    np.testing.assert_allclose(apply(module, larger, x), apply(module, params, x), atol=1e-4)


def test_rotary_embedding_is_relative_and_does_not_affect_values():
    x, positions = normal(2, 5, 12), np.array([0, 3, 4, 8, 2], np.float32)[:, None]
    module = layers.Attention(num_heads=2)
    params = random_params(module, x)

    def attend(rotary):
        return np.asarray(apply(module, params, x, rotary=rotary))

    np.testing.assert_allclose(attend(positions + 7), attend(positions), atol=2e-5)
    np.testing.assert_allclose(attend(np.full((5, 1), 3.0)), attend(None), atol=2e-5)
    assert np.abs(attend(positions) - attend(None)).max() > 1e-2
    # A weighted sum of equal values does not depend on the rotation of keys.
    same = np.repeat(x[:, :1], 5, axis=1)
    rotated = np.asarray(apply(module, params, same, rotary=positions))
    np.testing.assert_allclose(rotated, apply(module, params, same), atol=2e-5)


def test_mlp_is_two_linear_layers_with_a_gelu_between():
    x = normal(2, 3, 6)
    module = layers.MLP(ratio=3)
    params = random_params(module, x)
    p = f64(params)
    hidden = np.float64(x) @ p["up"]["kernel"] + p["up"]["bias"]
    assert hidden.shape == (2, 3, 18)
    hidden = hidden / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = hidden @ p["down"]["kernel"] + p["down"]["bias"]
    np.testing.assert_allclose(apply(module, params, x), expected, atol=2e-5)
