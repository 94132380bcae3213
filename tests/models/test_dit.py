"""What the transformer mixes, what moves it, and what must not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import randomise
from videogen_jax.models.dit import Block, VideoDiT
from videogen_jax.models.text import CaptionEncoder

BATCH, FRAMES, PLACES, WIDTH, WORDS = 2, 3, 4, 12, 5
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
        "cross_attention": True,
        "vocabulary_size": 16,
        "text_depth": 1,
        "remat": False,
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


def without(params, *kinds):
    """The same parameters with adaLN off in the named places: identity blocks, plain last norm."""
    blocks = dict(params["blocks"])
    for kind in set(kinds) & {"spatial", "temporal"}:
        silent = jax.tree.map(jnp.zeros_like, blocks[kind]["modulation"])
        blocks[kind] = blocks[kind] | {"modulation": silent}
        if "text_gate" in blocks[kind]:
            blocks[kind]["text_gate"] = jnp.zeros_like(blocks[kind]["text_gate"])
    params = params | {"blocks": blocks}
    if "last" in kinds:
        params["modulation"] = jax.tree.map(jnp.zeros_like, params["modulation"])
    return params


# ---------------------------------------------------------------------------------------- block


@functools.cache
def make_block(temporal, cross_attention=True):
    block = Block(2, 2, temporal, cross_attention, jnp.float32)
    params = randomise.random_params(block, *block_inputs())
    return block, params, jax.jit(lambda params, *args: block.apply({"params": params}, *args))


def block_inputs():
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5])
    return (
        normal(BATCH, FRAMES, PLACES, WIDTH),
        normal(BATCH, FRAMES, WIDTH, seed=1),
        normal(BATCH, WORDS, WIDTH, seed=2),
        mask,
    )


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("cross_attention", [False, True])
def test_a_new_block_is_the_identity(temporal, cross_attention):
    block, _, call = make_block(temporal, cross_attention)
    x, *rest = block_inputs()
    params = jax.jit(block.init)(jax.random.key(0), x, *rest)["params"]
    np.testing.assert_array_equal(call(params, x, *rest), x)


@pytest.mark.parametrize("temporal", [False, True])
def test_a_block_mixes_along_its_own_axis_only(temporal):
    """Spatial blocks keep frames apart, temporal blocks keep places apart, to the bit."""
    _, params, call = make_block(temporal)
    x, *rest = block_inputs()
    before = np.asarray(call(params, x, *rest))
    moved = x.copy()
    moved[0, 1, 2, 0] += 1  # one number of one token
    change = np.abs(np.asarray(call(params, moved, *rest)) - before).max(-1)  # (B, T, N)
    reached = np.zeros((BATCH, FRAMES, PLACES), bool)
    if temporal:
        reached[0, :, 2] = True
    else:
        reached[0, 1, :] = True
    assert np.all(change[~reached] == 0)
    assert np.all(change[reached] > 1e-4)


@pytest.mark.parametrize("temporal", [False, True])
def test_a_blocks_condition_acts_where_its_frame_is_attended(temporal):
    _, params, call = make_block(temporal)
    x, condition, *rest = block_inputs()
    before = np.asarray(call(params, x, condition, *rest))
    moved = condition.copy()
    moved[0, 1] += 1
    change = np.abs(np.asarray(call(params, x, moved, *rest)) - before).max(-1)
    assert np.all(change[1] == 0)
    assert np.all(change[0, 1] > 1e-4)
    others = change[0, [0, 2]]
    assert np.all(others > 1e-5) if temporal else np.all(others == 0)


@pytest.mark.parametrize("temporal", [False, True])
def test_every_part_of_a_blocks_modulation_matters(temporal):
    """Shift, scale and gate of attention and MLP: six parts, none idle."""
    _, params, call = make_block(temporal)
    args = block_inputs()
    before = np.asarray(call(params, *args))
    for part in range(6):
        bias = params["modulation"]["bias"].copy()
        bias[part * WIDTH : (part + 1) * WIDTH] += 1
        modulation = params["modulation"] | {"bias": bias}
        after = np.asarray(call(params | {"modulation": modulation}, *args))
        assert np.abs(after - before).max() > 1e-3, part


@pytest.mark.parametrize("temporal", [False, True])
def test_a_block_reads_the_words_but_not_the_padding(temporal):
    _, params, call = make_block(temporal)
    x, condition, text, mask = block_inputs()
    before = np.asarray(call(params, x, condition, text, mask))
    padded = np.where(mask[..., None], text, 99.0).astype(np.float32)
    np.testing.assert_array_equal(call(params, x, condition, padded, mask), before)
    spoken = text + mask[..., None].astype(np.float32)
    change = np.abs(np.asarray(call(params, x, condition, spoken, mask)) - before)
    assert np.all(change.max(-1) > 1e-5)


# ---------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("cross_attention", [False, True])
def test_a_new_model_says_zero(cross_attention):
    changes = {"cross_attention": cross_attention, "text_depth": int(cross_attention)}
    params = jax.jit(make_model(**changes).init)(jax.random.key(0), *inputs())["params"]
    out = apply(params, *inputs(), **changes)
    assert out.shape == VIDEO and out.dtype == np.float32
    np.testing.assert_array_equal(out, 0)


def test_every_pair_has_a_spatial_and_a_temporal_block_that_act():
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


def test_a_model_without_temporal_blocks_would_not_mix_frames():
    """The frames meet in temporal blocks and nowhere else, and there they do meet."""
    x, t, text = inputs()
    moved = x.copy()
    moved[0, 1] += 1
    params = random_params()
    change = np.abs(apply(params, moved, t, text) - apply(params, x, t, text)).max((2, 3, 4))
    assert np.all(change[0] > 1e-4) and np.all(change[1] == 0)
    params = without(params, "temporal")
    change = np.abs(apply(params, moved, t, text) - apply(params, x, t, text)).max((2, 3, 4))
    assert change[0, 1] > 1e-4 and np.all(change[0, [0, 2]] == 0)


def test_frames_have_positions_in_time():
    """Regression: without them, a film played backwards would give the output backwards."""
    x, t, text = inputs()
    params = random_params()
    forward = apply(params, x, t, text)
    backward = apply(params, x[:, ::-1], t, text)[:, ::-1]
    assert np.abs(forward - backward).max() > 1e-3


@pytest.mark.parametrize("axis", [2, 3])
def test_places_have_positions_in_space(axis):
    def swap(video):
        return np.concatenate(np.split(video, 2, axis)[::-1], axis)  # exchanges the patches

    x, t, text = inputs()
    params = random_params()
    swapped = swap(apply(params, swap(x), t, text))
    assert np.abs(apply(params, x, t, text) - swapped).max() > 1e-3


@jax.jit
def gradients_of_output(params):
    """Of the summed squares of the output, by time and by parameters."""
    x, t, text = inputs()
    model = make_model(cross_attention=False, text_depth=0)

    def total(t, params):
        return jnp.sum(jnp.square(model.apply({"params": params}, x, t, text)))

    return jax.grad(total, (0, 1))(t, params)


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_time_and_caption_reach_the_video_through_either_kind_of_block(kind):
    """Regression: the first implementation's temporal residual was not conditioned."""
    other = {"spatial": "temporal", "temporal": "spatial"}[kind]
    changes = {"cross_attention": False, "text_depth": 0}
    by_time, by_params = gradients_of_output(without(random_params(**changes), other, "last"))
    by_word = by_params["caption_encoder"]["words"]["embedding"]
    assert np.all(np.abs(by_time) > 1e-4)
    assert np.all(np.abs(by_word[3:8]).max(1) > 1e-3)  # the words said
    np.testing.assert_array_equal(by_word[:3], 0)
    np.testing.assert_array_equal(by_word[8:], 0)


