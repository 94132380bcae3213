"""From noise to video: every sampler is a table of numbers, and one `lax.scan` runs any of them.

Each call of the model at x_t is read as (x0, eps), and then

    x <- keep x + x0_factor x0 + eps_factor eps + memory_factor m + noise_factor z
    m <- memory_keep x + memory_x0 x0 + memory_eps eps           (x, x0 and eps from before the line above)

| sampler  | step from (alpha, sigma) to (alpha', sigma')                              | order | schedules           |
| -------- | ------------------------------------------------------------------------- | ----- | ------------------- |
| ddim     | alpha' x0 + sqrt(sigma'^2 - tau^2) eps + tau z, tau = eta times ddpm's    | 1     | any; eta > 0: as ddpm |
| ddpm     | the same with the posterior's deviation: eta = 1                          | 1     | variance preserving |
| euler    | x + (alpha' - alpha) x0 + (sigma' - sigma) eps                            | 1     | any                 |
| heun     | Euler, and again with the means of x0 and eps at both ends; last: Euler   | 2     | any                 |
| dpmpp_2m | sigma'/sigma x + (alpha' - alpha sigma'/sigma) D, D on a line through the | 2     | any                 |
|          | last two x0; first and last: the last x0                                  |       |                     |

`euler` is the ODE's step in t on flow (x + (t' - t) (eps - x0)) and in sigma on edm, and equals ddim with eta = 0.

Source: DDIM, arXiv:2010.02502, eq. 12 and 16; DDPM, arXiv:2006.11239, eq. 7; EDM, arXiv:2206.00364, algorithm 1;
DPM-Solver++, arXiv:2211.01095, algorithm 2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import PURE_NOISE, Schedule
from videogen_jax.diffusion.times import space_times

SAMPLERS = ("ddim", "ddpm", "euler", "heun", "dpmpp_2m")

# (x_t (B, T, H, W, C), t (B,) in the schedule's time, condition, a tree of (B, ...)) to the model's output
Predict = Callable[[jax.Array, jax.Array, Any], jax.Array]

# Pure noise has no logSNR: for it, dpmpp_2m takes the alpha that float16's smallest number is the square of.
LEAST_ALPHA = 2.0**-12


class Steps(NamedTuple):
    """One row for each call of the model, noisiest first; float64, on the host."""

    t: np.ndarray  # (S,) the schedule's time
    alpha: np.ndarray  # (S,)
    sigma: np.ndarray  # (S,)
    keep: np.ndarray  # (S,), and so the others: the factors above
    x0_factor: np.ndarray
    eps_factor: np.ndarray
    memory_factor: np.ndarray
    noise_factor: np.ndarray
    memory_keep: np.ndarray
    memory_x0: np.ndarray
    memory_eps: np.ndarray
    arrives: np.ndarray  # bool, whether x is at the next time then, and not half-way (heun)


def make_steps(
    schedule: Schedule,
    prediction: str,
    *,
    sampler: str = "ddim",
    num_inference_steps: int = 50,
    spacing: str = "trailing",
    eta: float | None = None,
) -> Steps:
    """Works out all that a sampler needs to know before it starts.

    Args:
      schedule: noise schedule the model was trained with.
      prediction: what the model predicts, one of `objective.PREDICTIONS`.
      sampler: one of SAMPLERS.
      num_inference_steps: times visited; as many calls of the model, with heun nearly twice as many.
      spacing: one of `times.SPACINGS`.
      eta: 0 (no fresh noise) to 1; by default 0 for ddim and 1 for ddpm; no other sampler has one.
    Returns:
      The table.
    Raises:
      ValueError: a name is unknown or the combination has no meaning; the sentence says why.
    Source: this file's head.
    """
    eta = _check(schedule, sampler, eta)
    objective.check_prediction(prediction)
    t = space_times(schedule, num_inference_steps, spacing, above_first=sampler == "dpmpp_2m")
    alpha, sigma = (np.asarray(level, np.float64) for level in schedule.alpha_sigma(t))
    if prediction == "eps" and alpha[0] < PURE_NOISE:
        raise ValueError(
            f"eps says nothing of the video at time {t[0]:g}, which is pure noise: "
            "choose spacing leading, or a model that predicts x0, v or flow."
        )
    if sampler == "dpmpp_2m" and alpha[0] < PURE_NOISE:
        alpha[0] = LEAST_ALPHA
        sigma[0] = np.sqrt(1 - LEAST_ALPHA**2) if schedule.preserves_variance else 1 - LEAST_ALPHA
    # The last step goes to the clean video.
    next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    levels = (t, alpha, sigma, next_alpha, next_sigma)
    if sampler == "heun":
        return _heun(*levels)
    if sampler == "dpmpp_2m":
        return _dpmpp_2m(*levels)
    # The posterior's deviation; with sigma^2 = 1 - alpha^2 it keeps its digits where the levels are near.
    fresh = np.sqrt(np.maximum(1 - (alpha / next_alpha) ** 2, 0)) if eta else 0.0
    tau = eta * next_sigma / sigma * fresh
    direction = np.sqrt(np.maximum(next_sigma**2 - tau**2, 0))
    return _steps(*levels[:3], x0_factor=next_alpha, eps_factor=direction, noise_factor=tau)


def _heun(t, alpha, sigma, next_alpha, next_sigma) -> Steps:
    """Rows in turn: Euler to the next time, keeping x plus half the move; the other half, read there."""
    half_alpha, half_sigma = (next_alpha - alpha) / 2, (next_sigma - sigma) / 2
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)

    def interleave(predictor: np.ndarray, corrector: np.ndarray) -> np.ndarray:
        return np.stack([predictor, corrector], axis=1).reshape(-1)[
            :-1
        ]  # no corrector at sigma = 0

    def at_next(level: np.ndarray, last: float) -> np.ndarray:
        return interleave(level, np.append(level[1:], last))

    steps = _steps(
        at_next(t, 0),
        at_next(alpha, 1.0),
        at_next(sigma, 0.0),
        x0_factor=interleave(next_alpha, half_alpha),
        eps_factor=interleave(next_sigma, half_sigma),
        memory_factor=interleave(zero, one),
        memory_keep=interleave(one, zero),
        memory_x0=interleave(half_alpha, zero),
        memory_eps=interleave(half_sigma, zero),
        arrives=interleave(zero, one) > 0,
    )
    steps.arrives[-1] = True
    return steps


def _dpmpp_2m(t, alpha, sigma, next_alpha, next_sigma) -> Steps:
    log_snr = np.log(alpha / sigma)  # half of it, lambda in the paper
    with np.errstate(divide="ignore"):
        move = np.append(np.diff(log_snr), np.inf)  # h
    ratio = np.zeros_like(alpha)  # 1 / (2 r), r = the previous h over this one; 0 is order 1
    ratio[1:-1] = move[1:-1] / (2 * move[:-2])
    factor = next_alpha - alpha * next_sigma / sigma  # -alpha' (exp(-h) - 1)
    return _steps(
        t,
        alpha,
        sigma,
        keep=next_sigma / sigma,
        x0_factor=factor * (1 + ratio),
        memory_factor=-factor * ratio,
        memory_x0=np.ones_like(alpha),
    )


def _steps(t, alpha, sigma, **factors) -> Steps:
    filled = {name: np.zeros(len(t)) for name in Steps._fields[3:]}
    filled["arrives"] = np.ones(len(t), bool)
    return Steps(t, alpha, sigma, **filled | factors)


def draw_noise(keys: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The normal numbers that a sampler takes for its call `number`; each video has its own key.

    So a video does not depend on its neighbours in the batch.

    Args:
      keys: (B,) typed random keys.
      number: of the call, from 0.
      shape: (T, H, W, C) of one video.
    Returns:
      (B, T, H, W, C) float32.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def init_noise(
    schedule: Schedule, steps: Steps, keys: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """x_T, where sampling starts: normal numbers, times sigma on edm.

    Args:
      schedule: noise schedule.
      steps: of `make_steps`.
      keys: (B,) typed random keys.
      shape: (T, H, W, C) of one video.
    Returns:
      (B, T, H, W, C) float32.
    """
    noise = draw_noise(keys, schedule.num_steps, shape)  # a number that no call has
    return noise * steps.sigma[0] if schedule.clock == "sigma" else noise


def sample(
    predict: Predict,
    steps: Steps,
    x_t: jax.Array,
    keys: jax.Array,
    condition: Any,
    *,
    prediction: str,
    sigma_data: float = 1.0,
    clip_x0: bool = True,
    return_all: bool = False,
) -> jax.Array:
    """Denoises a batch of videos; meant to be jitted with `x_t` donated.

    Args:
      predict: the model, guided or not.
      steps: of `make_steps`.
      x_t: (B, T, H, W, C) of `init_noise`, or any video at the first time of `steps`.
      keys: (B,) typed random keys, for samplers that draw noise on the way.
      condition: tree of (B, ...), handed to `predict`.
      prediction: what the model predicts, one of `objective.PREDICTIONS`.
      sigma_data: of the schedule.
      clip_x0: clamp x0 to [-1, 1] at every call, right for pixels; eps is read anew from it.
      return_all: hand back every step and not only the last.
    Returns:
      (B, T, H, W, C) of x_t's type, in [-1, 1] if clip_x0; with `return_all` (num_inference_steps, B, T, H, W, C).
    """
    whole = np.issubdtype(steps.t.dtype, np.integer)
    rows = jax.tree.map(lambda column: jnp.asarray(column, x_t.dtype), steps)
    rows = rows._replace(t=jnp.asarray(steps.t, jnp.int32 if whole else x_t.dtype))
    draws = bool(np.any(steps.noise_factor))

    def call(carry: tuple[jax.Array, jax.Array], step: tuple[Steps, jax.Array]) -> tuple[Any, Any]:
        (x, memory), (row, number) = carry, step
        output = predict(x, jnp.full(x.shape[:1], row.t), condition)
        x0, eps = objective.to_x0_and_eps(prediction, output, x, row.alpha, row.sigma, sigma_data)
        if clip_x0:
            x0 = jnp.clip(x0, -1, 1)
            eps = (x - row.alpha * x0) / row.sigma
        following = (
            row.keep * x + row.x0_factor * x0 + row.eps_factor * eps + row.memory_factor * memory
        )
        if draws:
            noise = draw_noise(keys, number, x.shape[1:])
            following += row.noise_factor * noise.astype(x.dtype)
        memory = row.memory_keep * x + row.memory_x0 * x0 + row.memory_eps * eps
        return (following, memory), following if return_all else None

    (video, _), each = jax.lax.scan(
        call, (x_t, jnp.zeros_like(x_t)), (rows, jnp.arange(len(steps.t)))
    )
    return each[steps.arrives] if return_all else video


def _check(schedule: Schedule, sampler: str, eta: float | None) -> float:
    if sampler not in SAMPLERS:
        raise ValueError(f"Unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}.")
    if sampler not in ("ddim", "ddpm") and eta is not None:
        raise ValueError(
            f"eta is {eta}, but {sampler} solves an ODE and has none: leave it out, or choose ddim."
        )
    if sampler == "ddpm" and eta not in (None, 1):
        raise ValueError(f"eta is {eta}, but ddpm always has 1: leave it out, or choose ddim.")
    eta = float(sampler == "ddpm") if eta is None else eta
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}: choose a value between 0 and 1.")
    if eta > 0 and not schedule.preserves_variance:
        what = "ddpm" if sampler == "ddpm" else f"ddim with eta {eta}"
        raise ValueError(
            f"{what} goes back along DDPM's Markov chain, which preserves variance and which the schedule "
            f"{schedule.name} has not: choose euler, heun, dpmpp_2m, or ddim with eta 0."
        )
    return eta
