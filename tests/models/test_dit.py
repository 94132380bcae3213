"""The diffusion transformer: which inputs affect which outputs, its options, and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import randomise
from videogen_jax.models import layers, patches, positions
from videogen_jax.models.caption_encoder import CaptionEncoder, CaptionProjection
from videogen_jax.models.dit import VideoDiT

pytestmark = pytest.mark.slow

BATCH, FRAMES, WIDTH, WORDS = 2, 3, 12, 5
VIDEO = (BATCH, FRAMES, 8, 8, 3)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_model(**changes):
    options = {
        "patch_size": (1, 4, 4),
        "width": WIDTH,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "attention": "factorized",
        "causal": False,
        "positions": "sincos",
        "modulation": "adaln_zero",
        "qk_norm": True,
        "cross_attention": "gated",
        "pooled_text": True,
        "micro_conditions": (),
        "conditioning": "none",
        "time_cycle": 0,
        "text_depth": 1,
        "remat": "none",
        "text_encoder": "words",
        "vocabulary_size": 16,
        "dtype": jnp.float32,
    }
    return VideoDiT(**options | changes)


def inputs():
    text = np.array([[3, 4, 5, 0, 0], [6, 7, 0, 0, 0]], np.int32)
    return normal(*VIDEO), np.array([100.0, 700.0], np.float32), text


@functools.cache
def jitted_apply(**changes):
    model = make_model(**changes)
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))


def apply(params, *args, **changes):
    return np.asarray(jitted_apply(**changes)(params, *args))


@functools.cache
def random_params(**changes):
    return randomise.random_params(make_model(**changes), *inputs(), scale=0.3)


def frame_changes(x, *args, params, frame, **changes):
    """(T,) change of the first video's output when one of its input frames changes; the second's must not."""
    pushed = x.copy()
    pushed[0, frame] += 1
    change = np.abs(apply(params, pushed, *args, **changes) - apply(params, x, *args, **changes))
    change = change.max((2, 3, 4))
    assert np.all(change[1] == 0)
    return change[0]


def without(params, *kinds):
    """The parameters with zero modulation in the named parts: identity blocks, or an unmodulated last norm."""
    blocks = dict(params["blocks"])
    for kind in set(kinds) & {"spatial", "temporal"}:
        zeros = jax.tree.map(jnp.zeros_like, blocks[kind]["modulation"])
        blocks[kind] = blocks[kind] | {"modulation": zeros}
        if "text_gate" in blocks[kind]:
            blocks[kind]["text_gate"] = jnp.zeros_like(blocks[kind]["text_gate"])
    params = params | {"blocks": blocks}
    if "last" in kinds:
        params["modulation"] = jax.tree.map(jnp.zeros_like, params["modulation"])
    return params


@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
def test_the_output_is_zero_at_initialization(modulation):
    changes = {"modulation": modulation}
    params = jax.jit(make_model(**changes).init)(jax.random.key(0), *inputs())["params"]
    out = apply(params, *inputs(), **changes)
    assert out.shape == VIDEO and out.dtype == np.float32
    np.testing.assert_array_equal(out, 0)


def test_every_pair_has_an_effective_spatial_and_temporal_block():
    """Regression: the first implementation had a space-time block only every third layer."""
    params = random_params(depth=4)
    args = inputs()
    before = apply(params, *args, depth=4)
    for kind in ("spatial", "temporal"):
        for pair in range(2):
            block = params["blocks"][kind]
            assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(block))
            modulation = jax.tree.map(np.copy, block["modulation"])
            for leaf in modulation.values():
                leaf[pair] = 0
            blocks = params["blocks"] | {kind: block | {"modulation": modulation}}
            after = apply(params | {"blocks": blocks}, *args, depth=4)
            assert np.abs(after - before).max() > 1e-3, (kind, pair)


def test_only_temporal_blocks_mix_frames():
    """A change of one frame reaches the others with temporal blocks, and not without them."""
    x, t, text = inputs()
    moved = x.copy()
    moved[0, 1] += 1
    params = random_params()
    change = np.abs(apply(params, moved, t, text) - apply(params, x, t, text)).max((2, 3, 4))
    assert np.all(change[0] > 1e-4) and np.all(change[1] == 0)
    params = without(params, "temporal")
    change = np.abs(apply(params, moved, t, text) - apply(params, x, t, text)).max((2, 3, 4))
    assert change[0, 1] > 1e-4 and np.all(change[0, [0, 2]] == 0)


def test_outputs_depend_on_the_order_of_frames():
    """Regression: without temporal positions, a reversed video would give the reversed output."""
    x, t, text = inputs()
    params = random_params()
    forward = apply(params, x, t, text)
    backward = apply(params, x[:, ::-1], t, text)[:, ::-1]
    assert np.abs(forward - backward).max() > 1e-3


@pytest.mark.parametrize("axis", [2, 3])
def test_outputs_depend_on_the_order_of_patches(axis):
    def swap(video):
        return np.concatenate(np.split(video, 2, axis)[::-1], axis)  # exchanges the patches

    x, t, text = inputs()
    params = random_params()
    swapped = swap(apply(params, swap(x), t, text))
    assert np.abs(apply(params, x, t, text) - swapped).max() > 1e-3


@jax.jit
def gradients_of_output(params):
    """Gradients of the sum of squares of the output, with respect to time and parameters."""
    x, t, text = inputs()
    model = make_model(cross_attention="none", text_depth=0)

    def total(t, params):
        return jnp.sum(jnp.square(model.apply({"params": params}, x, t, text)))

    return jax.grad(total, (0, 1))(t, params)


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_time_and_caption_condition_both_kinds_of_blocks(kind):
    """Regression: the first implementation's temporal residual was not conditioned."""
    other = {"spatial": "temporal", "temporal": "spatial"}[kind]
    changes = {"cross_attention": "none", "text_depth": 0}
    by_time, by_params = gradients_of_output(without(random_params(**changes), other, "last"))
    by_word = by_params["caption_encoder"]["words"]["embedding"]
    assert np.all(np.abs(by_time) > 1e-4)
    assert np.all(np.abs(by_word[3:8]).max(1) > 1e-3)  # the words of the captions
    np.testing.assert_array_equal(by_word[:3], 0)
    np.testing.assert_array_equal(by_word[8:], 0)


