"""Continuing a video with a causal model: the KV cache, causality, and cyclic positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from videogen_jax.diffusion.tasks import nearest_known
from videogen_jax.models.dit import VideoDiT
from videogen_jax.models.kv_cache import KVCache
from videogen_jax.parallel.mesh import make_mesh
from videogen_jax.parallel.sequence_parallel import TokenSharding

pytestmark = pytest.mark.slow

FRAMES, SLOTS, CYCLE, HEADS, WIDTH = 6, 7, 8, 2, 24
VIDEO = (2, FRAMES, 8, 8, 3)  # 4 tokens in a frame


def make_model(**changes):
    options = {
        "patch_size": (1, 4, 4),
        "width": WIDTH,
        "depth": 4,
        "num_heads": HEADS,
        "mlp_ratio": 2,
        "attention": "factorized",
        "causal": True,
        "positions": "sincos",
        "modulation": "adaln_zero",
        "qk_norm": True,
        "cross_attention": "none",
        "pooled_text": True,
        "micro_conditions": (),
        "conditioning": "prefix",
        "time_cycle": CYCLE,
        "text_depth": 0,
        "text_encoder": "words",
        "vocabulary_size": 16,
        "dtype": jnp.float32,
    }
    return VideoDiT(**options | changes)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(**more):
    """Arguments by name, with a time for each frame."""
    return {
        "x_t": normal(*VIDEO),
        "t": np.array([[0, 0, 5, 100, 400, 900], [0, 300, 300, 10, 700, 20]], np.float32),
        "text": np.array([[3, 4, 5], [6, 7, 0]], np.int32),
        "mask": np.array([[1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]], np.float32),
    } | more


@functools.cache
def jitted_apply(**changes):
    model = make_model(**changes)
    return jax.jit(lambda params, args: model.apply({"params": params}, **args))


@functools.cache
def random_params(**changes):
    model = make_model(**changes)
    args = inputs()
    if changes.get("conditioning") == "frames":
        args["known"] = args["x_t"]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **args))["params"]
    return randomise(shapes, 0.3)


def empty_cache():
    """An empty cache; the content of its slots must not matter."""
    shape = (2, 2, 4, SLOTS, HEADS, WIDTH // HEADS)
    return KVCache(normal(*shape, seed=7), 30 * normal(*shape, seed=8), np.int32(0))


@pytest.mark.parametrize("positions", ["sincos", "rope", "latte", "dit"])
def test_a_video_in_two_parts_equals_the_whole(positions):
    """The second part is a single frame, and positions wrap around the cycle."""
    changes = {"positions": positions, "detailer_width": 6 * (positions == "rope")}
    params, apply = random_params(**changes), jitted_apply(**changes)
    start = np.array([4, 1], np.int32)
    whole = np.asarray(apply(params, inputs(start=start)))
    kv_cache, parts = empty_cache(), []
    for part in (slice(0, 5), slice(5, 6)):
        args = inputs(start=start + np.int32(part.start))
        args |= {name: args[name][:, part] for name in ("x_t", "t", "mask")}
        out, keys_values = apply(params, args | {"kv_cache": kv_cache})
        kv_cache = kv_cache.append(*keys_values)
        parts.append(out)
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1), whole, atol=1e-5 * np.abs(whole).max()
    )
    # The cached frames matter.
    emptied = kv_cache._replace(length=np.int32(0))
    out, _ = apply(params, args | {"kv_cache": emptied})
    assert np.abs(out - whole[:, 5:]).max() > 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize("positions", ["sincos", "latte", "rope"])
def test_outputs_repeat_after_the_cycle(positions):
    changes = {"positions": positions}
    apply = functools.partial(jitted_apply(**changes), random_params(**changes))
    first, later, again = (
        np.asarray(apply(inputs(start=np.array(start, np.int32))))
        for start in ([0, 3], [1, 3], [CYCLE, 3 + 5 * CYCLE])
    )
    np.testing.assert_array_equal(again, first)
    change = np.abs(later - first).max((1, 2, 3, 4))
    assert change[1] == 0
    assert (
        change[0] == 0 if positions == "rope" else change[0] > 1e-3
    )  # rotary positions are relative


@pytest.mark.parametrize("seq", [1, 2])
@pytest.mark.parametrize("attention", ["factorized", "joint"])
def test_a_causal_model_leaks_exactly_nothing_from_later_frames(attention, seq):
    changes = {"attention": attention, "conditioning": "frames", "positions": "rope"}
    changes["detailer_width"] = 6
    model = make_model(**changes, token_sharding=TokenSharding(make_mesh(seq=seq)))
    params = random_params(**changes)
    apply = jax.jit(lambda args: model.apply({"params": params}, **args))

    def outputs(args):
        known = nearest_known(jnp.asarray(args["x_t"]) / 2, args["mask"] > 0, causal=True)
        return np.asarray(apply(args | {"known": np.asarray(known)}))

    before = outputs(inputs())
    for frame in range(1, FRAMES):
        changed = jax.tree.map(np.copy, inputs())
        changed["x_t"][:, frame:] *= -7
        changed["mask"][:, frame:] = 1 - changed["mask"][:, frame:]
        changed["t"][:, frame:] += 11
        after = outputs(changed)
        np.testing.assert_array_equal(after[:, :frame], before[:, :frame])
        assert np.all(np.abs(after - before)[:, frame:].max((0, 2, 3, 4)) > 1e-3)


def test_a_model_that_is_not_causal_does_leak():
    changes = {"causal": False, "time_cycle": 0}
    params, apply = random_params(**changes), jitted_apply(**changes)
    changed = inputs()
    changed["x_t"][:, 5] *= -7
    assert np.abs(apply(params, changed) - apply(params, inputs()))[:, :5].max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ({"causal": False, "time_cycle": 0}, {}, r"model\.causal=False .* has no KV cache"),
        ({"attention": "joint"}, {}, r"model\.attention='joint' has no KV cache"),
        ({}, {}, "Positions 'sincos' .* give the start"),
        ({"positions": "latte", "time_cycle": 0}, {"start": 0}, r"model\.time_cycle above 0"),
        ({"causal": False}, {"kv_cache": None}, r"model\.time_cycle is 8, but only a causal model"),
        (
            {"conditioning": "none"},
            {"kv_cache": None},
            r"frame arguments are mask, but model\.conditioning is 'none': give none",
        ),
        (
            {"conditioning": "frames"},
            {"kv_cache": None},
            r"frame arguments are mask, but .*'frames': give known and mask",
        ),
        (
            {},
            {"kv_cache": None, "mask": None},
            r"frame arguments are none, but .*'prefix': give mask",
        ),
        ({"conditioning": "all"}, {}, r"model\.conditioning 'all': .*none, prefix, frames"),
    ],
)
def test_conflicting_options_are_rejected(changes, args, message):
    model = make_model(**changes)
    args = inputs(kv_cache=empty_cache()) | args
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), **args))
