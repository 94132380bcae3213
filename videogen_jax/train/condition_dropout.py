"""Dropout of captions and known frames in training, for classifier-free guidance.

Source: arXiv:2207.12598, algorithm 1; three ways, InstructPix2Pix, arXiv:2211.09800, section 3.2.
"""

from typing import Any

import jax
import jax.numpy as jnp

from videogen_jax.diffusion.objective import expand


def draw_dropout(
    rng: jax.Array, count: int, text: float, known: float, joint: float
) -> tuple[jax.Array, jax.Array]:
    """Draws which clips are trained without their caption, and which without their known frames.

    Args:
      rng: key.
      count: B.
      text: share of clips without their caption alone.
      known: share without their known frames alone.
      joint: share without both.
    Returns:
      (B,) bool each.
    """
    # One draw for both: [0, text) drops the caption, [text, text + joint) both, the next `known` the frames.
    draw = jax.random.uniform(rng, (count,))
    return draw < text + joint, (draw >= text) & (draw < text + known + joint)


def drop_captions(text: Any, null_text: Any, dropped: jax.Array) -> Any:
    """Replaces captions by the embedding of no caption.

    Args:
      text: tree of (B, ...).
      null_text: the same without the batch axis.
      dropped: (B,) bool.
    Returns:
      A tree as `text`.
    """
    return jax.tree.map(
        lambda null, rows: jnp.where(expand(dropped, rows.ndim), null, rows), null_text, text
    )
