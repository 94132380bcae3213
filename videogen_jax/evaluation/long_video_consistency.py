"""Whether long videos of moving shapes keep the colour and the shape that their captions ask for.

A long video is judged window by window, WINDOW frames each, as if every window were a video of its
own. Direction is not judged: walls turn the shapes of `bouncing_shapes` (`data/synthetic.py`).
"""

from videogen_jax.data.synthetic import COLOURS, SHAPES, parse_caption
from videogen_jax.evaluation.moving_shapes import judge, rate_of

WINDOW = 16  # frames
CHANCES = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "both": 1 / (len(COLOURS) * len(SHAPES)),
}


def judge_windows(video):
    """Judges a video window by window.

    Windows follow one another; where they leave a rest, one more ends with the video and overlaps
    the one before it, so that every frame is looked at.

    Args:
      video: (T, H, W, 3) uint8 RGB, T >= WINDOW.
    Returns:
      List of (first frame, Verdict), in order.
    Raises:
      ValueError: the video is shorter than a window, or no such video.
    """
    frames = len(video)
    if frames < WINDOW:
        raise ValueError(
            f"a video of {frames} frames fills no window of {WINDOW}: judge it as a whole."
        )
    starts = [*range(0, frames - WINDOW, WINDOW), frames - WINDOW]
    return [(start, judge(video[start : start + WINDOW])) for start in starts]


def kept_rates(videos, captions):
    """Counts how many videos show their captions' colour and shape from the first to the last frame.

    Args:
      videos: iterable of (T, H, W, 3) uint8 videos, T >= WINDOW, read one at a time; None stands
        for one that could not be read, which keeps nothing.
      captions: as many captions of the moving-shapes grammar.
    Returns:
      As `count_kept`.
    Raises:
      ValueError: as `judge_windows` and `count_kept`.
    """
    return count_kept(([] if video is None else judge_windows(video) for video in videos), captions)


def count_kept(seen, captions):
    """Counts in how many videos every window shows the caption's colour and shape.

    Args:
      seen: iterable of what `judge_windows` returns; an empty list for a video that could not be
        read, which keeps nothing and has no windows.
      captions: as many captions of the moving-shapes grammar.
    Returns:
      dict with "num_videos" and "window", then "colour", "shape" and "both" (in every window both
      at once), each {"rate", "right", "low", "high", "chance"} as in `caption_rates`; "windows": in
      order of "first_frame" the same three rates of the windows that begin there, "num_videos" of
      them; "videos": per video the caption, what was seen in each window, and "lost": the first
      frame of the first window that shows another colour, shape or either, None where none does.
    Raises:
      ValueError: a caption is not of the grammar, or there are not as many captions as videos.
    """
    seen, captions = list(seen), list(captions)
    if len(seen) != len(captions):
        raise ValueError(
            f"there are {len(seen)} videos for {len(captions)} captions: give one caption for each."
        )
    lost = {name: [] for name in CHANCES}  # of each video
    windows = {}  # first frame -> name -> of each video that has a window there: is it right?
    records = []
    for verdicts, caption in zip(seen, captions, strict=True):
        colour, shape, _ = parse_caption(caption)
        wrong = {name: None if verdicts else 0 for name in CHANCES}
        for start, verdict in verdicts:
            right = {"colour": verdict.colour == colour, "shape": verdict.shape == shape}
            right["both"] = all(right.values())
            there = windows.setdefault(start, {name: [] for name in CHANCES})
            for name in CHANCES:
                there[name].append(right[name])
                if not right[name] and wrong[name] is None:
                    wrong[name] = start
        for name in CHANCES:
            lost[name].append(wrong[name])
        shown = [
            {"first_frame": start, "colour": verdict.colour, "shape": verdict.shape}
            for start, verdict in verdicts
        ]
        records.append({"caption": caption, "seen": shown, "lost": wrong})
    rates = {"num_videos": len(records), "window": WINDOW}
    for name, chance in CHANCES.items():
        rates[name] = rate_of(lost[name].count(None), len(records), chance)
    rates["windows"] = [
        {"first_frame": start, "num_videos": len(there["both"])}
        | {name: rate_of(sum(there[name]), len(there[name]), CHANCES[name]) for name in CHANCES}
        for start, there in sorted(windows.items())
    ]
    return rates | {"videos": records}
