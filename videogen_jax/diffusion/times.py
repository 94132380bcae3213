"""Diffusion times: drawn at random for training, laid out in a row for sampling.

| distribution | t                                                  | clock       | source                          |
| ------------ | -------------------------------------------------- | ----------- | ------------------------------- |
| uniform      | u of the clock                                     | any         | DDPM, arXiv:2006.11239          |
| logit_normal | sigmoid(mean + std z) of the clock                 | steps, unit | SD3, arXiv:2403.03206, eq. 19   |
| log_normal   | sigma = exp(mean + std z)                          | sigma       | EDM, arXiv:2206.00364, table 1  |

A shift for the size of the video is the schedule's (`schedule.size_shift`): it moves training and sampling together.
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
) -> jax.Array:
    """Random times for a batch.

    Args:
      rng: key.
      count: B.
      schedule: whose clock they are on.
      distribution: one of DISTRIBUTIONS.
      mean: of the logit, or of the logarithm of sigma.
      std: of the same.
      stratified: one from each of `count` equally probable slices, so that every batch sees all noise levels.
    Returns:
      (B,), int32 on a clock of steps, float32 elsewhere.
    Raises:
      ValueError: the name is unknown or does not fit the schedule's clock.
    Source: the table above; stratification from VDM, arXiv:2107.00630, appendix I.1.
    """
    check_distribution(schedule, distribution)
    if stratified:
        u = (jnp.arange(count) + jax.random.uniform(rng)) / count
    else:
        u = jax.random.uniform(rng, (count,))
    u = jnp.clip(u, 1e-6, 1 - 1e-6)  # float32 can round to 0 and 1, where the normal quantile ends
    if distribution != "uniform":
        z = mean + std * jax.scipy.special.ndtri(u)
        if distribution == "log_normal":
            return jnp.exp(z)
        u = jax.nn.sigmoid(z)
    return times_at_fraction(u, schedule)


def times_at_fraction(share: jax.Array, schedule: Schedule) -> jax.Array:
    """Times at shares of the whole clock.

    Args:
      share: 0 (clean) to 1 (noisiest), of any shape.
      schedule: whose clock they are on.
    Returns:
      The same shape, int32 on a clock of steps, float32 elsewhere.
    """
    if schedule.clock == "steps":
        steps = (share * schedule.num_steps).astype(jnp.int32)
        return jnp.clip(steps, 0, schedule.num_steps - 1)
    if schedule.clock == "sigma":
        return schedule.time_of_step(share * (schedule.num_steps - 1))
    return share


def check_distribution(schedule: Schedule, distribution: str) -> None:
    """Refuses a distribution that is unknown or means nothing on the schedule's clock.

    Raises:
      ValueError: says which to take.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"Unknown time distribution {distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}."
        )
    if distribution == "log_normal" and schedule.clock != "sigma":
        raise ValueError(
            f"log_normal draws sigma, which is not the time of the schedule {schedule.name}: "
            "choose objective.time_distribution uniform or logit_normal, or schedule.name=edm."
        )
    if distribution == "logit_normal" and schedule.clock == "sigma":
        raise ValueError(
            "logit_normal draws times between 0 and 1, but edm's are sigma itself: "
            "choose objective.time_distribution log_normal or uniform."
        )


def space_times(
    schedule: Schedule, num_inference_steps: int, spacing: str, above_first: bool = False
) -> np.ndarray:
    """Chooses which times to visit, noisiest first; a sampler goes from the last of them to the clean video.

    `trailing` starts at the very last step, which a schedule of zero terminal SNR needs; `leading` ends at the first;
    `linspace` does both. EDM's own steps are those of linspace.

    Args:
      schedule: whose clock they are on.
      num_inference_steps: how many of its steps to visit.
      spacing: one of SPACINGS.
      above_first: leave out the first step, where it would be visited, for solvers in logSNR, which is steep there.
    Returns:
      (num_inference_steps,) of the schedule's time, strictly falling.
    Raises:
      ValueError: the spacing is unknown, or more steps are asked for than there are.
    Source: arXiv:2305.08891, table 2; `above_first` as in DPM-Solver's own code (LuChengTHU/dpm-solver).
    """
    available = schedule.num_steps - (above_first and spacing != "trailing")
    if not 1 <= num_inference_steps <= available:
        raise ValueError(
            f"{num_inference_steps} inference steps are asked for, but the schedule has {available}: "
            f"choose between 1 and {available}."
        )
    if spacing not in SPACINGS:
        raise ValueError(f"Unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}.")
    last, whole = schedule.num_steps, schedule.clock == "steps"
    count = num_inference_steps + (above_first and spacing != "trailing")
    if spacing == "leading":
        places = np.arange(count) * (last // count if whole else last / count)
    elif spacing == "trailing":
        ends = np.arange(last, 0, -last / count)[::-1]
        # The paper counts steps from 1 and rounds that; a half less one would round the other way.
        places = (np.round(ends) if whole else ends) - 1
    else:
        places = np.linspace(0, last - 1, count)
    # np.arange by fractions can give one too many; so does `above_first`.
    return schedule.time_of_step(places[-num_inference_steps:][::-1])
