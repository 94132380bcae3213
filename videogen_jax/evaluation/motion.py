"""The amount of motion in generated videos compared with a reference set.

The motion score of a video is `data/records.motion_score`, which the model is also conditioned on: the mean absolute
change of luma (0 to 1) at 1/8 resolution, per second.

The difference of means detects too little motion, the standard deviations and quantiles too little variation of it. The
Wasserstein-1 distance, the area between the two distribution functions, detects both:

    W1 = integral |F(s) - G(s)| ds

It is 0 for equal distributions, at least the difference of means, and has the unit of the score.

The ratio of means has no unit: 1 is the motion of the reference, and 0.75 to 1.25 are within 25 % of it.
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
    deviation: float  # standard deviation, ddof 1
    quantiles: dict[str, float]  # at QUANTILES, linearly interpolated


class Ratio(NamedTuple):
    """A ratio of two means."""

    value: float
    standard_error: float


class MotionComparison(NamedTuple):
    """The motion of generated videos and of a reference set, in luma per second."""

    generated: Motion
    reference: Motion
    difference: float  # of the means, generated - reference
    standard_error: float  # of the difference, for independent sets with unequal variances
    wasserstein: float  # W1


def compare_motion(
    generated: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray
) -> MotionComparison:
    """Compares the motion scores of two sets.

    Args:
      generated: (N,) motion scores, of `clip_sets.summarize`.
      reference: (M,) motion scores, also of a packed data set's motion_scores.npy, without its still images (score 0).
    Raises:
      ValueError: a set has fewer than two videos, and so no standard deviation.
    """
    sets = {}
    for name, scores in (("generated", generated), ("reference", reference)):
        sets[name] = np.asarray(scores, np.float64)
        if len(sets[name]) < 2:
            raise ValueError(
                f"The {name} set has {len(sets[name])} videos: comparing motion needs 2 or more."
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


def find_ratio(ours: Motion, theirs: Motion) -> Ratio | None:
    """The ratio of two means, with its standard error to first order (delta method) for independent sets.

    Returns:
      mean / mean; None where the reference does not move.
    """
    if theirs.mean == 0:
        return None
    value = ours.mean / theirs.mean
    variances = (
        ours.deviation**2 / ours.count,
        value**2 * theirs.deviation**2 / theirs.count,
    )
    return Ratio(value, math.sqrt(sum(variances)) / theirs.mean)


def describe_motion(scores: np.ndarray) -> Motion:
    """Computes the mean, standard deviation and quantiles of motion scores (N,), N >= 2."""
    values = np.quantile(scores, QUANTILES)
    return Motion(
        count=len(scores),
        mean=float(scores.mean()),
        deviation=float(scores.std(ddof=1)),
        quantiles={f"{share:g}": float(v) for share, v in zip(QUANTILES, values, strict=True)},
    )


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Computes the Wasserstein-1 distance between two samples: the area between their distribution functions.

    Args:
      one: (N,) in any unit.
      other: (M,) in the same unit.
    Returns:
      The distance, in this unit.
    """
    values = np.sort(np.concatenate([one, other]))
    # Both distribution functions are constant between neighbouring values.
    cdfs = [
        np.searchsorted(np.sort(sample), values[:-1], side="right") / len(sample)
        for sample in (one, other)
    ]
    return float(np.abs(cdfs[0] - cdfs[1]) @ np.diff(values))
