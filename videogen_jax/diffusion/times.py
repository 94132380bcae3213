"""Diffusion times: the training distribution and the sampling timesteps.

With u uniform in (0, 1) and z standard normal:

| distribution | t                                                  | clock       | source                          |
| ------------ | -------------------------------------------------- | ----------- | ------------------------------- |
| uniform      | fraction u of the clock                            | any         | DDPM, arXiv:2006.11239          |
| logit_normal | fraction sigmoid(mean + std z) of the clock        | steps, unit | SD3, arXiv:2403.03206, eq. 19   |
| log_normal   | sigma = exp(mean + std z)                          | sigma       | EDM, arXiv:2206.00364, table 1  |

The resolution-dependent shift is part of the schedule (`schedule.size_shift`) and so affects training and sampling.
"""

import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.diffusion.schedule import Schedule

DISTRIBUTIONS = ("uniform", "logit_normal", "log_normal")
SPACINGS = ("leading", "trailing", "linspace")


def draw_times(
    rng: jax.Array,
    count: int,
    schedule: Schedule,
    *,
    distribution: str = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
    stratified: bool = True,
    offset: jax.Array | None = None,
) -> jax.Array:
    """Draws random training times for a batch.

    Args:
      rng: key.
      count: B.
      schedule: defines the clock.
      distribution: one of DISTRIBUTIONS.
      mean: mean of the logit, or of log sigma.
      std: standard deviation of the logit, or of log sigma.
      stratified: draw one time from each of `count` equally probable intervals, so that every batch covers all noise
        levels. The intervals are assigned to the clips in random order, so that the time of each clip has the whole
        distribution, whatever its place in the batch.
      offset: () in [0, 1), place of the times within their intervals; None: drawn. Several draws of `count` times
        whose offsets are evenly spaced are together as stratified as a single one.
    Returns:
      (B,), int32 in discrete time, else float32.
    Raises:
      ValueError: the name is unknown or does not fit the schedule's clock.
    Source: the table above; stratification from VDM, arXiv:2107.00630, appendix I.1.
    """
    check_distribution(schedule, distribution)
    if stratified:
        rng_order, rng_offset = jax.random.split(rng)
        offset = jax.random.uniform(rng_offset) if offset is None else offset
        u = (jax.random.permutation(rng_order, count) + offset) / count
    else:
        u = jax.random.uniform(rng, (count,))
    u = jnp.clip(u, 1e-6, 1 - 1e-6)  # float32 can round to 0 or 1, where the quantile is infinite
    if distribution != "uniform":
        z = mean + std * jax.scipy.special.ndtri(u)
        if distribution == "log_normal":
            return jnp.exp(z)
        u = jax.nn.sigmoid(z)
    return times_at_fraction(u, schedule)


def times_at_fraction(fraction: jax.Array, schedule: Schedule) -> jax.Array:
    """Times at fractions of the clock.

    Args:
      fraction: 0 (clean) to 1 (noisiest), any shape.
      schedule: defines the clock.
    Returns:
      The same shape, int32 in discrete time, else float32.
    """
    if schedule.clock == "steps":
        steps = (fraction * schedule.num_steps).astype(jnp.int32)
        return jnp.clip(steps, 0, schedule.num_steps - 1)
    if schedule.clock == "sigma":
        return schedule.time_of_step(fraction * (schedule.num_steps - 1))
    return fraction


def check_distribution(schedule: Schedule, distribution: str) -> None:
    """Raises ValueError if the distribution is unknown or not defined on the schedule's clock."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"Unknown time distribution {distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}."
        )
    if distribution == "log_normal" and schedule.clock != "sigma":
        raise ValueError(
            f"log_normal draws sigma, which is not the time variable of the schedule {schedule.name}: "
            "choose objective.time_distribution uniform or logit_normal, or schedule.name=edm."
        )
    if distribution == "logit_normal" and schedule.clock == "sigma":
        raise ValueError(
            "logit_normal draws times between 0 and 1, but edm's time variable is sigma: "
            "choose objective.time_distribution log_normal or uniform."
        )


def space_times(
    schedule: Schedule, num_inference_steps: int, spacing: str, above_first: bool = False
) -> np.ndarray:
    """Sampling timesteps, noisiest first; from the last of them a sampler steps to the clean video.

    `trailing` includes the last step, which a schedule with zero terminal SNR requires; `leading` includes the first;
    `linspace` includes both and gives EDM's published steps.

    Args:
      schedule: defines the clock.
      num_inference_steps: number of timesteps.
      spacing: one of SPACINGS.
      above_first: skip the first step, near which logSNR is steep; for solvers in logSNR.
    Returns:
      (num_inference_steps,) times on the schedule's clock, strictly decreasing.
    Raises:
      ValueError: the spacing is unknown, or the schedule has fewer steps.
    Source: arXiv:2305.08891, table 2; `above_first` as in DPM-Solver's reference code (LuChengTHU/dpm-solver).
    """
    available = schedule.num_steps - (above_first and spacing != "trailing")
    if not 1 <= num_inference_steps <= available:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}, but the schedule has {available} steps: "
            f"choose between 1 and {available}."
        )
    if spacing not in SPACINGS:
        raise ValueError(f"Unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}.")
    last, discrete = schedule.num_steps, schedule.clock == "steps"
    count = num_inference_steps + (above_first and spacing != "trailing")
    if spacing == "leading":
        steps = np.arange(count) * (last // count if discrete else last / count)
    elif spacing == "trailing":
        ends = np.arange(last, 0, -last / count)[::-1]
        # Round before subtracting 1, as the paper counts steps from 1: np.round sends halves to even numbers.
        steps = (np.round(ends) if discrete else ends) - 1
    else:
        steps = np.linspace(0, last - 1, count)
    # Drop the first step if there is one too many: from `above_first`, or np.arange with a fractional stride.
    return schedule.time_of_step(steps[-num_inference_steps:][::-1])