@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
def test_a_time_per_clip_equals_the_same_time_per_frame(modulation):
    x, t, text = inputs()
    params = random_params(modulation=modulation)
    per_frame = np.repeat(t[:, None], FRAMES, axis=1)
    np.testing.assert_allclose(
        apply(params, x, per_frame, text, modulation=modulation),
        apply(params, x, t, text, modulation=modulation),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_time_per_frame_affects_other_frames_through_temporal_blocks_only():
    x, t, text = inputs()
    times = np.repeat(t[:, None], FRAMES, axis=1)
    clean = times.copy()
    clean[:, 0] = 0
    for params, spreads in ((random_params(), True), (without(random_params(), "temporal"), False)):
        change = np.abs(apply(params, x, clean, text) - apply(params, x, times, text))
        change = change.max((2, 3, 4))  # (B, T)
        assert np.all(change[:, 0] > 1e-4)
        assert np.all(change[:, 1:] > 1e-5) if spreads else np.all(change[:, 1:] == 0)


def test_caption_padding_has_no_effect():
    x, t, text = inputs()
    params = random_params()
    before = apply(params, x, t, text)
    longer = np.pad(text, ((0, 0), (0, 4)))
    np.testing.assert_allclose(apply(params, x, t, longer), before, atol=1e-5)
    embedding = params["caption_encoder"]["words"]["embedding"].copy()
    embedding[0] += 5
    encoder = params["caption_encoder"] | {"words": {"embedding": embedding}}
    other = params | {"caption_encoder": encoder}
    np.testing.assert_array_equal(apply(other, x, t, text), before)


def test_every_word_and_their_order_matter():
    x, t, text = inputs()
    params = random_params()
    before = apply(params, x, t, text)
    for word in range(3):
        other = text.copy()
        other[0, word] = 9
        change = np.abs(apply(params, x, t, other) - before).max((1, 2, 3, 4))
        assert change[0] > 1e-4 and change[1] == 0
    swapped = text[:, [1, 0, 2, 3, 4]]
    assert np.abs(apply(params, x, t, swapped) - before).max() > 1e-4


def test_an_empty_caption_gives_finite_outputs():
    x, t, text = inputs()
    assert np.all(np.isfinite(apply(random_params(), x, t, np.zeros_like(text))))


def test_cross_attention_adds_its_parameters_only_when_enabled():
    gated = random_params()["blocks"]
    plain = random_params(cross_attention="none")["blocks"]
    for kind in ("spatial", "temporal"):
        assert set(plain[kind]) == {"attention", "mlp", "modulation"}
        assert set(gated[kind]) - set(plain[kind]) == {"text_attention", "text_norm", "text_gate"}


def test_the_pooled_caption_is_the_mean_over_words():
    module = CaptionEncoder(16, 8, 0, 2)
    ids = np.array([[3, 4, 0], [5, 0, 0]])
    params = randomise.random_params(module, ids)
    tokens, mask, pooled = randomise.apply(module, params, ids)
    np.testing.assert_array_equal(mask, ids != 0)
    for row, count in ((0, 2), (1, 1)):
        expected = np.float64(tokens[row, :count]).mean(0)
        np.testing.assert_allclose(pooled[row], expected, atol=1e-6)


@pytest.mark.parametrize("positions", ["sincos", "latte"])
def test_remat_does_not_change_gradients(positions):
    args, changes = inputs(), {"cross_attention": "none", "text_depth": 0, "positions": positions}
    params, gradients = random_params(**changes), []
    for remat in ("none", "block"):
        model = make_model(remat=remat, **changes)

        def loss(params, model=model):
            return jnp.mean(jnp.square(model.apply({"params": params}, *args) - 1))

        traced = jax.jit(jax.grad(loss)).trace(params)
        program = str(traced.jaxpr)
        assert ("remat" in program or "checkpoint" in program) == (remat == "block")
        gradients.append(traced.lower().compile()(params))
    for plain, again in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-6)


