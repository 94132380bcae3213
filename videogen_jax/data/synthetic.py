"""Moving shapes: captioned videos whose truth is known, to learn from and to be judged by.

"a red circle moving up left": 3 shapes x 6 colours x 8 directions = 144 captions. One shape on a
plain background moves at constant speed and never touches the frame's edge. Of two kinds:

- moving_shapes: on a straight line, the slower the more frames there are;
- bouncing_shapes: at a speed that does not depend on the number of frames, so that long videos can
  be had; walls reflect, and the direction of the caption is that of the first frame.

Every clip can be made alone: it depends on (kind, seed, index) only.
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

from videogen_jax.data import video_writer
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
RADIUS_RANGE = (0.23, 0.25)  # of the frame's side
DISPLACEMENT_RANGE = (0.30, 0.36)  # of the frame's side, from the first to the last frame
BOUNCE_SPEED_RANGE = (0.03, 0.045)  # of the frame's side, per frame
EDGE = 0.5  # pixels kept between the shape and the frame's edge
MIN_SIZE = 16  # pixels; below, the largest shape has no room to move

# With radius 1: half the side of the square and of the triangle's base. The square has the area of
# the circle (3.14), the triangle 86 % of it (2.71), so that it still has room to move sideways.
HALF_SQUARE = math.sqrt(math.pi) / 2
HALF_BASE = 1.25

MANIFEST = "moving_shapes.json"  # what a folder of generated videos, of any kind, was made with


def make_caption(colour: str, shape: str, direction: str) -> str:
    """Writes the caption of a combination: "a red circle moving up left"."""
    return f"a {colour} {shape} moving {direction}"


def parse_caption(caption: str) -> tuple[str, str, str]:
    """Reads a caption of the moving-shapes grammar, whatever its case and spacing.

    Returns:
      (colour, shape, direction), names out of COLOURS, SHAPES and DIRECTIONS.
    Raises:
      ValueError: the caption is none of the 144.
    """
    match = re.fullmatch(r"an? (\S+) (\S+) moving (.+)", " ".join(caption.lower().split()))
    if match and match.groups() in COMBINATIONS:
        return match.groups()
    shown = caption if len(caption) <= 80 else caption[:77] + "..."
    raise ValueError(
        f'the caption {shown!r} is not like "a red circle moving up left": use the colours '
        f"{', '.join(COLOURS)}, the shapes {', '.join(SHAPES)} and the directions "
        f"{', '.join(DIRECTIONS)}."
    )


def shape_extents(shape: str, radius: float) -> tuple[float, float, float, float]:
    """Returns how far a shape reaches (left, right, up, down) of its centroid, in pixels."""
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
    """Draws a shape that moves on a straight line at constant speed, as `draw_path` draws it.

    Args:
      colour: as all that is not here, see `draw_path`.
      shape: name out of SHAPES.
      direction: name out of DIRECTIONS.
      frames: T.
      size: pixels.
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
    """Draws a shape along a path, antialiased.

    A pixel is covered by clip(1/2 - d, 0, 1), with d the signed distance in pixels from its centre
    to the outline (circle), or to the nearest of the lines through the sides (square, triangle).

    Args:
      colour: name out of COLOURS.
      shape: name out of SHAPES; the triangle is equilateral and points up.
      centres: (T, 2) float64, (x, y) of the centroid in each frame; a frame spans [0, size] both
        ways, so the centre of the top left pixel is (0.5, 0.5).
      size: height and width in pixels.
      radius: of the circle in pixels; the other shapes scale with it (HALF_SQUARE, HALF_BASE).
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
        slanted = math.sqrt(0.75) * np.abs(x) - 0.5 * y  # sides' normals point 30 degrees up
        distance = np.maximum(slanted, y) - HALF_BASE * radius / math.sqrt(3)
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]  # (T, size, size, 1)
    ground = np.float32(background)
    return np.rint(ground + cover * (np.float32(COLOURS[colour]) - ground)).astype(np.uint8)


def draw_motion(
    shape: str, direction: str, rng: np.random.Generator, *, frames: int, size: int
) -> dict:
    """Draws radius, speed and start of a path that stays inside the frame.

    radius ~ U(RADIUS_RANGE) size; displacement ~ U(DISPLACEMENT_RANGE) size, its upper end lowered
    to what the frame has room for; the start uniform among those that keep EDGE pixels free.

    Args:
      shape: name out of SHAPES.
      direction: name out of DIRECTIONS.
      rng: the clip's own generator.
      frames: T >= 2.
      size: >= MIN_SIZE pixels.
    Returns:
      dict of the arguments "radius", "speed" and "centre" of `render_clip`.
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
    """Folds a straight path into [0, room], as walls at both ends do that reflect.

    room - |(positions mod 2 room) - room|: a triangle wave, exact after any number of bounces.

    Args:
      positions: float64 of any shape, where the path would be without walls.
      room: between the walls, > 0.
    Returns:
      float64 of the same shape in [0, room].
    """
    return room - np.abs(np.mod(positions, 2 * room) - room)


