"""What a model is asked to do with a clip, and what it is told of the clip's frames for that.

| task   | known                                  | how the model sees them                       | source           |
| ------ | -------------------------------------- | --------------------------------------------- | ---------------- |
| text   | nothing                                |                                               |                  |
| image  | the first frame                        | beside x_t, with a little noise; masked       | arXiv:2311.15127 |
| frames | any: the first ones, every n-th, some  | the same                                      | arXiv:2212.05199 |
| prefix | the first ones, a number out of a list | in x_t, a little noisy, labelled clean; masked | arXiv:2411.16375 |

Each clip of a batch has a task of its own, drawn by the shares. Beside x_t every frame shows the nearest known one, so
that a known first frame is there at all times; a causal model has the nearest earlier one, or nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.diffusion.objective import expand
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.diffusion.times import times_at_fraction

TASKS = ("text", "image", "frames", "prefix")
AUGMENTATION = "augmentation"  # micro-condition: the noise on known frames


class Tasks(NamedTuple):
    """What `draw_task` draws from."""

    shares: Mapping[str, float]  # of TASKS
    patch_frames: int  # pt, frames of a latent frame
    causal: bool
    noise_mean: float  # of log sigma of the noise on known frames
    noise_std: float
    lengths: tuple[int, ...]  # of prefixes, in latent frames
    prefix_noise: float  # of prefixes, as a share of the schedule's clock
    time_cycle: int  # latent frames after which positions begin again; 0: never

    @property
    def conditioning(self) -> str:
        """What the model must be able to take in, of `dit.CONDITIONINGS`."""
        if self.shares["image"] or self.shares["frames"]:
            return "frames"
        return "prefix" if self.shares["prefix"] else "none"


class TaskBatch(NamedTuple):
    """A batch of tasks."""

    known: jax.Array  # (B, F, H, W, C), beside x_t
    mask: jax.Array  # (B, F) float32, 1 at known frames
    augmentation: jax.Array  # (B,) float32, what the micro-condition tells of the noise on `known`
    clean: jax.Array  # (B, F) bool, frames that x_t shows nearly clean, and that are not learned
    start: jax.Array | None  # (B,) int32, number of the first latent frame; without a cycle None


def check_tasks(tasks: Tasks, frames: int) -> None:
    """Refuses shares and prefixes that have no meaning.

    Args:
      tasks: of the config.
      frames: latent frames of a clip, T.
    Raises:
      ValueError: names the line of the config.
    """
    shares = [tasks.shares[name] for name in TASKS]
    if min(shares) < 0 or not np.isclose(sum(shares), 1):
        raise ValueError(
            f"The shares {', '.join(f'tasks.{name}={tasks.shares[name]:g}' for name in TASKS)} are no parts of a "
            "whole: make them 0 or more, and their sum 1."
        )
    if not 0 <= tasks.prefix_noise < 1 or tasks.noise_std < 0:
        raise ValueError(
            f"prefix.noise is {tasks.prefix_noise} and known.noise_std {tasks.noise_std}: the first is a share of the "
            "clock, 0 to 1, and the second 0 or more."
        )
    if not tasks.shares["prefix"]:
        return
    if not tasks.causal:
        raise ValueError(
            f"tasks.prefix is {tasks.shares['prefix']:g}, but videos go on only where frames do not see later ones: "
            "set model.causal to True, or tasks.prefix to 0."
        )
    if not tasks.lengths or min(tasks.lengths) < 1 or max(tasks.lengths) >= frames:
        raise ValueError(
            f"prefix.lengths are {tasks.lengths}: give numbers of latent frames from 1 to {frames - 1}, one less than "
            "a clip has."
        )


def draw_task(
    rng: jax.Array, tasks: Tasks, x0: jax.Array, dropped: jax.Array | None = None
) -> TaskBatch:
    """Draws a task for every clip.

    Args:
      rng: key.
      tasks: of the config.
      x0: (B, F, H, W, C) clean video; F = T pt.
      dropped: (B,) bool, clips whose known frames are not told, for guidance; None for none of them.
    Returns:
      The situation.
    Source: the table above.
    """
    count, frames = x0.shape[:2]
    rng_task, rng_mask, rng_length, rng_sigma, rng_noise, rng_start = jax.random.split(rng, 6)
    shares = jnp.array([tasks.shares[name] for name in TASKS])
    task = jax.random.choice(rng_task, len(TASKS), (count,), p=shares)  # (B,)
    place = jnp.arange(frames)  # (F,)

    def one_of(name: str) -> jax.Array:
        return (task == TASKS.index(name))[:, None]  # (B, 1)

    first = jnp.broadcast_to(place == 0, (count, frames))
    beside = one_of("image") & first | one_of("frames") & draw_mask(rng_mask, count, frames)
    if dropped is not None:
        beside &= ~dropped[:, None]
    lengths = jnp.array(tasks.lengths or (0,)) * tasks.patch_frames
    length = jax.random.choice(rng_length, lengths, (count,))
    clean = one_of("prefix") & (place < length[:, None])

    log_sigma = tasks.noise_mean + tasks.noise_std * jax.random.normal(rng_sigma, (count,))  # (B,)
    noisy = x0 + expand(jnp.exp(log_sigma), x0.ndim) * jax.random.normal(rng_noise, x0.shape)
    start = None
    if tasks.time_cycle:
        start = jax.random.randint(rng_start, (count,), 0, tasks.time_cycle)
    return TaskBatch(
        known=nearest_known(noisy, beside, tasks.causal),
        mask=(beside | clean).astype(jnp.float32),
        augmentation=augmentation_level(log_sigma),
        clean=clean,
        start=start,
    )


def draw_mask(rng: jax.Array, count: int, frames: int) -> jax.Array:
    """Known frames of the task "frames": the first n (extension), every n-th (interpolation), or each by chance.

    Args:
      rng: key.
      count: B.
      frames: F, at least 2.
    Returns:
      (B, F) bool, of which at least one is True and one False.
    Source: masks for many tasks, MAGVIT, arXiv:2212.05199, section 3.2.
    """
    rng_kind, rng_n, rng_rate, rng_each, rng_kept = jax.random.split(rng, 5)
    place = jnp.arange(frames)
    n = jax.random.randint(rng_n, (count, 1), 1, frames)  # 1 to F - 1
    rate = jax.random.uniform(rng_rate, (count, 1))
    chance = jax.random.uniform(rng_each, (count, frames)) < rate
    # One frame is known and its neighbour is not, whatever chance says.
    kept = jax.random.randint(rng_kept, (count, 1), 0, frames)
    chance = (chance | (place == kept)) & (place != (kept + 1) % frames)
    masks = jnp.stack([place < n, place % (n + 1) == 0, chance])  # (3, B, F)
    kind = jax.random.randint(rng_kind, (count,), 0, len(masks))
    return jnp.take_along_axis(masks, kind[None, :, None], axis=0)[0]


def nearest_known(video: jax.Array, mask: jax.Array, causal: bool) -> jax.Array:
    """At every frame the nearest known one, the earlier of two; zeros where there is none.

    Args:
      video: (B, F, H, W, C); frames that are not known are not read.
      mask: (B, F) bool, the known ones.
      causal: look only at the frame itself and at earlier ones.
    Returns:
      (B, F, H, W, C).
    """
    place = jnp.arange(mask.shape[1])
    distance = jnp.abs(place[:, None] - place)  # (F, F): of frame, known frame
    allowed = mask[:, None, :] & (place <= place[:, None] if causal else True)
    nearest = jnp.argmin(jnp.where(allowed, distance, len(place)), axis=-1)  # (B, F)
    found = jnp.any(allowed, axis=-1)
    spread = jnp.take_along_axis(video, expand(nearest, video.ndim), axis=1)
    return jnp.where(expand(found, video.ndim), spread, 0)


def augmentation_level(log_sigma: Any) -> Any:
    """What the model is told of the noise on known frames: EDM's c_noise, log(sigma) / 4.

    Args:
      log_sigma: of any shape, NumPy or JAX.
    Returns:
      The same.
    Source: EDM, arXiv:2206.00364, table 1.
    """
    return log_sigma / 4


def prefix_times(t: jax.Array, clean: jax.Array, tasks: Tasks, schedule: Schedule) -> Any:
    """Times of the frames: those that they have, and those that the model is told.

    Args:
      t: (B,) of the schedule's clock.
      clean: (B, F) bool.
      tasks: of the config.
      schedule: noise schedule.
    Returns:
      (B, F) times of the noise, and (B, T) times for the model, at which clean frames are as good as clean.
    """
    frames = jnp.broadcast_to(t[:, None], clean.shape)
    noise = jnp.asarray(times_at_fraction(jnp.float32(tasks.prefix_noise), schedule), t.dtype)
    told = einops.reduce(clean, "b (t p) -> b t", "max", p=tasks.patch_frames)
    cleanest = jnp.asarray(schedule.time_of_step(np.float64(0)), t.dtype)
    return jnp.where(clean, noise, frames), jnp.where(told, cleanest, t[:, None])


def allowed_lengths(lengths: Sequence[int], frames: int, chunk: int) -> tuple[int, ...]:
    """Prefixes that a model was trained to go on from for so many latent frames: P with P + chunk <= T."""
    return tuple(sorted(length for length in lengths if length + chunk <= frames))
