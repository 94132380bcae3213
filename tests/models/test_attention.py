"""Attention in pieces against the formula in float64, and what it keeps in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.models.attention import attend, count_pieces

BATCH, QUERIES, KEYS, HEADS, WIDTH = 2, 24, 20, 3, 8


def inputs():
    rng = np.random.default_rng(0)
    shapes = [(BATCH, n, HEADS, WIDTH) for n in (QUERIES, KEYS, KEYS)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def masks():
    rng = np.random.default_rng(1)
    causal = np.tri(QUERIES, KEYS, dtype=bool)[None, None]
    padding = rng.random((BATCH, 1, 1, KEYS)) < 0.7
    padding[..., 0] = True
    return {"none": None, "causal": causal, "padding": padding, "both": causal & padding}


def formula(query, key, value, mask):
    """softmax(q k / sqrt(d)) v, in float64."""
    query, key, value = (np.float64(array) for array in (query, key, value))
    scores = np.einsum("bnkd,bmkd->bknm", query, key) / np.sqrt(WIDTH)
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bknm,bmkd->bnkd", weight / weight.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("largest", [10**9, 1000, 1])
def test_pieces_give_the_numbers_of_the_whole(mask, largest):
    mask = masks()[mask]
    got = jax.jit(lambda *a: attend(*a, mask, largest_scores=largest))(*inputs())
    np.testing.assert_allclose(got, formula(*inputs(), mask), atol=2e-6)


@pytest.mark.parametrize("mask", masks())
def test_pieces_give_the_gradients_of_the_whole(mask):
    mask = masks()[mask]

    def loss(inputs, largest):
        return jnp.sum(jnp.sin(attend(*inputs, mask, largest_scores=largest)))

    whole = jax.jit(jax.grad(lambda x: loss(x, 10**9)))(inputs())
    pieces = jax.jit(jax.grad(lambda x: loss(x, 1000)))(inputs())
    for got, expected in zip(pieces, whole, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_memory_grows_with_the_sequence_and_not_with_its_square():
    def temporary(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        loss = jax.grad(lambda x: jnp.sum(attend(x, x, x, largest_scores=2**14)))
        return jax.jit(loss).lower(x).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(1024), temporary(4096)
    assert large < 6 * small  # 16 times with all scores
    assert large < 4096**2  # all scores of one head would take four times this


@pytest.mark.parametrize(
    ("length", "scores", "pieces"),
    [(24, 100, 1), (24, 1000, 1), (24, 1001, 2), (24, 4500, 6), (24, 10**9, 24), (7, 2000, 7)],
)
def test_pieces_are_equal_and_as_few_as_can_be(length, scores, pieces):
    assert count_pieces(length, scores, 1000) == pieces
