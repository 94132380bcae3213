"""Scores of generated clips against a reference set or their captions, with the protocol that they depend on."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from videogen_jax.evaluation import frechet, fvd, motion, prompt_accuracy, psnr_ssim, video_folders
from videogen_jax.evaluation.clip_sets import (
    Clips,
    SetSummary,
    Window,
    crop_clips,
    select_by_name,
    summarize,
)

RATE_TOLERANCE = 0.05  # relative difference of frame rates that is ignored; GIFs round theirs

Score = dict[str, Any]  # "name" and "value"; optional "low", "high", "n" and "note"


class Videos(NamedTuple):
    """Videos to score, and what to compare them with."""

    clips: Clips
    settings: dict[str, Any]  # that they were made with: protocol entries
    folder: Path | None = None  # of their files; None for generated videos
    prompts: list[str] | None = None  # of generated videos
    reference: Clips | None = None
    reference_summary: SetSummary | None = None  # if already computed
    paired: bool = False  # whether clips at equal positions form pairs


class Result(NamedTuple):
    """Scores and the conditions under which they hold."""

    scores: list[Score]
    protocol: dict[str, Any]  # settings that the scores depend on
    left_out: dict[
        str, list[dict[str, str]]
    ]  # name of a set to {"file", "reason"} of its skipped clips


class Mean(NamedTuple):
    """A mean over independent values."""

    value: float
    standard_error: float | None  # None for a single value
    count: int


def score(
    videos: Videos,
    window: Window,
    distances: Sequence[tuple[str, Window]],
    extractor: tuple[Callable, str] | None,
    scorer: Any,
    *,
    ddof: int = frechet.DDOF,
    count: int | None = None,
) -> Iterator[Result]:
    """Computes the scores one after the other: against captions, then against the reference.

    Args:
      videos: videos to score.
      window: frames of each clip that are evaluated.
      distances: result of `fvd.choose_distances`.
      extractor: result of `fvd.make_extractor`; None without distances.
      scorer: result of `clip_score.make_clip_scorer`; None for no CLIP score.
      ddof: delta degrees of freedom of the covariances.
      count: most clips of each set; None: all.
    """
    if scorer is not None:
        if videos.prompts is not None:
            names = [clip.name for clip in videos.clips()]
            prompts = dict(zip(names, videos.prompts, strict=True))
        else:
            listed, _ = video_folders.list_videos(videos.folder)
            prompts = {entry["file"]: entry["prompt"] for entry in listed}
        yield score_captions(videos.clips, prompts, scorer, count)
    if videos.reference is not None:
        yield compare_sets(
            videos.clips,
            videos.reference,
            window,
            distances,
            extractor,
            ddof=ddof,
            count=count,
            reference_summary=videos.reference_summary,
            paired=videos.paired,
        )


def judge_prompts(videos: Videos, required: bool) -> dict[str, Any]:
    """Judges videos against their moving-shapes prompts.

    Args:
      videos: videos to judge.
      required: whether other prompts in a folder are an error.
    Returns:
      The result of `prompt_accuracy.judge_videos` or `judge_folder`; empty if the prompts are of another kind.
    Raises:
      ValueError: see `required`.
    """
    if videos.prompts is not None:
        if not all(map(prompt_accuracy.can_judge, videos.prompts)):
            return {}
        arrays = (clip.video for clip in videos.clips())
        return prompt_accuracy.judge_videos(arrays, videos.prompts)
    if videos.folder is None:
        return {}
    try:
        return prompt_accuracy.judge_folder(videos.folder)
    except ValueError:
        if required:
            raise
        return {}


def compare_sets(
    videos: Clips,
    reference: Clips,
    window: Window,
    distances: Sequence[tuple[str, Window]],
    extractor: tuple[Callable, str] | None,
    *,
    ddof: int = frechet.DDOF,
    count: int | None = None,
    reference_summary: SetSummary | None = None,
    paired: bool = False,
) -> Result:
    """Compares two sets by Fréchet distances and motion, and paired sets by PSNR and SSIM.

    Args:
      videos: set to score.
      reference: set to compare with.
      window: frames of each clip that are evaluated.
      distances: result of `fvd.choose_distances`.
      extractor: result of `fvd.make_extractor`; None without distances.
      ddof: delta degrees of freedom of the covariances.
      count: most clips of each set; None: all videos, and as many clips of the reference.
      reference_summary: summary of the reference with this window, if already computed.
      paired: whether clips at equal positions form pairs.
    Raises:
      ValueError: the sets cannot be compared.
    """
    summary = summarize(videos, window, count)
    if reference_summary is None:
        reference_summary = summarize(reference, window, count or len(summary.names))
    check_shapes(summary.shape, reference_summary.shape)
    if not math.isclose(summary.fps, reference_summary.fps, rel_tol=RATE_TOLERANCE):
        logging.warning(
            "The videos have %.4g frames/s and the reference %.4g: their motion scores are not comparable.",
            summary.fps,
            reference_summary.fps,
        )
    scores = motion_scores(summary, reference_summary) if window.frames > 1 else []
    if paired:
        scores += pair_scores(reference, videos, window, (reference_summary, summary))
    protocol = describe_protocol(summary, reference_summary, window)
    if extractor is not None:
        protocol |= {
            "features": "I3D, Kinetics-400 logits, 224x224 bilinear",
            "i3d_weights": extractor[1],
            "ddof": ddof,
        }
        sets = ((videos, summary), (reference, reference_summary))
        scores = fvd.score_distances(sets, window, distances, extractor, ddof) + scores
    left_out = {"generated": summary.left_out, "reference": reference_summary.left_out}
    return Result(scores, protocol, left_out)


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


def motion_scores(videos: SetSummary, reference: SetSummary) -> list[Score]:
    """Scores the amount of motion in the videos relative to the reference."""
    found = motion.compare_motion(videos.motion, reference.motion)
    ours, theirs = found.generated, found.reference
    half = frechet.Z_95 * found.standard_error
    return [
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


def score_captions(
    videos: Clips, prompts: Mapping[str, str], scorer: Any, count: int | None = None
) -> Result:
    """Computes the CLIP score of all videos that can be read.

    Args:
      videos: set to score.
      prompts: name of a clip to its caption.
      scorer: result of `clip_score.make_clip_scorer`.
      count: most videos; None: all.
    Raises:
      ValueError: no video can be read.
    """
    left_out: list[dict[str, str]] = []
    crops = crop_clips(videos, Window(1), count, left_out, same_size=False)
    names = [clip.name for clip, _ in crops]
    readable = (clip.video for clip in select_by_name(videos, names)())
    values = scorer.score(readable, [prompts[name] for name in names])
    score = mean_score("CLIP score", values, "95 % over videos")
    protocol = {"clip_weights": scorer.weights, "clip_frames": scorer.frames}
    return Result([score], protocol, {"generated": left_out})


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
