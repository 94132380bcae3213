"""Classifier-free guidance: conditional and unconditional branches in one batch.

With guidance scale w of the caption and w_k of known frames (image to video), and u the unconditional output:

| w_k   | calls                             | output                                                    |
| ----- | --------------------------------- | --------------------------------------------------------- |
| None  | all, frames                       | frames + w (all - frames); so does 1                      |
| w     | all, nothing                      | u + w (all - u), as Stable Video Diffusion                |
| other | all, frames, nothing              | u + w_k (frames - u) + w (all - frames)                   |

Source: arXiv:2207.12598, eq. 6 (with w there = w - 1 here); three ways, InstructPix2Pix, arXiv:2211.09800, eq. 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.generate.sampler import Predict


def guide(
    predict: Predict,
    schedule: Schedule,
    null_text: Any,
    guidance_scale: float,
    *,
    first_frame_scale: float | None = None,
    known_scale: float | None = None,
    rescale: float = 0.0,
    interval: tuple[float, ...] = (),
) -> Predict:
    """Adds guidance to a model; all branches are computed in one batch.

    A scale of 1 is the conditional model, at half the cost; 0 is the unconditional one. `null_text` may be that of a
    negative prompt.

    Args:
      predict: of `sampler.Predict`, whose condition is a dict with a "text".
      schedule: that gives the noise level of a time.
      null_text: what stands for no caption: tree of the text's rows, without the batch axis or with it.
      guidance_scale: w; of the last frame, if `first_frame_scale` is given.
      first_frame_scale: w of the first frame; between them it grows evenly.
      known_scale: w_k of the table above.
      rescale: 0 (off) to 1, how far the guided output is brought back to the deviation of the conditional one.
      interval: noise levels sigma / alpha (above the first, up to the second) at which to guide; elsewhere w = 1,
        at half the cost. Empty: everywhere.
    Returns:
      The guided model, with the signature of `predict`.
    Raises:
      ValueError: a scale is no number, or rescale or interval is out of range.
    Source: this file's head; rescale, arXiv:2305.08891, eq. 15 and 16; interval, arXiv:2404.07724; scale per frame,
      arXiv:2311.15127, section 4.3.
    """
    check_guidance(guidance_scale, first_frame_scale, known_scale, rescale, interval)
    scales = (guidance_scale, first_frame_scale, known_scale)
    if count_calls(*scales) == 1:
        return predict

    def guided(x_t: jax.Array, t: jax.Array, condition: dict[str, Any]) -> jax.Array:
        branches = guidance_conditions(condition, null_text, *scales)
        output = predict(*jax.tree.map(interleave, *((x_t, t, one) for one in branches)))
        conditional, *others = (output[i :: len(branches)] for i in range(len(branches)))
        scale = guidance_scale
        if first_frame_scale is not None:
            frames = jnp.linspace(first_frame_scale, guidance_scale, output.shape[1])
            scale = frames[:, None, None, None]  # (T, 1, 1, 1)
        output = others[0] + scale * (conditional - others[0])
        if len(others) == 2:
            output += (known_scale - 1) * (others[0] - others[1])
        if rescale:
            axes = tuple(range(1, output.ndim))
            deviation = [jnp.std(part, axis=axes, keepdims=True) for part in (conditional, output)]
            output = output * (1 - rescale + rescale * deviation[0] / deviation[1])
        return output

    if not interval:
        return guided
    low, high = interval

    def guided_within(x_t: jax.Array, t: jax.Array, condition: dict[str, Any]) -> jax.Array:
        alpha, sigma = schedule.alpha_sigma(jnp.max(t))  # t may differ between frames
        # high * alpha would be no number where an infinite bound meets pure noise.
        within = sigma > low * alpha
        if np.isfinite(high):
            within &= sigma <= high * alpha
        return jax.lax.cond(within, guided, predict, x_t, t, condition)

    return guided_within


def count_calls(
    guidance_scale: float, first_frame_scale: float | None, known_scale: float | None
) -> int:
    """Branches of guidance, for arguments of `guide`: 1 without guidance, 2, or 3."""
    if guidance_scale == 1 and first_frame_scale in (None, 1) and known_scale in (None, 1):
        return 1
    return 2 if known_scale in (None, 1, guidance_scale) else 3


def guidance_conditions(
    condition: dict[str, Any],
    null_text: Any,
    guidance_scale: float,
    first_frame_scale: float | None,
    known_scale: float | None,
) -> list[dict[str, Any]]:
    """The conditions of the branches, the fully conditional one first (this file's head).

    Args:
      condition: dict with a "text", and for known frames "known" and "mask".
      null_text: see `guide`, as the others.
      guidance_scale: w.
      first_frame_scale: of the first frame.
      known_scale: w_k.
    Returns:
      As many as `count_calls` says.
    """
    if (calls := count_calls(guidance_scale, first_frame_scale, known_scale)) == 1:
        return [condition]
    empty = jax.tree.map(
        lambda null, text: jnp.broadcast_to(null, text.shape), null_text, condition["text"]
    )
    frames = condition | {"text": empty}
    if known_scale in (None, 1):
        return [condition, frames]
    hidden = {name: jnp.zeros_like(condition[name]) for name in ("known", "mask")}
    return [condition, *([frames] if calls == 3 else []), frames | hidden]


def check_guidance(
    guidance_scale: float,
    first_frame_scale: float | None,
    known_scale: float | None,
    rescale: float,
    interval: tuple[float, ...],
) -> None:
    """Refuses options of `guide` that are out of range.

    Raises:
      ValueError: names it.
    """
    scales = {
        "guidance_scale": guidance_scale,
        "first_frame_guidance_scale": first_frame_scale,
        "known_guidance_scale": known_scale,
    }
    for name, scale in scales.items():
        if scale is not None and not np.isfinite(scale):
            raise ValueError(f"{name} is {scale}: give a finite number.")
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale is {rescale}: choose a value between 0 and 1.")
    if interval and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(
            f"guidance_interval is {tuple(interval)}: give two noise levels sigma / alpha, the lower first."
        )


def interleave(*parts: jax.Array) -> jax.Array:
    """N arrays of (B, ...) as (B n, ...), row by row, so that each device keeps all of its own rows."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