PIXART = {"modulation": "adaln_single", "cross_attention": "pixart", "qk_norm": False}


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.04), (jnp.float16, 0.006)])
@pytest.mark.parametrize("changes", [{}, {"attention": "joint", "positions": "rope"} | PIXART])
def test_half_precision_is_close_to_float32(dtype, tolerance, changes):
    args = inputs()
    params = random_params(**changes)
    exact = apply(params, *args, **changes)
    shapes = jax.eval_shape(make_model(dtype=dtype, **changes).init, jax.random.key(0), *args)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    rough = apply(params, *args, dtype=dtype, **changes)
    assert rough.dtype == np.float32
    error = np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < tolerance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "axial"}, r"model\.attention 'axial': choose one of factorized, joint"),
        ({"positions": "alibi"}, r"model\.positions 'alibi': .*sincos, rope, latte, dit"),
        ({"modulation": "film"}, r"model\.modulation 'film': .*adaln_zero, adaln_single"),
        ({"cross_attention": True}, r"model\.cross_attention True: .*none, gated, pixart"),
        ({"text_encoder": "t5"}, r"model\.text_encoder 't5': .*words, class, embeddings"),
        (
            {"text_encoder": "class", "text_depth": 0},
            r"model\.cross_attention is 'gated', but a class label has no tokens",
        ),
        (
            {"cross_attention": "none", "pooled_text": False},
            r"cross_attention is 'none' and model\.pooled_text is False, .*would be ignored",
        ),
        ({"text_encoder": "embeddings"}, r"model\.text_depth is 1, but only .*'words'"),
        (
            {"text_encoder": "embeddings", "text_depth": 0, "text_pooling": "weighted"},
            r"model\.text_pooling is 'weighted', but only .*'words'",
        ),
        (
            {"text_pooling": "weighted", "pooled_text": False},
            r"model\.text_pooling is 'weighted', but only .* with model\.pooled_text",
        ),
        (
            {"positions": "rope", "num_heads": 6},
            r"2 axes need an even width of at least 4, not 2: .*model\.width / model\.num_heads",
        ),
        (
            {"positions": "rope", "num_heads": 3, "attention": "joint"},
            r"3 axes need an even width of at least 6, not 4",
        ),
        ({"positions": "rope", "num_heads": 4}, r"2 axes need an even width of at least 4, not 3"),
        ({"positions": "dit", "width": 14}, r"model\.width is 14, .*multiple of 4"),
        ({"depth": 3}, r"model\.depth is 3.*make it even"),
        ({"num_heads": 5}, r"model\.width of 12 is not a multiple of model\.num_heads of 5"),
        ({"patch_size": (2, 4, 4)}, "frames of 3 is not a multiple of the patch of 2"),
        ({"patch_size": (1, 3, 4)}, "height of 8 is not a multiple of the patch of 3"),
        ({"patch_size": (1, 4, 5)}, "width of 8 is not a multiple of the patch of 5"),
    ],
)
def test_conflicting_fields_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_model(**changes).init, jax.random.key(0), *inputs())


