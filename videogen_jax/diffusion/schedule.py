"""Noise schedules: alpha(t), sigma(t) and logSNR(t) of x_t = alpha_t x0 + sigma_t eps.

| name          | alpha, sigma                                             | t                      | source           |
| ------------- | -------------------------------------------------------- | ---------------------- | ---------------- |
| linear        | beta from 1e-4 to 0.02                                   | steps, or (0, 1]       | arXiv:2006.11239 |
| scaled_linear | sqrt(beta) from sqrt(0.00085) to sqrt(0.012)             | steps, or (0, 1]       | arXiv:2112.10752 |
| cosine        | alpha = cos((t + 0.008) / 1.008 * pi / 2), beta <= 0.999 | steps, or (0, 1]       | arXiv:2102.09672 |
| flow          | 1 - t, t                                                 | (0, 1]                 | arXiv:2209.03003 |
| edm           | 1, t                                                     | sigma_min to sigma_max | arXiv:2206.00364 |

The first three are variance-preserving, alpha^2 + sigma^2 = 1. Their time is discrete, with `num_steps` steps from 0
(nearly clean) to num_steps - 1 (nearly noise), or continuous, where step k is t = (k + 1) / num_steps. The betas are
those of 1000 steps; in continuous time, 1000 beta is the rate of the stochastic differential equation
(arXiv:2011.13456, eq. 32).

All functions of time accept NumPy arrays (float64, on the host) and JAX arrays (traced).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCHEDULES = ("linear", "scaled_linear", "cosine", "flow", "edm")

Array = Any  # np.ndarray or jax.Array; functions return the type that they are given
AlphaSigma = Callable[[Array], tuple[Array, Array]]

COSINE_OFFSET = 0.008
PURE_NOISE = 1e-6  # alpha below this is 0 up to rounding


class Schedule(NamedTuple):
    """A noise schedule: noise levels as functions of time."""

    name: str
    # steps: integers below num_steps; unit: reals in (0, 1]; sigma: t is sigma itself
    clock: str
    num_steps: int
    alpha_sigma: AlphaSigma  # t to (alpha, sigma)
    model_time: Callable[[Array], Array]  # t to the input of the model's time embedding
    # real step index in 0 .. num_steps - 1 to t
    time_of_step: Callable[[Array], Array]
    sigma_data: float = 1.0  # standard deviation of the data, for EDM's preconditioning

    def alpha(self, t: Array) -> Array:
        """Scale of the clean video at times of any shape."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: Array) -> Array:
        """Standard deviation of the noise at times of any shape."""
        return self.alpha_sigma(t)[1]

    def log_snr(self, t: Array) -> Array:
        """log(alpha^2 / sigma^2) at times of any shape; -inf at pure noise."""
        alpha, sigma = self.alpha_sigma(t)
        with np.errstate(divide="ignore"):
            return 2 * (_namespace(alpha).log(alpha) - _namespace(sigma).log(sigma))

    def input_scale(self, t: Array) -> Array:
        """Factor on x_t at the model's input: c_in for edm, 1 for the other schedules."""
        alpha, sigma = self.alpha_sigma(t)
        if self.clock != "sigma":
            return _namespace(alpha).ones_like(alpha)
        return 1 / _namespace(sigma).sqrt(sigma**2 + self.sigma_data**2)

    @property
    def preserves_variance(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1, which DDPM's Markov chain requires."""
        return self.name not in ("flow", "edm")

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether alpha is 0 at the noisiest time (zero terminal SNR), where eps does not determine x0."""
        return bool(self.alpha(self.time_of_step(np.float64(self.num_steps - 1))) < PURE_NOISE)


def make_schedule(
    name: str,
    num_steps: int = 1000,
    *,
    continuous: bool = False,
    zero_terminal_snr: bool = False,
    shift: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 700.0,
    rho: float = 7.0,
    sigma_data: float = 1.0,
) -> Schedule:
    """Builds a schedule by name.

    Args:
      name: one of SCHEDULES.
      num_steps: discrete steps; in continuous time, the unit of the model's time.
      continuous: continuous time for the variance-preserving schedules; flow and edm are always continuous.
      zero_terminal_snr: rescale so that the last step is pure noise; flow ends in pure noise anyway.
      shift: divides alpha / sigma at every time. Use values above 1 at high resolution, where redundant pixels stay
        recognizable under more noise. On flow it is t' = shift t / (1 + (shift - 1) t).
      sigma_min: lowest noise level of edm's sampling steps.
      sigma_max: highest noise level of edm's sampling steps, where sampling starts.
      rho: exponent that concentrates edm's sampling steps near sigma_min.
      sigma_data: standard deviation of the data, for edm.
    Returns:
      The schedule; tables are float64 and become float32 on the device.
    Raises:
      ValueError: the name is unknown, a number is out of range, or shift or zero_terminal_snr is set for edm.
    Source: the table above; zero terminal SNR from arXiv:2305.08891, algorithm 1; shift from simple diffusion,
      arXiv:2301.11093, eq. 4 (logSNR - 2 log shift) and SD3, arXiv:2403.03206, eq. 23; edm's steps from
      arXiv:2206.00364, eq. 5, and numbers from SVD, arXiv:2311.15127, appendix D.
    """
    if name not in SCHEDULES:
        raise ValueError(f"Unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}.")
    if shift <= 0:
        raise ValueError(f"The schedule's shift is {shift}: choose a number above 0.")
    if num_steps < 1 + zero_terminal_snr:
        raise ValueError(
            f"schedule.num_steps is {num_steps}: choose at least {1 + zero_terminal_snr}."
        )
    if name == "edm":
        if zero_terminal_snr:
            raise ValueError(
                "edm ends at sigma_max, never in pure noise: set schedule.zero_terminal_snr=False."
            )
        if shift != 1:
            raise ValueError(
                f"schedule.shift of {shift} does not apply to edm: change objective.time_mean, "
                "schedule.sigma_min and schedule.sigma_max instead."
            )
        return _make_edm(num_steps, sigma_min, sigma_max, rho, sigma_data)
    continuous = continuous or name == "flow"
    if continuous:
        alpha_sigma = {
            "linear": _linear, "scaled_linear": _scaled_linear, "cosine": _cosine, "flow": _flow
        }[name]  # fmt: skip
    else:
        alpha_sigma = _make_table(_betas(name, num_steps))
    if zero_terminal_snr and name != "flow":
        alpha_sigma = _end_in_pure_noise(
            alpha_sigma, *((1.0, 0.0) if continuous else (num_steps - 1, 0))
        )
    if shift != 1:
        alpha_sigma = _shift(alpha_sigma, shift, order=1 if name == "flow" else 2)
    if not continuous:
        return Schedule(
            name, "steps", num_steps, alpha_sigma, model_time=lambda t: t, time_of_step=_round
        )
    return Schedule(
        name=name,
        clock="unit",
        num_steps=num_steps,
        alpha_sigma=alpha_sigma,
        # Flow models are conditioned on sigma, which a shift changes; the others on the step.
        model_time=lambda t: num_steps * alpha_sigma(t)[1] if name == "flow" else num_steps * t - 1,
        time_of_step=lambda k: (k + 1) / num_steps,
    )


def size_shift(tokens: int, reference_tokens: int) -> float:
    """Schedule shift for a video with more tokens than the one the schedule was tuned for.

    It is never below 1, so that a picture, which has a fraction of a video's tokens, is trained and sampled at as much
    noise as the reference. Below 1 it would hardly meet the noise from which sampling starts: at 0.25, which the
    formula gives to a picture beside a reference of 16 frames, 0.02 % of logit-normal times lie above 0.9.

    Args:
      tokens: number of tokens of the video.
      reference_tokens: number of tokens at and below which the shift is 1.
    Returns:
      max(1, sqrt(tokens / reference_tokens)).
    Source: SD3, arXiv:2403.03206, section 5.3.2; a picture as the least size, Open-Sora 1.2, arXiv:2412.20404.
    """
    return float(np.sqrt(max(1.0, tokens / reference_tokens)))


def _make_edm(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float, sigma_data: float
) -> Schedule:
    if not 0 < sigma_min < sigma_max or rho <= 0 or sigma_data <= 0:
        raise ValueError(
            f"edm has sigma_min {sigma_min}, sigma_max {sigma_max}, rho {rho} and sigma_data {sigma_data}: "
            "make them positive and sigma_min less than sigma_max."
        )
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return Schedule(
        name="edm",
        clock="sigma",
        num_steps=num_steps,
        alpha_sigma=lambda t: (_namespace(t).ones_like(t), t),
        model_time=lambda t: _namespace(t).log(t) / 4,  # c_noise
        time_of_step=lambda k: (low + k / max(num_steps - 1, 1) * (high - low)) ** rho,
        sigma_data=sigma_data,
    )


def _betas(name: str, num_steps: int) -> np.ndarray:
    if name == "linear":
        return np.linspace(1e-4, 0.02, num_steps)
    if name == "scaled_linear":
        return np.linspace(0.00085**0.5, 0.012**0.5, num_steps) ** 2
    time = np.arange(num_steps + 1) / num_steps
    alpha_squared = np.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_squared[1:] / alpha_squared[:-1], 0.999)


def _make_table(betas: np.ndarray) -> AlphaSigma:
    """Alpha and sigma as a lookup table over discrete steps."""
    alpha = np.sqrt(np.cumprod(1 - betas))
    sigma = np.sqrt(1 - alpha**2)

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        if isinstance(t, jax.Array):
            return jnp.asarray(alpha)[t], jnp.asarray(sigma)[t]
        return alpha[t], sigma[t]

    return alpha_sigma


def _from_rate(integral: Array) -> tuple[Array, Array]:
    """alpha^2 = exp(-integral of the rate); sigma by expm1, since 1 - alpha^2 would cancel."""
    xp = _namespace(integral)
    return xp.exp(-integral / 2), xp.sqrt(-xp.expm1(-integral))


def _flow(t: Array) -> tuple[Array, Array]:
    return 1 - t, t


def _linear(t: Array) -> tuple[Array, Array]:
    low, high = 0.1, 20.0  # 1000 times DDPM's betas
    return _from_rate(low * t + (high - low) / 2 * t**2)


def _scaled_linear(t: Array) -> tuple[Array, Array]:
    low, high = 0.85**0.5, 12.0**0.5
    slope = high - low
    return _from_rate(low**2 * t + low * slope * t**2 + slope**2 / 3 * t**3)


def _cosine(t: Array) -> tuple[Array, Array]:
    xp = _namespace(t)
    start = COSINE_OFFSET / (1 + COSINE_OFFSET) * np.pi / 2
    angle = start + t / (1 + COSINE_OFFSET) * np.pi / 2
    alpha = xp.maximum(xp.cos(angle), 0) / np.cos(start)
    # cos^2 a - cos^2 b = sin(b - a) sin(b + a), exact near t = 0
    sigma = xp.sqrt(xp.sin(angle - start) * xp.sin(angle + start)) / np.cos(start)
    return alpha, sigma


def _end_in_pure_noise(alpha_sigma: AlphaSigma, last: float, first: float) -> AlphaSigma:
    """Rescales alpha linearly to 0 at the last time, unchanged at the first."""
    alpha_first, alpha_last = (float(alpha_sigma(np.asarray(t))[0]) for t in (first, last))
    scale = alpha_first / (alpha_first - alpha_last)

    def rescaled(t: Array) -> tuple[Array, Array]:
        alpha = (alpha_sigma(t)[0] - alpha_last) * scale
        return alpha, _namespace(alpha).sqrt((1 - alpha) * (1 + alpha))

    return rescaled


def _shift(alpha_sigma: AlphaSigma, shift: float, order: int) -> AlphaSigma:
    """Divides alpha / sigma by `shift`, keeping alpha^order + sigma^order = 1."""

    def shifted(t: Array) -> tuple[Array, Array]:
        alpha, sigma = alpha_sigma(t)
        norm = (alpha**order + (shift * sigma) ** order) ** (1 / order)
        return alpha / norm, shift * sigma / norm

    return shifted


def _namespace(array: Array) -> Any:
    return jnp if isinstance(array, jax.Array) else np


def _round(k: Array) -> Array:
    return np.round(k).astype(np.int32)
