"""Synthetic captioned videos of moving shapes with known ground truth, for training and evaluation.

"a red circle moving up left": 3 shapes x 6 colours x 8 directions = 144 captions. One shape on a plain background moves
at constant speed and never touches the edge of the frame. There are two kinds:

- moving_shapes: a straight path; speed decreases with the number of frames;
- bouncing_shapes: a path reflected by walls, for long videos; speed does not depend on the number of frames, and the
  caption names the direction in the first frame.

Captions of more words say the same in many sentences (long_captions.py).

A clip is a function of (kind, seed, index), so clips can be generated independently.
"""

import concurrent.futures
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np

from videogen_jax.data import json_files, long_captions, video_writer
from videogen_jax.data.workers import make_pool

SHAPES = ("circle", "square", "triangle")
COLOURS = {  # RGB
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}
_DIAGONAL = math.sqrt(0.5)
DIRECTIONS = {  # unit vectors (x, y), y down
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up left": (-_DIAGONAL, -_DIAGONAL),
    "up right": (_DIAGONAL, -_DIAGONAL),
    "down left": (-_DIAGONAL, _DIAGONAL),
    "down right": (_DIAGONAL, _DIAGONAL),
}
COMBINATIONS = tuple(itertools.product(COLOURS, SHAPES, DIRECTIONS))
BACKGROUND = (0, 0, 0)  # RGB

KINDS = ("moving_shapes", "bouncing_shapes")
RADIUS_RANGE = (0.23, 0.25)  # fraction of the frame side
DISPLACEMENT_RANGE = (0.30, 0.36)  # fraction of the frame side, from the first to the last frame
BOUNCE_SPEED_RANGE = (0.03, 0.045)  # fraction of the frame side, per frame
EDGE = 0.5  # margin in pixels between the shape and the edge of the frame
MIN_SIZE = 16  # pixels; in smaller frames the largest shape has no room to move

# Half the side of the square and half the base of the triangle, at radius 1. The square has the area of the circle
# (3.14), the triangle 86 % of it (2.71), which leaves it room to move sideways.
HALF_SQUARE = math.sqrt(math.pi) / 2
HALF_BASE = 1.25

MANIFEST = "moving_shapes.json"  # generation settings of a folder of videos, of either kind


def make_caption(colour: str, shape: str, direction: str) -> str:
    """Returns the caption of a combination, such as "a red circle moving up left"."""
    return f"a {colour} {shape} moving {direction}"


def parse_caption(caption: str) -> tuple[str, str, str]:
    """Parses a caption, short or long, ignoring case and spacing.

    Returns:
      (colour, shape, direction), keys of COLOURS, SHAPES and DIRECTIONS.
    Raises:
      ValueError: the caption is not one of the 144, nor of `long_captions.make_long_caption`.
    """
    match = re.fullmatch(r"an? (\S+) (\S+) moving (.+)", " ".join(caption.lower().split()))
    facts = match.groups() if match else long_captions.parse_long_caption(caption)
    if facts in COMBINATIONS:
        return facts
    shown = caption if len(caption) <= 80 else caption[:77] + "..."
    raise ValueError(
        f'the caption {shown!r} is not like "a red circle moving up left": use the colours '
        f"{', '.join(COLOURS)}, the shapes {', '.join(SHAPES)} and the directions "
        f"{', '.join(DIRECTIONS)}."
    )


def shape_extents(shape: str, radius: float) -> tuple[float, float, float, float]:
    """Returns the extents (left, right, up, down) of a shape from its centroid, in pixels."""
    if shape == "circle":
        return (radius,) * 4
    if shape == "square":
        return (HALF_SQUARE * radius,) * 4
    half_base = HALF_BASE * radius
    return half_base, half_base, 2 * half_base / math.sqrt(3), half_base / math.sqrt(3)


