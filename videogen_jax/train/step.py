"""One optimizer step: gradients over micro-batches, the update, the moving averages; none of frozen parameters.

accumulation: the batch in `accumulation` equal parts, one after the other, gradients averaged in float32; the
diffusion times of each part are stratified, and those of all parts together
"""

from collections.abc import Callable, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax

from videogen_jax.models.parameter_paths import combine
from videogen_jax.parallel import offload
from videogen_jax.run import ema
from videogen_jax.run.state import LossScale, TrainState
from videogen_jax.train import optimizers
from videogen_jax.train.loss import Batch, Loss

SCALE_GROWTH_INTERVAL = 1000  # finite float16 steps before the loss scale doubles


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    accumulation: int,
    ema_decays: dict[str, Callable[[jax.Array], jax.Array]],
    offloaded: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step; the caller jits it with shardings and donates the state.

    Under float16 a step whose gradients are not finite changes nothing but the loss scale (and the step's number). So
    the learning rate follows the number of updates, from which such steps are missing.

    Args:
      loss: of `make_loss`.
      optimizer: of `make_optimizer`.
      learning_rate: the optimizer's, for the metrics.
      accumulation: equal parts in which the batch is taken.
      ema_decays: of `ema.make_decays`.
      offloaded: fields of the state that wait in the host's memory.
    Returns:
      (state, batch) to (state, metrics): loss, gradient_norm, learning_rate, and for float16
      loss_scale, each () float32.
    Source: loss scaling, arXiv:1710.03740, section 3.2.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(state.rng, state.step)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

        def loss_of(params: Any, *inputs: Any) -> jax.Array:
            return loss(combine(params, state.frozen), *inputs)

        value, grads = accumulate_gradients(loss_of, state.params, batch, rng, accumulation, scale)
        for field in offloaded:
            part, grads = offload.fetch(getattr(state, field), after=grads)
            state = state.replace(**{field: part})
        updates_made = optimizers.count_updates(state.opt_state)
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(learning_rate(updates_made), jnp.float32),
        }
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = ema.update(
            state.ema, optimizers.evaluation_params(opt_state, params), state.step, ema_decays
        )
        new = state.replace(step=state.step + 1, params=params, ema=averages, opt_state=opt_state)
        if state.loss_scale is not None:
            finite = jnp.isfinite(metrics["gradient_norm"])
            kept = state.replace(step=state.step + 1)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
            new = new.replace(loss_scale=adjust_loss_scale(state.loss_scale, finite))
            metrics["loss_scale"] = new.loss_scale.scale
        for field in offloaded:
            new = new.replace(**{field: offload.store(getattr(new, field))})
        return new, metrics

    return step


def accumulate_gradients(
    loss: Loss,
    params: Any,
    batch: Batch,
    rng: jax.Array,
    parts: int,
    scale: jax.Array | float,
) -> tuple[jax.Array, Any]:
    """Mean loss and gradient over equal parts of a batch, with memory for one part at a time.

    Args:
      loss: (params, batch, rng, offset of stratified times or None) to ().
      params: tree.
      batch: arrays (B, ...).
      rng: key; each part has its own, and its own offset of stratified times.
      parts: divides B.
      scale: the loss is multiplied by it for differentiation and the gradient divided again.
    Returns:
      (() loss, tree of float32 gradients).
    """

    def scaled(
        params: Any, batch: Batch, rng: jax.Array, offset: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        value = loss(params, batch, rng, offset)
        return value * scale, value

    gradient = jax.grad(scaled, has_aux=True)
    if parts == 1:
        grads, value = gradient(params, batch, jax.random.split(rng, 1)[0])
        return value, jax.tree.map(lambda g: g / scale, grads)
    # Rows of one part come from all devices: splitting "(rows parts)" keeps each row where it is.
    batches = jax.tree.map(
        lambda rows: einops.rearrange(rows, "(b parts) ... -> parts b ...", parts=parts), batch
    )

    # Evenly spaced, so that the times of all parts together are stratified; each is uniform by itself.
    rngs = jax.random.split(rng, parts + 1)
    offsets = (jax.random.uniform(rngs[0]) + jnp.arange(parts) / parts) % 1

    def add(total: Any, part: tuple[Batch, jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        grads, value = gradient(params, *part)
        return jax.tree.map(jnp.add, total, grads), value

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, values = jax.lax.scan(add, zeros, (batches, rngs[1:], offsets))
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
