"""Moving averages of the parameters: several at once, and of any width afterwards.

| name    | decay at the step after n others         | source                         |
| ------- | ---------------------------------------- | ------------------------------ |
| decay_D | min(D, (1 + n) / (10 + n))               | arXiv:2006.11239 uses D 0.9999 |
| width_W | (1 - 1/t)^(gamma + 1), t = n + 1         | EDM2, arXiv:2312.02696, 3.1    |

After t steps the power average gives the parameters of step i the weight (i/t)^(gamma+1) - ((i-1)/t)^(gamma+1): the
profile p(x) = (gamma+1)/t (x/t)^gamma, in steps. Its width W is the profile's standard deviation as a share of t, so
that its memory grows with the run.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDEST = 12**-0.5  # of the even average, gamma = 0
LARGEST_MISS = 0.1  # of an average made afterwards, as a share of its profile's norm

Decays = dict[str, Callable[[jax.Array], jax.Array]]  # name to the decay after n steps


def warmup_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + n) / (10 + n)).

    Args:
      decay: reached in the long run.
      step: n, steps taken before.
    Returns:
      () float32.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def power_decay(gamma: float, step: jax.Array) -> jax.Array:
    """(1 - 1/t)^(gamma + 1); the first step takes the parameters wholly.

    Args:
      gamma: exponent of the profile.
      step: n = t - 1, steps taken before.
    Returns:
      () float32.
    Source: EDM2, arXiv:2312.02696, section 3.1.
    """
    # Not a power of 1 - 1/t, whose rounding in float32 is gamma + 1 times as large in the result.
    return jnp.exp((gamma + 1) * jnp.log1p(-1 / (step + 1)))


def gamma_to_width(gamma: float) -> float:
    """Standard deviation of the profile as a share of the run: (g+1)^(1/2) (g+2)^-1 (g+3)^-1/2.

    Source: EDM2, arXiv:2312.02696, section 3.1.
    """
    return float((gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5)


def width_to_gamma(width: float) -> float:
    """The inverse of `gamma_to_width`: root of (g+2)^2 (g+3) = (g+1) / width^2.

    Raises:
      ValueError: the width is not between 0 and that of the even average.
    """
    if not 0 < width < WIDEST:
        raise ValueError(
            f"The relative width of a moving average is {width}: choose one above 0 and below {WIDEST:.4f}, "
            "which is the width of the mean over the whole run."
        )
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(roots.real.max())


def width_name(width: float) -> str:
    """The name of the power average of a relative width."""
    return f"width_{width:g}"


def make_decays(decays: Sequence[float], widths: Sequence[float]) -> Decays:
    """Names the averages that a run keeps.

    Args:
      decays: of plain averages, each in [0, 1).
      widths: relative widths of power averages.
    Returns:
      Name to the decay after n steps, in the order given.
    Raises:
      ValueError: there is none, one is out of range, or one is there twice.
    """
    named: Decays = {}
    for decay in decays:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decays has {decay}: choose decays from 0 to below 1.")
        named[f"decay_{decay:g}"] = lambda step, decay=decay: warmup_decay(decay, step)
    for width in widths:
        gamma = width_to_gamma(width)
        named[width_name(width)] = lambda step, gamma=gamma: power_decay(gamma, step)
    if len(named) < len(decays) + len(widths):
        raise ValueError(
            f"ema.decays {tuple(decays)} and ema.widths {tuple(widths)} name an average twice: remove one."
        )
    if not named:
        raise ValueError(
            "There is no moving average to sample from: give ema.decays or ema.widths."
        )
    return named


def update(
    averages: dict[str, Any], params: Any, step: jax.Array, decays: Decays
) -> dict[str, Any]:
    """Moves every average towards the parameters.

    Args:
      averages: name to tree.
      params: tree.
      step: () int32, steps taken before.
      decays: of `make_decays`.
    Returns:
      The averages after the step.
    """

    def move(average: Any, rate: jax.Array) -> Any:
        # Adding the small difference rounds less than mixing the two: float32 is short late in a long run.
        return jax.tree.map(lambda mean, new: mean + rate * (new - mean), average, params)

    return {name: move(averages[name], 1 - decay(step)) for name, decay in decays.items()}


def solve_weights(
    steps: Sequence[int], widths: Sequence[float], step: int, width: float
) -> np.ndarray:
    """How much of each snapshot makes the average of another width.

    The weights, of sum one, whose mix of profiles is nearest to the wanted one in the mean square. (The paper leaves
    the sum free; where the mix misses, that would shrink all parameters by up to some percent.) The inner product of
    two profiles that end at a <= b, from the integral of p_a p_b over [0, a], is

        (g_a + 1) (g_b + 1) / ((g_a + g_b + 1) b) (a / b)^(g_b).

    Profiles of whole steps, (i/t)^(gamma+1) - ((i-1)/t)^(gamma+1), give the same error from some tens of steps on.

    Args:
      steps: at which each snapshot was taken, S of them.
      widths: relative width of each.
      step: at which the wanted average ends.
      width: relative width of the wanted average.
    Returns:
      (S,) float64.
    Raises:
      ValueError: a width is out of range, or no mix of the snapshots comes near the wanted average.
    Source: EDM2, arXiv:2312.02696, section 3.2 and appendix C.3.
    """
    ends = np.asarray(steps, np.float64)
    gammas = np.array([width_to_gamma(tracked) for tracked in widths])
    gram = _inner(ends[:, None], gammas[:, None], ends[None], gammas[None])
    wanted = np.float64(step), np.float64(width_to_gamma(width))
    towards, size = _inner(ends, gammas, *wanted), _inner(*wanted, *wanted)
    # Neighbouring profiles are nearly alike: scaled to norm 1, and without the directions that are rounding alone.
    norm = np.sqrt(np.diag(gram))
    sums = 1 / norm  # of the scaled profiles
    length = np.linalg.norm(sums)
    system = np.block(
        [[gram / np.outer(norm, norm), sums[:, None] / length], [sums / length, np.zeros(1)]]
    )  # the last row and column are the multiplier's
    right = np.append(towards / norm, 1 / length)
    weights = np.linalg.lstsq(system, right, rcond=1e-13)[0][:-1] / norm
    miss = np.sqrt(max(0.0, size - 2 * weights @ towards + weights @ gram @ weights) / size)
    if miss > LARGEST_MISS:
        raise ValueError(
            f"No mix of the snapshots at steps {min(steps)} to {max(steps)}, of widths {sorted(set(widths))}, is near "
            f"the moving average of width {width:g} at step {step} (its profile would be {miss:.0%} off): choose a "
            "step with a snapshot, a width nearer to those, or take snapshots more often."
        )
    return weights


def _inner(
    end_a: np.ndarray, gamma_a: np.ndarray, end_b: np.ndarray, gamma_b: np.ndarray
) -> np.ndarray:
    later = np.maximum(end_a, end_b)
    gamma_later = np.where(end_a > end_b, gamma_a, gamma_b)
    share = (np.minimum(end_a, end_b) / later) ** gamma_later
    return (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * later) * share


def reconstruct(snapshots: Iterable[Any], weights: Sequence[float]) -> Any:
    """Mixes snapshots, one in memory at a time.

    Summed in float64 on the host, for the weights alternate in sign and are larger than their sum.

    Args:
      snapshots: trees, in the order of the weights.
      weights: of `solve_weights`.
    Returns:
      Tree of float32 arrays on the host.
    """
    total = None
    for tree, weight in zip(snapshots, weights, strict=True):
        part = jax.tree.map(lambda leaf, w=weight: w * np.asarray(leaf, np.float64), tree)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), total)
