"""Scores of two sets of clips that need no network: motion, PSNR and SSIM of pairs; and the protocol of both sets."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from videogen_jax.evaluation import bounds, frechet, motion, psnr_ssim
from videogen_jax.evaluation.clip_sets import Clips, SetSummary, Window, crop_clips

MOTION_TOLERANCE = 0.25  # relative difference of mean motion that the note names as small

# "name" and "value"; optional "low", "high", "n", "note", the names of `bounds.COLUMNS`, "share" (of the way from the
# ceiling to the floor) and "parts", further scores that it consists of.
Score = dict[str, Any]


class Mean(NamedTuple):
    """A mean over independent values."""

    value: float
    standard_error: float | None  # None for a single value
    count: int


def describe_protocol(videos: SetSummary, reference: SetSummary, window: Window) -> dict[str, Any]:
    """The entries of the protocol that follow from two sets and the window."""
    return {
        "num_generated": len(videos.names),
        "num_reference": len(reference.names),
        "left_out_generated": len(videos.left_out),
        "left_out_reference": len(reference.left_out),
        "fps_generated": round(videos.fps, 3),
        "fps_reference": round(reference.fps, 3),
        "reference": reference.digest,
        "frames": window.frames,
        "stride": window.stride,
        "repeat": window.repeat,
        "resized": None if window.size is None else "to cover, bicubic, and cut",
        "height": videos.shape[0],
        "width": videos.shape[1],
    }


def check_shapes(videos: tuple[int, int], reference: tuple[int, int]) -> None:
    """Checks that both sets have the same (height, width).

    Raises:
      ValueError: names both sizes.
    """
    if videos != reference:
        raise ValueError(
            f"The videos have {videos[0]}x{videos[1]} pixels and the reference {reference[0]}x{reference[1]}: resize "
            "both with --size=HEIGHTxWIDTH."
        )


def motion_scores(sets: Mapping[str, tuple[Clips, SetSummary]]) -> list[Score]:
    """Scores the amount of motion in the videos relative to the reference; sets as for `fvd.score_distances`."""
    scores = {name: summary.motion for name, (_, summary) in sets.items()}
    found = motion.compare_motion(scores["videos"], scores["reference"])
    ours, theirs = found.generated, found.reference
    half = frechet.Z_95 * found.standard_error
    entries = [
        {
            "name": "motion, less the reference's",
            "value": found.difference,
            "low": found.difference - half,
            "high": found.difference + half,
            "note": f"luma per second: {ours.mean:.4g} +- {ours.deviation:.4g} against {theirs.mean:.4g} +- "
            f"{theirs.deviation:.4g} (deviations over clips)",
        },
        {
            "name": "motion, Wasserstein-1",
            "value": found.wasserstein,
            "note": "between the distributions of motion scores, luma per second",
        },
    ]
    if (ratio := motion.find_ratio(ours, theirs)) is None:
        return entries
    half = frechet.Z_95 * ratio.standard_error
    within = "within" if abs(ratio.value - 1) <= MOTION_TOLERANCE else "not within"
    entry = {
        "name": "motion, times the reference's",
        "value": ratio.value,
        "low": ratio.value - half,
        "high": ratio.value + half,
        "note": f"ratio of means, {within} {100 * MOTION_TOLERANCE:.0f} %; 95 % over clips",
    }
    for name in bounds.COLUMNS:
        if name in scores:
            entry[name] = float(scores[name].mean() / theirs.mean)
    return [entry, *entries]


def pair_scores(
    originals: Clips, videos: Clips, window: Window, summaries: Sequence[SetSummary]
) -> list[Score]:
    """Computes PSNR and SSIM of videos and the originals at the same positions.

    Args:
      originals: reference set.
      videos: set of as many videos.
      window: frames of each clip that are compared.
      summaries: of both sets, with this window.
    Raises:
      ValueError: a video of a pair cannot be used, or the two differ in length.
    """
    if skipped := [clip for summary in summaries for clip in summary.left_out]:
        raise ValueError(
            f"{skipped[0]['file']} cannot be used ({skipped[0]['reason']}): remove it and its pair."
        )
    count = len(summaries[0].names)
    crops = (crop_clips(clips, window, count, []) for clips in (originals, videos))

    def pair() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for (original, original_frames), (video, video_frames) in zip(*crops, strict=True):
            if len(original.video) != len(video.video):
                raise ValueError(
                    f"{video.name} has {len(video.video)} frames and {original.name} {len(original.video)}: both "
                    "videos of a pair need the same length."
                )
            yield original_frames, video_frames

    scores = psnr_ssim.score_reconstructions(pair())
    note = "95 % over videos"
    return [mean_score("PSNR, dB", scores.psnr, note), mean_score("SSIM", scores.ssim, note)]


def mean_score(name: str, values: np.ndarray, note: str) -> Score:
    """The mean over videos, with its 95 % interval, as an entry of the report's scores."""
    mean = estimate_mean(values)
    score = {"name": name, "value": mean.value, "n": mean.count, "note": note}
    if mean.standard_error is not None:
        half = frechet.Z_95 * mean.standard_error
        score |= {"low": mean.value - half, "high": mean.value + half}
    return score


def estimate_mean(values: Sequence[float] | np.ndarray) -> Mean:
    """Computes a mean and its standard error, sqrt(sum (x - mean)^2 / (n - 1) / n), in float64.

    Args:
      values: (n,), one per video, in any unit.
    Raises:
      ValueError: `values` is empty.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("There are no scores to average: give at least one video.")
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(float(values.mean()), None if error is None else float(error), len(values))
