"""Prompt accuracy of moving-shapes videos: rates of a folder, their table, and minimum rates."""

import math
from pathlib import Path

from videogen_jax.data.progress import show_progress
from videogen_jax.data.synthetic import parse_caption
from videogen_jax.evaluation import long_video_consistency, moving_shapes, video_folders

RATES = ("colour", "direction", "shape")


def can_judge(caption):
    """Whether a caption is of the moving-shapes grammar."""
    try:
        parse_caption(caption)
    except ValueError:
        return False
    return True


def judge_videos(videos, prompts):
    """Judges videos against their prompts, long ones also window by window.

    Args:
      videos: as in `moving_shapes.caption_rates`.
      prompts: one of the moving-shapes grammar for each video.
    Returns:
      The result of `moving_shapes.caption_rates`. If a video is longer than a window, also "kept":
      the result of `long_video_consistency.count_consistent` for all such videos and the unreadable
      ones, with its "videos" moved into the entries of "videos", as "kept" of each.
    Raises:
      ValueError: as `moving_shapes.caption_rates`.
    """
    windows = {}  # index of the video -> verdicts of its windows

    def judge_long_videos():
        for index, video in enumerate(videos):
            if video is None:
                windows[index] = []
            elif len(video) > long_video_consistency.WINDOW:
                windows[index] = long_video_consistency.judge_windows(video)
            yield video

    report = moving_shapes.caption_rates(judge_long_videos(), prompts)
    if any(windows.values()):
        report["kept"] = long_video_consistency.count_consistent(
            windows.values(), [prompts[index] for index in windows]
        )
        for index, record in zip(windows, report["kept"].pop("videos"), strict=True):
            report["videos"][index]["kept"] = {key: record[key] for key in ("seen", "lost")}
    return report


def judge_folder(folder):
    """Judges the videos of a folder against their prompts.

    Args:
      folder: path of the folder; see `video_folders.list_videos`.
    Returns:
      dict with "generated", then the result of `judge_videos`, its "videos" with "file" and "seed",
      then "unreadable": [{"file", "reason"}], which count as wrong, and "not_listed": videos that
      `samples.json` does not list, which do not count.
    Raises:
      ValueError: as `video_folders.list_videos`, or a prompt is not of the moving-shapes grammar.
    """
    entries, not_listed = video_folders.list_videos(folder)
    for entry in entries:
        if not can_judge(entry["prompt"]):
            raise ValueError(
                f"the prompt of {Path(folder) / entry['file']}, {video_folders.shorten(entry['prompt'])!r}, is "
                'not like "a red circle moving up left": only such prompts can be judged, so give --reference or '
                "--clip for others."
            )
    unreadable = []

    def read_all():
        with show_progress("Judging", len(entries), "video") as advance:
            for entry in entries:
                video, _, reason = video_folders.try_to_read(Path(folder) / entry["file"])
                if video is None:
                    unreadable.append({"file": entry["file"], "reason": reason})
                yield video
                advance(1)

    report = judge_videos(read_all(), [entry["prompt"] for entry in entries])
    for entry, record in zip(entries, report["videos"], strict=True):
        record.update({key: entry[key] for key in ("file", "seed") if key in entry})
    return {
        "generated": str(folder),
        **report,
        "unreadable": unreadable,
        "not_listed": not_listed,
    }


def format_table(report):
    """Formats the rates as a table."""
    lines = [f"{'':<11}{'rate':>7}{'right':>7}{'of':>6}{'95 % interval':>20}{'chance':>9}"]
    for name in (*RATES, "all"):
        rate = report[name]
        interval = f"{rate['low']:.1%} - {rate['high']:.1%}"
        lines.append(
            f"{'all three' if name == 'all' else name:<11}{rate['rate']:>7.1%}{rate['right']:>7}"
            f"{report['num_videos']:>6}{interval:>20}{rate['chance']:>9.1%}"
        )
    return "\n".join(lines)


def parse_requirements(text):
    """Parses "colour=0.95,shape=0.8" to {"colour": 0.95, "shape": 0.8}.

    Raises:
      ValueError: a name is unknown, or a value is not in [0, 1].
    """
    required = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if name not in (*RATES, "all") or not 0.0 <= rate <= 1.0:
            raise ValueError(
                f"--require has an invalid entry {item!r}: write it like "
                '"colour=0.95,direction=0.80,shape=0.80", each rate between 0 and 1.'
            )
        required[name] = rate
    return required


def to_scores(report):
    """The rates as entries of the report's scores."""
    scores = [
        {
            "name": "all three" if name == "all" else name,
            "value": report[name]["rate"],
            "low": report[name]["low"],
            "high": report[name]["high"],
            "note": f"{report[name]['right']} of {report['num_videos']} videos, Wilson 95 %; "
            f"guessing {report[name]['chance']:.1%}",
        }
        for name in (*RATES, "all")
    ]
    return scores + [
        {
            "name": f"{name} kept",
            "value": report["kept"][name]["rate"],
            "low": report["kept"][name]["low"],
            "high": report["kept"][name]["high"],
            "note": f"{report['kept'][name]['right']} of {report['kept']['num_videos']} videos in every window of "
            f"{long_video_consistency.WINDOW} frames, Wilson 95 %; guessing {chance:.1%}; "
            + " ... ".join(
                f"{window[name]['rate']:.1%} from frame {window['first_frame']}"
                for window in (report["kept"]["windows"][0], report["kept"]["windows"][-1])
            ),
        }
        for name, chance in long_video_consistency.CHANCES.items()
        if "kept" in report
    ]


def check_rates(report, required, output):
    """Checks the rates against the required ones.

    Args:
      report: result of `judge_folder` or `judge_videos`; empty if no prompt was judged.
      required: result of `parse_requirements`.
      output: file with the verdicts, for the error message.
    Raises:
      ValueError: a rate is too low, or there are none.
    """
    if required and not report:
        raise ValueError(
            "--require needs prompts of moving shapes, but these are others: leave it out."
        )
    below = [
        f"{name} {report[name]['rate']:.1%} < {rate:.1%}"
        for name, rate in required.items()
        if report[name]["rate"] < rate
    ]
    if below:
        raise ValueError(
            f"below --require: {', '.join(below)}; {output} lists the verdict of each video."
        )
