"""Mean and deviation of each latent channel over a data set: streamed, in float64, mergeable between processes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class LatentStatistics(NamedTuple):
    """What has been seen of a data set's latents."""

    count: int  # of places: clips x frames x height x width
    mean: np.ndarray  # (C,) float64
    squares: np.ndarray  # (C,) float64, sum of squared distances from the mean

    @property
    def deviation(self) -> np.ndarray:
        """(C,) float64, standard deviation of the population."""
        return np.sqrt(self.squares / max(self.count, 1))


def empty_statistics(channels: int) -> LatentStatistics:
    """Statistics of nothing, to add to.

    Args:
      channels: of the latents.
    Returns:
      Those of 0 places.
    """
    return LatentStatistics(0, np.zeros(channels), np.zeros(channels))


def from_spread(count: int, mean: Sequence[float], deviation: Sequence[float]) -> LatentStatistics:
    """Statistics whose mean and deviation are known.

    Args:
      count: of places.
      mean: (C,).
      deviation: (C,), of the population.
    Returns:
      The statistics.
    """
    squares = count * np.square(np.asarray(deviation, np.float64))
    return LatentStatistics(count, np.asarray(mean, np.float64), squares)


def add_latents(statistics: LatentStatistics, latents: Any) -> LatentStatistics:
    """Adds a batch.

    Args:
      statistics: of what came before.
      latents: (..., C), any float type, as `Autoencoder.encode` gives them.
    Returns:
      Statistics of both.
    Raises:
      ValueError: the latents have another number of channels, or are not finite.
    """
    rows = np.asarray(latents, np.float64).reshape(-1, np.shape(latents)[-1])  # (places, C)
    if rows.shape[1] != len(statistics.mean):
        raise ValueError(
            f"Latents of {rows.shape[1]} channels cannot join statistics of {len(statistics.mean)}: "
            "encode the whole data set with one autoencoder."
        )
    if not np.isfinite(rows).all():
        raise ValueError(
            "Latents that are not finite cannot be measured: encode with vae.dtype float32, and check the weights."
        )
    if not len(rows):
        return statistics
    mean = rows.mean(axis=0)
    batch = LatentStatistics(len(rows), mean, np.square(rows - mean).sum(axis=0))
    return merge_statistics(statistics, batch)


def merge_statistics(a: LatentStatistics, b: LatentStatistics) -> LatentStatistics:
    """Statistics of two disjoint parts of a data set together.

    Args:
      a: of one part.
      b: of the other.
    Returns:
      Of both.
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


def check_spread(statistics: LatentStatistics) -> None:
    """Refuses statistics by which nothing can be divided.

    Args:
      statistics: of a data set.
    Raises:
      ValueError: nothing was measured, or a channel never changes.
    """
    dead = np.flatnonzero(~(statistics.deviation > 0))
    if dead.size:
        raise ValueError(
            f"Channel {dead[0]} of the latents never changes over {statistics.count} places: measure more clips."
        )