def test_one_time_is_the_same_time_for_every_frame():
    x, t, text = inputs()
    params = random_params()
    per_frame = np.repeat(t[:, None], FRAMES, axis=1)
    np.testing.assert_allclose(
        apply(params, x, per_frame, text), apply(params, x, t, text), rtol=1e-4, atol=1e-5
    )


def test_a_frames_own_time_moves_it_alone_until_frames_meet():
    x, t, text = inputs()
    times = np.repeat(t[:, None], FRAMES, axis=1)
    clean = times.copy()
    clean[:, 0] = 0
    for params, spreads in ((random_params(), True), (without(random_params(), "temporal"), False)):
        change = np.abs(apply(params, x, clean, text) - apply(params, x, times, text))
        change = change.max((2, 3, 4))  # (B, T)
        assert np.all(change[:, 0] > 1e-4)
        assert np.all(change[:, 1:] > 1e-5) if spreads else np.all(change[:, 1:] == 0)


def test_padding_behind_a_caption_does_not_matter():
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


def test_the_words_matter_one_by_one_and_in_their_order():
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


def test_a_caption_without_words_is_no_nan():
    x, t, text = inputs()
    assert np.all(np.isfinite(apply(random_params(), x, t, np.zeros_like(text))))


def test_cross_attention_is_there_only_where_it_is_asked_for():
    reading = random_params()["blocks"]
    plain = random_params(cross_attention=False)["blocks"]
    for kind in ("spatial", "temporal"):
        assert set(plain[kind]) == {"attention", "mlp", "modulation"}
        assert set(reading[kind]) - set(plain[kind]) == {"text_attention", "text_norm", "text_gate"}


def test_the_pooled_caption_is_the_mean_over_its_words():
    module = CaptionEncoder(16, 8, 0, 2)
    ids = np.array([[3, 4, 0], [5, 0, 0]])
    params = randomise.random_params(module, ids)
    tokens, mask, pooled = randomise.apply(module, params, ids)
    np.testing.assert_array_equal(mask, ids != 0)
    for row, count in ((0, 2), (1, 1)):
        expected = np.float64(tokens[row, :count]).mean(0)
        np.testing.assert_allclose(pooled[row], expected, atol=1e-6)


def test_remat_changes_no_gradient():
    args, changes = inputs(), {"cross_attention": False, "text_depth": 0}
    params, gradients = random_params(**changes), []
    for remat in (False, True):
        model = make_model(remat=remat, **changes)

        def loss(params, model=model):
            return jnp.mean(jnp.square(model.apply({"params": params}, *args) - 1))

        traced = jax.jit(jax.grad(loss)).trace(params)
        program = str(traced.jaxpr)
        assert ("remat" in program or "checkpoint" in program) == remat
        gradients.append(traced.lower().compile()(params))
    for plain, again in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.04), (jnp.float16, 0.006)])
def test_half_precision_stays_close_to_single(dtype, tolerance):
    args = inputs()
    exact = apply(random_params(), *args)
    shapes = jax.eval_shape(make_model(dtype=dtype).init, jax.random.key(0), *args)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    rough = apply(random_params(), *args, dtype=dtype)
    assert rough.dtype == np.float32
    error = np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < tolerance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, r"model\.depth is 3.*make it even"),
        ({"num_heads": 5}, r"model\.width of 12 is not a multiple of model\.num_heads of 5"),
        ({"patch_size": (2, 4, 4)}, "frames of 3 is not a multiple of the patch of 2"),
        ({"patch_size": (1, 3, 4)}, "height of 8 is not a multiple of the patch of 3"),
        ({"patch_size": (1, 4, 5)}, "width of 8 is not a multiple of the patch of 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_model(**changes).init, jax.random.key(0), *inputs())
