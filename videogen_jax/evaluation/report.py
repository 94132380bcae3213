"""The HTML report of a run: scores with their protocol, animated samples, curves and options in one file.

The file is self-contained: images are data URIs, curves are inline SVG, and a short script shows the point under the
pointer.
"""

import base64
import html
import itertools
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from videogen_jax.data.atomic_files import write_text
from videogen_jax.evaluation import bounds
from videogen_jax.evaluation.clip_sets import Clips, Window
from videogen_jax.generate import contact_sheet

WIDTH, HEIGHT = 300, 170  # size of a curve's figure, in units of its SVG like the margins
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22  # margins for the tick labels
TIME_ROW = 12  # height of the labels of training time below
STEP_SECONDS = "speed/step_seconds"  # the curve that training time follows from
MAX_POINTS = 600  # drawn of a curve: more than its width in pixels
LOG_RATIO = 5  # ratio of maximum to minimum from which a loss has a log axis
MAX_VIDEOS = 16  # of each set in the report
MAX_SIDE = 128  # pixels of their longer side
STILL_FPS = 8.0  # of videos without a frame rate

Curve = tuple[Sequence[int], Sequence[float]]  # steps, ascending, and values


def write_report(
    path: str | Path,
    *,
    title: str,
    scores: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
    options: Mapping[str, Any],
    curves: Mapping[str, Curve],
    videos: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the page atomically.

    Args:
      path: of the HTML file.
      title: plain text, like all names and notes.
      scores: list of {"name", "value", optional "low", "high" (ends of the interval), "n", "note"}.
      protocol: name of a setting that the scores depend on to its value.
      options: dotted name of an option, such as "model.width", to its value; shown by section.
      curves: tag, such as "loss/train", to steps and values; grouped by the part before the first slash.
      videos: list of {"title", "gif": the file's bytes, or "mp4", optional "captions": of its tiles, row by row}.
    Raises:
      ValueError: a video is neither.
      OSError: the file cannot be written.
    """
    groups: dict[str, list[str]] = {}
    for tag in sorted(curves):
        groups.setdefault(tag.partition("/")[0] if "/" in tag else "", []).append(tag)
    time_of = make_training_time(curves)
    figures = [
        f'<section><h3>{escape(group)}</h3>\n<div class="cards">\n'
        + "\n".join(draw_curve(tag, *curves[tag], time_of) for tag in tags)
        + "\n</div></section>"
        for group, tags in groups.items()
    ]
    samples = "\n".join(
        render_video(video["title"], video.get("gif") or video["mp4"], video.get("captions", ()))
        for video in videos
    )
    sections = [
        render_scores(scores, protocol),
        f'<section><h2>Samples</h2>\n<div class="videos">\n{samples}\n</div></section>'
        if samples
        else "",
        "<section><h2>Curves</h2>\n" + "\n".join(figures) + "</section>" if figures else "",
        f"<section><h2>Config</h2>\n{render_options(options)}</section>" if options else "",
    ]
    template = resources.files(__package__).joinpath("report_template.html")
    page = Template(template.read_text(encoding="utf-8")).substitute(
        title=escape(title), sections="\n".join(filter(None, sections))
    )
    write_text(path, page)


def animate_sets(
    sets: Mapping[str, Clips | None],
    window: Window,
    captions: Mapping[str, Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Animates the first clips of each set.

    Args:
      sets: title to set; None is skipped.
      window: frames of each clip that are shown.
      captions: title to caption of each clip by its name.
    Returns:
      List of {"title", "gif", "captions"} for `write_report`.
    """
    videos = []
    for title, clips in sets.items():
        readable = (clip for clip in (clips() if clips else ()) if clip.video is not None)
        shown = [
            (clip, contact_sheet.downscale(_crop(clip.video, window), MAX_SIDE))
            for clip in itertools.islice(readable, MAX_VIDEOS)
        ]
        # One GIF holds frames of one size.
        equal = [pair for pair in shown if pair[1].shape == shown[0][1].shape]
        if equal:
            fps = shown[0][0].fps / window.stride or STILL_FPS
            gif, _ = contact_sheet.animation(np.stack([frames for _, frames in equal]), fps)
            known = (captions or {}).get(title, {})
            names = [known[clip.name] for clip, _ in equal if clip.name in known]
            names = names if len(names) == len(equal) else []
            videos.append({"title": title, "gif": gif, "captions": names})
    return videos


def _crop(video: np.ndarray, window: Window) -> np.ndarray:
    """The frames that are evaluated; of a shorter video all."""
    span = (window.frames - 1) * window.stride + 1
    return window.crop(video) if len(video) >= span else video[:: window.stride]


def escape(text: Any) -> str:
    """Escapes a value for use between tags and in quoted attributes."""
    return html.escape(str(text))


def format_number(value: float, digits: int = 4) -> str:
    """Formats a number with `digits` significant digits: 0.04321, 1.5e-6, 12,000."""
    if abs(value) >= 10**digits and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def render_scores(scores: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> str:
    """The section of scores, and that of their protocol beside it."""
    has_counts = any("n" in score for score in scores)
    columns = bounds.COLUMNS | {"share": "of the way"}
    columns = {key: name for key, name in columns.items() if any(key in score for score in scores)}
    head = ["Score", "Value", "Interval", *columns.values(), *["N"] * has_counts, "Notes"]
    numbers = ("Value", "N", *columns.values())
    rows = [
        f"<th{' class=number' * (name in numbers)} scope=col>{escape(name.capitalize())}</th>"
        for name in head
    ]
    rows = ["<thead><tr>" + "".join(rows) + "</tr></thead><tbody>"]
    for score in scores:
        value, low, high = (score.get(key) for key in ("value", "low", "high"))
        interval = ""
        if low is not None and high is not None:
            interval = f"{format_number(low)} to {format_number(high)}"
        number = "none" if value is None else format_number(value, 6)
        rows.append(
            f"<tr><th scope=row>{escape(score['name'])}</th><td class='number value'>{number}</td>"
            f"<td>{interval}</td>"
            + "".join(f"<td class=number>{_show(key, score)}</td>" for key in columns)
            + f"<td class=number>{escape(score.get('n', ''))}</td>" * has_counts
            + f"<td class=faint>{escape(score.get('note') or '')}{_list_parts(score)}</td></tr>"
        )
    table = "<table>\n" + "\n".join(rows) + "\n</tbody></table>"
    table = table if scores else "<p class=faint>Not evaluated yet.</p>"
    sections = f"<section><h2>Scores</h2>\n{table}</section>"
    if protocol:
        sections += f"\n<section>\n{render_details('Protocol', render_table(protocol))}</section>"
    return f'<div class="beside">\n{sections}\n</div>'


def _show(key: str, score: Mapping[str, Any]) -> str:
    """A floor, ceiling, baseline or share of a score; empty where it has none."""
    if key not in score:
        return ""
    return f"{score[key]:.1%}" if key == "share" else format_number(score[key])


def _list_parts(score: Mapping[str, Any]) -> str:
    """The scores that a score consists of, in a collapsible element; empty where there are none."""
    parts = {
        part["name"]: f"{part['value']:.1%} ({part.get('note', '')})"
        for part in score.get("parts", ())
    }
    return render_details("Each", render_table(parts)) if parts else ""


def render_table(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = [
        f"<tr><th scope=row class=faint>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in values.items()
    ]
    return "<table><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def render_options(options: Mapping[str, Any]) -> str:
    """Options by dotted name, in collapsible elements: one for all and one for each section."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        section, _, key = name.rpartition(".")
        sections.setdefault(section, {})[key] = value
    top = sections.pop("", {})
    parts = [render_table(top)] if top else []
    parts += [render_details(name, render_table(lines)) for name, lines in sections.items()]
    return render_details("All options", "\n".join(parts))


def render_details(title: str, content: str) -> str:
    """A collapsible element, initially closed."""
    return f"<details><summary>{escape(title)}</summary>\n{content}</details>"


def render_video(title: str, video: bytes, captions: Sequence[str] = ()) -> str:
    """A figure that plays a GIF or an mp4.

    Args:
      title: plain text.
      video: the file's bytes.
      captions: of its tiles, row by row.
    Raises:
      ValueError: the bytes are neither.
    """
    data = base64.b64encode(video).decode()
    if video[4:8] == b"ftyp":
        player = (
            f'<video src="data:video/mp4;base64,{data}" autoplay loop muted playsinline controls '
            f'aria-label="{escape(title)}"></video>'
        )
    elif video[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack("<HH", video[6:10])
        player = (
            f'<img src="data:image/gif;base64,{data}" width={width} height={height} '
            f'alt="{escape(title)}">'
        )
    else:
        raise ValueError(
            f"The video {title!r} is neither a GIF nor an mp4: make it with contact_sheet.animation."
        )
    entries = "".join(f"<li>{escape(caption) or 'no caption'}</li>" for caption in captions)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{player}"
        + (f"<ol class=faint>{entries}</ol>" if captions else "")
        + "</figure>"
    )


def make_training_time(curves: Mapping[str, Curve]) -> Callable[[float], float] | None:
    """The seconds that training took up to a step, without samples, validation and pauses between calls.

    Args:
      curves: as for `write_report`; the time follows from the curve STEP_SECONDS.
    Returns:
      Function of a step; None without that curve.
    """
    curve = zip(*curves.get(STEP_SECONDS, ((), ())), strict=True)
    known = [(step, value) for step, value in curve if math.isfinite(value)]
    if not known:
        return None
    steps, seconds = map(np.asarray, zip(*known, strict=True))
    totals = np.cumsum(np.diff(steps, prepend=0) * seconds)
    return lambda step: float(np.interp(step, [0, *steps], [0.0, *totals]))


def format_time(seconds: float) -> str:
    """A duration in a unit of its size: 90 s, 12 min, 3.5 h, 4 d."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{format_number(seconds / length, 2 if unit == 'h' else 3)} {unit}"
    return f"{format_number(seconds / 86400, 2)} d"


def draw_curve(
    tag: str,
    steps: Sequence[int],
    values: Sequence[float],
    time_of: Callable[[float], float] | None = None,
) -> str:
    """A figure of one curve, captioned with its last value.

    A positive loss with a range of LOG_RATIO or more has a log axis. Values that are not finite are left out and
    counted in the caption.

    Args:
      tag: name of the curve; a log axis needs "loss" in it.
      steps: (n,) ascending.
      values: (n,).
      time_of: seconds of training up to a step, for a second row of labels; None: no such row.
    Returns:
      HTML.
    """
    points = [(s, float(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    name = escape(tag.partition("/")[2] or tag)
    num_missing = len(steps) - len(points)
    missing = f" <small>{num_missing} not finite</small>" * bool(num_missing)
    if not points:
        return f"<figure><figcaption><span>{name}{missing}</span></figcaption></figure>"
    points = downsample(points)
    low, high = min(v for _, v in points), max(v for _, v in points)
    log = "loss" in tag and low > 0 and high >= LOG_RATIO * low
    first, last = points[0][0], points[-1][0]
    x_ends = (first, last) if last > first else (first - 1, first + 1)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    y_ends = (low / 1.1, high * 1.1) if log else (low - pad, high + pad)

    def place(value: float, ends: tuple[float, float], start: float, stop: float) -> float:
        return round(start + (stop - start) * (value - ends[0]) / (ends[1] - ends[0]), 1)

    def x_of(step: float) -> float:
        return place(step, x_ends, LEFT, WIDTH - RIGHT)

    def y_of(value: float) -> float:
        if log:
            return place(math.log(value), tuple(map(math.log, y_ends)), HEIGHT - BOTTOM, TOP)
        return place(value, y_ends, HEIGHT - BOTTOM, TOP)

    parts = []
    for tick in log_ticks(*y_ends) if log else ticks(*y_ends, 5):
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        label = format_number(tick, 3)
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    floor = HEIGHT - BOTTOM
    axis = f"M{LEFT} {floor}H{WIDTH - RIGHT}"
    for tick in ticks(*x_ends, 5):
        if float(tick).is_integer():
            x = x_of(tick)
            axis += f"M{x} {floor}v4"
            anchor = "end" if x > WIDTH - RIGHT - 15 else "middle"
            label = format_number(tick)
            parts.append(f'<text x="{x}" y="{HEIGHT - 4}" text-anchor="{anchor}">{label}</text>')
            if time_of is not None and tick >= 0:
                time = format_time(time_of(tick))
                row = f'class="time" x="{x}" y="{HEIGHT + TIME_ROW - 4}"'
                parts.append(f'<text {row} text-anchor="{anchor}">{time}</text>')
    parts.append(f'<path class="axis" d="{axis}"/>')
    placed = [(x_of(s), y_of(v)) for s, v in points]
    parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in placed)}"/>')
    parts.append(f'<circle cx="{placed[-1][0]}" cy="{placed[-1][1]}" r="3"/>')
    labels = [
        [x, y, f"{s:,}", format_number(v)] for (x, y), (s, v) in zip(placed, points, strict=True)
    ]
    described = (
        f"{escape(tag)}, {'log axis, ' * log}{labels[0][3]} at step {labels[0][2]}, "
        f"{labels[-1][3]} at step {labels[-1][2]}, between {format_number(low)} and {format_number(high)}"
    )
    data = escape(json.dumps(labels, separators=(",", ":")))
    return (
        f'<figure data-curve="{data}">'
        f"<figcaption><span>{name}{' <small>log</small>' * log}{missing}</span>"
        f"<output><b>{labels[-1][3]}</b> <small>step {labels[-1][2]}</small></output></figcaption>\n"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + TIME_ROW * (time_of is not None)}" role="img" aria-label="{described}">\n'
        + "\n".join(parts)
        + "\n</svg></figure>"
    )


def downsample(points: list[tuple[int, float]], most: int = MAX_POINTS) -> list[tuple[int, float]]:
    """Reduces a curve to both ends and the minimum and maximum of each interval, so that spikes remain."""
    if len(points) <= most:
        return points
    count = most // 2 - 1
    inside = range(1, len(points) - 1)
    kept = {0, len(points) - 1}
    for i in range(count):
        interval = inside[i * len(inside) // count : (i + 1) * len(inside) // count]
        kept |= {pick(interval, key=lambda j: points[j][1]) for pick in (min, max)}
    return [points[i] for i in sorted(kept)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in an interval: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    places = max(0, -math.floor(math.log10(gap)))
    return [round(i * gap, places) for i in range(math.ceil(low / gap), math.floor(high / gap) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a positive interval; with 2 and 5 times these if it has fewer than three decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    return [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
