"""The Fréchet distance between two sets of features, in float64.

    d = |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

With fewer clips than features the covariances are singular. The last trace is then computed without them: with A, B the
centred features over sqrt(n - ddof), C_a = A^T A, and the trace is the sum of the singular values of A B^T, an N x M
matrix. Larger sets need one pass, and memory for their moments only.

Two conventions for ddof are in use: the original's covariance divides by n - 1, StyleGAN-V's and cd-fvd's by n.

Source: FVD, arXiv:1812.01717, eq. 1; Dowson & Landau, 1982; moments of merged sets, Chan, Golub & LeVeque, 1979.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

DDOF = 1
Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


class Moments(NamedTuple):
    """First and second moments of a set of features."""

    count: int
    mean: np.ndarray  # (F,) float64
    scatter: np.ndarray  # (F, F) float64, the sum of (x - mean) (x - mean)^T

    def covariance(self, ddof: int = DDOF) -> np.ndarray:
        """(F, F) float64, the scatter over count - ddof."""
        return self.scatter / (self.count - ddof)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union of both sets."""
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)


def compute_moments(features: np.ndarray) -> Moments:
    """Computes the moments of features (N, F), N >= 1."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def compute_moments_of_batches(batches: Iterable[np.ndarray]) -> Moments:
    """Computes the moments of one or more batches (B, F) in constant memory."""
    batches = iter(batches)
    moments = compute_moments(next(batches))
    for batch in batches:
        moments = moments.merge(compute_moments(batch))
    return moments


def distance_of_moments(a: Moments, b: Moments, ddof: int = DDOF) -> float:
    """Computes the Fréchet distance between two Gaussians with these moments.

    tr (C_a C_b)^(1/2) is computed from the symmetric C_a^(1/2) C_b C_a^(1/2), which has the same eigenvalues.

    Args:
      a: moments of the one set.
      b: moments of the other.
      ddof: subtracted from both counts.
    Returns:
      The distance, at least 0.
    """
    covariance_a, covariance_b = a.covariance(ddof), b.covariance(ddof)
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariance_b @ root)
    overlap = np.sqrt(np.maximum(product, 0)).sum()
    gap = np.square(a.mean - b.mean).sum()
    return max(float(gap + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap), 0.0)


def distance(a: np.ndarray, b: np.ndarray, ddof: int = DDOF) -> float:
    """Computes the Fréchet distance between two sets of features, from singular values if a set has fewer than F clips.

    Args:
      a: (N, F), N >= 2.
      b: (M, F), M >= 2.
      ddof: subtracted from N and M: 1 as in the original, 0 as in StyleGAN-V.
    Returns:
      The distance, at least 0.
    Raises:
      ValueError: a set has fewer than 2 clips, or features that are not finite.
    """
    check_features(a)
    check_features(b)
    if min(len(a), len(b)) >= np.shape(a)[1]:
        return distance_of_moments(compute_moments(a), compute_moments(b), ddof)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - ddof) for x in (a, b))
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(float(gap + np.square(a).sum() + np.square(b).sum() - 2 * overlap), 0.0)


def bootstrap_interval(
    a: np.ndarray, b: np.ndarray, ddof: int = DDOF, *, resamples: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Estimates the 95 % interval of the distance over the choice of clips, by bootstrap resampling of both sets.

    The interval is the distance -+ 1.96 standard deviations of the distance between resampled sets. It is not centred
    on their mean, which is biased upwards: resampled sets hold fewer distinct clips. So the interval covers the
    variance due to the choice of clips, but not the bias due to their number; for that, compare sets of equal size.

    Args:
      a: (N, F).
      b: (M, F).
      ddof: see `distance`.
      resamples: number of bootstrap resamples.
      seed: of the resampling.
    Returns:
      (low, high).
    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rng = np.random.default_rng(seed)
    values = [
        distance(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))], ddof)
        for _ in range(resamples)
    ]
    value, half = distance(a, b, ddof), Z_95 * float(np.std(values, ddof=1))
    return max(value - half, 0.0), value + half


def check_features(features: np.ndarray, what: str = "Fréchet distance") -> None:
    """Checks that features (N, F) suffice for a distance, which the error message calls `what`.

    Raises:
      ValueError: N < 2, or a feature is not finite.
    """
    if len(features) < 2:
        raise ValueError(
            f"A {what} needs at least 2 clips in each set, not {len(features)}: add clips."
        )
    if not np.isfinite(features).all():
        raise ValueError(
            "Features are not finite: the videos are too short or damaged, see which ones were left out."
        )
