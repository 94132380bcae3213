"""Classifier-free guidance: one call of the model for the prompt and for no prompt."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Predict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def guide(predict: Predict, null_text: jax.Array, guidance_scale: float) -> Predict:
    """Turns a model into its guided self: u + w (c - u), with both halves in one batch.

    Guidance of 1 is the model itself, at half the cost; 0 is the model without a prompt.

    Args:
      predict: (x_t (B, T, H, W, C), t (B,), text (B, L)) to (B, T, H, W, C).
      null_text: (L,) the caption that stands for no caption.
      guidance_scale: w.
    Returns:
      A function of the same signature.
    Source: arXiv:2207.12598, eq. 6 (with w there = w - 1 here).
    """
    if guidance_scale == 1:
        return predict

    def guided(x_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        empty = jnp.broadcast_to(null_text, text.shape)
        # Interleaved rather than stacked, so that each device keeps both halves of its own rows.
        pairs = (_interleave(x_t, x_t), _interleave(t, t), _interleave(text, empty))
        output = predict(*pairs)  # (2 B, T, H, W, C)
        conditional, unconditional = output[0::2], output[1::2]
        return unconditional + guidance_scale * (conditional - unconditional)

    return guided


def _interleave(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
