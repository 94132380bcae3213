"""Two sets of videos that must score worse than the videos that they are made from.

- `still`: the first evaluated frame stands still. It looks as good as the videos and does not move.
- `shuffled`: the evaluated frames in random order. Every frame is a video's own, and only their order is wrong.

A score that does not rank both below the videos says nothing about motion.
"""

from collections.abc import Callable, Iterator

import numpy as np

from videogen_jax.evaluation.clip_sets import Clip, Clips, Window

SEED = 0  # of the orders
DESCRIPTION = (
    f"first frame still; frames in random order, seed {SEED}"  # as the protocol names them
)


def make_baselines(clips: Clips, window: Window, seed: int = SEED) -> dict[str, Clips]:
    """Makes both baselines of a set, one clip at a time.

    Args:
      clips: set to make them from; a clip that is too short stays as it is.
      window: frames of each clip that are evaluated, and that are rearranged.
      seed: of the random orders.
    Returns:
      "still" and "shuffled" to the sets, whose clips have the names of the originals.
    Raises:
      ValueError: the window has a single frame.
    """
    check_window(window)
    return {
        "still": _rearrange(clips, window, lambda number: np.zeros(window.frames, int)),
        "shuffled": _rearrange(
            clips, window, lambda number: draw_order(window.frames, seed, number)
        ),
    }


def check_window(window: Window) -> None:
    """Checks that the evaluated frames have an order.

    Raises:
      ValueError: the window has a single frame.
    """
    if window.frames < 2:
        raise ValueError(
            "Single frames have no order: leave out --baselines, or evaluate 2 --frames or more."
        )


def draw_order(frames: int, seed: int, number: int) -> np.ndarray:
    """Draws a random order of frames that is not the original one.

    Args:
      frames: T >= 2.
      seed: of all orders.
      number: of the clip.
    Returns:
      (T,) a permutation of 0 ... T - 1, uniform over all but the identity.
    """
    rng = np.random.default_rng((seed, number))
    while True:
        order = rng.permutation(frames)
        if (order != np.arange(frames)).any():
            return order


def _rearrange(clips: Clips, window: Window, choose_order: Callable[[int], np.ndarray]) -> Clips:
    """The clips with their evaluated frames in another order; the other frames stay where they are."""

    def read() -> Iterator[Clip]:
        for number, clip in enumerate(clips()):
            try:
                chosen = window.choose_frames(0 if clip.video is None else len(clip.video))
            except ValueError:  # the reader of the set names the reason
                yield clip
                continue
            frames = np.arange(len(clip.video))
            frames[chosen] = frames[chosen][choose_order(number)]
            yield clip._replace(video=clip.video[frames])

    return read
