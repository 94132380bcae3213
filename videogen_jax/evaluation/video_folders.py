"""Folders of videos: which there are, with which prompts, and their frames."""

import json
from pathlib import Path

import numpy as np

from videogen_jax.data.video_io import read_frames
from videogen_jax.data.video_writer import WRITABLE_SUFFIXES

LISTING = "samples.json"
MAX_REPEATS = 16  # of one frame; a longer halt is judged no differently


def list_files(folder):
    """The names of a folder's videos: those in `samples.json` where there is one, else all.

    Args:
      folder: path of the folder.
    Returns:
      File names.
    Raises:
      ValueError: no folder, no videos, or a damaged `samples.json`.
    """
    folder = Path(folder)
    found = _list_names(folder)
    listing = folder / LISTING
    return [entry["file"] for entry in _read_listing(listing)] if listing.is_file() else found


def list_pairs(one, other):
    """The videos of two folders in pairs: of the same names, but for what follows the dot.

    Args:
      one: path of a folder.
      other: path of the other one.
    Returns:
      (names in one, names in other), partners at the same places.
    Raises:
      ValueError: names a video that has no partner, or two.
    """
    names = [{}, {}]
    for stems, folder in zip(names, (one, other), strict=True):
        for name in list_files(folder):
            if stems.setdefault(Path(name).stem, name) != name:
                raise ValueError(f"{folder} holds {Path(name).stem} twice: pairs have one name.")
    if alone := sorted(set(names[0]) ^ set(names[1])):
        raise ValueError(
            f"{alone[0]} is in {one if alone[0] in names[0] else other} alone: pairs have one name in both folders."
        )
    return tuple([stems[stem] for stem in sorted(names[0])] for stems in names)


def _list_names(folder):
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the folder of the videos.")
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in WRITABLE_SUFFIXES and not path.name.startswith(".")
    )
    if not found and not (folder / LISTING).is_file():
        raise ValueError(
            f"{folder} holds no videos: it needs {', '.join(WRITABLE_SUFFIXES)} files (each with its prompt in "
            "name.txt, where prompts are judged), or the output of videogen_jax.sample."
        )
    return found


def list_videos(folder):
    """Lists the videos of a folder with their prompts.

    `samples.json` decides where there is one: {"videos": [{"file": "000.mp4", "prompt": "...",
    "seed": 0}, ...]}. Else each video's prompt is the text of `name.txt` beside it.

    Args:
      folder: path of the folder.
    Returns:
      (entries, not_listed): list of {"file", "prompt", maybe "seed"}, and the names of videos in
      the folder that `samples.json` does not mention.
    Raises:
      ValueError: no folder, no videos, no prompt for a video, or a damaged `samples.json`.
    """
    folder = Path(folder)
    found = _list_names(folder)
    listing = folder / LISTING
    if listing.is_file():
        entries = _read_listing(listing)
        named = {entry["file"] for entry in entries}
        return entries, [name for name in found if name not in named]
    entries = []
    for name in found:
        text = folder / (Path(name).stem + ".txt")
        try:
            prompt = text.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise ValueError(
                f"{folder / name} has no prompt: write it to {text.name} beside the video."
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"{text} is not UTF-8 text: save the prompt as UTF-8.") from None
        entries.append({"file": name, "prompt": prompt})
    return entries, []


def _read_listing(path):
    """Reads and checks `samples.json`; returns its entries cut down to file, prompt and seed."""
    advice = "make it again with videogen_jax.sample, or delete it to read name.txt files instead."
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON ({error}): {advice}") from None
    videos = listing.get("videos") if isinstance(listing, dict) else None
    if not isinstance(videos, list) or not videos:
        raise ValueError(f'{path} names no "videos": {advice}')
    entries = []
    for index, video in enumerate(videos):
        fields = video if isinstance(video, dict) else {}
        if not all(isinstance(fields.get(key), str) for key in ("file", "prompt")):
            raise ValueError(f'video {index} of {path} lacks "file" or "prompt": {advice}')
        entries.append({key: fields[key] for key in ("file", "prompt", "seed") if key in fields})
    return entries


def read_evenly(path, fps=None):
    """Reads a video as frames of equal duration: a frame shown for k times the shortest is repeated.

    A GIF shows equal neighbouring frames as one longer one, so that motion that halts would look
    steady if its frames were merely counted.

    Args:
      path: a video file.
      fps: frames per second to read it at; by default one for each frame's shortest duration.
    Returns:
      ((T, H, W, 3) uint8 RGB, frames per second; 0 of a single frame).
    Raises:
      VideoError, FileNotFoundError: as `video_io.read_frames`.
      ValueError: the frame size changes on the way.
    """
    seconds, frames = zip(*read_frames(path, fps), strict=True)
    gaps = np.diff(seconds)
    if fps is not None or not len(gaps) or gaps.min() <= 0:
        return np.stack(frames), fps or 0.0
    repeats = np.clip(np.rint(gaps / gaps.min()), 1, MAX_REPEATS).astype(int)
    return np.repeat(np.stack(frames), [*repeats, 1], axis=0), float(1 / gaps.min())


def try_to_read(path, fps=None):
    """Reads a video, or says why it cannot be read.

    Args:
      path: a video file.
      fps: see `read_evenly`.
    Returns:
      (video, frames per second, ""), or (None, 0, one line that says why).
    """
    try:
        return *read_evenly(path, fps), ""
    except Exception as error:  # a decoder fails in ways of its own; none may end the evaluation
        return None, 0.0, shorten(" ".join(f"{error}".split()) or type(error).__name__, 200)


def shorten(text, length=80):
    """Cuts a text that would flood a line of output."""
    return text if len(text) <= length else text[: length - 3] + "..."
