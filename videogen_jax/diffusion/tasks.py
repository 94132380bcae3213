"""Training tasks: which frames of a clip are known, and how the model is conditioned on them.

| task   | known frames                   | conditioning                                 | source           |
| ------ | ------------------------------ | -------------------------------------------- | ---------------- |
| text   | none                           |                                              |                  |
| image  | the first, or first `first`    | channels with slight noise; mask             | arXiv:2311.15127 |
| frames | first n, every n-th, or random | as image                                     | arXiv:2212.05199 |
| prefix | first n, with n from a list    | in x_t with slight noise and a clean t; mask | arXiv:2411.16375 |

Each clip of a batch has a task drawn independently. In the conditioning channels every frame holds the nearest known
frame, so a known first frame is visible at all times; for a causal model, the nearest earlier known frame or zeros.
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
    """The distribution that `draw_task` samples."""

    shares: Mapping[str, float]  # probability of each of TASKS
    patch_frames: int  # pt, frames per latent frame
    causal: bool
    noise_mean: float  # mean of log sigma of the noise on known frames
    noise_std: float  # its standard deviation
    lengths: tuple[int, ...]  # prefix lengths in latent frames
    prefix_noise: float  # noise level of prefixes, as a fraction of the schedule's clock
    time_cycle: int  # period of temporal positions in latent frames; 0 for none
    first: int = 1  # known frames of the task "image"

    @property
    def conditioning(self) -> str:
        """The conditioning that the model needs, one of `dit.CONDITIONINGS`."""
        if self.shares["image"] or self.shares["frames"]:
            return "frames"
        return "prefix" if self.shares["prefix"] else "none"


class TaskBatch(NamedTuple):
    """The conditioning of a batch of clips, by their tasks."""

    known: jax.Array  # (B, F, H, W, C), conditioning channels
    mask: jax.Array  # (B, F) float32, 1 at known frames
    augmentation: jax.Array  # (B,) float32, micro-condition: noise level of `known`
    clean: jax.Array  # (B, F) bool, prefix frames: nearly clean in x_t, excluded from the loss
    start: jax.Array | None  # (B,) int32, index of the first latent frame; None without a cycle


def check_tasks(tasks: Tasks, frames: int) -> None:
    """Validates task shares and prefix options.

    Args:
      tasks: the distribution of tasks.
      frames: latent frames of a clip, T.
    Raises:
      ValueError: names the option.
    """
    shares = [tasks.shares[name] for name in TASKS]
    if min(shares) < 0 or not np.isclose(sum(shares), 1):
        raise ValueError(
            f"The task shares {', '.join(f'tasks.{name}={tasks.shares[name]:g}' for name in TASKS)} are not "
            "probabilities: make them 0 or more, and their sum 1."
        )
    if not 0 <= tasks.prefix_noise < 1 or tasks.noise_std < 0:
        raise ValueError(
            f"prefix.noise is {tasks.prefix_noise} and known.noise_std {tasks.noise_std}: choose the first in [0, 1) "
            "and the second 0 or more."
        )
    if tasks.shares["image"] and tasks.first >= frames * tasks.patch_frames:
        raise ValueError(
            f"known.first is {tasks.first}, but clips have {frames * tasks.patch_frames} frames, of which one at least "
            "is to be learned: lower it."
        )
    if not tasks.shares["prefix"]:
        return
    if not tasks.causal:
        raise ValueError(
            f"tasks.prefix is {tasks.shares['prefix']:g}, but only a causal model can continue a video: "
            "set model.causal to True, or tasks.prefix to 0."
        )
    if not tasks.lengths or min(tasks.lengths) < 1 or max(tasks.lengths) >= frames:
        raise ValueError(
            f"prefix.lengths are {tasks.lengths}: give latent frames from 1 to {frames - 1}, one less than a clip has."
        )


def draw_task(
    rng: jax.Array, tasks: Tasks, x0: jax.Array, dropped: jax.Array | None = None
) -> TaskBatch:
    """Draws a task for each clip of a batch.

    Args:
      rng: key.
      tasks: the distribution of tasks.
      x0: (B, F, H, W, C) clean video; F = T pt.
      dropped: (B,) bool, clips whose known frames are dropped for classifier-free guidance (prefixes are kept); None
        for no clip.
    Returns:
      The conditioning (table at the top of this file).
    """
    count, frames = x0.shape[:2]
    rng_task, rng_mask, rng_length, rng_sigma, rng_noise, rng_start = jax.random.split(rng, 6)
    shares = jnp.array([tasks.shares[name] for name in TASKS])
    task = jax.random.choice(rng_task, len(TASKS), (count,), p=shares)  # (B,)
    frame = jnp.arange(frames)  # (F,)

    def has_task(name: str) -> jax.Array:
        return (task == TASKS.index(name))[:, None]  # (B, 1)

    # Known frames in the conditioning channels, (B, F).
    first = jnp.broadcast_to(frame < tasks.first, (count, frames))
    known = has_task("image") & first | has_task("frames") & draw_mask(rng_mask, count, frames)
    if dropped is not None:
        known &= ~dropped[:, None]
    # Prefixes in x_t, (B, F).
    lengths = jnp.array(tasks.lengths or (0,)) * tasks.patch_frames
    length = jax.random.choice(rng_length, lengths, (count,))
    clean = has_task("prefix") & (frame < length[:, None])

    # Noise augmentation of the known frames, with one log-normal sigma per clip.
    log_sigma = tasks.noise_mean + tasks.noise_std * jax.random.normal(rng_sigma, (count,))  # (B,)
    noisy = x0 + expand(jnp.exp(log_sigma), x0.ndim) * jax.random.normal(rng_noise, x0.shape)
    start = None
    if tasks.time_cycle:
        start = jax.random.randint(rng_start, (count,), 0, tasks.time_cycle)
    return TaskBatch(
        known=nearest_known(noisy, known, tasks.causal),
        mask=(known | clean).astype(jnp.float32),
        augmentation=augmentation_level(log_sigma),
        clean=clean,
        start=start,
    )


def draw_mask(rng: jax.Array, count: int, frames: int) -> jax.Array:
    """Known frames of the task "frames": the first n (extension), every n-th (interpolation), or a random set.

    Args:
      rng: key.
      count: B.
      frames: F, at least 2.
    Returns:
      (B, F) bool; each row has at least one True and one False.
    Source: multi-task masks, MAGVIT, arXiv:2212.05199, section 3.2.
    """
    rng_kind, rng_n, rng_rate, rng_each, rng_kept = jax.random.split(rng, 5)
    frame = jnp.arange(frames)
    n = jax.random.randint(rng_n, (count, 1), 1, frames)  # 1 to F - 1
    rate = jax.random.uniform(rng_rate, (count, 1))
    random = jax.random.uniform(rng_each, (count, frames)) < rate
    # Force one frame to be known and the next to be unknown.
    kept = jax.random.randint(rng_kept, (count, 1), 0, frames)
    random = (random | (frame == kept)) & (frame != (kept + 1) % frames)
    masks = jnp.stack([frame < n, frame % (n + 1) == 0, random])  # (3, B, F)
    kind = jax.random.randint(rng_kind, (count,), 0, len(masks))
    return jnp.take_along_axis(masks, kind[None, :, None], axis=0)[0]


def nearest_known(video: jax.Array, mask: jax.Array, causal: bool) -> jax.Array:
    """Replaces each frame by the nearest known frame, the earlier one of a tie; by zeros if there is none.

    Args:
      video: (B, F, H, W, C); only known frames are read.
      mask: (B, F) bool, True at known frames.
      causal: consider only the frame itself and earlier ones.
    Returns:
      (B, F, H, W, C).
    """
    frame = jnp.arange(mask.shape[1])
    distance = jnp.abs(frame[:, None] - frame)  # (F, F): of frame, known frame
    allowed = mask[:, None, :] & (frame <= frame[:, None] if causal else True)
    # argmin takes the first of equal distances, hence the earlier frame.
    nearest = jnp.argmin(jnp.where(allowed, distance, len(frame)), axis=-1)  # (B, F)
    found = jnp.any(allowed, axis=-1)
    filled = jnp.take_along_axis(video, expand(nearest, video.ndim), axis=1)
    return jnp.where(expand(found, video.ndim), filled, 0)


def augmentation_level(log_sigma: Any) -> Any:
    """Micro-condition for the noise on known frames: EDM's c_noise, log(sigma) / 4.

    Args:
      log_sigma: any shape, NumPy or JAX.
    Returns:
      The same shape and type.
    Source: EDM, arXiv:2206.00364, table 1.
    """
    return log_sigma / 4


def prefix_times(t: jax.Array, clean: jax.Array, tasks: Tasks, schedule: Schedule) -> Any:
    """Per-frame times: those at which noise is added, and those that condition the model.

    Args:
      t: (B,) times on the schedule's clock.
      clean: (B, F) bool, prefix frames.
      tasks: the distribution of tasks.
      schedule: noise schedule.
    Returns:
      (B, F) times of the noise, with `prefix_noise` on prefixes; (B, T) times for the model, the cleanest on prefixes.
    """
    frames = jnp.broadcast_to(t[:, None], clean.shape)
    noise = jnp.asarray(times_at_fraction(jnp.float32(tasks.prefix_noise), schedule), t.dtype)
    clean_latents = einops.reduce(clean, "b (t p) -> b t", "max", p=tasks.patch_frames)
    cleanest = jnp.asarray(schedule.time_of_step(np.float64(0)), t.dtype)
    return jnp.where(clean, noise, frames), jnp.where(clean_latents, cleanest, t[:, None])


def allowed_lengths(lengths: Sequence[int], frames: int, chunk: int) -> tuple[int, ...]:
    """Trained prefix lengths P that leave room for `chunk` latent frames: P + chunk <= T = `frames`."""
    return tuple(sorted(length for length in lengths if length + chunk <= frames))
