"""Two sets of clips against each other, and videos against their captions: scores with their protocol."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from videogen_jax.evaluation import frechet, means, motion, psnr_ssim
from videogen_jax.evaluation.clip_sets import Clips, SetSummary, Window, crop_clips, pick, summarize
from videogen_jax.evaluation.feature_cache import load_or_extract

RATES_ALIKE = 0.05  # relative difference of frame rates; GIFs round theirs

Score = dict[str, Any]  # "name", "value", and as far as there are "low", "high", "n", "note"


class Found(NamedTuple):
    """What an evaluation has found."""

    scores: list[Score]
    protocol: dict[str, Any]  # lines that the scores depend on
    left_out: dict[
        str, list[dict[str, str]]
    ]  # set to {"file", "reason"} of clips that do not count


def compare_sets(
    videos: Clips,
    reference: Clips,
    window: Window,
    distances: Sequence[tuple[str, Window]],
    extractor: tuple[Callable, str] | None,
    *,
    ddof: int = frechet.DDOF,
    count: int | None = None,
    surveyed: SetSummary | None = None,
    paired: bool = False,
) -> Found:
    """Compares two sets: Fréchet distances, motion, and nearness where they are pairs.

    Args:
      videos: the set to score.
      reference: the set to compare with.
      window: what of each clip is looked at.
      distances: name of each Fréchet distance, and what of each clip it is of.
      extractor: of `i3d.make_extractor`, and the hash of its weights; None where there are no distances.
      ddof: of the covariance.
      count: clips of each set at most; None: all, of the reference as many as there are videos.
      surveyed: the reference, where it was looked at before.
      paired: whether clips at the same place are pairs.
    Returns:
      What was found.
    Raises:
      ValueError: the sets do not compare.
    """
    made = summarize(videos, window, count)
    if surveyed is None:
        surveyed = summarize(reference, window, count or len(made.names))
    check_shapes(made.shape, surveyed.shape)
    if not math.isclose(made.fps, surveyed.fps, rel_tol=RATES_ALIKE):
        logging.warning(
            "The videos run at %.4g frames/s and the reference at %.4g: motion in them does not compare.",
            made.fps,
            surveyed.fps,
        )
    sets = ((videos, made), (reference, surveyed))
    scores = motion_scores(made, surveyed) if window.frames > 1 else []
    if paired:
        scores += pair_scores(reference, videos, window, (surveyed, made))
    protocol = describe(made, surveyed, window)
    if extractor is not None:
        extract, weights = extractor
        protocol |= {
            "features": "I3D, Kinetics-400 logits, 224x224 bilinear",
            "i3d_weights": weights,
            "ddof": ddof,
        }
        measured = []
        for name, own in distances:
            a, b = (
                load_or_extract(
                    pick(each, found.names),
                    own,
                    extract,
                    weights,
                    summary=found if own == window else None,
                )
                for each, found in sets
            )
            low, high = frechet.bootstrap_interval(a, b, ddof)
            score = {"name": name, "value": frechet.distance(a, b, ddof), "low": low, "high": high}
            score["n"] = f"{len(a)} + {len(b)}"
            score["note"] = f"{own.frames} x {own.repeat} frames, ddof {ddof}; 95 % over clips"
            measured.append(score)
        scores = measured + scores
    left_out = {"generated": made.left_out, "reference": surveyed.left_out}
    return Found(scores, protocol, left_out)


def describe(made: SetSummary, reference: SetSummary, window: Window) -> dict[str, Any]:
    """The lines of the protocol that two sets and what was looked at of them fill."""
    return {
        "num_generated": len(made.names),
        "num_reference": len(reference.names),
        "left_out_generated": len(made.left_out),
        "left_out_reference": len(reference.left_out),
        "fps_generated": round(made.fps, 3),
        "fps_reference": round(reference.fps, 3),
        "reference": reference.digest,
        "frames": window.frames,
        "stride": window.stride,
        "repeat": window.repeat,
        "resized": None if window.size is None else "to cover, bicubic, and cut",
        "height": made.shape[0],
        "width": made.shape[1],
    }


def check_shapes(made: tuple[int, int], reference: tuple[int, int]) -> None:
    """Refuses two sets of different (height, width).

    Raises:
      ValueError: names both.
    """
    if made != reference:
        raise ValueError(
            f"The videos have {made[0]}x{made[1]} pixels and the reference {reference[0]}x{reference[1]}: bring both "
            "to one size with --size=HEIGHTxWIDTH."
        )


def motion_scores(made: SetSummary, reference: SetSummary) -> list[dict[str, Any]]:
    """How much the videos move, against the reference."""
    found = motion.compare_motion(made.motion, reference.motion)
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
    originals: Clips, videos: Clips, window: Window, surveys: Sequence[SetSummary]
) -> list[dict[str, Any]]:
    """How near each video comes to its original.

    Raises:
      ValueError: a video of a pair cannot be looked at, or is longer than the other.
    """
    if lost := [clip for found in surveys for clip in found.left_out]:
        raise ValueError(
            f"{lost[0]['file']} cannot be looked at ({lost[0]['reason']}), and its pair with it: remove both."
        )
    cuts = (crop_clips(each, window, len(surveys[0].names), []) for each in (originals, videos))

    def pair() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for (one, original), (other, own) in zip(*cuts, strict=True):
            if len(one.video) != len(other.video):
                raise ValueError(
                    f"{other.name} has {len(other.video)} frames and {one.name} {len(one.video)}: pairs are of one "
                    "length."
                )
            yield original, own

    near = psnr_ssim.score_reconstructions(pair())
    note = "95 % over videos"
    return [mean_score("PSNR, dB", near.psnr, note), mean_score("SSIM", near.ssim, note)]


def score_captions(
    videos: Clips, prompts: Mapping[str, str], scorer: Any, count: int | None = None
) -> Found:
    """The CLIP score of all videos that can be read.

    Args:
      videos: the set.
      prompts: clip's name to its caption.
      scorer: of `clip_score.make_clip_scorer`.
      count: videos at most; None: all.
    Returns:
      What was found.
    Raises:
      ValueError: no video can be read.
    """
    left_out: list[dict[str, str]] = []
    names = [clip.name for clip, _ in crop_clips(videos, Window(1), count, left_out, alike=False)]
    seen = (clip.video for clip in pick(videos, names)())
    values = scorer.score(seen, [prompts[name] for name in names])
    score = mean_score("CLIP score", values, "95 % over videos")
    protocol = {"clip_weights": scorer.weights, "clip_frames": scorer.frames}
    return Found([score], protocol, {"generated": left_out})


def mean_score(name: str, values: np.ndarray, note: str) -> dict[str, Any]:
    """The mean over videos as an entry of the report's scores."""
    mean = means.estimate_mean(values)
    score = {"name": name, "value": mean.value, "n": mean.count, "note": note}
    if mean.standard_error is not None:
        half = frechet.Z_95 * mean.standard_error
        score |= {"low": mean.value - half, "high": mean.value + half}
    return score