# -------------------------------------------------------------------------------------- options


PLAIN = {"cross_attention": "none", "text_depth": 0}


def scramble(params, *names):
    """Randomizes the named parts of every block."""
    scrambled = randomise.randomise(params["blocks"], 0.3)
    blocks = {
        kind: block | {name: scrambled[kind][name] for name in names if name in block}
        for kind, block in params["blocks"].items()
    }
    return params | {"blocks": blocks}


@pytest.mark.parametrize("attention", ["factorized", "joint"])
@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
@pytest.mark.parametrize("cross_attention", ["none", "gated", "pixart"])
def test_blocks_are_the_identity_at_initialization(attention, modulation, cross_attention):
    """All gates are zero, so the parameters of their branches have no effect."""
    changes = {"attention": attention, "modulation": modulation, "text_depth": 0}
    changes |= {"cross_attention": cross_attention}
    params = jax.jit(make_model(**changes).init)(jax.random.key(0), *inputs())["params"]
    params = params | {"unembed": randomise.randomise(params["unembed"], 0.3)}
    before = apply(params, *inputs(), **changes)
    assert np.abs(before).max() > 0.1
    other = scramble(params, "attention", "mlp")
    np.testing.assert_array_equal(apply(other, *inputs(), **changes), before)
    opened = scramble(params, "modulation", "scale_shift_table")
    assert np.abs(apply(opened, *inputs(), **changes) - before).max() > 1e-3


def test_joint_attention_has_one_kind_of_block_and_allows_odd_depths():
    changes = PLAIN | {"attention": "joint", "depth": 3}
    params = random_params(**changes)
    assert set(params["blocks"]) == {"joint"}
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(params["blocks"]))
    change = frame_changes(*inputs(), params=params, frame=1, **changes)
    assert np.all(change > 1e-4)


@pytest.mark.parametrize("attention", ["factorized", "joint"])
@pytest.mark.parametrize("kind", ["sincos", "rope", "latte", "dit"])
def test_causal_attention_leaks_nothing_from_later_frames(attention, kind):
    changes = PLAIN | {"attention": attention, "positions": kind, "causal": True}
    params = random_params(**changes)
    for frame in range(FRAMES):
        change = frame_changes(*inputs(), params=params, frame=frame, **changes)
        assert np.all(change[:frame] == 0)  # exactly
        assert np.all(change[frame:] > 1e-4)
    bidirectional = frame_changes(*inputs(), params=params, frame=2, **changes | {"causal": False})
    assert np.all(bidirectional > 1e-4)


