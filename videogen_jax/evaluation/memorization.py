"""Memorization: how near generated videos are to training clips, beside how near real held-out clips are.

Nearness is the PSNR of the evaluated frames of a video and as many frames of a training clip, from every frame at which
these can start, and at every start again. Frames of more than MAX_SIDE pixels are reduced by a whole factor first, by
means of blocks. Mirrored or shifted copies are not searched for.

A model that has learned the data, and not its clips, makes videos that are as near to training clips as held-out clips
are: 1 % of them are nearer than 99 % of the held-out clips.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from videogen_jax.data.progress import show_progress
from videogen_jax.evaluation import clip_sets
from videogen_jax.evaluation.clip_sets import Clips, Window
from videogen_jax.evaluation.psnr_ssim import to_decibels
from videogen_jax.evaluation.rates import Rate

MAX_SIDE = 64  # pixels of the longer side that frames are compared at
BLOCK = 16  # starts compared at a time: bounds memory for long training clips
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEAR = 0.99  # share of held-out clips that a video is nearer than, if it counts as near


class Nearest(NamedTuple):
    """The nearest training clip of each of N videos."""

    psnr: np.ndarray  # (N,) float64, dB
    names: list[str]  # of the training clips
    starts: np.ndarray  # (N,) first frame of the training clip


def open_training(folders: Sequence[str], count: int, size: tuple[int, int] | None = None) -> Clips:
    """Opens the training split of the first of some data sets that holds pixels.

    Args:
      folders: of data sets in pixels, or in latents whose packed clips are found; others are passed over.
      count: training clips that are needed.
      size: as of `clip_sets.read_data`.
    Raises:
      ValueError: there is none, or it has fewer clips.
    """
    for folder in map(clip_sets.find_pixels, map(Path, folders)):
        if (folder / "dataset_info.json").is_file() and not (
            folder / "encode_report.json"
        ).is_file():
            break
    else:
        raise ValueError(
            f"--memorization_clips needs training clips in pixels, and {' and '.join(folders)} hold none: name the "
            "packed data set with --reference."
        )
    clips = clip_sets.read_data(folder, "train", size)
    from videogen_jax.data.packed_data import open_data  # TensorFlow: seconds

    found = sum(open_data(folder).lengths["train"])
    if found < count:
        raise ValueError(
            f"--memorization_clips is {count}, but {folder} has {found} training clips: use --memorization_clips="
            f"{found}."
        )
    return clips


def reduce_frames(video: np.ndarray) -> np.ndarray:
    """Reduces frames to at most MAX_SIDE pixels, by means over blocks; incomplete blocks are cut off.

    Args:
      video: (T, H, W, 3) uint8.
    Returns:
      (T, h, w, 3) float32, 0 to 255.
    """
    frames, height, width, channels = video.shape
    factor = -(-max(height, width) // MAX_SIDE)
    if factor == 1:
        return video.astype(np.float32)
    h, w = max(height // factor, 1), max(width // factor, 1)
    rows, columns = min(factor, height), min(factor, width)
    blocks = video[:, : h * rows, : w * columns].reshape(frames, h, rows, w, columns, channels)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def find_nearest(videos: np.ndarray, training: Clips, window: Window, count: int) -> Nearest:
    """Finds the nearest of the first training clips that are long enough.

    Args:
      videos: (N, T, h, w, 3) float32, of `reduce_frames`.
      training: set of training clips.
      window: of the videos: T frames, its stride and size.
      count: training clips.
    Raises:
      ValueError: there are fewer clips, or they have another size.
    """
    flat = videos.reshape(len(videos), -1) - np.float32(127.5)  # centred: float32 is exact enough
    squares = np.square(flat).sum(axis=1)
    errors = np.full(len(videos), np.inf)  # mean squared, float64
    names, starts = [""] * len(videos), np.zeros(len(videos), int)
    found = 0
    with show_progress("Comparing with training clips", count, "clip") as advance:
        for name, clip in itertools.islice(_read_long(training, window), count):
            if clip.shape[1:] != videos.shape[2:]:
                raise ValueError(
                    f"The training clip {name} has other frames than the videos once both are reduced, "
                    f"{clip.shape[1]}x{clip.shape[2]} and {videos.shape[2]}x{videos.shape[3]}: resize both with "
                    "--size=HEIGHTxWIDTH."
                )
            for first, windows in _cut_windows(clip - np.float32(127.5), window):
                norms = np.square(windows).sum(axis=1)
                distances = squares[:, None] + norms - 2 * (flat @ windows.T)
                best = distances.argmin(axis=1)
                # The difference of large numbers is rounded: only candidates for the nearest are compared exactly.
                limit = errors * flat.shape[1] + 1e-5 * squares
                for number in np.flatnonzero(distances.min(axis=1) < limit):
                    gap = flat[number].astype(np.float64) - windows[best[number]]
                    if (error := np.square(gap).mean()) < errors[number]:
                        errors[number], names[number] = error, name
                        starts[number] = first + best[number]
            found += 1
            advance(1)
    if found < count:
        raise ValueError(
            f"--memorization_clips is {count}, but {found} training clips have the frames that are compared: use "
            f"--memorization_clips={found}."
        )
    return Nearest(to_decibels(errors, 255), names, starts)


def _read_long(training: Clips, window: Window) -> Iterator[tuple[str, np.ndarray]]:
    """Name and reduced frames, (t, h, w, 3) float32, of the clips that are not too short."""
    for clip in training():
        try:
            window.choose_frames(0 if clip.video is None else len(clip.video))
        except ValueError:
            continue
        yield clip.name, reduce_frames(window.resize(clip.video))


def _cut_windows(clip: np.ndarray, window: Window) -> Iterator[tuple[int, np.ndarray]]:
    """The windows of a clip from every start, (S, T h w 3) float32, with the number of the first start."""
    span = (window.frames - 1) * window.stride + 1
    views = sliding_window_view(clip, span, axis=0)[..., :: window.stride]  # (S, h, w, 3, T)
    for first in range(0, len(views), BLOCK):
        block = np.moveaxis(views[first : first + BLOCK], -1, 1)
        yield first, block.reshape(len(block), -1)


def compare(generated: Nearest, held_out: Nearest, video_names: Sequence[str]) -> dict[str, Any]:
    """Compares how near generated videos and held-out clips are to the same training clips.

    Args:
      generated: of N videos.
      held_out: of M real clips.
      video_names: N.
    Returns:
      dict with "generated" and "held_out": {"0.05": PSNR, ...} at QUANTILES; "near": {"rate", "low", "high" (Wilson,
      95 %), "right", "total", "limit"}, the share of videos above the NEAR quantile of the held-out clips, in dB; and
      "videos": [{"file", "nearest", "start", "psnr"}].
    """
    limit = float(np.quantile(held_out.psnr, NEAR))
    near = Rate(int((generated.psnr > limit).sum()), len(generated.psnr))
    entries = zip(video_names, generated.names, generated.starts, generated.psnr, strict=True)
    return {
        "generated": _describe(generated.psnr),
        "held_out": _describe(held_out.psnr),
        "near": near.describe() | {"limit": limit},
        "videos": [
            {"file": file, "nearest": name, "start": int(start), "psnr": float(psnr)}
            for file, name, start, psnr in entries
        ],
    }


def _describe(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, QUANTILES)
    return {f"{share:g}": float(value) for share, value in zip(QUANTILES, found, strict=True)}


def to_scores(found: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The result of `compare` as entries of the report's scores; `count` is the number of training clips."""
    ours, real, near = found["generated"], found["held_out"], found["near"]
    return [
        {
            "name": "nearest training clip, PSNR",
            "value": ours["0.5"],
            "n": near["total"],
            "note": f"median, dB, of {count} training clips at every start; 5 to 95 %: {ours['0.05']:.1f} to "
            f"{ours['0.95']:.1f}; held-out clips {real['0.5']:.1f} ({real['0.05']:.1f} to {real['0.95']:.1f})",
        },
        {
            "name": "nearer to training than real",
            "value": near["rate"],
            "low": near["low"],
            "high": near["high"],
            "n": near["total"],
            "note": f"share of videos above {near['limit']:.1f} dB, which 1 % of held-out clips are; Wilson 95 %",
        },
    ]
