"""Scores of generated clips against a reference set or their captions, with the protocol that they depend on."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from videogen_jax.evaluation import (
    baselines,
    bounds,
    frechet,
    fvd,
    kernel_distance,
    label_accuracy,
    memorization,
    prompt_accuracy,
    set_scores,
    video_folders,
)
from videogen_jax.evaluation.clip_sets import (
    Clips,
    SetSummary,
    Window,
    crop_clips,
    select_by_name,
    summarize,
)

RATE_TOLERANCE = 0.05  # relative difference of frame rates that is ignored; GIFs round theirs


class Videos(NamedTuple):
    """Videos to score, and what to compare them with."""

    clips: Clips
    settings: dict[str, Any]  # that they were made with: protocol entries
    folder: Path | None = None  # of their files; None for generated videos
    prompts: list[str] | None = None  # of generated videos
    reference: Clips | None = None
    reference_summary: SetSummary | None = None  # if already computed
    paired: bool = False  # whether clips at equal positions form pairs
    beside: dict[str, Clips] = {}  # further sets of `bounds.COLUMNS` to compare with the reference
    training: Clips | None = None  # that the model may have memorized


class Extras(NamedTuple):
    """Scores beside the distances that are requested."""

    baselines: bool = False
    label: re.Pattern | None = None  # of label accuracy
    memorization_clips: int = 0  # training clips; 0: none


class Result(NamedTuple):
    """Scores and the conditions under which they hold."""

    scores: list[set_scores.Score]
    protocol: dict[str, Any]  # settings that the scores depend on
    left_out: dict[
        str, list[dict[str, str]]
    ]  # name of a set to {"file", "reason"} of its skipped clips
    details: dict[str, Any] = {}  # further entries of the report


def score(
    videos: Videos,
    window: Window,
    distances: Sequence[tuple[str, Window]],
    extractor: tuple[Callable, str] | None,
    scorer: Any,
    *,
    ddof: int = frechet.DDOF,
    count: int | None = None,
    extras: Extras | None = None,
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
      extras: further scores against the reference.
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
            videos, window, distances, extractor, ddof=ddof, count=count, extras=extras
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
    videos: Videos,
    window: Window,
    distances: Sequence[tuple[str, Window]],
    extractor: tuple[Callable, str] | None,
    *,
    ddof: int = frechet.DDOF,
    count: int | None = None,
    extras: Extras | None = None,
) -> Result:
    """Compares videos with their reference by distances and motion, and paired sets by PSNR and SSIM.

    Args:
      videos: videos to score, with a reference.
      window: frames of each clip that are evaluated.
      distances: result of `fvd.choose_distances`.
      extractor: result of `fvd.make_extractor`; None without distances.
      ddof: delta degrees of freedom of the covariances.
      count: most clips of each set; None: all videos, and as many clips of the reference.
      extras: further scores.
    Raises:
      ValueError: the sets cannot be compared.
    """
    extras = extras or Extras()
    summary = summarize(videos.clips, window, count)
    reference_summary = videos.reference_summary
    if reference_summary is None:
        reference_summary = summarize(videos.reference, window, count or len(summary.names))
    set_scores.check_shapes(summary.shape, reference_summary.shape)
    if not math.isclose(summary.fps, reference_summary.fps, rel_tol=RATE_TOLERANCE):
        logging.warning(
            "The videos have %.4g frames/s and the reference %.4g: their motion scores are not comparable.",
            summary.fps,
            reference_summary.fps,
        )
    if extras.label is not None and videos.folder is not None:
        label_accuracy.check_labels(summary.captions, reference_summary.captions, extras.label)
    sets = {
        "videos": (videos.clips, summary),
        "reference": (videos.reference, reference_summary),
        **summarize_beside(videos, window, summary, extras),
    }
    scores = set_scores.motion_scores(sets) if window.frames > 1 else []
    if videos.paired:
        summaries = (reference_summary, summary)
        scores += set_scores.pair_scores(videos.reference, videos.clips, window, summaries)
    protocol = set_scores.describe_protocol(summary, reference_summary, window)
    protocol |= {
        name: f"{len(found.names)} clips, {found.digest[:16]}"
        for name, (_, found) in sets.items()
        if name in ("floor", "ceiling")
    }
    protocol |= {"baselines": baselines.DESCRIPTION} if extras.baselines else {}
    if extractor is not None:
        protocol |= {
            "features": "I3D, Kinetics-400 logits, 224x224 bilinear",
            "i3d_weights": extractor[1],
            "ddof": ddof,
        }
        if any(name == "FVD" for name, _ in distances):
            protocol["kernel"] = kernel_distance.KERNEL
        found = fvd.score_distances(sets, window, distances, extractor, ddof)
        for sentence in bounds.find_failures(found):
            logging.warning("%s", sentence)
        scores = found + scores
    details = {}
    for more in add_extras(videos, sets, window, extractor, extras):
        scores, protocol, details = (
            scores + more.scores,
            protocol | more.protocol,
            details | more.details,
        )
    left_out = {"generated": summary.left_out, "reference": reference_summary.left_out}
    return Result(scores, protocol, left_out, details)


def summarize_beside(
    videos: Videos, window: Window, summary: SetSummary, extras: Extras
) -> dict[str, tuple[Clips, SetSummary]]:
    """The sets of `bounds.COLUMNS` that are compared with the reference beside the videos, as many clips of each."""
    beside = dict(videos.beside)
    if extras.baselines:
        beside |= baselines.make_baselines(select_by_name(videos.clips, summary.names), window)
    found = {
        name: (beside[name], summarize(beside[name], window, len(summary.names)))
        for name in bounds.COLUMNS
        if name in beside
    }
    for name, (_, other) in found.items():
        set_scores.check_shapes(other.shape, summary.shape)
        if len(other.names) != len(summary.names):
            raise ValueError(
                f"The {bounds.COLUMNS[name]} is of {len(other.names)} clips and the score of {len(summary.names)}: "
                f"use --num_clips={min(len(other.names), len(summary.names))}, or add clips."
            )
    return found


def add_extras(
    videos: Videos,
    sets: Mapping[str, tuple[Clips, SetSummary]],
    window: Window,
    extractor: tuple[Callable, str] | None,
    extras: Extras,
) -> Iterator[Result]:
    """Computes label accuracy and memorization, where they are requested.

    Args:
      videos: videos to score.
      sets: "videos" and "reference", each with its summary.
      window: frames of each clip that are evaluated.
      extractor: result of `fvd.make_extractor`.
      extras: what is requested.
    """
    (clips, summary), (reference, reference_summary) = sets["videos"], sets["reference"]
    if extras.label is not None:
        found = label_accuracy.judge(
            fvd.load_features(sets["videos"], window, extractor, window),
            summary.captions,
            fvd.load_features(sets["reference"], window, extractor, window),
            reference_summary.captions,
            extras.label,
            reference_summary.episodes,
        )
        for entry in found["videos"]:
            entry["file"] = summary.names[entry.pop("index")]
            entry["nearest"] = reference_summary.names[entry["nearest"]]
        if windows := label_accuracy.rate_windows(found["videos"]):
            found["windows"] = windows
        protocol = {"label": extras.label.pattern, "label_left_out": found["left_out"]}
        yield Result([label_accuracy.to_score(found)], protocol, {}, {"label_accuracy": found})
    if extras.memorization_clips:
        near = {
            name: memorization.find_nearest(
                np.stack(
                    [
                        memorization.reduce_frames(frames)
                        for _, frames in crop_clips(
                            select_by_name(read, each.names), window, None, []
                        )
                    ]
                ),
                videos.training,
                window,
                extras.memorization_clips,
            )
            for name, (read, each) in (
                ("generated", (clips, summary)),
                ("held_out", (reference, reference_summary)),
            )
        }
        found = memorization.compare(near["generated"], near["held_out"], summary.names)
        count = extras.memorization_clips
        protocol = {
            "memorization": f"{count} training clips, at most {memorization.MAX_SIDE} pixels"
        }
        yield Result(memorization.to_scores(found, count), protocol, {}, {"memorization": found})


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
    score = set_scores.mean_score("CLIP score", values, "95 % over videos")
    protocol = {"clip_weights": scorer.weights, "clip_frames": scorer.frames}
    return Result([score], protocol, {"generated": left_out})
