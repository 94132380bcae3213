"""Parses the cells of tables of clips: seconds, lists and spans of time."""

import json
import math
import re
from ast import literal_eval
from collections.abc import Sequence
from typing import Any

from videogen_jax.data.video_spans import Span
from videogen_jax.packing.sidecars import SidecarError

MAX_LIST_CHARACTERS = 2**20  # of a list that is written as text
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d*)?|\.\d+)")  # 0:01:06.124


def parse_seconds(cell: Any, what: str) -> float | None:
    """Parses a time.

    Args:
      cell: a number of seconds, or text: of one, or of [hours:]minutes:seconds.
      what: the name of the time, for the message.
    Returns:
      Seconds, to the microsecond; None if the cell is empty.
    Raises:
      SidecarError: it is none of these, negative or not finite.
    """
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    seconds = math.nan
    if isinstance(cell, str):
        text = cell.strip()
        if match := _CLOCK.fullmatch(text):
            hours, minutes, rest = match.groups(default="0")
            seconds = 3600.0 * int(hours) + 60.0 * int(minutes) + float(rest)
        else:  # such as 1.2e3, or -1 and nan, which are refused
            try:
                seconds = float(text)
            except ValueError:
                pass
    elif isinstance(cell, int | float) and not isinstance(cell, bool):
        seconds = float(cell) if abs(cell) < 1e9 else math.inf
    if not 0 <= seconds < 1e9:
        raise SidecarError(
            f"{what} is {show(cell)}: give seconds from 0 on, or hours:minutes:seconds"
        )
    return round(seconds, 6)


def parse_span(start: Any, end: Any) -> Span:
    """Makes the span of two cells; an empty start is 0, an empty end that of the video.

    Raises:
      SidecarError: a cell is no time, or the end is not after the start.
    """
    first = parse_seconds(start, "its start") or 0.0
    last = parse_seconds(end, "its end")
    if last is not None and last <= first:
        raise SidecarError(f"its end, {last:g} s, is not after its start, {first:g} s")
    return Span(first, last)


def parse_list(cell: Any, what: str) -> list[Any]:
    """Parses a list, or text that holds one as JSON or Python writes it; nothing is executed.

    Args:
      cell: the cell.
      what: its name, for the message.
    Raises:
      SidecarError: it is no list.
    """
    content = cell
    if isinstance(cell, str) and len(cell) <= MAX_LIST_CHARACTERS and cell.strip().startswith("["):
        try:
            content = json.loads(cell)
        except (ValueError, RecursionError):
            try:
                content = literal_eval(cell.strip())  # takes literals only
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                pass
    if not isinstance(content, list | tuple):
        raise SidecarError(f"{what} should be a list, but is {show(cell)}")
    return list(content)


def parse_clips(times: Any, captions: Sequence[Any]) -> list[tuple[Span, list[Any]]]:
    """Reads several clips from one row, as Panda-70M has them.

    Args:
      times: a list of [start, end], or its text.
      captions: of each caption column a list of as many captions, or its text.
    Returns:
      The span and the captions of each clip.
    Raises:
      SidecarError: the lists are none, or of several lengths.
    """
    pairs = parse_list(times, "its list of times")
    lists = [parse_list(cell, "its list of captions") for cell in captions]
    spans = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise SidecarError(f"its list of times has {show(pair)} instead of [start, end]")
        spans.append(parse_span(*pair))
    for texts in lists:
        if len(texts) != len(spans):
            raise SidecarError(f"it has {len(spans)} times, but {len(texts)} captions")
    return [(span, [texts[index] for texts in lists]) for index, span in enumerate(spans)]


def show(cell: Any) -> str:
    """The beginning of a cell, for a message."""
    text = json.dumps(cell, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."
