"""Records clips of sixteen Atari games with captions, offline: the wheel of ale-py carries the games.

    pip install 'videogen-jax[arcade]'
    python examples/arcade/make_clips.py --output=runs/arcade/clips

Writes OUTPUT/GAME/EPISODE_CLIP.mp4, 2 s at 15 fps, each with a .json that holds its caption (who moves where, with
the frame from which it holds), the episode, by which `pack` splits training from held-out clips, and the action of
each frame. A frame is the larger of the last two screens of four (DQN, Nature 518:529), because the console shows
some sprites in every second one; the whole screen is squeezed to a square.

Policies, drawn for each clip: one action held, actions held for 8 to 20 frames in turn, random actions, and where it
is easy the ball followed. Where the console's memory has the player's position, the caption says what the player
does there; elsewhere, what the held action asks for. A clip is a function of (game, episode, seed).
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import sys

import numpy as np
from games import GAMES, Game
from PIL import Image

from videogen_jax.data import atomic_files, video_writer
from videogen_jax.data.progress import show_progress
from videogen_jax.data.workers import count_usable_cpus, make_pool

FPS = 15  # a quarter of the console's 60 Hz
SKIP = 4  # screens a frame
RUN_UP = 16  # frames, at most, of the opposite action before one is held: room to move in
MISSING = "ale-py {}: pip install 'videogen-jax[arcade]', or pip install 'ale-py>=0.11'."


class Console:
    """An Atari 2600 with one game, stepped four screens at a time.

    Args:
      name: of the game, a key of GAMES.
      seed: of the emulator.
    Raises:
      ValueError: ale-py or its game is missing.
    """

    def __init__(self, name: str, seed: int):
        try:
            import ale_py
            from ale_py import roms
        except ImportError as error:
            raise ValueError(MISSING.format("is missing")) from error
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("random_seed", seed)
        self._ale.setFloat("repeat_action_probability", 0.0)
        try:
            path = roms.get_rom_path(name.replace(" ", "_"))
        except Exception as error:  # an unlisted game or a file that is not the game's
            raise ValueError(MISSING.format(f"has no game {name!r}")) from error
        if path is None or not os.path.exists(path):
            raise ValueError(MISSING.format(f"has no game {name!r}"))
        self._ale.loadROM(path)
        self.actions = {action.name: action for action in self._ale.getMinimalActionSet()}
        self.restarted = False  # since it was last set

    def step(self, action: str) -> np.ndarray:
        """Holds an action for four screens; returns the frame, (H, W, 3) uint8."""
        screens = []
        for screen in range(SKIP):
            self._ale.act(self.actions[action])
            if screen >= SKIP - 2:
                screens.append(self._ale.getScreenRGB())
        if self._ale.game_over():
            self._ale.reset_game()
            self.restarted = True
        return np.maximum(*screens)

    def memory(self, byte: int) -> int:
        """One byte of the console's 128."""
        return int(self._ale.getRAM()[byte])


def record_episode(name: str, episode: int, clips: int, frames: int, seed: int) -> list[dict]:
    """Plays an episode and records clips of it.

    Args:
      name: key of GAMES.
      episode: its number.
      clips: number of clips.
      frames: T of each.
      seed: of all games.
    Returns:
      Clips of video (T, H, W, 3) uint8, caption [[first frame, text], ...], action (T,) int.
    """
    game = GAMES[name]
    rng = np.random.default_rng([seed, sorted(GAMES).index(name), episode])
    console = Console(name, int(rng.integers(2**31)))
    names = list(console.actions)
    for _ in range(int(rng.integers(15, 90))):
        console.step(names[rng.integers(len(names))])
    recorded = []
    while len(recorded) < clips:
        for _ in range(int(rng.integers(4, 30))):
            console.step(names[rng.integers(len(names))])
        policy = rng.choice(("held", "sticky", "random", "follow"), p=(0.5, 0.25, 0.15, 0.1))
        if policy == "follow" and game.ball is None:
            policy = "held"
        console.restarted = False
        clip = _record(console, game, policy, frames, rng)
        if not console.restarted:  # no clip spans two games
            clip["caption"] = [[first, f"{name}, {text}"] for first, text in clip["caption"]]
            recorded.append(clip)
    return recorded


def _record(console, game: Game, policy: str, frames: int, rng) -> dict:
    """Plays `frames` frames by a policy."""
    moves = list(game.moves)
    held = moves[rng.integers(len(moves))]
    if game.position is not None and policy in ("held", "sticky"):
        for _ in range(int(rng.integers(RUN_UP))):
            console.step(game.opposite(held))
    chooser = _choose(console, game, policy, held, rng)
    video, actions, positions = [], [], []
    for _ in range(frames):
        action = next(chooser)
        video.append(console.step(action))
        actions.append(action)
        positions.append(0 if game.position is None else console.memory(game.position))
    if policy == "random":
        caption = [[0, "random play"]]
    elif policy == "follow":
        caption = [[0, f"{game.player} follows the ball"]]
    elif game.position is not None:
        caption = describe_path(game, positions)
    else:
        caption = merge_equal(
            [[i, f"{game.player} {game.moves[a]}"] for i, a in enumerate(actions)]
        )
    numbers = [console.actions[action].value for action in actions]
    return {"video": np.stack(video), "caption": caption, "action": numbers}


