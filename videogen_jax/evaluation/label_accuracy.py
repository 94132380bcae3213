"""Label accuracy: whether generated videos look like real clips of the label that their caption names.

The label of a clip is what a regular expression finds in its caption, such as the name of a game in "pong, the right
paddle moves up". A video is right if the real clip with the nearest features (Euclidean, of I3D) has its label. The
same rate of real clips, each compared with all others of other episodes, is what the judge is worth.
"""

import collections
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from videogen_jax.evaluation import clip_sets
from videogen_jax.evaluation.rates import Rate
from videogen_jax.evaluation.video_folders import shorten


def compile_pattern(pattern: str) -> re.Pattern:
    """Compiles the regular expression of --label.

    Raises:
      ValueError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--label={pattern} is no regular expression ({error}): write one like '^[^,]+', the text before a comma."
        ) from None


def find_label(caption: str | None, pattern: re.Pattern) -> str | None:
    """The first group of the match in a caption, or the match of a pattern without groups; None without a match."""
    match = pattern.search(caption or "")
    found = match and match[1 if pattern.groups else 0]
    return found or None


def check_labels(
    prompts: Sequence[str | None], captions: Sequence[str | None], pattern: re.Pattern
) -> None:
    """Checks that videos can be judged, before they are made; a warning names those that will be left out.

    Args:
      prompts: N, of the videos.
      captions: M, of the reference.
      pattern: of labels.
    Raises:
      ValueError: no video, or fewer than two reference clips, can be used.
    """
    labels, known = ([find_label(text, pattern) for text in texts] for texts in (prompts, captions))
    count = len(known) - known.count(None)
    if count < 2:
        raise ValueError(
            f"--label={pattern.pattern} finds a label in the captions of {count} reference clips, and 2 are needed: "
            "correct the pattern, or name a --reference with captions."
        )
    if without := [text for text, label in zip(prompts, labels, strict=True) if not label]:
        logging.warning(
            "--label=%s finds no label in %d of %d prompts, such as %r: these videos are left out of the label "
            "accuracy.",
            *(pattern.pattern, len(without), len(labels), shorten(without[0] or "")),
        )
    if missing := sorted({label for label in labels if label and label not in known}):
        logging.warning(
            "No reference clip has the label %s of %d prompts: these videos are left out of the label accuracy; use "
            "more held-out clips (--num_clips) or a --label of fewer values.",
            ", ".join(repr(shorten(label)) for label in missing[:5]) + " ..." * (len(missing) > 5),
            sum(label in missing for label in labels),
        )
    if not any(label in known for label in labels if label):
        raise ValueError(
            f"--label={pattern.pattern} finds no label in the prompts that a reference clip has too: correct the "
            "pattern."
        )


def find_nearest(
    features: np.ndarray, reference: np.ndarray, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Finds the nearest clip of a reference for each video, by the Euclidean distance of features in float64.

    Args:
      features: (N, F).
      reference: (M, F).
      allowed: (N, M) bool, the reference clips that each video is compared with; None: all.
    Returns:
      (N,) numbers of reference clips.
    """
    features, reference = (np.asarray(each, np.float64) for each in (features, reference))
    nearest = np.empty(len(features), int)
    for number, feature in enumerate(features):
        distances = np.square(reference - feature).sum(axis=1)
        if allowed is not None:
            distances[~allowed[number]] = np.inf
        nearest[number] = distances.argmin()
    return nearest


def other_recordings(episodes: Sequence[str]) -> np.ndarray:
    """The clips that each clip of a set is judged by: all but itself and those of its episode, where that is known.

    Args:
      episodes: M names; empty: unknown.
    Returns:
      (M, M) bool; all but itself where all clips are of one episode.
    """
    names = np.asarray(episodes)
    others = ~np.eye(len(names), dtype=bool)
    elsewhere = others & ((names[:, None] != names) | (names == ""))
    return elsewhere if elsewhere.any(axis=1).all() else others


def judge(
    features: np.ndarray,
    prompts: Sequence[str | None],
    reference: np.ndarray,
    captions: Sequence[str | None],
    pattern: re.Pattern,
    episodes: Sequence[str] = (),
) -> dict[str, Any]:
    """Judges videos by the label of the nearest reference clip.

    Args:
      features: (N, F), of the videos.
      prompts: N.
      reference: (M, F).
      captions: M.
      pattern: of labels; `check_labels` has passed.
      episodes: M names, of the reference, empty where unknown; none: all are unknown.
    Returns:
      dict with "rate", "low", "high" (Wilson, 95 %), "right", "total"; "chance", the rate of a random reference clip
      in the place of the nearest; "real": the entry of a rate for the reference clips among those of other episodes;
      "per_label": label to the entry of its rate; "videos": [{"index", "label", "seen", "nearest"}], the last one the
      number of a reference clip; and "left_out", the number of videos that were not judged.
    """
    labels = [find_label(prompt, pattern) for prompt in prompts]
    real = [number for number, caption in enumerate(captions) if find_label(caption, pattern)]
    known = [find_label(captions[number], pattern) for number in real]
    chosen = [number for number, label in enumerate(labels) if label in known]
    wanted = [labels[number] for number in chosen]
    reference = np.asarray(reference)[real]
    nearest = find_nearest(np.asarray(features)[chosen], reference)
    verdicts = [known[match] == label for match, label in zip(nearest, wanted, strict=True)]
    per_label = collections.defaultdict(list)
    for label, right in zip(wanted, verdicts, strict=True):
        per_label[label].append(right)
    counts = collections.Counter(known)
    named = [episodes[number] if episodes else "" for number in real]
    among_real = find_nearest(reference, reference, other_recordings(named))
    real_right = sum(known[match] == label for match, label in zip(among_real, known, strict=True))
    return {
        **Rate(sum(verdicts), len(verdicts)).describe(),
        "chance": float(np.mean([counts[label] / len(known) for label in wanted])),
        "real": Rate(real_right, len(known)).describe(),
        "per_label": {
            label: Rate(sum(rights), len(rights)).describe()
            for label, rights in sorted(per_label.items())
        },
        "videos": [
            {"index": index, "label": label, "seen": known[match], "nearest": real[match]}
            for index, label, match in zip(chosen, wanted, nearest.tolist(), strict=True)
        ],
        "left_out": len(prompts) - len(chosen),
    }


def rate_windows(videos: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rates of the windows that begin at each frame.

    Args:
      videos: "videos" of `judge` with "file", the name of the window.
    Returns:
      first frame to the entry of its rate, in order; empty where no video was split.
    """
    rights = collections.defaultdict(list)
    for video in videos:
        first = clip_sets.find_window(video["file"])
        if first is not None:
            rights[first].append(video["label"] == video["seen"])
    return {str(k): Rate(sum(v), len(v)).describe() for k, v in sorted(rights.items())}


def to_score(found: dict[str, Any]) -> dict[str, Any]:
    """The result of `judge` as an entry of the report's scores."""
    real = found["real"]
    return {
        "name": "label accuracy",
        "value": found["rate"],
        "low": found["low"],
        "high": found["high"],
        "n": found["total"],
        "note": f"{found['right']} of {found['total']} videos, Wilson 95 %; chance {found['chance']:.1%}; real clips "
        f"among the others {real['rate']:.1%} ({real['right']} of {real['total']})",
        "parts": [
            {
                "name": label,
                "value": rate["rate"],
                "low": rate["low"],
                "high": rate["high"],
                "note": f"{rate['right']} of {rate['total']}",
            }
            for label, rate in found["per_label"].items()
        ],
    }
