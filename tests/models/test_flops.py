"""FLOPs against XLA's count, and against the number of unmasked pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.models.dit import VideoDiT
from videogen_jax.models.flops import TRAIN_FACTOR, count_flops
from videogen_jax.models.patches import patch_grid

SIZE, PATCH = 16, (1, 2, 2)  # height and width of a frame, in latents
SHAPE = {"frames": 6, "channels": 4, "words": 24, "text_width": 0}
MODEL = {
    "width": 256,
    "depth": 2,
    "mlp_ratio": 4,
    "attention": "factorized",
    "causal": False,
    "cross_attention": "gated",
}


def make_model(text_width, text_depth=0, **changes):
    fields = MODEL | changes
    return VideoDiT(
        **fields,
        patch_size=PATCH,
        num_heads=4,
        positions="sincos",
        modulation="adaln_zero",
        qk_norm=False,
        pooled_text=fields["cross_attention"] == "none",
        micro_conditions=(),
        conditioning="none",
        time_cycle=0,
        text_depth=text_depth,
        remat="none",
        text_encoder="embeddings" if text_width else "words",
        vocabulary_size=32,
        dtype=jnp.float32,
    )


def split(changes):
    """(sizes of the inputs, fields of the model)."""
    shape = {name: changes.get(name, value) for name, value in SHAPE.items()}
    return shape, {name: value for name, value in changes.items() if name not in SHAPE}


def xla_flops(grad=False, **changes):
    """XLA's count for one clip; it counts a loop's body once, hence one group of blocks."""
    shape, fields = split(changes)
    model = make_model(shape["text_width"], **fields)
    clip = jnp.zeros((1, shape["frames"], SIZE, SIZE, shape["channels"]))
    text = jnp.zeros((1, shape["words"]), jnp.int32)
    if shape["text_width"]:
        text = {"tokens": jnp.zeros((*text.shape, shape["text_width"])), "mask": text == 0}
    args = (clip, jnp.zeros(1), text)
    params = jax.eval_shape(model.init, jax.random.key(0), *args)

    def loss(params):
        return jnp.sum(jnp.square(model.apply(params, *args)))

    program = jax.jit(jax.grad(loss) if grad else loss).lower(params)
    return program.cost_analysis()["flops"]


def flops(**changes):
    shape, fields = split(changes)
    patch = np.prod(PATCH) * shape["channels"]
    return count_flops(
        patch_grid((shape["frames"], SIZE, SIZE), PATCH),
        patch_in=patch,
        patch_out=patch,
        text_tokens=shape["words"],
        text_width=shape["text_width"],
        patch_places=np.prod(PATCH[1:]),
        **MODEL | fields,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frames": 1},
        {"cross_attention": "pixart", "text_width": 96},
        {"cross_attention": "none", "attention": "joint", "depth": 1},
        {"detailer_width": 64, "detailer_blocks": 3},
    ],
)
def test_flops_agree_with_xla(changes):
    """XLA also counts elementwise operations: a few percent at this model size."""
    assert flops(**changes) == pytest.approx(xla_flops(**changes), rel=0.04)


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 60},
        {"words": 88},
        {"text_width": 4096},
        {"text_depth": 2},
        {"mlp_ratio": 6},
        {"width": 512},
        {"detailer_width": 32, "detailer_blocks": 2},
    ],
)
def test_flops_grow_with_every_size_as_in_xla(changes):
    """Differences reveal small parts."""
    base = {"text_width": 96} if "text_width" in changes else {}
    added = xla_flops(**changes) - xla_flops(**base)
    assert flops(**changes) - flops(**base) == pytest.approx(added, rel=0.04)


def test_a_train_step_is_three_forward_passes():
    assert TRAIN_FACTOR * flops() == pytest.approx(xla_flops(grad=True), rel=0.05)


def test_flops_are_linear_in_the_depth():
    two, four, eight = (flops(depth=depth) for depth in (2, 4, 8))
    assert eight - four == 2 * (four - two) > 0


@pytest.mark.parametrize(("attention", "tokens"), [("factorized", 1), ("joint", 64)])
def test_causal_attention_counts_unmasked_pairs(attention, tokens):
    """Masked pairs save 4 D FLOPs each; a sequence has `tokens` tokens per frame."""
    frame = np.repeat(np.arange(6), tokens)
    masked = np.sum(frame[:, None] < frame[None])
    sequences, blocks = (64, 1) if attention == "factorized" else (1, 2)
    full, causal = (flops(attention=attention, causal=flag) for flag in (False, True))
    assert full - causal == blocks * sequences * masked * 4 * MODEL["width"]
