"""Streaming mean and standard deviation of each latent channel over a data set, in float64 and mergeable."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class LatentStatistics(NamedTuple):
    """Running moments of latents."""

    count: int  # positions: clips x frames x height x width
    mean: np.ndarray  # (C,) float64
    squares: np.ndarray  # (C,) float64, sum of squared deviations from the mean

    @property
    def deviation(self) -> np.ndarray:
        """(C,) float64, population standard deviation."""
        return np.sqrt(self.squares / max(self.count, 1))


def empty_statistics(channels: int) -> LatentStatistics:
    """Returns the statistics of 0 positions."""
    return LatentStatistics(0, np.zeros(channels), np.zeros(channels))


def from_deviation(
    count: int, mean: Sequence[float], deviation: Sequence[float]
) -> LatentStatistics:
    """Makes statistics from a known mean (C,) and population standard deviation (C,) of `count` positions."""
    squares = count * np.square(np.asarray(deviation, np.float64))
    return LatentStatistics(count, np.asarray(mean, np.float64), squares)


def add_latents(statistics: LatentStatistics, latents: Any) -> LatentStatistics:
    """Adds a batch of latents.

    Args:
      statistics: of the previous batches.
      latents: (..., C), any float dtype, from `Autoencoder.encode`.
    Raises:
      ValueError: the number of channels differs, or the latents are not finite.
    """
    rows = np.asarray(latents, np.float64).reshape(-1, np.shape(latents)[-1])  # (N, C)
    if rows.shape[1] != len(statistics.mean):
        raise ValueError(
            f"Latents of {rows.shape[1]} channels cannot be added to statistics of {len(statistics.mean)}: "
            "encode the whole data set with one autoencoder."
        )
    if not np.isfinite(rows).all():
        raise ValueError(
            "The latents are not finite: encode with vae.dtype float32, and check the weights."
        )
    if not len(rows):
        return statistics
    mean = rows.mean(axis=0)
    batch = LatentStatistics(len(rows), mean, np.square(rows - mean).sum(axis=0))
    return merge_statistics(statistics, batch)


def merge_statistics(a: LatentStatistics, b: LatentStatistics) -> LatentStatistics:
    """Merges the statistics of two disjoint parts of a data set.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979),
      eq. 2.1.
    """
    count = a.count + b.count
    if not count:
        return a
    distance = b.mean - a.mean
    mean = a.mean + distance * (b.count / count)
    squares = a.squares + b.squares + np.square(distance) * (a.count * b.count / count)
    return LatentStatistics(count, mean, squares)


def check_deviation(statistics: LatentStatistics) -> None:
    """Checks that latents can be normalized by their standard deviation.

    Raises:
      ValueError: nothing was measured, or a channel is constant.
    """
    dead = np.flatnonzero(~(statistics.deviation > 0))
    if dead.size:
        raise ValueError(
            f"Channel {dead[0]} of the latents is constant over {statistics.count} positions: encode more clips."
        )
