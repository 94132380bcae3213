"""Judges from pixels whether the player moves as the caption says, in three arcade games.

    python examples/arcade/action_accuracy.py --generated=runs/arcade/64/generated
    python examples/arcade/action_accuracy.py --data=runs/arcade/data  # real held-out clips
    python examples/arcade/action_accuracy.py --data=runs/arcade/data --autoencoder=runs/arcade/vae  # reconstructed

The paddle of pong, the chicken of freeway and the cannon of space invaders are found by their colours in the part of
the screen where they move. A video is right if the path of their centre over its frames goes the way that the caption
says, by at least two percent of the screen. Captions without a movement of these three players are not judged.
"""

import argparse
import collections
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from games import GAMES

from videogen_jax.data.atomic_files import write_json
from videogen_jax.evaluation import baselines, clip_sets
from videogen_jax.evaluation.rates import Rate

Judged = Iterable[tuple[np.ndarray, str]]  # videos (T, H, W, 3) uint8 and their captions

MOVED = 0.02  # of the screen's side
JUMPED = 0.25  # of it from frame to frame: put elsewhere, or something else was found
SPREAD = 80.0  # of colours, in levels of 255


@dataclasses.dataclass(frozen=True)
class Player:
    """Where a player is looked for, and the sign of the movements that captions name."""

    colour: tuple[int, int, int]
    box: tuple[float, float, float, float]  # top, bottom, left, right, as shares of the screen
    axis: int  # 0: rows, 1: columns
    signs: dict[str, int]


PLAYERS = {
    "pong": Player((92, 186, 92), (0.17, 0.92, 0.86, 0.91), 0, {"moves up": -1, "moves down": 1}),
    "freeway": Player(
        (252, 252, 84), (0.07, 0.94, 0.26, 0.33), 0, {"moves up": -1, "moves down": 1}
    ),
    "space invaders": Player(
        (50, 132, 50), (0.87, 0.93, 0.2, 0.8), 1, {"moves left": -1, "moves right": 1}
    ),
}


def read_caption(caption: str) -> tuple[str, int] | None:
    """The game and the sign of the movement of "pong, the right paddle moves up"; None for what is not judged."""
    game, _, text = caption.partition(", ")
    if game not in PLAYERS or not text.startswith(GAMES[game].player):
        return None
    movement = re.sub(f"^{re.escape(GAMES[game].player)} ", "", text)
    sign = PLAYERS[game].signs.get(movement)
    return None if sign is None else (game, sign)


def find_path(video: np.ndarray, player: Player) -> np.ndarray:
    """Follows the centre of what has the player's colour.

    A pixel weighs exp(-d^2 / (2 s^2)), where d is its distance from the colour in RGB levels and s a third of
    SPREAD, and nothing beyond SPREAD.

    Args:
      video: (T, H, W, 3) uint8.
      player: whom to follow.
    Returns:
      (T,) places along the axis as shares of the screen, NaN in frames where no pixel has the colour.
    """
    height, width = video.shape[1:3]
    top, bottom = (round(share * height) for share in player.box[:2])
    left, right = (round(share * width) for share in player.box[2:])
    part = video[:, top:bottom, left:right].astype(np.float64)
    distance = np.linalg.norm(part - np.float64(player.colour), axis=-1)  # (T, h, w)
    weight = np.exp(-0.5 * (3 * distance / SPREAD) ** 2) * (distance < SPREAD)
    places = np.arange(part.shape[1 + player.axis]) / video.shape[1 + player.axis]
    profile = weight.sum(axis=2 - player.axis)  # (T, h) or (T, w)
    total = profile.sum(axis=1)
    centre = profile @ places
    return np.divide(centre, total, out=np.full(len(video), np.nan), where=total > 1e-6)


def measure_movement(video: np.ndarray, player: Player) -> float:
    """The way of a player over a video as a share of the screen, jumps left out; right and down are positive.

    Args:
      video: (T, H, W, 3) uint8.
      player: whom to follow.
    Returns:
      The sum of the steps between neighbouring frames that show the player.
    """
    path = find_path(video, player)
    steps = np.diff(path[np.isfinite(path)])
    return float(steps[np.abs(steps) < JUMPED].sum())


