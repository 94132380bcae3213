"""Consistency of long videos of moving shapes: whether colour and shape match the caption throughout.

Each window of WINDOW frames is judged like a separate video. Direction is not judged, because it
changes at the walls in `bouncing_shapes` (`data/synthetic.py`).
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

    Windows are consecutive. If they do not divide the video, a last one ends with it and overlaps
    the one before, so that every frame is covered.

    Args:
      video: (T, H, W, 3) uint8 RGB, T >= WINDOW.
    Returns:
      List of (first frame, Verdict), in order.
    Raises:
      ValueError: the video is shorter than a window, or has another shape or dtype.
    """
    frames = len(video)
    if frames < WINDOW:
        raise ValueError(
            f"a video of {frames} frames is shorter than a window of {WINDOW}: judge it as a whole."
        )
    starts = [*range(0, frames - WINDOW, WINDOW), frames - WINDOW]
    return [(start, judge(video[start : start + WINDOW])) for start in starts]


def consistency_rates(videos, captions):
    """Computes the rates at which videos match their captions from the first to the last frame.

    Args:
      videos: iterable of N videos (T, H, W, 3) uint8, T >= WINDOW, read one at a time; None for a
        video that could not be read, which counts as wrong.
      captions: N captions of the moving-shapes grammar.
    Returns:
      As `count_consistent`.
    Raises:
      ValueError: as `judge_windows` and `count_consistent`.
    """
    verdicts = ([] if video is None else judge_windows(video) for video in videos)
    return count_consistent(verdicts, captions)


def count_consistent(verdicts, captions):
    """Counts the videos whose windows all match the caption's colour and shape.

    Args:
      verdicts: iterable of N results of `judge_windows`; an empty list for a video that could not
        be read, which counts as wrong and has no windows.
      captions: N captions of the moving-shapes grammar.
    Returns:
      dict with "num_videos" and "window", then "colour", "shape" and "both" (both in all windows),
      each {"rate", "right", "low", "high", "chance"} as in `caption_rates`; "windows": for each
      "first_frame" of windows, in order, the same rates over the "num_videos" windows there;
      "videos": for each video its caption, the detected attributes of each window ("seen"), and the
      first frame of the first window with a wrong colour, a wrong shape or either ("lost"; None if
      there is none).
    Raises:
      ValueError: a caption is not of the grammar, or the numbers of captions and videos differ.
    """
    verdicts, captions = list(verdicts), list(captions)
    if len(verdicts) != len(captions):
        raise ValueError(
            f"there are {len(verdicts)} videos for {len(captions)} captions: give one caption for each."
        )
    windows = {}  # first frame -> name -> whether each video with a window there is right
    records = []
    for judged, caption in zip(verdicts, captions, strict=True):
        colour, shape, _ = parse_caption(caption)
        lost = {name: None if judged else 0 for name in CHANCES}
        for start, verdict in judged:
            right = {"colour": verdict.colour == colour, "shape": verdict.shape == shape}
            right["both"] = all(right.values())
            window = windows.setdefault(start, {name: [] for name in CHANCES})
            for name in CHANCES:
                window[name].append(right[name])
                if not right[name] and lost[name] is None:
                    lost[name] = start
        seen = [
            {"first_frame": start, "colour": verdict.colour, "shape": verdict.shape}
            for start, verdict in judged
        ]
        records.append({"caption": caption, "seen": seen, "lost": lost})
    rates = {"num_videos": len(records), "window": WINDOW}
    for name, chance in CHANCES.items():
        consistent = [record["lost"][name] is None for record in records]
        rates[name] = rate_of(sum(consistent), len(records), chance)
    rates["windows"] = [
        {"first_frame": start, "num_videos": len(window["both"])}
        | {name: rate_of(sum(window[name]), len(window[name]), CHANCES[name]) for name in CHANCES}
        for start, window in sorted(windows.items())
    ]
    return rates | {"videos": records}
