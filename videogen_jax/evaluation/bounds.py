"""Floor and ceiling of a distance: what the score of a perfect model and of an untrained one would be.

The floor is the distance between the reference and as many other held-out clips; for a model of latents also that
between the reference and these other clips after autoencoding, below which its videos cannot be expected to come. The
ceiling is that of videos of the untrained model, made with the same prompts, seeds and settings.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from videogen_jax.evaluation import protocol
from videogen_jax.evaluation.clip_sets import (
    Clips,
    SetSummary,
    Window,
    crop_clips,
    select_others,
    summarize,
)

# Sets beside the generated one, in the order of the columns, and what they are called.
COLUMNS = {
    "floor": "floor",
    "reconstructions": "floor of autoencoder",
    "ceiling": "ceiling",
    "still": "first frame still",
    "shuffled": "frames shuffled",
}
BASELINES = ("still", "shuffled")
# Protocol entries that bounds of another report may differ in: they are no part of the reference, the untrained model
# or the distance.
MAY_DIFFER = tuple({*protocol.NAMES, *protocol.PARTS, "left_out_generated"} - {"workdir", "kernel"})


def open_floor(reference: Clips, window: Window, count: int) -> tuple[SetSummary, dict[str, Clips]]:
    """Splits a held-out set into the reference of the score and the clips of its floor.

    Args:
      reference: the whole set.
      window: frames of each clip that are evaluated.
      count: N, videos in the score.
    Returns:
      (summary of the first N clips, {"floor": the clips after them, of which N are used}).
    Raises:
      ValueError: there are fewer than 2 N clips.
    """
    found = sum(1 for _ in crop_clips(reference, window, 2 * count, []))
    if found < 2 * count:
        fewer = f"use --num_clips={found // 2}, or " if found >= 4 else ""
        raise ValueError(
            f"--bounds compares {count} held-out clips with {count} others, {2 * count} in all, but there are {found}: "
            f"{fewer}hold out more clips."
        )
    summary = summarize(reference, window, count)
    return summary, {"floor": select_others(reference, summary.names)}


def find_share(value: float, floor: float, ceiling: float) -> float | None:
    """The share of the way from the ceiling to the floor, (ceiling - value) / (ceiling - floor); 1 at the floor.

    Returns:
      The share; above 1 below the floor, negative above the ceiling, None where the ceiling is not above the floor.
    """
    return (ceiling - value) / (ceiling - floor) if ceiling > floor else None


def add_share(score: dict[str, Any]) -> None:
    """Adds to a score that has a floor and a ceiling the "share" of the way between them.

    The share of the way to the floor of reconstructions stands in its note.
    """
    if "floor" not in score or "ceiling" not in score:
        return
    share = find_share(score["value"], score["floor"], score["ceiling"])
    if share is not None:
        score["share"] = share
    other = find_share(score["value"], score.get("reconstructions", math.inf), score["ceiling"])
    if other is not None:
        score["note"] = (
            f"{score['note']}; {other:.1%} of the way to the {COLUMNS['reconstructions']}"
        )


def find_failures(distances: Sequence[Mapping[str, Any]]) -> list[str]:
    """Finds the distances that do not rank the baselines above the videos: one sentence each."""
    return [
        f"{score['name']} of the videos, {score['value']:.4g}, is not below that with {COLUMNS[name]}, "
        f"{score[name]:.4g}: it says nothing about their motion."
        for score in distances
        for name in BASELINES
        if name in score and score[name] <= score["value"]
    ]


def find_unfit(document: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Why the bounds of another report are not those of this one, as the rest of a sentence; None where they are."""
    if not any(name in score for score in other["scores"] for name in ("floor", "ceiling")):
        return "has no floor or ceiling"
    here = json.loads(json.dumps(document["protocol"]))  # tuples are lists there
    found = protocol.differences(here, other["protocol"])
    differ = [
        f"{name} is {theirs} there and {ours} here"
        for name, (ours, theirs) in found.items()
        if name not in MAY_DIFFER
    ]
    return f"has another protocol ({', '.join(differ)})" if differ else None


def copy_bounds(document: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Copies floor and ceiling of another report, which `find_unfit` has passed, to the scores of a report."""
    theirs = {score["name"]: score for score in other["scores"]}
    for score in document["scores"]:
        for name in COLUMNS:
            value = theirs.get(score["name"], {}).get(name)
            if name not in BASELINES and value is not None:
                score[name] = value
        add_share(score)
    for name in ("floor", "ceiling"):
        if name in other["protocol"]:
            document["protocol"][name] = other["protocol"][name]
