"""The loss of a diffusion model in training.

x0, caption  --noise at a random t-->  x_t  --model-->  weighted squared error of its prediction
             --task of the clip----->  known frames beside x_t, or a clean prefix in it, which has no loss
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from videogen_jax.diffusion import objective, times
from videogen_jax.diffusion import tasks as clip_tasks
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.diffusion.tasks import Tasks
from videogen_jax.train.condition_dropout import draw_dropout, drop_captions

# video (B, T, H, W, 3) uint8; text, a tree of (B, ...); and the micro-conditions, (B,) float32 each
Batch = dict[str, Any]
# params, x_t, t, condition (the batch without its video) -> output
Apply = Callable[..., jax.Array]
ClipLosses = Callable[..., jax.Array]
# params, batch, key, offset of stratified times or None -> mean over the batch, () float32
Loss = Callable[..., jax.Array]


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
) -> ClipLosses:
    """Builds the loss of each clip at a given time.

    Args:
      apply: the model.
      schedule: noise schedule.
      tasks: for models with known frames.
      prediction: one of `objective.PREDICTIONS`.
      weighting: one of `objective.WEIGHTINGS`.
      gamma: of min_snr.
    Returns:
      (params, batch, t (B,), key of noise and tasks, (B,) bool or None: whose known frames are dropped) to (B,)
      float32, the mean over the frames that have a loss.
    Raises:
      ValueError: prediction, weighting and schedule do not go together.
    """
    objective.check_objective(schedule, prediction)
    objective.check_weighting(weighting, gamma)

    def clip_losses(
        params: Any,
        batch: Batch,
        t: jax.Array,
        rng: jax.Array,
        dropped: jax.Array | None = None,
    ) -> jax.Array:
        rng_eps, rng_task = jax.random.split(rng)
        x0 = to_float(batch["video"])  # (B, F, H, W, C)
        levels = schedule.alpha_sigma(t)
        eps = jax.random.normal(rng_eps, x0.shape)
        condition = {name: rows for name, rows in batch.items() if name != "video"}
        noise_levels, model_t, has_loss = levels, t, None
        if tasks is not None:
            # Known frames go beside x_t as further channels, with their mask.
            drawn = clip_tasks.draw_task(rng_task, tasks, x0, dropped)
            condition |= {name: getattr(drawn, name) for name in ("known", "mask", "augmentation")}
            condition["start"] = drawn.start
            if tasks.shares["prefix"]:
                # A clean prefix stays in x_t with little noise; its time says clean, and it has no loss.
                noise_t, model_t = clip_tasks.prefix_times(t, drawn.clean, tasks, schedule)
                noise_levels = schedule.alpha_sigma(noise_t)
                has_loss = ~drawn.clean
        x_t = objective.add_noise(x0, eps, *noise_levels)
        output = apply(params, x_t, model_t, condition)
        target = objective.make_target(prediction, x0, eps, *levels, schedule.sigma_data)
        error = jnp.mean(jnp.square(output - target), axis=(2, 3, 4))  # (B, F)
        # Over the frames with a loss, so that a clip counts the same however long its prefix is.
        error = jnp.mean(error, axis=1, where=has_loss)  # (B,)
        weight = objective.loss_weight(
            weighting, prediction, *levels, gamma=gamma, sigma_data=schedule.sigma_data
        )
        return weight * error

    return clip_losses


def make_loss_by_noise_level(
    clip_losses: ClipLosses, schedule: Schedule, count: int
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
            t = times.times_at_fraction((level + inside) / count, schedule)
            return jnp.mean(clip_losses(params, batch, t, rng))

        return jax.lax.map(level_loss, jnp.arange(count))

    return losses


def make_loss(
    clip_losses: ClipLosses,
    schedule: Schedule,
    null_text: Any,
    *,
    time_distribution: str,
    time_mean: float,
    time_std: float,
    stratified: bool,
    text_dropout: float,
    known_dropout: float = 0.0,
    joint_dropout: float = 0.0,
) -> Loss:
    """Builds the loss of a batch: times and dropout of conditions are drawn for each clip.

    Args:
      clip_losses: of `make_clip_losses`.
      schedule: noise schedule.
      null_text: embedding of no caption, tree of rows without the batch axis.
      time_distribution: one of `times.DISTRIBUTIONS`.
      time_mean: see `times.draw_times`.
      time_std: likewise.
      stratified: times spread evenly over the batch, each clip in a random part of the distribution.
      text_dropout: share of captions replaced by `null_text`, for classifier-free guidance.
      known_dropout: share of clips without their known frames.
      joint_dropout: share of clips without either.
    Returns:
      (params, batch, rng, offset of stratified times, see `times.draw_times`) to the mean over the batch, () float32.
    Raises:
      ValueError: the distribution of times does not go with the schedule.
    """
    times.check_distribution(schedule, time_distribution)

    def loss(
        params: Any, batch: Batch, rng: jax.Array, offset: jax.Array | None = None
    ) -> jax.Array:
        rng_time, rng_clips, rng_drop = jax.random.split(rng, 3)
        count = batch["video"].shape[0]
        t = times.draw_times(
            rng_time,
            count,
            schedule,
            distribution=time_distribution,
            mean=time_mean,
            std=time_std,
            stratified=stratified,
            offset=offset,
        )  # (B,)
        drop_text, drop_known = draw_dropout(
            rng_drop, count, text_dropout, known_dropout, joint_dropout
        )
        batch = batch | {"text": drop_captions(batch["text"], null_text, drop_text)}
        return jnp.mean(clip_losses(params, batch, t, rng_clips, drop_known))

    return loss
