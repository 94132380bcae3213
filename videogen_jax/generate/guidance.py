"""Classifier-free guidance: one call of the model for the prompt and for no prompt."""

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
    rescale: float = 0.0,
    interval: tuple[float, ...] = (),
) -> Predict:
    """Turns a model into its guided self: u + w (c - u), with both halves in one batch.

    Guidance of 1 is the model itself, at half the cost; 0 is the model without a prompt. `null_text` may say what the
    video shall not show: a negative prompt.

    Args:
      predict: of `sampler.Predict`, whose condition is a dict with a "text".
      schedule: that gives the noise level of a time.
      null_text: what stands for no caption: tree of the text's rows, without the batch axis or with it.
      guidance_scale: w; of the last frame, if `first_frame_scale` is given.
      first_frame_scale: w of the first frame; between them it grows evenly.
      rescale: 0 (off) to 1, how far the guided output is brought back to the deviation of the conditional one.
      interval: noise levels sigma / alpha (above the first, up to the second) at which to guide; elsewhere w = 1,
        at half the cost. Empty: everywhere.
    Returns:
      A function of the same signature.
    Raises:
      ValueError: a scale is no number, or rescale or interval is out of range.
    Source: guidance, arXiv:2207.12598, eq. 6 (with w there = w - 1 here); rescale, arXiv:2305.08891, eq. 15 and 16;
      interval, arXiv:2404.07724; scale per frame, arXiv:2311.15127, section 4.3.
    """
    check_guidance(guidance_scale, first_frame_scale, rescale, interval)
    if guidance_scale == 1 and first_frame_scale in (None, 1):
        return predict

    def guided(x_t: jax.Array, t: jax.Array, condition: dict[str, Any]) -> jax.Array:
        empty = jax.tree.map(
            lambda null, text: jnp.broadcast_to(null, text.shape), null_text, condition["text"]
        )
        # Interleaved rather than stacked, so that each device keeps both halves of its own rows.
        pairs = jax.tree.map(
            _interleave, (x_t, t, condition), (x_t, t, condition | {"text": empty})
        )
        output = predict(*pairs)  # (2 B, T, H, W, C)
        conditional, unconditional = output[0::2], output[1::2]
        scale = guidance_scale
        if first_frame_scale is not None:
            frames = jnp.linspace(first_frame_scale, guidance_scale, output.shape[1])
            scale = frames[:, None, None, None]  # (T, 1, 1, 1)
        output = unconditional + scale * (conditional - unconditional)
        if rescale:
            axes = tuple(range(1, output.ndim))
            deviation = [jnp.std(part, axis=axes, keepdims=True) for part in (conditional, output)]
            output = output * (1 - rescale + rescale * deviation[0] / deviation[1])
        return output

    if not interval:
        return guided
    low, high = interval

    def guided_within(x_t: jax.Array, t: jax.Array, condition: dict[str, Any]) -> jax.Array:
        alpha, sigma = schedule.pair(jnp.max(t))  # of the noisiest frame, where each has its own
        # high * alpha would be no number where an infinite bound meets pure noise.
        within = sigma > low * alpha
        if np.isfinite(high):
            within &= sigma <= high * alpha
        return jax.lax.cond(within, guided, predict, x_t, t, condition)

    return guided_within


def check_guidance(
    guidance_scale: float,
    first_frame_scale: float | None,
    rescale: float,
    interval: tuple[float, ...],
) -> None:
    """Refuses options of `guide` that are out of range.

    Raises:
      ValueError: names it.
    """
    scales = [scale for scale in (guidance_scale, first_frame_scale) if scale is not None]
    if not np.isfinite(scales).all():
        raise ValueError(f"guidance_scale is {guidance_scale}: give a finite number.")
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale is {rescale}: choose a value between 0 and 1.")
    if interval and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(
            f"guidance_interval is {tuple(interval)}: give two noise levels sigma / alpha, the lower first."
        )


def _interleave(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
