"""Features of sets of clips, kept by what they were made of, so that a reference is paid for once."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from videogen_jax.data.atomic_files import publish
from videogen_jax.evaluation.clip_sets import Clips, Survey, Window, cut_clips, survey

Extract = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]  # of `i3d.make_extractor`


def find_features(
    clips: Clips,
    window: Window,
    extract: Extract,
    weights: str,
    *,
    found: Survey | None = None,
    folder: str | Path | None = None,
) -> np.ndarray:
    """The features of the clips of a set: from the cache, or made and put there.

    Args:
      clips: the set.
      window: what of each clip is looked at.
      extract: makes features.
      weights: hash of what it makes them with.
      found: of `clip_sets.survey` with the same window, where there is one already.
      folder: of the cache; by default features/ in `cache_folder`.
    Returns:
      (N, F) float32.
    Raises:
      ValueError: see `clip_sets.survey`.
    """
    found = survey(clips, window) if found is None else found
    folder = cache_folder() / "features" if folder is None else Path(folder)
    file = folder / f"{found.digest[:32]}_{weights[:16]}.npy"
    if file.is_file():
        return np.load(file)
    cuts = cut_clips(clips, window, len(found.names), [])
    features = np.stack(list(extract(window.show(cut) for _, cut in cuts)))
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.npy")
    np.save(draft, features)
    publish(draft, file)
    return features


def cache_folder() -> Path:
    """Where what can be made again is kept: $VIDEOGEN_JAX_CACHE, or ~/.cache/videogen_jax."""
    chosen = os.environ.get("VIDEOGEN_JAX_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "videogen_jax"
