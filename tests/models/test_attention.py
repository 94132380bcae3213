"""Chunked attention against the formula in float64, its memory, and the kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.models.attention import attend, choose_kernel, count_chunks

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
def test_chunked_attention_agrees_with_the_formula(mask, largest):
    mask = masks()[mask]
    got = jax.jit(lambda *a: attend(*a, mask, largest_scores=largest))(*inputs())
    np.testing.assert_allclose(got, formula(*inputs(), mask), atol=2e-6)


@pytest.mark.parametrize("mask", masks())
def test_chunked_attention_has_the_same_gradients(mask):
    mask = masks()[mask]

    def loss(inputs, largest):
        return jnp.sum(jnp.sin(attend(*inputs, mask, largest_scores=largest)))

    expected_grads = jax.jit(jax.grad(lambda x: loss(x, 10**9)))(inputs())
    grads = jax.jit(jax.grad(lambda x: loss(x, 1000)))(inputs())
    for got, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_memory_is_linear_in_the_sequence_length():
    def temporary(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        loss = jax.grad(lambda x: jnp.sum(attend(x, x, x, largest_scores=2**14)))
        return jax.jit(loss).lower(x).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(1024), temporary(4096)
    assert large < 6 * small  # 16 times with all scores
    assert large < 4096**2  # all scores of one head would take four times this


@pytest.mark.parametrize(
    ("length", "scores", "chunks"),
    [(24, 100, 1), (24, 1000, 1), (24, 1001, 2), (24, 4500, 6), (24, 10**9, 24), (7, 2000, 7)],
)
def test_chunks_are_equal_and_as_few_as_possible(length, scores, chunks):
    assert count_chunks(length, scores, 1000) == chunks


@pytest.mark.parametrize("queries", [QUERIES, 13])  # cuDNN rejects odd numbers
@pytest.mark.parametrize("lengths", [None, [3, 19]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [8, 5])
def test_padding_for_cudnn_does_not_change_the_result(queries, lengths, causal, width, monkeypatch):
    real = jax.nn.dot_product_attention

    def stand_in(query, key, value, implementation, **options):
        """XLA's kernel with cuDNN's requirements."""
        assert implementation == "cudnn" and query.dtype == jnp.bfloat16
        assert all(array.shape[1] % 2 == 0 and array.shape[3] % 8 == 0 for array in (query, key))
        return real(query, key, value, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    keys = queries if causal else KEYS - 1
    lengths = None if lengths is None else np.minimum(np.array(lengths, np.int32), keys)
    rng = np.random.default_rng(2)
    query, key, value = (
        jnp.asarray(rng.standard_normal((BATCH, n, HEADS, width)), jnp.bfloat16)
        for n in (queries, keys, keys)
    )
    got = attend(query, key, value, causal=causal, lengths=lengths, kernel="cudnn")
    monkeypatch.undo()
    expected = attend(query, key, value, causal=causal, lengths=lengths, kernel="xla")
    assert got.shape == expected.shape and got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), np.float32(expected), atol=2e-2)


def test_groups_share_the_keys_of_their_context():
    query = inputs()[0].reshape(BATCH, 4, 6, HEADS, WIDTH)
    _, key, value = inputs()
    lengths = np.array([3, 20], np.int32)
    got = attend(query, key, value, lengths=lengths)
    mask = (np.arange(KEYS) < lengths[:, None])[:, None, None]
    for group in range(4):
        expected = formula(query[:, group], key, value, mask)
        np.testing.assert_allclose(got[:, group], expected, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"lengths": [7, 19]}])
def test_cudnn_agrees_with_xla(options):
    arrays = [array.astype(jnp.bfloat16) for array in inputs()]
    if "causal" in options:
        arrays = [arrays[0]] * 3
    options = {
        name: jnp.asarray(value) if name == "lengths" else value for name, value in options.items()
    }

    def loss(arrays, kernel):
        return jnp.sum(jnp.sin(attend(*arrays, kernel=kernel, **options).astype(jnp.float32)))

    for got, expected in zip(
        jax.grad(loss)(arrays, "cudnn"), jax.grad(loss)(arrays, "xla"), strict=True
    ):
        np.testing.assert_allclose(np.float32(got), np.float32(expected), atol=5e-2)


def test_the_kernel_is_xla_without_a_gpu():
    assert choose_kernel("auto", jax.devices("cpu")) == "xla"
    assert choose_kernel("xla", jax.devices("cpu")) == "xla"