def judge(clips: Judged) -> dict[str, Rate]:
    """Counts the videos whose player moves as the caption says.

    Returns:
      game -> rate, of the games that were judged; "all" for all of them.
    """
    right, total = collections.Counter(), collections.Counter()
    for video, caption in clips:
        if wanted := read_caption(caption):
            game, sign = wanted
            moved = measure_movement(video, PLAYERS[game])
            for name in (game, "all"):
                total[name] += 1
                right[name] += bool(sign * moved >= MOVED)
    return {name: Rate(right[name], total[name]) for name in (*PLAYERS, "all") if total[name]}


def judge_with_baselines(clips: Judged) -> dict[str, dict[str, Rate]]:
    """The rates of `judge`: "videos", "still" and "shuffled" to them, the last two of the sets of `baselines`."""
    clips = list(clips)
    rates = {"videos": judge(clips)}
    found = [clip_sets.Clip("", video, caption=caption) for video, caption in clips]
    window = clip_sets.Window(min((len(video) for video, _ in clips), default=2))
    for name, worse in baselines.make_baselines(lambda: found, window).items():
        rates[name] = judge((clip.video, clip.caption) for clip in worse())
    return rates


def read_data(folder: str, frames: int) -> Iterator[tuple[np.ndarray, str]]:
    """Yields the middle frames of the held-out clips of a data set, with the text that most of them have."""
    window = clip_sets.Window(frames)
    for clip in clip_sets.read_data(clip_sets.find_pixels(Path(folder)), "validation")():
        chosen = np.arange(len(clip.video))[window.choose_frames(len(clip.video))]
        yield clip.video[chosen], clip.annotations.describe(chosen)


def reconstruct(clips: Judged, workdir: str) -> Iterator[tuple[np.ndarray, str]]:
    """Encodes and decodes the videos that are judged by the autoencoder of a run."""
    import jax

    from videogen_jax.models.chunks import to_pixels
    from videogen_jax.run.trained_autoencoder import read_autoencoder

    autoencoder = read_autoencoder(workdir, "float32")
    params = autoencoder.load()

    @jax.jit
    def program(video: jax.Array) -> jax.Array:
        latents = autoencoder.encode(params, video[None] / 127.5 - 1)
        return to_pixels(autoencoder.decode(params, latents))[0]

    for video, caption in clips:
        yield np.asarray(program(video.astype(np.float32))), caption


def read_generated(folder: str) -> Iterator[tuple[np.ndarray, str]]:
    """Yields the videos of a folder of sample with their prompts."""
    for clip in clip_sets.read_folder(folder)():
        if clip.video is None:
            raise ValueError(f"{folder}/{clip.name} cannot be read ({clip.reason}): make it again.")
        yield clip.video, clip.caption or ""


def print_table(rates: dict[str, dict[str, Rate]]) -> None:
    """Prints the rates with their Wilson intervals, and those of both baselines."""
    print(f"{'':15s} {'rate':>7s} {'right':>6s} {'of':>5s}   95 % interval    still  shuffled")
    for name, rate in rates["videos"].items():
        found = rate.describe()
        interval = f"{found['low']:.1%} - {found['high']:.1%}"
        row = f"{name:15s} {found['rate']:7.1%} {rate.right:6d} {rate.total:5d}   {interval:14s}"
        worse = [rates[baseline][name].describe()["rate"] for baseline in ("still", "shuffled")]
        print(row, *(f"{value:8.1%}" for value in worse))


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    videos = parser.add_mutually_exclusive_group(required=True)
    videos.add_argument("--generated", help="folder of sample")
    videos.add_argument("--data", help="data set of pack, whose held-out clips are judged")
    parser.add_argument("--frames", type=int, default=16, help="of a clip of --data")
    parser.add_argument("--autoencoder", help="workdir of one that reconstructs the videos first")
    parser.add_argument("--output", help="JSON file to write")
    given = parser.parse_args(arguments)
    try:
        if given.generated:
            clips = read_generated(given.generated)
        else:
            clips = read_data(given.data, given.frames)
        clips = ((video, caption) for video, caption in clips if read_caption(caption))
        if given.autoencoder:
            clips = reconstruct(clips, given.autoencoder)
        rates = judge_with_baselines(clips)
        if not rates["videos"]:
            raise ValueError(
                f"no caption says how the player of {', '.join(PLAYERS)} moves: sample prompts that do."
            )
        if given.output:
            found = {
                kind: {name: rate.describe() for name, rate in each.items()}
                for kind, each in rates.items()
            }
            write_json(given.output, found)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print_table(rates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