def draw_bounces(
    shape: str, direction: str, rng: np.random.Generator, *, frames: int, size: int
) -> dict:
    """Draws radius and speed, and a path between walls that reflect.

    radius ~ U(RADIUS_RANGE) size; speed ~ U(BOUNCE_SPEED_RANGE) size per frame, whatever the number
    of frames; the start uniform among the places where EDGE pixels stay free. Where an extent of
    the shape meets the wall EDGE pixels inside the frame, that component of the velocity turns: in
    a clip that begins at a wall already between the first two frames.

    Args:
      shape: name out of SHAPES.
      direction: name out of DIRECTIONS, of the first frame.
      rng: the clip's own generator.
      frames: T.
      size: >= MIN_SIZE pixels.
    Returns:
      dict of the arguments "radius" and "centres" of `draw_path`.
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
    """Names what clip `index` shows: combination `index` mod 144 of a seeded shuffle.

    Returns:
      (colour, shape, direction); every run of 144 clips has each combination once.
    """
    order = np.random.default_rng(seed).permutation(len(COMBINATIONS))
    return COMBINATIONS[order[index % len(COMBINATIONS)]]


def make_clip(
    index: int, seed: int, *, size: int, frames: int, kind: str = "moving_shapes"
) -> tuple[tuple[str, str, str], np.ndarray]:
    """Makes one clip of the data set of a seed.

    Args:
      index: number of the clip, from 0.
      seed: of the data set, >= 0.
      size: height and width in pixels.
      frames: T.
      kind: name out of KINDS.
    Returns:
      ((colour, shape, direction), video), the video (T, size, size, 3) uint8 RGB.
    Raises:
      ValueError: there is no such kind.
    """
    _check_kind(kind)
    names = pick_combination(index, seed)
    rng = np.random.default_rng([seed, index])
    if kind == "bouncing_shapes":
        bounces = draw_bounces(names[1], names[2], rng, frames=frames, size=size)
        return names, draw_path(names[0], names[1], size=size, **bounces)
    motion = draw_motion(names[1], names[2], rng, frames=frames, size=size)
    return names, render_clip(*names, frames=frames, size=size, **motion)


def _check_kind(kind):
    if kind not in KINDS:
        raise ValueError(f"there are no videos of {kind!r} to generate: take {' or '.join(KINDS)}.")


def write_shapes(
    folder,
    kind: str,
    *,
    clips: int,
    seed: int,
    size: int = 64,
    frames: int = 16,
    fps: float = 8.0,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Writes `000123_red_circle_up_left.mp4` and `.txt`, ...; what is there already is kept.

    The same arguments give the same bytes. A folder that was begun is continued.

    Args:
      folder: made where it is missing; else empty, or begun with the same arguments.
      kind: name out of KINDS.
      clips: number of videos; a multiple of 144 shows each combination equally often.
      seed: >= 0.
      size: height and width in pixels, even.
      frames: T >= 2.
      fps: frames per second.
      workers: processes.
      on_progress: called with the number of clips that were just finished.
    Raises:
      ValueError: an argument is out of its range, or the folder holds something else.
      OSError: the disk is full.
    """
    _check_kind(kind)
    if clips < 1 or seed < 0 or size < MIN_SIZE or size % 2 or frames < 2 or not fps > 0:
        raise ValueError(
            f"moving shapes need clips >= 1, seed >= 0, an even size >= {MIN_SIZE}, frames >= 2 "
            f"and fps > 0, not clips={clips}, seed={seed}, size={size}, frames={frames}, fps={fps}."
        )
    folder = pathlib.Path(folder)
    settings = {"kind": kind, "clips": clips, "seed": seed, "size": size}
    settings |= {"frames": frames, "fps": float(fps)}
    _claim_folder(folder, settings)
    chunks = [range(first, min(first + 32, clips)) for first in range(0, clips, 32)]
    arguments = (os.fspath(folder), kind, seed, size, frames, fps)
    with make_pool(min(workers, len(chunks))) as pool:
        futures = {pool.submit(_write_clips, chunk, *arguments): len(chunk) for chunk in chunks}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            if on_progress:
                on_progress(futures[future])


def _claim_folder(folder, settings):
    """Makes the folder and notes its settings in it; refuses one that holds something else."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        # Folders begun when there was one kind do not name it.
        found = {"kind": "moving_shapes"} | json.loads(manifest.read_text())
        if found != settings:
            differing = [key for key in settings if found.get(key) != settings[key]]
            differences = ", ".join(
                f"{key} {found.get(key)} instead of {settings[key]}" for key in differing
            )
            raise ValueError(
                f"{folder} holds moving shapes made with other settings ({differences}): delete it "
                "or name another folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds other files: name an empty or a new folder for the moving shapes."
        )
    unfinished = folder / f".{MANIFEST}"
    unfinished.write_text(json.dumps(settings))
    os.replace(unfinished, manifest)


def _write_clips(indices, folder, kind, seed, size, frames, fps):
    """Writes the clips of these indices; runs in a worker."""
    folder = pathlib.Path(folder)
    for index in indices:
        names = pick_combination(index, seed)
        stem = f"{index:06d}_{'_'.join(names).replace(' ', '_')}"
        caption = folder / f"{stem}.txt"
        if caption.exists():  # it is written after the video, so both are whole
            continue
        _, video = make_clip(index, seed, size=size, frames=frames, kind=kind)
        video_writer.write_video(folder / f"{stem}.mp4", video, fps)
        unfinished = folder / f".{stem}.txt"
        unfinished.write_text(make_caption(*names) + "\n")
        os.replace(unfinished, caption)
