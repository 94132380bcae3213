"""Means of scores, and how far they may be off."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mean(NamedTuple):
    """A mean over independent values."""

    value: float
    standard_error: float | None  # None of a single value, which tells nothing of it
    count: int


def estimate_mean(values: Sequence[float] | np.ndarray) -> Mean:
    """Computes a mean and its standard error, sqrt(sum (x - mean)^2 / (n - 1) / n).

    Args:
      values: (n,), one per video, in any unit.
    Returns:
      The mean and its error in the same unit.
    Raises:
      ValueError: there are none.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("There are no scores to take the mean of: give one video or more.")
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(float(values.mean()), None if error is None else float(error), len(values))
