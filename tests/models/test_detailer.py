"""The patch detailer head against float64 NumPy, and in the model."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.randomise import randomise
from videogen_jax.models.detailer import PatchDetailer

PATCH, WIDTH, BLOCKS = (2, 2, 4), 5, 2


def norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def silu(x):
    return x / (1 + np.exp(-x))


def convolve(x, kernel, bias):
    """3x3, zero padding: x (N, H, W, D)."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    parts = [padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in shifts]
    return sum(parts) + bias


def refine(params, x_t, tokens):
    """The head in float64, one place of one patch at a time where it only rearranges."""
    (pt, ph, pw), (b, frames, height, width, channels) = PATCH, x_t.shape
    times = frames // pt
    enter, context = params["enter"], params["context"]
    x = np.zeros((b, times, height, width, WIDTH))
    for t in range(times):
        for r in range(height):
            for c in range(width):
                numbers = x_t[:, t * pt : (t + 1) * pt, r, c].reshape(b, pt * channels)
                x[:, t, r, c] = numbers @ enter["kernel"] + enter["bias"]
                token = tokens[:, t, r // ph * (width // pw) + c // pw]
                features = token @ context["kernel"] + context["bias"]
                place = r % ph * pw + c % pw
                x[:, t, r, c] += features.reshape(b, ph * pw, WIDTH)[:, place]
    x = x.reshape(b * times, height, width, WIDTH)
    for i in range(BLOCKS):
        block = params[f"block_{i}"]
        h = silu(norm(x, block["norm_1"]["scale"]))
        h = convolve(h, *(block["spatial"][name] for name in ("kernel", "bias")))
        h = silu(norm(h, block["norm_2"]["scale"]))
        x = x + h @ block["temporal"]["mix"]["kernel"] + block["temporal"]["mix"]["bias"]
    x = x @ params["leave"]["kernel"] + params["leave"]["bias"]
    x = x.reshape(b, times, height, width, pt, -1)
    return np.moveaxis(x, 4, 2).reshape(b, frames, height, width, -1)


def make(out_channels=3):
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((2, 4, 4, 8, 3)).astype(np.float32)
    tokens = rng.standard_normal((2, 2, 4, 7)).astype(np.float32)
    head = PatchDetailer(PATCH, WIDTH, BLOCKS, jnp.float32)
    shapes = jax.eval_shape(
        lambda: head.init(jax.random.key(0), jnp.asarray(x_t), jnp.asarray(tokens), out_channels)
    )
    return head, randomise(shapes["params"], 0.5), x_t, tokens


def test_head_is_that_of_float64():
    head, params, x_t, tokens = make()
    found = jax.jit(lambda *inputs: head.apply({"params": params}, *inputs, 3))(x_t, tokens)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = refine(exact, x_t.astype(np.float64), tokens.astype(np.float64))
    assert found.shape == x_t.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_head_adds_nothing_at_the_start():
    head, _, x_t, tokens = make()
    params = head.init(jax.random.key(0), jnp.asarray(x_t), jnp.asarray(tokens), 5)
    found = head.apply(params, jnp.asarray(x_t), jnp.asarray(tokens), 5)
    assert found.shape == (2, 4, 4, 8, 5) and not np.any(found)


def test_patches_of_frames_do_not_mix():
    head, params, x_t, tokens = make()
    apply = jax.jit(lambda *inputs: head.apply({"params": params}, *inputs, 3))
    whole = apply(x_t, tokens)
    np.testing.assert_allclose(apply(x_t[:, 2:], tokens[:, 1:]), whole[:, 2:], atol=1e-5)