def render_clip(
    colour: str,
    shape: str,
    direction: str,
    *,
    frames: int,
    size: int,
    radius: float,
    speed: float,
    centre: tuple[float, float],
    background: tuple[int, int, int] = BACKGROUND,
) -> np.ndarray:
    """Renders a shape moving on a straight line at constant speed; see `draw_path`.

    Args:
      colour: key of COLOURS.
      shape: one of SHAPES.
      direction: key of DIRECTIONS.
      frames: T.
      size: height and width in pixels.
      radius: pixels.
      speed: pixels per frame.
      centre: (x, y) of the centroid in the first frame.
      background: RGB.
    Returns:
      (T, size, size, 3) uint8 RGB.
    """
    steps = np.arange(frames)[:, None] * speed
    centres = np.array(centre) + steps * np.array(DIRECTIONS[direction])
    return draw_path(colour, shape, centres, size=size, radius=radius, background=background)


def draw_path(
    colour: str,
    shape: str,
    centres: np.ndarray,
    *,
    size: int,
    radius: float,
    background: tuple[int, int, int] = BACKGROUND,
) -> np.ndarray:
    """Renders an antialiased shape along a path.

    The coverage of a pixel is clip(1/2 - d, 0, 1), where d is the signed distance in pixels from its centre to the
    outline (circle), or to the nearest line through a side (square, triangle).

    Args:
      colour: key of COLOURS.
      shape: one of SHAPES; the triangle is equilateral and points up.
      centres: (T, 2) float64, (x, y) of the centroid in each frame; a frame spans [0, size] in both axes, so the centre
        of the top left pixel is (0.5, 0.5).
      size: height and width in pixels.
      radius: radius of the circle in pixels; the other shapes scale with it (HALF_SQUARE, HALF_BASE).
      background: RGB.
    Returns:
      (T, size, size, 3) uint8 RGB.
    """
    pixels = np.arange(size) + 0.5
    x = (pixels - centres[:, :1]).astype(np.float32)[:, None, :]  # (T, 1, size)
    y = (pixels - centres[:, 1:]).astype(np.float32)[:, :, None]  # (T, size, 1)
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - HALF_SQUARE * radius
    else:
        slanted = (
            math.sqrt(0.75) * np.abs(x) - 0.5 * y
        )  # the normals of these sides point 30 degrees up
        distance = np.maximum(slanted, y) - HALF_BASE * radius / math.sqrt(3)
    coverage = np.clip(0.5 - distance, 0.0, 1.0)[..., None]  # (T, size, size, 1)
    ground = np.float32(background)
    return np.rint(ground + coverage * (np.float32(COLOURS[colour]) - ground)).astype(np.uint8)


def draw_motion(
    shape: str, direction: str, rng: np.random.Generator, *, frames: int, size: int
) -> dict:
    """Draws radius, speed and start of a straight path inside the frame.

    radius ~ U(RADIUS_RANGE) size; displacement ~ U(DISPLACEMENT_RANGE) size, with the upper bound lowered to what fits
    into the frame; the start is uniform over the positions that keep a margin of EDGE pixels.

    Args:
      shape: one of SHAPES.
      direction: key of DIRECTIONS.
      rng: random generator of the clip.
      frames: T >= 2.
      size: >= MIN_SIZE pixels.
    Returns:
      The arguments "radius", "speed" and "centre" of `render_clip`.
    """
    radius = rng.uniform(*RADIUS_RANGE) * size
    left, right, up, down = shape_extents(shape, radius)
    rooms = (size - left - right - 2 * EDGE, size - up - down - 2 * EDGE)
    step = DIRECTIONS[direction]
    longest = min(room / abs(part) for room, part in zip(rooms, step, strict=True) if part)
    low, high = (share * size for share in DISPLACEMENT_RANGE)
    displacement = rng.uniform(low, min(high, longest))
    centre = []
    for before, room, part in zip((left, up), rooms, step, strict=True):
        path = part * displacement
        centre.append(EDGE + before + max(0.0, -path) + rng.uniform(0.0, room - abs(path)))
    return {"radius": radius, "speed": displacement / (frames - 1), "centre": tuple(centre)}


