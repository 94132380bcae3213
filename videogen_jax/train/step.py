"""One optimizer step, and the loss that it descends.

x0, text  --noise at a random t-->  x_t  --model-->  weighted squared error of its prediction
accumulation: the batch in `accumulation` equal parts, one after the other, gradients averaged in float32
"""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.train.state import LossScale, TrainState

Batch = dict[str, jax.Array]  # video (B, T, H, W, 3) uint8, text (B, L) int32
Apply = Callable[..., jax.Array]  # params, x_t, t, text -> output

SCALE_GROWTH_INTERVAL = 1000  # finite float16 steps before the loss scale doubles


def to_float(video: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1


def draw_times(rng: jax.Array, count: int, num_steps: int) -> jax.Array:
    """Uniform diffusion times, one from each of `count` equal slices of the clock.

    Stratified, so that every batch sees all noise levels.

    Args:
      rng: key.
      count: B.
      num_steps: steps of the clock.
    Returns:
      (B,) int32 in [0, num_steps).
    Source: VDM, arXiv:2107.00630, appendix I.1.
    """
    u = (jnp.arange(count) + jax.random.uniform(rng)) / count
    return jnp.clip((u * num_steps).astype(jnp.int32), 0, num_steps - 1)


def make_loss(
    apply: Apply,
    schedule: Schedule,
    null_text: jax.Array,
    *,
    prediction: str,
    weighting: str,
    gamma: float,
    text_dropout: float,
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Builds the loss of a batch.

    Args:
      apply: the model.
      schedule: noise schedule.
      null_text: (L,) ids that stand for no caption.
      prediction: one of `objective.PREDICTIONS`.
      weighting: one of `objective.WEIGHTINGS`.
      gamma: bound of the weights.
      text_dropout: share of captions replaced by `null_text`, for classifier-free guidance.
    Returns:
      (params, batch, rng) to the mean over the batch, () float32.
    """

    def loss(params: Any, batch: Batch, rng: jax.Array) -> jax.Array:
        rng_time, rng_eps, rng_drop = jax.random.split(rng, 3)
        x0 = to_float(batch["video"])  # (B, T, H, W, 3)
        count = x0.shape[0]
        t = draw_times(rng_time, count, schedule.num_steps)  # (B,)
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        eps = jax.random.normal(rng_eps, x0.shape)
        x_t = objective.add_noise(x0, eps, alpha, sigma)
        dropped = jax.random.bernoulli(rng_drop, text_dropout, (count, 1))
        text = jnp.where(dropped, null_text, batch["text"])
        output = apply(params, x_t, t, text)
        target = objective.make_target(prediction, x0, eps, alpha, sigma)
        error = jnp.mean(jnp.square(output - target), axis=(1, 2, 3, 4))  # (B,)
        return jnp.mean(objective.loss_weight(weighting, prediction, alpha, sigma, gamma) * error)

    return loss


def make_train_step(
    loss: Callable[[Any, Batch, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    accumulation: int,
    ema_decay: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step; the caller jits it with shardings and donates the state.

    Under float16 a step whose gradients are not finite changes nothing but the loss scale (and the step's number).

    Args:
      loss: of `make_loss`.
      optimizer: of `make_optimizer`.
      learning_rate: for the metrics.
      accumulation: equal parts in which the batch is taken.
      ema_decay: of the moving average, reached by way of min(decay, (1 + n) / (10 + n)).
    Returns:
      (state, batch) to (state, metrics): loss, gradient_norm, learning_rate, and for float16
      loss_scale, each () float32.
    Source: loss scaling, arXiv:1710.03740, section 3.2.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(state.rng, state.step)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
        value, grads = accumulate_gradients(loss, state.params, batch, rng, accumulation, scale)
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
        }
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        new = state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
        if state.loss_scale is not None:
            finite = jnp.isfinite(metrics["gradient_norm"])
            kept = state.replace(step=state.step + 1)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
            new = new.replace(loss_scale=adjust_loss_scale(state.loss_scale, finite))
            metrics["loss_scale"] = new.loss_scale.scale
        return new, metrics

    return step


def accumulate_gradients(
    loss: Callable[[Any, Batch, jax.Array], jax.Array],
    params: Any,
    batch: Batch,
    rng: jax.Array,
    parts: int,
    scale: jax.Array | float,
) -> tuple[jax.Array, Any]:
    """Mean loss and gradient over equal parts of a batch, with memory for one part at a time.

    Args:
      loss: (params, batch, rng) to ().
      params: tree.
      batch: arrays (B, ...).
      rng: key; each part has its own.
      parts: divides B.
      scale: the loss is multiplied by it for differentiation and the gradient divided again.
    Returns:
      (() loss, tree of float32 gradients).
    """

    def scaled(params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = loss(params, batch, rng)
        return value * scale, value

    gradient = jax.grad(scaled, has_aux=True)
    # Rows of one part come from all devices: splitting "(rows parts)" keeps each row where it is.
    batches = {
        name: einops.rearrange(rows, "(b parts) ... -> parts b ...", parts=parts)
        for name, rows in batch.items()
    }

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, jax.Array]:
        grads, value = gradient(params, *part)
        return jax.tree.map(jnp.add, total, grads), value

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, values = jax.lax.scan(add, zeros, (batches, jax.random.split(rng, parts)))
    grads = jax.tree.map(lambda g: g / (parts * scale), grads)
    return jnp.mean(values), grads


def adjust_loss_scale(loss_scale: LossScale, finite: jax.Array) -> LossScale:
    """Halves the scale after an overflow, doubles it after a long run without one.

    Args:
      loss_scale: before the step.
      finite: () bool, whether the step's gradients were.
    Returns:
      The scale for the next step, between 2^-14 and 2^24.
    """
    good_steps = jnp.where(finite, loss_scale.good_steps + 1, 0)
    grow = good_steps >= SCALE_GROWTH_INTERVAL
    factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
    return LossScale(
        scale=jnp.clip(loss_scale.scale * factor, 2.0**-14, 2.0**24),
        good_steps=jnp.where(grow, 0, good_steps),
    )
