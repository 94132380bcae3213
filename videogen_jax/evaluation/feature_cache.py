"""Feature cache on disk, keyed by hashes of the pixels and of the weights: a reference set is processed once."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from absl import logging

from videogen_jax.data.atomic_files import publish
from videogen_jax.data.output_folder import make_output_folder
from videogen_jax.data.progress import show_progress
from videogen_jax.evaluation.clip_sets import Clips, SetSummary, Window, crop_clips, summarize

VARIABLE = "VIDEOGEN_JAX_CACHE"
Extract = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]  # see `i3d.make_extractor`


def load_or_extract(
    clips: Clips,
    window: Window,
    extract: Extract,
    weights: str,
    *,
    summary: SetSummary | None = None,
    folder: str | Path | None = None,
) -> np.ndarray:
    """Loads the features of a set from the cache, or extracts and caches them.

    Args:
      clips: set of N clips.
      window: frames of each clip that are evaluated.
      extract: feature extractor.
      weights: hash of its weights.
      summary: result of `clip_sets.summarize` with the same window, if already computed.
      folder: of the cache; by default features/ in `cache_folder`.
    Returns:
      (N, F) float32.
    Raises:
      ValueError: see `clip_sets.summarize`.
    """
    summary = summarize(clips, window) if summary is None else summary
    folder = cache_folder() / "features" if folder is None else Path(folder)
    file = folder / f"{summary.digest[:32]}_{weights[:16]}.npy"
    if (features := _read(file, len(summary.names))) is not None:
        return features
    crops = crop_clips(clips, window, len(summary.names), [])
    found = []
    with show_progress("Extracting features", len(summary.names), "clip") as advance:
        for feature in extract(window.repeat_frames(frames) for _, frames in crops):
            found.append(feature)
            advance(1)
    features = np.stack(found)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.npy")
    np.save(draft, features)
    publish(draft, file)
    return features


def _read(file: Path, count: int) -> np.ndarray | None:
    """The features of `count` clips; None where there are none, or the file is damaged and will be replaced."""
    try:
        features = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EOFError) as error:
        logging.warning("%s is damaged (%s): its features are extracted again.", file, error)
        return None
    if features.dtype.kind != "f" or features.ndim != 2 or len(features) != count:
        logging.warning("%s has other features: they are extracted again.", file)
        return None
    return features


def cache_folder() -> Path:
    """The folder of files that can be recomputed: $VIDEOGEN_JAX_CACHE, or ~/.cache/videogen_jax.

    Raises:
      OSError: there is no home folder; the sentence names the variable.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    try:
        return Path.home() / ".cache" / "videogen_jax"
    except RuntimeError as error:  # no HOME, and no entry of the user
        raise OSError(
            f"There is no home folder for the cache of features ({error}): set {VARIABLE} to a folder."
        ) from None


def check_cache() -> None:
    """Tries to write to the cache, before the work whose features go there.

    Raises:
      OSError: it cannot be written to; the sentence names the variable.
    """
    make_output_folder(cache_folder(), f"the variable {VARIABLE}")
