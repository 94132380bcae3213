"""The Fréchet distance between two sets of features, in float64.

    d = |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

For sets of fewer clips than features the covariances are singular, and the exact way avoids them: with A, B the centred
features over sqrt(n - ddof), C_a = A^T A, and the last trace is the sum of the singular values of A B^T, a small
matrix. Larger sets pass by once, and only their moments are kept.

Two conventions for ddof are in use: the original's covariance divides by n - 1, StyleGAN-V's and cd-fvd's by n.

Source: FVD, arXiv:1812.01717, eq. 1; Dowson & Landau, 1982; moments of joined sets, Chan, Golub & LeVeque, 1979.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

DDOF = 1
Z_95 = 1.959963984540054  # of the normal distribution, 97.5 % lie below


class Moments(NamedTuple):
    """What is kept of a set of features that passes by."""

    count: int
    mean: np.ndarray  # (F,) float64
    scatter: np.ndarray  # (F, F) float64, the sum of (x - mean) (x - mean)^T

    def covariance(self, ddof: int = DDOF) -> np.ndarray:
        """(F, F) float64, the scatter over count - ddof."""
        return self.scatter / (self.count - ddof)

    def join(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)


def measure(features: np.ndarray) -> Moments:
    """Moments of features that are all there.

    Args:
      features: (N, F), N of at least 1.
    Returns:
      The moments.
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def measure_stream(batches: Iterable[np.ndarray]) -> Moments:
    """Moments of features that come in batches; memory does not grow with their number.

    Args:
      batches: at least one, each (B, F).
    Returns:
      The moments.
    """
    batches = iter(batches)
    moments = measure(next(batches))
    for batch in batches:
        moments = moments.join(measure(batch))
    return moments


def distance_of_moments(a: Moments, b: Moments, ddof: int = DDOF) -> float:
    """Fréchet distance of two Gaussians with these moments.

    The trace of (C_a C_b)^(1/2) is taken of the symmetric C_a^(1/2) C_b C_a^(1/2), which has the same eigenvalues.

    Args:
      a: of `measure` or `measure_stream`.
      b: the same.
      ddof: subtracted from both counts.
    Returns:
      The distance, 0 at least.
    """
    covariance_a, covariance_b = a.covariance(ddof), b.covariance(ddof)
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariance_b @ root)
    overlap = np.sqrt(np.maximum(product, 0)).sum()
    gap = np.square(a.mean - b.mean).sum()
    return max(float(gap + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap), 0.0)


def distance(a: np.ndarray, b: np.ndarray, ddof: int = DDOF) -> float:
    """Fréchet distance of two sets of features: the exact way for small sets, else that of their moments.

    Args:
      a: (N, F), N of at least 2.
      b: (M, F), M of at least 2.
      ddof: subtracted from N and M: 1 as in the original, 0 as in StyleGAN-V.
    Returns:
      The distance, 0 at least.
    Raises:
      ValueError: a set has fewer than 2 clips, or features that are not finite.
    """
    check_features(a)
    check_features(b)
    if min(len(a), len(b)) >= np.shape(a)[1]:
        return distance_of_moments(measure(a), measure(b), ddof)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - ddof) for x in (a, b))
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(float(gap + np.square(a).sum() + np.square(b).sum() - 2 * overlap), 0.0)


def bootstrap_interval(
    a: np.ndarray, b: np.ndarray, ddof: int = DDOF, *, resamples: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Where the distance of other clips of the same kind would lie: 95 %, by resampling both sets.

    The deviation of the distance between resampled sets, about the distance itself. Their mean is not used: a set with
    clips drawn twice lies further off, as a smaller set does. So the interval tells how far the choice of clips
    matters, and not what so few of them add to the distance; for that, compare sets of equal size.

    Args:
      a: (N, F).
      b: (M, F).
      ddof: see `distance`.
      resamples: how many.
      seed: of the draw.
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


def check_features(features: np.ndarray) -> None:
    """Refuses what has no covariance.

    Raises:
      ValueError: fewer than 2 clips, or numbers that are not finite.
    """
    if len(features) < 2:
        raise ValueError(
            f"A Fréchet distance wants at least 2 clips in each set, not {len(features)}."
        )
    if not np.isfinite(features).all():
        raise ValueError(
            "Features are not finite: the videos are too short or damaged, see which were left out."
        )
