"""Transformer blocks: which inputs affect which outputs, and the formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import randomise
from videogen_jax.models import positions
from videogen_jax.models.blocks import Block

pytestmark = pytest.mark.slow

BATCH, FRAMES, SPATIAL, WIDTH, WORDS = 2, 3, 4, 12, 5
KINDS = ("spatial", "temporal", "joint")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def new_block(kind, **changes):
    options = {
        "num_heads": 2,
        "mlp_ratio": 2,
        "causal": False,
        "positions": "sincos",
        "modulation": "adaln_zero",
        "qk_norm": True,
        "cross_attention": "gated",
        "dtype": jnp.float32,
    }
    return Block(kind, **options | changes)


@functools.cache
def make_block(kind, **changes):
    block = new_block(kind, **changes)
    single = changes.get("modulation") == "adaln_single"
    params = randomise.random_params(block, *block_inputs(single))
    return block, params, jax.jit(lambda params, *args: block.apply({"params": params}, *args))


def block_inputs(single=False):
    lengths = np.array([3, 5], np.int32)
    return (
        normal(BATCH, FRAMES, SPATIAL, WIDTH),
        normal(BATCH, FRAMES, 6 * WIDTH if single else WIDTH, seed=1),
        normal(BATCH, WORDS, WIDTH, seed=2),
        lengths,
        np.asarray(positions.coordinates((FRAMES, 2, 2))),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
@pytest.mark.parametrize("cross_attention", ["none", "gated", "pixart"])
def test_a_block_is_the_identity_at_initialization(kind, modulation, cross_attention):
    block = new_block(kind, modulation=modulation, cross_attention=cross_attention)
    x, condition, *rest = block_inputs(modulation == "adaln_single")
    if modulation == "adaln_single":  # the shared layer is initialized to zero too
        condition = np.zeros_like(condition)
    call = jax.jit(lambda key: block.init_with_output(key, x, condition, *rest)[0])
    np.testing.assert_array_equal(call(jax.random.key(0)), x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_mixes_tokens_along_its_axis_only(kind):
    """Spatial blocks do not mix frames, temporal blocks not spatial positions; joint ones mix all tokens."""
    _, params, call = make_block(kind)
    x, *rest = block_inputs()
    before = np.asarray(call(params, x, *rest))
    moved = x.copy()
    moved[0, 1, 2, 0] += 1  # one channel of one token
    change = np.abs(np.asarray(call(params, moved, *rest)) - before).max(-1)  # (B, T, N)
    reached = np.zeros((BATCH, FRAMES, SPATIAL), bool)
    reached[{"spatial": (0, 1), "temporal": (0, slice(None), 2), "joint": 0}[kind]] = True
    assert np.all(change[~reached] == 0)
    assert np.all(change[reached] > 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_per_frame_affects_the_frames_that_attend_to_it(kind):
    _, params, call = make_block(kind)
    x, condition, *rest = block_inputs()
    before = np.asarray(call(params, x, condition, *rest))
    moved = condition.copy()
    moved[0, 1] += 1
    change = np.abs(np.asarray(call(params, x, moved, *rest)) - before).max(-1)
    assert np.all(change[1] == 0)
    assert np.all(change[0, 1] > 1e-4)
    others = change[0, [0, 2]]
    assert np.all(others == 0) if kind == "spatial" else np.all(others > 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_modulation_matters(kind):
    """Shift, scale and gate of attention and MLP: six parts."""
    _, params, call = make_block(kind)
    args = block_inputs()
    before = np.asarray(call(params, *args))
    for part in range(6):
        bias = params["modulation"]["bias"].copy()
        bias[part * WIDTH : (part + 1) * WIDTH] += 1
        modulation = params["modulation"] | {"bias": bias}
        after = np.asarray(call(params | {"modulation": modulation}, *args))
        assert np.abs(after - before).max() > 1e-3, part


@pytest.mark.parametrize(
    ("kind", "cross_attention"),
    [*((kind, "gated") for kind in KINDS), ("spatial", "pixart"), ("joint", "pixart")],
)
def test_cross_attention_reads_tokens_but_not_padding(kind, cross_attention):
    _, params, call = make_block(kind, cross_attention=cross_attention)
    x, condition, text, lengths, coordinates = block_inputs()
    mask = np.arange(WORDS) < lengths[:, None]
    before = np.asarray(call(params, x, condition, text, lengths, coordinates))
    padded = np.where(mask[..., None], text, 99.0).astype(np.float32)
    np.testing.assert_array_equal(call(params, x, condition, padded, lengths, coordinates), before)
    changed = text + mask[..., None].astype(np.float32)
    change = np.abs(np.asarray(call(params, x, condition, changed, lengths, coordinates)) - before)
    assert np.all(change.max(-1) > 1e-5)


def test_pixart_cross_attention_is_in_spatial_and_joint_blocks_only():
    """It has neither norm nor gate."""
    names = {kind: set(make_block(kind, cross_attention="pixart")[1]) for kind in KINDS}
    plain = {"attention", "mlp", "modulation"}
    assert names["temporal"] == plain
    assert names["spatial"] == names["joint"] == plain | {"text_attention"}
    for kind in KINDS:
        gated = set(make_block(kind)[1])
        assert gated == plain | {"text_attention", "text_norm", "text_gate"}
        assert set(make_block(kind, cross_attention="none")[1]) == plain


def f64(tree):
    return jax.tree.map(np.float64, tree)


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def attend(query, key, value, mask):
    """(M, K, Dh) each, one row and head at a time."""
    out = np.empty_like(query)
    for n in range(query.shape[0]):
        for h in range(query.shape[1]):
            scores = key[:, h] @ query[n, h] / np.sqrt(query.shape[-1])
            weight = np.where(mask[n], np.exp(scores - scores.max()), 0)
            out[n, h] = weight @ value[:, h] / weight.sum()
    return out


def rotate(x, angles):
    """Rotates (M, K, Dh), read as Dh/2 complex numbers, by (M, Dh/2)."""
    half = x.shape[-1] // 2
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([pairs.real, pairs.imag], -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_block_matches_its_formula_in_float64(kind, modulation, causal):
    """DiT's block with either modulation, pixart's cross-attention, rotary positions and a causal mask."""
    options = {"modulation": modulation, "causal": causal, "positions": "rope"}
    options |= {"qk_norm": False, "cross_attention": "pixart"}
    args = block_inputs(modulation == "adaln_single")
    _, params, call = make_block(kind, **options)
    got = np.asarray(call(params, *args))
    p = f64(params)
    x, condition, text, text_lengths, coordinates = (np.asarray(a, np.float64) for a in args)

    axes = {"spatial": [1, 2], "temporal": [0], "joint": [0, 1, 2]}[kind]
    rates = {  # head dimension 6: three pairs, divided among the axes, with the remainder for the first
        "spatial": [[1, 0], [10_000**-0.5, 0], [0, 1]],
        "temporal": [[1], [10_000 ** (-1 / 3)], [10_000 ** (-2 / 3)]],
        "joint": np.eye(3),
    }[kind]
    for b in range(BATCH):
        six = np.empty((FRAMES, 6, WIDTH))
        for t in range(FRAMES):
            if modulation == "adaln_single":
                six[t] = p["scale_shift_table"] + condition[b, t].reshape(6, WIDTH)
            else:
                silu = condition[b, t] / (1 + np.exp(-condition[b, t]))
                dense = silu @ p["modulation"]["kernel"] + p["modulation"]["bias"]
                six[t] = dense.reshape(6, WIDTH)
        frame, position = np.divmod(np.arange(FRAMES * SPATIAL), SPATIAL)
        tokens, six = x[b].reshape(-1, WIDTH), six[frame]  # (T N, D), (T N, 6, D)
        rotary = coordinates.reshape(-1, 3)[:, axes] @ np.transpose(rates)  # (T N, Dh / 2)

        y = layer_norm(tokens) * (1 + six[:, 1]) + six[:, 0]
        qkv = np.einsum("nd,dckh->cnkh", y, p["attention"]["qkv"]["kernel"])
        qkv = qkv + p["attention"]["qkv"]["bias"][:, None]
        mask = {"spatial": frame[:, None] == frame, "temporal": position[:, None] == position}
        mask = mask.get(kind, np.ones((len(frame),) * 2, bool))
        if causal:
            mask = mask & (frame[:, None] >= frame)
        y = attend(rotate(qkv[0], rotary), rotate(qkv[1], rotary), qkv[2], mask)
        out = p["attention"]["out"]
        tokens = tokens + six[:, 2] * (np.einsum("nkh,khd->nd", y, out["kernel"]) + out["bias"])

        if kind != "temporal":
            read = p["text_attention"]
            query = np.einsum("nd,dkh->nkh", tokens, read["query"]["kernel"])
            pair = np.einsum("md,dckh->cmkh", text[b], read["key_value"]["kernel"])
            pair = pair + read["key_value"]["bias"][:, None]
            mask = np.broadcast_to(np.arange(WORDS) < text_lengths[b], (len(tokens), WORDS))
            y = attend(query + read["query"]["bias"], pair[0], pair[1], mask)
            y = np.einsum("nkh,khd->nd", y, read["out"]["kernel"]) + read["out"]["bias"]
            tokens = tokens + y

        y = layer_norm(tokens) * (1 + six[:, 4]) + six[:, 3]
        y = y @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
        y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        tokens = tokens + six[:, 5] * (y @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"])
        np.testing.assert_allclose(got[b].reshape(-1, WIDTH), tokens, atol=1e-4)