@pytest.mark.parametrize("attention", ["factorized", "joint"])
@pytest.mark.parametrize("kind", ["rope", "latte", "dit"])
def test_every_kind_of_positions_distinguishes_time_and_space(attention, kind):
    def mirror(video, axis):  # swaps the patches, or reverses the frames
        parts = np.split(video, video.shape[axis] // (1 if axis == 1 else 4), axis)
        return np.concatenate(parts[::-1], axis)

    changes = PLAIN | {"attention": attention, "positions": kind}
    x, t, text = inputs()
    params = random_params(**changes)
    before = apply(params, x, t, text, **changes)
    for axis in (1, 2, 3):
        mirrored = mirror(apply(params, mirror(x, axis), t, text, **changes), axis)
        assert np.abs(mirrored - before).max() > 1e-3, axis


@pytest.mark.parametrize("kind", ["sincos", "rope", "latte", "dit"])
def test_positions_are_interpolated_over_the_original_grid(kind):
    changes = PLAIN | {"positions": kind}
    params = random_params(**changes)
    before = apply(params, *inputs(), **changes)
    same = apply(params, *inputs(), position_grid=(2, 2), **changes)
    np.testing.assert_array_equal(same, before)
    other = apply(params, *inputs(), position_grid=(4, 2), **changes)
    assert np.abs(other - before).max() > 1e-4


@pytest.mark.parametrize("kind", ["sincos", "rope", "latte", "dit"])
def test_an_image_skips_the_temporal_blocks(kind):
    """Their parameters have no effect; the spatial blocks are those of videos."""
    x, t, text = inputs()
    image, changes = x[:, :1], PLAIN | {"positions": kind}
    params = random_params(**changes)
    before = apply(params, image, t, text, **changes)
    broken = params["blocks"] | {
        "temporal": jax.tree.map(lambda leaf: leaf * np.nan, params["blocks"]["temporal"])
    }
    without_time = {"blocks": {"spatial": params["blocks"]["spatial"]}}
    for other in (params | {"blocks": broken}, params | without_time):
        np.testing.assert_array_equal(apply(other, image, t, text, **changes), before)
    identity = without(params, "spatial")
    assert np.abs(apply(identity, image, t, text, **changes) - before).max() > 1e-3
    first = apply(without(params, "temporal"), x, t, text, **changes)[:, :1]
    if kind == "latte":  # adds temporal positions, in videos only
        assert np.abs(first - before).max() > 1e-3
    else:
        np.testing.assert_allclose(first, before, atol=2e-5)


def test_an_image_does_not_fit_a_patch_of_two_frames():
    x, t, text = inputs()
    model = make_model(patch_size=(2, 4, 4))
    with pytest.raises(ValueError, match="frames of 1 is not a multiple of the patch of 2"):
        jax.eval_shape(model.init, jax.random.key(0), x[:, :1], t, text)


def zero_outputs(params):
    """The parameters with zero output layers in all blocks, which makes these the identity."""
    blocks = {kind: dict(block) for kind, block in params["blocks"].items()}
    for block in blocks.values():
        for name, last in (("attention", "out"), ("mlp", "down"), ("text_attention", "out")):
            if name in block:
                zeros = jax.tree.map(np.zeros_like, block[name][last])
                block[name] = block[name] | {last: zeros}
    return params | {"blocks": blocks}


def dense(part, x):
    return x @ part["kernel"] + part["bias"]


def embed(part, x):
    hidden = dense(part["hidden"], x)
    return dense(part["out"], hidden / (1 + np.exp(-hidden)))


def layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def first_tokens(p, x):
    """(B, T, N, D) float64, embedded patches without positions."""
    return dense(p["patch_embed"], np.float64(patches.patchify(x, (1, 4, 4))))


def to_video(p, tokens):
    out = dense(p["unembed"], tokens)
    return patches.unpatchify(jnp.asarray(out, jnp.float32), (1, 4, 4), 8, 8)


@pytest.mark.parametrize("attention", ["factorized", "joint"])
def test_latte_adds_temporal_positions_once_and_to_videos_only(attention):
    x, t, text = inputs()
    changes = PLAIN | {"attention": attention, "positions": "latte", "depth": 4}
    params = without(zero_outputs(random_params(**changes)), "last")
    p = jax.tree.map(np.float64, params)
    for frames in (FRAMES, 1):
        tokens = first_tokens(p, x[:, :frames]) + np.asarray(positions.sincos_2d((2, 2), WIDTH))
        if frames > 1:
            tokens += positions.sincos_1d(np.arange(frames), WIDTH)[:, None]
        got = apply(params, x[:, :frames], t, text, **changes)
        np.testing.assert_allclose(got, to_video(p, layer_norm(tokens)), atol=1e-4)


@pytest.mark.parametrize("per_frame", [False, True])
def test_the_last_layer_adds_a_table_to_the_condition(per_frame):
    """adaln_single in float64, with three conditions: time, a class and a micro-condition."""
    x, t, _ = inputs()
    t = np.stack([t, t / 2, t + 9], axis=1) if per_frame else t
    changes = PLAIN | {"modulation": "adaln_single", "positions": "rope"}
    changes |= {"text_encoder": "class", "micro_conditions": ("fps",)}
    args = (x, t, np.array([3, 15]), {"fps": np.array([8.0, 24.0], np.float32)})
    params = zero_outputs(randomise.random_params(make_model(**changes), *args, scale=0.3))
    p = jax.tree.map(np.float64, params)

    def features(values):
        return np.float64(layers.timestep_embedding(values, 256))

    condition = embed(p["time_embed"], features(t if per_frame else t[:, None]))  # (B, T or 1, D)
    condition = condition + embed(p["fps_embed"], features(args[3]["fps"]))[:, None]
    condition = condition + p["label_embed"]["embedding"][args[2]][:, None]
    shift, scale = (condition[:, :, None] + row for row in p["scale_shift_table"])
    tokens = layer_norm(first_tokens(p, x)) * (1 + scale) + shift
    np.testing.assert_allclose(apply(params, *args, **changes), to_video(p, tokens), atol=2e-4)


def test_one_shared_layer_modulates_all_blocks():
    """Adding to its bias equals adding to every block's table."""
    changes = PLAIN | {"modulation": "adaln_single", "depth": 4}
    params = random_params(**changes)
    before = apply(params, *inputs(), **changes)
    offset = normal(6, WIDTH) / 5
    shared = params["shared_modulation"]
    by_layer = params | {"shared_modulation": shared | {"bias": shared["bias"] + offset.ravel()}}
    blocks = {
        kind: block | {"scale_shift_table": block["scale_shift_table"] + offset}
        for kind, block in params["blocks"].items()
    }
    pushed = apply(by_layer, *inputs(), **changes)
    assert np.abs(pushed - before).max() > 1e-3
    again = apply(params | {"blocks": blocks}, *inputs(), **changes)
    np.testing.assert_allclose(again, pushed, atol=2e-5)


# ---------------------------------------------------------------------------------- conditioning


def micro(**values):
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def test_each_micro_condition_affects_the_output():
    changes = PLAIN | {"micro_conditions": ("fps", "motion")}
    args = inputs()
    given = micro(fps=[8, 24], motion=[10, 200])
    params = randomise.random_params(make_model(**changes), *args, given, scale=0.3)
    assert {"fps_embed", "motion_embed"} <= set(params)
    before = apply(params, *args, given, **changes)
    for name in given:
        other = given | {name: given[name] + np.array([5, 0], np.float32)}
        change = np.abs(apply(params, *args, other, **changes) - before).max((1, 2, 3, 4))
        assert change[0] > 1e-3 and change[1] == 0
        # With a zero embedder, a condition has no effect, and the others still do.
        zero = params | {f"{name}_embed": jax.tree.map(np.zeros_like, params[f"{name}_embed"])}
        without_it = apply(zero, *args, given, **changes)
        np.testing.assert_array_equal(apply(zero, *args, other, **changes), without_it)
        assert np.abs(without_it - before).max() > 1e-3
    order = PLAIN | {"micro_conditions": ("motion", "fps")}
    np.testing.assert_allclose(apply(params, *args, given, **order), before, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("fps", "motion"), micro(fps=[1, 1]), "given are fps, but .* are fps, motion"),
        (("fps",), micro(fps=[1, 1], aspect=[1, 1]), "given are aspect, fps, but .* are fps:"),
        (("fps",), None, "given are none, but .* are fps:"),
        ((), micro(fps=[1, 1]), "given are fps, but .* are none:"),
    ],
)
def test_micro_conditions_other_than_the_models_are_rejected(names, given, message):
    model = make_model(micro_conditions=names)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *inputs(), given)


