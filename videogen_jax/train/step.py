"""One optimizer step, and the loss that it descends.

x0, text  --noise at a random t-->  x_t  --model-->  weighted squared error of its prediction
          --task of the clip----->  known frames beside x_t, or clean ones in it, which are not learned
noise levels: the same error at times in each of some equal parts of the clock, for validation
accumulation: the batch in `accumulation` equal parts, one after the other, gradients averaged in float32
"""

from collections.abc import Callable, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax

from videogen_jax.diffusion import objective, times
from videogen_jax.diffusion import tasks as clip_tasks
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.diffusion.tasks import Tasks
from videogen_jax.parallel import offload
from videogen_jax.run import ema
from videogen_jax.run.state import LossScale, TrainState
from videogen_jax.train import optimizers

# video (B, T, H, W, 3) uint8; text, a tree of (B, ...); and the micro-conditions, (B,) float32 each
Batch = dict[str, Any]
Apply = Callable[
    ..., jax.Array
]  # params, x_t, t, condition (the batch without its video) -> output

SCALE_GROWTH_INTERVAL = 1000  # finite float16 steps before the loss scale doubles


def to_float(video: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [-1, 1]; latents, which are floats, to float32."""
    pixels = video.dtype == jnp.uint8
    video = video.astype(jnp.float32)
    return video / 127.5 - 1 if pixels else video


def make_clip_losses(
    apply: Apply,
    schedule: Schedule,
    tasks: Tasks | None = None,
    *,
    prediction: str,
    weighting: str,
    gamma: float,
) -> Callable[..., jax.Array]:
    """Builds the loss of each clip at a time that is given.

    Args:
      apply: the model.
      schedule: noise schedule.
      tasks: for models that take known frames.
      prediction: one of `objective.PREDICTIONS`.
      weighting: one of `objective.WEIGHTINGS`.
      gamma: bound of the weights.
    Returns:
      (params, batch, t (B,), key of the noise, (B,) bool or None: whose known frames are dropped) to (B,) float32, the
      mean over the frames that are learned.
    Raises:
      ValueError: prediction, weighting and schedule do not go together.
    """
    objective.check_objective(schedule, prediction)
    objective.check_weighting(weighting, gamma)

    def clip_losses(
        params: Any,
        batch: Batch,
        t: jax.Array,
        rng_eps: jax.Array,
        dropped: jax.Array | None = None,
    ) -> jax.Array:
        x0 = to_float(batch["video"])  # (B, F, H, W, C)
        levels = schedule.pair(t)
        eps = jax.random.normal(rng_eps, x0.shape)
        condition = {name: rows for name, rows in batch.items() if name != "video"}
        noise_levels, told, learned = levels, t, None
        if tasks is not None:
            rng_task = jax.random.fold_in(rng_eps, 0)
            situation = clip_tasks.draw_task(rng_task, tasks, x0, dropped)
            condition |= {
                name: getattr(situation, name) for name in ("known", "mask", "augmentation")
            }
            condition["start"] = situation.start
            if tasks.shares["prefix"]:
                own, told = clip_tasks.prefix_times(t, situation.clean, tasks, schedule)
                noise_levels = schedule.pair(own)
                learned = ~situation.clean
        x_t = objective.add_noise(x0, eps, *noise_levels)
        output = apply(params, x_t, told, condition)
        target = objective.make_target(prediction, x0, eps, *levels, schedule.sigma_data)
        error = jnp.mean(jnp.square(output - target), axis=(2, 3, 4))  # (B, F)
        error = jnp.mean(error, axis=1, where=learned)  # (B,)
        weight = objective.loss_weight(
            weighting, prediction, *levels, gamma=gamma, sigma_data=schedule.sigma_data
        )
        return weight * error

    return clip_losses


def make_loss_by_noise_level(
    clip_losses: Callable[..., jax.Array],
    schedule: Schedule,
    count: int,
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Builds the loss of a batch at each of `count` noise levels: equal parts of the schedule's clock.

    The times of the clips spread evenly over a part, and the noise is the same in all of them.

    Args:
      clip_losses: of `make_clip_losses`.
      schedule: noise schedule.
      count: of the levels.
    Returns:
      (params, batch, rng) to (count,) float32, the least noise first.
    """

    def losses(params: Any, batch: Batch, rng: jax.Array) -> jax.Array:
        clips = batch["video"].shape[0]
        inside = (jnp.arange(clips) + 0.5) / clips

        def level_loss(level: jax.Array) -> jax.Array:
            t = times.place_times((level + inside) / count, schedule)
            return jnp.mean(clip_losses(params, batch, t, rng))

        return jax.lax.map(level_loss, jnp.arange(count))

    return losses


def make_loss(
    apply: Apply,
    schedule: Schedule,
    null_text: Any,
    tasks: Tasks | None = None,
    *,
    prediction: str,
    weighting: str,
    gamma: float,
    time_distribution: str,
    time_mean: float,
    time_std: float,
    stratified: bool,
    text_dropout: float,
    known_dropout: float = 0.0,
    joint_dropout: float = 0.0,
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Builds the loss of a batch.

    Args:
      apply: the model.
      schedule: noise schedule.
      null_text: tree of text without the batch axis, that stands for no caption.
      tasks: for models that take known frames.
      prediction: one of `objective.PREDICTIONS`.
      weighting: one of `objective.WEIGHTINGS`.
      gamma: bound of the weights.
      time_distribution: one of `times.DISTRIBUTIONS`.
      time_mean: see `times.draw_times`, as the next two.
      time_std: of the same.
      stratified: times spread evenly over the batch.
      text_dropout: share of captions replaced by `null_text`, for classifier-free guidance.
      known_dropout: share of clips whose known frames are not told.
      joint_dropout: share of clips of which neither is told.
    Returns:
      (params, batch, rng) to the mean over the batch, () float32.
    Raises:
      ValueError: prediction, times and schedule do not go together, or the dropouts are more than a whole.
    """
    clip_losses = make_clip_losses(
        apply, schedule, tasks, prediction=prediction, weighting=weighting, gamma=gamma
    )
    shares = (text_dropout, known_dropout, joint_dropout)
    if min(shares) < 0 or sum(shares) > 1:
        raise ValueError(
            f"text.dropout, known.dropout and known.joint_dropout are {', '.join(map(str, shares))}: make them 0 or "
            "more, and together at most 1."
        )
    times.check_distribution(schedule, time_distribution)
    if time_std < 0:
        raise ValueError(f"objective.time_std is {time_std}: a deviation is 0 or more.")

    def loss(params: Any, batch: Batch, rng: jax.Array) -> jax.Array:
        rng_time, rng_eps, rng_drop = jax.random.split(rng, 3)
        count = batch["video"].shape[0]
        t = times.draw_times(
            rng_time,
            count,
            schedule,
            distribution=time_distribution,
            mean=time_mean,
            std=time_std,
            stratified=stratified,
        )  # (B,)
        draw = jax.random.uniform(rng_drop, (count,))
        drop_text = draw < text_dropout + joint_dropout
        drop_known = (draw >= text_dropout) & (draw < sum(shares))
        text = jax.tree.map(
            lambda null, rows: jnp.where(objective.expand(drop_text, rows.ndim), null, rows),
            null_text,
            batch["text"],
        )
        return jnp.mean(clip_losses(params, batch | {"text": text}, t, rng_eps, drop_known))

    return loss


def make_train_step(
    loss: Callable[[Any, Batch, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    accumulation: int,
    ema_decays: dict[str, Callable[[jax.Array], jax.Array]],
    offloaded: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step; the caller jits it with shardings and donates the state.

    Under float16 a step whose gradients are not finite changes nothing but the loss scale (and the step's number).

    Args:
      loss: of `make_loss`.
      optimizer: of `make_optimizer`.
      learning_rate: for the metrics.
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
        value, grads = accumulate_gradients(loss, state.params, batch, rng, accumulation, scale)
        for field in offloaded:
            part, grads = offload.fetch(getattr(state, field), after=grads)
            state = state.replace(**{field: part})
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
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
    if parts == 1:
        grads, value = gradient(params, batch, jax.random.split(rng, 1)[0])
        return value, jax.tree.map(lambda g: g / scale, grads)
    # Rows of one part come from all devices: splitting "(rows parts)" keeps each row where it is.
    batches = jax.tree.map(
        lambda rows: einops.rearrange(rows, "(b parts) ... -> parts b ...", parts=parts), batch
    )

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