def _choose(console, game: Game, policy: str, held: str, rng):
    """Yields the names of actions, the first of a held one being `held`."""
    names, moves = list(console.actions), list(game.moves)
    rest = int(rng.integers(8, 20))
    while True:
        if policy == "random":
            yield names[rng.integers(len(names))]
        elif policy == "follow":
            ahead = console.memory(game.ball) - console.memory(game.position)
            wanted = game.increases if ahead > 0 else game.opposite(game.increases)
            yield wanted if abs(ahead) > 4 else "NOOP"
        else:
            yield held
            rest -= 1
            if policy == "sticky" and rest == 0:
                held, rest = moves[rng.integers(len(moves))], int(rng.integers(8, 20))


MOVED = 3  # units of the console's memory over four frames
JUMPED = 40  # over one frame: the player was put elsewhere
SHORTEST = 5  # frames of an entry of a timeline


def describe_path(game: Game, positions) -> list[list]:
    """Says from its positions what a player does, with the frame from which it holds.

    Movement over two frames on either side counts from three units; entries of fewer than five frames belong to the
    one before.

    Args:
      game: with `position` and `increases`.
      positions: T numbers from the console's memory.
    Returns:
      [[first frame, text], ...], the first at frame 0.
    """
    more = game.moves[game.increases]
    less = game.moves[game.opposite(game.increases)]
    steps = np.diff(np.asarray(positions, np.int64), prepend=positions[0])
    steps[np.abs(steps) > JUMPED] = 0
    path = np.cumsum(steps)
    last = len(path) - 1
    texts = []
    for i in range(len(path)):
        moved = path[min(i + 2, last)] - path[max(i - 2, 0)]
        texts.append(more if moved >= MOVED else less if moved <= -MOVED else "stands still")
    return merge_equal([[i, f"{game.player} {text}"] for i, text in enumerate(texts)])


def merge_equal(entries: list[list]) -> list[list]:
    """Merges equal neighbours of a timeline with an entry a frame, and short entries with the one before.

    Args:
      entries: [[frame, text], ...] for each frame.
    Returns:
      The entries that begin something new.
    """
    runs = []  # [first frame, text, frames]
    for frame, text in entries:
        if runs and runs[-1][1] == text:
            runs[-1][2] += 1
        else:
            runs.append([frame, text, 1])
    kept = []
    for first, text, length in runs:
        if kept and (length < SHORTEST or kept[-1][1] == text):
            continue
        kept.append([first, text])
    if len(runs) > 1 and runs[0][2] < SHORTEST and len(kept) > 1:
        kept = [[0, kept[1][1]], *kept[2:]]  # a short beginning belongs to what follows
    return kept


def write_episode(folder: str, name: str, episode: int, clips, frames, size, seed) -> None:
    """Records an episode and writes its clips."""
    place = pathlib.Path(folder, name.replace(" ", "_"))
    place.mkdir(parents=True, exist_ok=True)
    recorded = record_episode(name, episode, clips, frames, seed)
    for number, clip in enumerate(recorded):
        path = place / f"{episode:04d}_{number}.mp4"
        video_writer.write_video(path, squeeze(clip["video"], size), FPS)
        sidecar = {
            "captions": [clip["caption"]],
            "episode": f"{name}/{episode}",
            "numbers": {"action": clip["action"]},
        }
        atomic_files.write_text(path.with_suffix(".json"), json.dumps(sidecar) + "\n")


def squeeze(video: np.ndarray, size: int) -> np.ndarray:
    """Resizes (T, H, W, 3) uint8 to (T, size, size, 3) by areas, the whole screen to a square."""
    square = (size, size)
    return np.stack([np.asarray(Image.fromarray(f).resize(square, Image.BOX)) for f in video])


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder to write the clips to")
    parser.add_argument("--games", default=",".join(GAMES), help="names, separated by commas")
    parser.add_argument("--episodes", type=int, default=60, help="of each game")
    parser.add_argument("--clips", type=int, default=4, help="of each episode")
    parser.add_argument("--frames", type=int, default=30, help="of each clip, at 15 fps")
    parser.add_argument("--size", type=int, default=160, help="of the videos, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of games and policies")
    given = parser.parse_args(arguments)
    names = given.games.split(",")
    for name in names:
        if name not in GAMES:
            parser.error(f"--games has {name!r}: choose from {', '.join(GAMES)}.")
    for option, least in (("episodes", 1), ("clips", 1), ("frames", 2), ("size", 16), ("seed", 0)):
        if getattr(given, option) < least:
            parser.error(f"--{option} is {getattr(given, option)}: give at least {least}.")
    jobs = [(name, episode) for name in names for episode in range(given.episodes)]
    settings = (given.clips, given.frames, given.size, given.seed)
    try:
        for name in names:
            Console(name, 0)
        with (
            make_pool(min(count_usable_cpus(), len(jobs))) as pool,
            show_progress("Recording", len(jobs), "episode") as advance,
        ):
            waiting = [pool.submit(write_episode, given.output, *job, *settings) for job in jobs]
            for done in concurrent.futures.as_completed(waiting):
                done.result()
                advance()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"wrote {len(jobs) * given.clips} clips of {len(names)} games to {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
