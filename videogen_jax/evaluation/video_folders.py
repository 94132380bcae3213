"""Folders of videos: their files, prompts, settings and frames."""

import json
from pathlib import Path

import numpy as np

from videogen_jax.data import text_files
from videogen_jax.data.video_io import read_frames
from videogen_jax.data.video_writer import WRITABLE_SUFFIXES
from videogen_jax.evaluation.protocol import digest

LISTING = "samples.json"
MAX_PROMPT_BYTES = 2**20  # of name.txt
# Entries of samples.json that are no settings of the videos.
NO_SETTINGS = ("videos", "shape", "fps", "saved_at", "given_sha256")
MAX_REPEATS = 16  # of one frame; longer pauses are judged the same


def list_files(folder):
    """Lists the file names of a folder's videos: those in `samples.json` if present, else all.

    Raises:
      ValueError: no folder, no videos, or a damaged `samples.json`.
    """
    folder = Path(folder)
    found = _list_names(folder)
    listing = folder / LISTING
    return [entry["file"] for entry in _read_listing(listing)] if listing.is_file() else found


def list_pairs(one, other):
    """Pairs the videos of two folders by name without suffix.

    Args:
      one: path of a folder.
      other: path of another folder.
    Returns:
      (names in one, names in other), partners at the same positions.
    Raises:
      ValueError: names a video without exactly one partner.
    """
    names = [{}, {}]
    for stems, folder in zip(names, (one, other), strict=True):
        for name in list_files(folder):
            if stems.setdefault(Path(name).stem, name) != name:
                raise ValueError(
                    f"{folder} holds two videos named {Path(name).stem}: give each pair a name of its own."
                )
    if single := sorted(set(names[0]) ^ set(names[1])):
        folder = one if single[0] in names[0] else other
        raise ValueError(
            f"{single[0]} is in {folder} only: give both videos of a pair the same name."
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
            f"{folder} holds no videos: name a folder of {', '.join(WRITABLE_SUFFIXES)} files (with prompts in "
            "name.txt, to judge these), or the output of videogen_jax.sample."
        )
    return found


def list_videos(folder):
    """Lists the videos of a folder with their prompts.

    They are read from `samples.json` if present: {"videos": [{"file": "000.mp4", "prompt": "...",
    "seed": 0}, ...]}. Otherwise the prompt of a video is the text of `name.txt` beside it.

    Returns:
      (entries, not_listed): list of {"file", "prompt", optional "seed"}, and the names of videos in
      the folder that `samples.json` does not list.
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
            prompt = text_files.read_text(text, MAX_PROMPT_BYTES).strip()
        except FileNotFoundError:
            raise ValueError(
                f"{folder / name} has no prompt: write it to {text.name} beside the video."
            ) from None
        entries.append({"file": name, "prompt": prompt})
    return entries, []


def find_captions(folder):
    """Finds the prompts of a folder's videos, as `list_videos`: file name to prompt, empty where one has none."""
    try:
        return {entry["file"]: entry["prompt"] for entry in list_videos(folder)[0]}
    except ValueError:
        return {}


def read_settings(folder):
    """Reads the settings that videogen_jax.sample made a folder's videos with, as protocol entries.

    Returns:
      dict of all entries of `samples.json` but the videos, their shape and rate, with a digest of
      all prompts and seeds; empty without such a file.
    """
    path = Path(folder) / LISTING
    if not path.is_file():
        return {}
    listing = json.loads(path.read_text(encoding="utf-8"))
    settings = {name: listing[name] for name in listing if name not in NO_SETTINGS}
    pairs = [[entry.get("prompt"), entry.get("seed")] for entry in listing["videos"]]
    return settings | {"prompts_and_seeds": digest(pairs)}


def _read_listing(path):
    """Reads and validates `samples.json`; returns file, prompt and seed of each entry."""
    advice = "write it again with videogen_jax.sample, or delete it to read name.txt files instead."
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON ({error}): {advice}") from None
    videos = listing.get("videos") if isinstance(listing, dict) else None
    if isinstance(listing, dict) and "unfinished" in listing:
        raise ValueError(
            f"{path.parent} lacks videos that sample has not made yet: let it finish, or run the same command again."
        )
    if not isinstance(videos, list) or not videos:
        raise ValueError(f'{path} names no "videos": {advice}')
    if type(listing.get("step", 0)) is not int:
        raise ValueError(f'the "step" of {path} is no whole number: {advice}')
    entries = []
    for index, video in enumerate(videos):
        fields = video if isinstance(video, dict) else {}
        if not all(isinstance(fields.get(key), str) for key in ("file", "prompt")):
            raise ValueError(f'video {index} of {path} lacks "file" or "prompt": {advice}')
        _check_own_file(path, fields["file"])
        if "seed" in fields and (
            isinstance(fields["seed"], bool) or not isinstance(fields["seed"], int)
        ):
            raise ValueError(f'the "seed" of video {index} of {path} is no whole number: {advice}')
        entries.append({key: fields[key] for key in ("file", "prompt", "seed") if key in fields})
    return entries


def _check_own_file(listing, name):
    """Checks that a name of `samples.json` is that of a file of its folder, and no link out of it."""
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise ValueError(
            f"{listing} names {name!a}, which is no file of its folder: correct the name."
        )
    folder = listing.parent.resolve()
    if (folder / name).resolve().parent != folder:
        raise ValueError(
            f"{listing} names {name!r}, which is a link out of its folder: put the file itself there."
        )


def read_constant_rate(path, fps=None):
    """Reads a video at a constant frame rate: a frame of k times the shortest duration is repeated k times.

    A GIF stores equal consecutive frames as one longer frame. Without the repetitions, motion that
    pauses would appear steady.

    Args:
      path: a video file.
      fps: frames per second to resample to; by default the inverse of the shortest duration.
    Returns:
      ((T, H, W, 3) uint8 RGB, frames per second; 0 for a single frame).
    Raises:
      VideoError, FileNotFoundError: as `video_io.read_frames`.
      ValueError: the frame size changes within the video.
    """
    seconds, frames = zip(*read_frames(path, fps), strict=True)
    gaps = np.diff(seconds)
    if fps is not None or not len(gaps) or gaps.min() <= 0:
        return np.stack(frames), fps or 0.0
    repeats = np.clip(np.rint(gaps / gaps.min()), 1, MAX_REPEATS).astype(int)
    return np.repeat(np.stack(frames), [*repeats, 1], axis=0), float(1 / gaps.min())


def try_to_read(path, fps=None):
    """Reads a video as `read_constant_rate` does.

    Returns:
      (video, frames per second, ""), or (None, 0, one line that says why it cannot be read).
    """
    try:
        return *read_constant_rate(path, fps), ""
    except (
        Exception
    ) as error:  # whatever a decoder raises, one bad file must not end the evaluation
        return None, 0.0, shorten(" ".join(f"{error}".split()) or type(error).__name__, 200)


def shorten(text, length=80):
    """Truncates a text for a line of output."""
    return text if len(text) <= length else text[: length - 3] + "..."
