"""The kernel distance between two sets of features: the squared maximum mean discrepancy, unbiased, in float64.

    k(x, y) = (x . y / F + 1)^3
    d = mean over i != j of k(a_i, a_j) + mean over i != j of k(b_i, b_j) - 2 mean over i, j of k(a_i, b_j)

With pairs of different clips only (a U-statistic), its expectation does not depend on the number of clips: it is 0 for
two sets of one distribution, where single values are as often negative as positive. Of I3D's features it is the kernel
video distance (KVD).

Source: MMD^2_u, Gretton et al., JMLR 13 (2012), eq. 3; kernel, KID, arXiv:1801.01401, section 4; KVD, arXiv:1812.01717.
"""

from typing import NamedTuple

import numpy as np

from videogen_jax.evaluation.frechet import Z_95, check_features

KERNEL = "(x.y / F + 1)^3, pairs of different clips"  # as the protocol names it


class Kernels(NamedTuple):
    """The kernel of all pairs within and between two sets of N and M clips, float64."""

    a: np.ndarray  # (N, N)
    b: np.ndarray  # (M, M)
    between: np.ndarray  # (N, M)


def compute_kernels(a: np.ndarray, b: np.ndarray) -> Kernels:
    """Computes the kernel of all pairs.

    Args:
      a: (N, F), N >= 2.
      b: (M, F), M >= 2.
    Raises:
      ValueError: a set has fewer than 2 clips, or features that are not finite.
    """
    check_features(a, "kernel distance")
    check_features(b, "kernel distance")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = a.shape[1]
    return Kernels(*((x @ y.T / size + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the unbiased kernel distance between two sets of features.

    Args:
      a: (N, F), N >= 2.
      b: (M, F), M >= 2.
    Returns:
      The estimate; it may be below 0.
    Raises:
      ValueError: as `compute_kernels`.
    """
    kernels = compute_kernels(a, b)
    return _estimate(kernels, np.ones(len(a)), np.ones(len(b)))


def _estimate(kernels: Kernels, a: np.ndarray, b: np.ndarray) -> float:
    """The distance of sets that hold each clip so many times, (N,) and (M,), without pairs of a clip with itself."""

    def mean_within(kernel: np.ndarray, times: np.ndarray) -> float:
        squares = np.square(times)
        total = times @ kernel @ times - squares @ kernel.diagonal()
        return total / (times.sum() ** 2 - squares.sum())

    between = a @ kernels.between @ b / (a.sum() * b.sum())
    return float(mean_within(kernels.a, a) + mean_within(kernels.b, b) - 2 * between)


def bootstrap_interval(
    a: np.ndarray, b: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Estimates the 95 % interval of the distance over the choice of clips, by bootstrap resampling of both sets.

    The interval is the distance -+ 1.96 standard deviations of the distance between resampled sets. A pair of two
    copies of one clip is no pair of different clips, and does not count. Where both sets have one distribution the
    interval is about twice too wide, since the choice of clips then matters less than resampling suggests.

    Args:
      a: (N, F).
      b: (M, F).
      resamples: number of bootstrap resamples.
      seed: of the resampling.
    Returns:
      (low, high); low may be below 0.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12.
    """
    kernels = compute_kernels(a, b)
    rng = np.random.default_rng(seed)

    def resample(count: int) -> np.ndarray:
        while True:
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            if np.count_nonzero(times) > 1:  # a set of one clip has no pairs
                return times.astype(np.float64)

    values = [_estimate(kernels, resample(len(a)), resample(len(b))) for _ in range(resamples)]
    value = _estimate(kernels, np.ones(len(a)), np.ones(len(b)))
    half = Z_95 * float(np.std(values, ddof=1))
    return value - half, value + half