def reflect(positions: np.ndarray, room: float) -> np.ndarray:
    """Folds a straight path into [0, room], as reflecting walls at 0 and `room` do.

    room - |(positions mod 2 room) - room|: a triangle wave, exact after any number of bounces.

    Args:
      positions: float64 of any shape, positions without walls.
      room: distance between the walls, > 0.
    Returns:
      float64 of the same shape, in [0, room].
    """
    return room - np.abs(np.mod(positions, 2 * room) - room)


def draw_bounces(
    shape: str, direction: str, rng: np.random.Generator, *, frames: int, size: int
) -> dict:
    """Draws the radius and the path of a shape between reflecting walls.

    radius ~ U(RADIUS_RANGE) size; speed ~ U(BOUNCE_SPEED_RANGE) size per frame, independent of the number of frames;
    the start is uniform over the positions that keep a margin of EDGE pixels. Where the shape meets a wall, EDGE pixels
    inside the frame, that component of the velocity changes sign; in a clip that starts at a wall, already between the
    first two frames.

    Args:
      shape: one of SHAPES.
      direction: key of DIRECTIONS, direction in the first frame.
      rng: random generator of the clip.
      frames: T.
      size: >= MIN_SIZE pixels.
    Returns:
      The arguments "radius" and "centres" of `draw_path`.
    """
    radius = rng.uniform(*RADIUS_RANGE) * size
    speed = rng.uniform(*BOUNCE_SPEED_RANGE) * size
    left, right, up, down = shape_extents(shape, radius)
    rooms = (size - left - right - 2 * EDGE, size - up - down - 2 * EDGE)
    centres = []
    for before, room, part in zip((left, up), rooms, DIRECTIONS[direction], strict=True):
        unfolded = rng.uniform(0.0, room) + part * speed * np.arange(frames)
        centres.append(EDGE + before + reflect(unfolded, room))
    return {"radius": radius, "centres": np.stack(centres, axis=1)}


def pick_combination(index: int, seed: int) -> tuple[str, str, str]:
    """Returns (colour, shape, direction) of clip `index`: combination `index` mod 144 of a seeded permutation.

    Clips 144 k ... 144 k + 143 contain each combination once.
    """
    order = np.random.default_rng(seed).permutation(len(COMBINATIONS))
    return COMBINATIONS[order[index % len(COMBINATIONS)]]


def make_clip(
    index: int, seed: int, *, size: int, frames: int, kind: str = "moving_shapes"
) -> tuple[tuple[str, str, str], np.ndarray]:
    """Generates one clip of a data set.

    Args:
      index: index of the clip.
      seed: seed of the data set, >= 0.
      size: height and width in pixels.
      frames: T.
      kind: one of KINDS.
    Returns:
      ((colour, shape, direction), video), the video (T, size, size, 3) uint8 RGB.
    Raises:
      ValueError: unknown kind.
    """
    _check_kind(kind)
    names = pick_combination(index, seed)
    rng = np.random.default_rng([seed, index])
    if kind == "bouncing_shapes":
        bounces = draw_bounces(names[1], names[2], rng, frames=frames, size=size)
        return names, draw_path(names[0], names[1], size=size, **bounces)
    motion = draw_motion(names[1], names[2], rng, frames=frames, size=size)
    return names, render_clip(*names, frames=frames, size=size, **motion)


def caption_clip(index: int, seed: int, words: int = 0) -> str:
    """The caption of a clip of `make_clip`.

    Args:
      index: index of the clip.
      seed: seed of the data set.
      words: of a long caption, which differs from clip to clip; 0: that of `make_caption`.
    """
    names = pick_combination(index, seed)
    if not words:
        return make_caption(*names)
    return long_captions.make_long_caption(*names, words, np.random.default_rng([seed, index, 1]))


