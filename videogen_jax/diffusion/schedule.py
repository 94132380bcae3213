"""Noise schedules: alpha(t) and sigma(t) of x_t = alpha_t x0 + sigma_t eps, on a discrete clock.

| name          | beta or alpha                                                    | source                     |
| ------------- | ---------------------------------------------------------------- | -------------------------- |
| linear        | beta from 1e-4 to 0.02                                           | DDPM, arXiv:2006.11239     |
| scaled_linear | sqrt(beta) from sqrt(0.00085) to sqrt(0.012)                     | LDM, arXiv:2112.10752      |
| cosine        | alpha^2 from cos^2((t + 0.008) / 1.008 * pi / 2), beta <= 0.999  | arXiv:2102.09672, eq. 17   |

All are variance preserving: alpha^2 + sigma^2 = 1. Step 0 is nearly clean, step `num_steps` - 1 nearly noise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCHEDULES = ("linear", "scaled_linear", "cosine")


class Schedule(NamedTuple):
    """Tables over the steps of the clock, float32."""

    alpha: jax.Array  # (num_steps,)
    sigma: jax.Array  # (num_steps,)

    @property
    def num_steps(self) -> int:
        """Steps of the clock."""
        return len(self.alpha)


def make_schedule(
    name: str, num_steps: int = 1000, zero_terminal_snr: bool = False, shift: float = 1.0
) -> Schedule:
    """Builds a schedule by name.

    Args:
      name: one of SCHEDULES.
      num_steps: steps of the clock.
      zero_terminal_snr: rescale so that the last step is pure noise.
      shift: divides alpha / sigma at every step; above 1 for videos of many alike pixels, which still
        show through noise that hides a single pixel.
    Returns:
      The schedule, computed in float64 and kept in float32.
    Raises:
      ValueError: the name is unknown, or the shift is not positive.
    Source: the table above; zero terminal SNR from arXiv:2305.08891, algorithm 1; shift from simple diffusion,
      arXiv:2301.11093, eq. 4 (logSNR - 2 log shift).
    """
    if name == "linear":
        beta = np.linspace(1e-4, 0.02, num_steps)
    elif name == "scaled_linear":
        beta = np.linspace(0.00085**0.5, 0.012**0.5, num_steps) ** 2
    elif name == "cosine":
        time = np.arange(num_steps + 1) / num_steps
        alpha_squared = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - alpha_squared[1:] / alpha_squared[:-1], 0.999)
    else:
        raise ValueError(f"Unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}.")
    if shift <= 0:
        raise ValueError(f"The schedule's shift is {shift}: choose a number above 0.")
    alpha = np.sqrt(np.cumprod(1 - beta))
    if zero_terminal_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha = alpha / np.sqrt(alpha**2 + shift**2 * (1 - alpha**2))
    sigma = np.sqrt(1 - alpha**2)
    return Schedule(jnp.asarray(alpha, jnp.float32), jnp.asarray(sigma, jnp.float32))
