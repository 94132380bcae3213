"""Parts of a video from one second to another, read as if each were a file that holds the frames of that time.

Decoding begins at the last keyframe before the span where the index of the file leads to it, and at the first frame of
the file where it does not; the frames are the same. Seconds are those of the video: since its first frame.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from videogen_jax.data import video_decoding
from videogen_jax.data.clock import TIME_TOLERANCE
from videogen_jax.data.read_limits import Limits
from videogen_jax.data.video_decoding import VideoError

SEEK_FROM = 2.0  # seconds; before, decoding from the start costs less than seeking

Frames = Iterator[tuple[float, Callable[[], np.ndarray]]]


class Span(NamedTuple):
    """A part of a video."""

    start: float = 0.0  # seconds since the first frame of the video
    end: float | None = None  # seconds, not included; None: the end of the video


WHOLE = Span()


def open_span(
    path: pathlib.Path, span: Span, threads: int, limits: Limits, on_cut: Callable[[str], None]
) -> Frames:
    """Decodes the frames of a video whose times are in a span, up to TIME_TOLERANCE.

    Damage and jumps of the timestamps outside the span are not looked for.

    Args:
      path: an existing file.
      span: part of the video.
      threads: as for `video_decoding.open_frames`.
      limits: as for `video_decoding.open_frames`.
      on_cut: as for `video_decoding.open_frames`.
    Yields:
      (seconds since the first frame of the span, function that makes the RGB frame).
    Raises:
      VideoError: as `video_io.read_frames`, or the span has no frame.
    """
    if span == WHOLE:
        frames = video_decoding.open_frames(path, threads, limits, on_cut)
        with contextlib.closing(frames):
            yield from frames
        return
    known, frames = _seek(path, span, threads, limits, on_cut)
    if frames is None:
        frames = video_decoding.open_frames(path, threads, limits, on_cut)
    first = last = None
    with contextlib.closing(frames):
        for seconds, convert in itertools.chain(known, frames):
            if span.end is not None and seconds >= span.end - TIME_TOLERANCE:
                break
            last = seconds
            if seconds >= span.start - TIME_TOLERANCE:
                first = seconds if first is None else first
                yield seconds - first, convert
        else:
            if first is None:
                raise VideoError(
                    f"{path} has its last frame at {last:.2f} s, before the clip begins ({span.start:g} s)."
                )
    if first is None:
        raise VideoError(f"{path} has no frame from {span.start:g} s to {span.end:g} s.")


def _seek(path, span, threads, limits, on_cut) -> tuple[list, Frames | None]:
    """Decodes from the last keyframe at or before a span up to the span's first frame.

    Returns:
      (that frame, or the last one of the video if all come before the span; those that follow), or ([], None) if the
      video has to be decoded from its first frame on.
    Raises:
      VideoError: as `video_decoding.packet_times`.
    """
    if span.start < SEEK_FROM or video_decoding.is_gif(path):
        return [], None
    cuts: list[str] = []
    arrived = False
    frames = video_decoding.open_frames(
        path,
        threads,
        limits,
        lambda sentence: on_cut(sentence) if arrived else cuts.append(sentence),
        start=span.start,
    )
    first = frame = None
    try:
        for frame in frames:
            first = frame[0] if first is None else first
            arrived = frame[0] >= span.start - TIME_TOLERANCE
            if arrived:
                break
    except VideoError:  # also of frames that refer to what comes before the keyframe
        cuts.append("damaged")
    # Frames of the span may lie before the first one that was found after its start.
    if arrived and first <= span.start + TIME_TOLERANCE:
        return [frame], frames
    frames.close()
    if not arrived and not cuts:  # times that start anew may reach the span all the same
        for seconds, _ in video_decoding.packet_times(path, limits):
            if seconds >= span.start - TIME_TOLERANCE:
                return [], None
        return [frame], (one for one in ())
    return [], None