def _check_kind(kind):
    if kind not in KINDS:
        raise ValueError(f"unknown kind of synthetic videos {kind!r}: choose {' or '.join(KINDS)}.")


def write_shapes(
    folder,
    kind: str,
    *,
    clips: int,
    seed: int,
    size: int = 64,
    frames: int = 16,
    fps: float = 8.0,
    caption_words: int = 0,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a folder of `000123_red_circle_up_left.mp4` and `.txt` files, keeping those already written.

    The same arguments give the same bytes. An interrupted call is resumed.

    Args:
      folder: new, empty, or partly written with the same arguments.
      kind: one of KINDS.
      clips: number of videos; a multiple of 144 contains each combination equally often.
      seed: >= 0.
      size: height and width in pixels, even.
      frames: T >= 2.
      fps: frames per second.
      caption_words: words of a caption; 0: short captions.
      workers: number of processes.
      on_progress: called with the number of clips just finished.
    Raises:
      ValueError: an argument is out of range, or the folder holds other files.
      OSError: the disk is full.
    """
    _check_kind(kind)
    if clips < 1 or seed < 0 or size < MIN_SIZE or size % 2 or frames < 2 or not fps > 0:
        raise ValueError(
            f"moving shapes need clips >= 1, seed >= 0, an even size >= {MIN_SIZE}, frames >= 2 "
            f"and fps > 0, not clips={clips}, seed={seed}, size={size}, frames={frames}, fps={fps}."
        )
    if caption_words and caption_words < long_captions.LEAST_WORDS:
        raise ValueError(
            f"long captions have {long_captions.LEAST_WORDS} words or more, not {caption_words}: give more, or 0 for "
            "short ones."
        )
    folder = pathlib.Path(folder)
    settings = {"kind": kind, "clips": clips, "seed": seed, "size": size}
    settings |= {"frames": frames, "fps": float(fps)}
    if caption_words:  # manifests of short captions do not name it
        settings["caption_words"] = caption_words
    _claim_folder(folder, settings)
    chunks = [range(first, min(first + 32, clips)) for first in range(0, clips, 32)]
    arguments = (os.fspath(folder), kind, seed, size, frames, fps, caption_words)
    with make_pool(min(workers, len(chunks))) as pool:
        futures = {pool.submit(_write_clips, chunk, *arguments): len(chunk) for chunk in chunks}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            if on_progress:
                on_progress(futures[future])


def _claim_folder(folder, settings):
    """Creates the folder and writes its manifest; refuses a folder with other contents or settings."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        # Manifests from before there were two kinds do not name the kind.
        found = json_files.read(manifest, {str: object}, "choose another folder.")
        found = {"kind": "moving_shapes"} | found
        if found != settings:
            differing = [key for key in found | settings if found.get(key) != settings.get(key)]
            differences = ", ".join(
                f"{key} {found.get(key)} instead of {settings.get(key)}" for key in differing
            )
            raise ValueError(
                f"{folder} holds moving shapes generated with other settings ({differences}): "
                "choose another folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds other files: choose an empty or new folder for the moving shapes."
        )
    unfinished = folder / f".{MANIFEST}"
    unfinished.write_text(json.dumps(settings), encoding="utf-8")
    os.replace(unfinished, manifest)


def _write_clips(indices, folder, kind, seed, size, frames, fps, caption_words):
    """Writes the clips with these indices; runs in a worker."""
    folder = pathlib.Path(folder)
    for index in indices:
        names = pick_combination(index, seed)
        stem = f"{index:06d}_{'_'.join(names).replace(' ', '_')}"
        caption = folder / f"{stem}.txt"
        if caption.exists():  # written after the video, so both are complete
            continue
        _, video = make_clip(index, seed, size=size, frames=frames, kind=kind)
        video_writer.write_video(folder / f"{stem}.mp4", video, fps)
        unfinished = folder / f".{stem}.txt"
        text = caption_clip(index, seed, caption_words)
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, caption)