def test_classes_are_added_to_the_condition():
    changes = PLAIN | {"text_encoder": "class"}
    x, t, _ = inputs()
    params = randomise.random_params(make_model(**changes), x, t, np.array([0, 1]), scale=0.3)
    assert "caption_encoder" not in params and "text_embed" not in params
    assert params["label_embed"]["embedding"].shape == (16, WIDTH)
    before = apply(params, x, t, np.array([3, 7]), **changes)
    change = apply(params, x, t, np.array([15, 7]), **changes) - before
    change = np.abs(change).max((1, 2, 3, 4))
    assert change[0] > 1e-3 and change[1] == 0


EMBEDDED = {"text_encoder": "embeddings", "text_depth": 0}


def embeddings():
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5])
    return {"tokens": normal(BATCH, WORDS, 7), "mask": mask, "pooled": normal(BATCH, 9, seed=1)}


@pytest.mark.parametrize("cross_attention", ["none", "gated", "pixart"])
@pytest.mark.parametrize("pooled_text", [False, True])
def test_embeddings_are_read_by_the_parts_that_use_them(cross_attention, pooled_text):
    reads = cross_attention != "none"
    if not reads and not pooled_text:
        return  # rejected
    changes = EMBEDDED | {"cross_attention": cross_attention, "pooled_text": pooled_text}
    x, t, _ = inputs()
    text = embeddings()
    params = randomise.random_params(make_model(**changes), x, t, text, scale=0.3)
    assert ("caption_encoder" in params) == reads and ("text_embed" in params) == pooled_text
    before = apply(params, x, t, text, **changes)
    row = np.array([1, 0], np.float32)
    for name, part, moves in (
        ("tokens", text["tokens"] + row[:, None, None] * text["mask"][..., None], reads),
        ("tokens", text["tokens"] + 9 * ~text["mask"][..., None], False),
        ("pooled", text["pooled"] + row[:, None], pooled_text),
    ):
        after = apply(params, x, t, text | {name: np.float32(part)}, **changes)
        change = np.abs(after - before).max((1, 2, 3, 4))
        assert change[1] == 0 and (change[0] > 1e-4 if moves else change[0] == 0), name


def test_embeddings_that_lack_a_part_are_rejected():
    x, t, _ = inputs()
    text = {"tokens": embeddings()["tokens"]}
    with pytest.raises(ValueError, match="lack mask, pooled: the model reads tokens, mask, pooled"):
        jax.eval_shape(make_model(**EMBEDDED).init, jax.random.key(0), x, t, text)


def test_the_caption_projection_is_two_layers_with_a_gelu_between():
    module, tokens = CaptionProjection(WIDTH), normal(2, WORDS, 7)
    params = randomise.random_params(module, tokens)
    p = jax.tree.map(np.float64, params)
    hidden = dense(p["hidden"], np.float64(tokens))
    hidden *= (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))) / 2
    got = randomise.apply(module, params, tokens)
    np.testing.assert_allclose(got, dense(p["out"], hidden), atol=2e-5)


def test_outputs_may_have_other_channels_than_inputs():
    params = random_params(out_channels=5)
    out = apply(params, *inputs(), out_channels=5)
    assert out.shape == (*VIDEO[:-1], 5)
    # Integer times work too.
    x, t, text = inputs()
    np.testing.assert_array_equal(apply(params, x, np.int32(t), text, out_channels=5), out)
