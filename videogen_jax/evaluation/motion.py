"""How much generated videos move, against how much those of a reference set do.

The motion score of a video is `data/records.motion_score`, which is also what the model is conditioned on: the mean
absolute change of luma (0 to 1) at 1/8 scale, per second.

Too little motion shows in the difference of means; motion that is the same everywhere shows in the deviations and
quantiles, and both show in the Wasserstein-1 distance, the area between the two distribution functions:

    W1 = integral |F(s) - G(s)| ds

which is 0 for equal distributions, at least the difference of means, and in the score's own unit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Motion(NamedTuple):
    """The motion scores of a set of videos, in luma per second."""

    count: int
    mean: float
    deviation: float  # standard, of ddof 1
    quantiles: dict[str, float]  # at QUANTILES, interpolated linearly


class MotionComparison(NamedTuple):
    """Generated videos against a reference set, in luma per second."""

    generated: Motion
    reference: Motion
    difference: float  # of the means, generated - reference
    standard_error: float  # of the difference, for independent sets of unequal variance
    wasserstein: float  # W1


def compare_motion(
    generated: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray
) -> MotionComparison:
    """Compares the motion scores of two sets.

    Args:
      generated: (N,) motion scores, of `clip_sets.summarize`.
      reference: (M,) of the same, or of a packed data set's motion_scores.npy, without its still images, which are 0.
    Returns:
      The comparison.
    Raises:
      ValueError: a set has fewer than two videos, which have no deviation.
    """
    sets = {}
    for name, scores in (("generated", generated), ("reference", reference)):
        sets[name] = np.asarray(scores, np.float64)
        if len(sets[name]) < 2:
            raise ValueError(
                f"The {name} set has {len(sets[name])} videos: motion is compared over 2 or more."
            )
    ours, theirs = (describe_motion(scores) for scores in sets.values())
    return MotionComparison(
        generated=ours,
        reference=theirs,
        difference=ours.mean - theirs.mean,
        standard_error=math.sqrt(
            ours.deviation**2 / ours.count + theirs.deviation**2 / theirs.count
        ),
        wasserstein=wasserstein(*sets.values()),
    )


def describe_motion(scores: np.ndarray) -> Motion:
    """Describes the motion scores of one set.

    Args:
      scores: (N,), N >= 2.
    Returns:
      Their mean, deviation and quantiles.
    """
    values = np.quantile(scores, QUANTILES)
    return Motion(
        count=len(scores),
        mean=float(scores.mean()),
        deviation=float(scores.std(ddof=1)),
        quantiles={f"{share:g}": float(v) for share, v in zip(QUANTILES, values, strict=True)},
    )


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Computes the Wasserstein-1 distance of two samples: the area between their distribution functions.

    Args:
      one: (N,) in any unit.
      other: (M,) in the same.
    Returns:
      The distance, in the same unit.
    """
    places = np.sort(np.concatenate([one, other]))
    shares = [
        np.searchsorted(np.sort(sample), places[:-1], side="right") / len(sample)
        for sample in (one, other)
    ]
    return float(np.abs(shares[0] - shares[1]) @ np.diff(places))
