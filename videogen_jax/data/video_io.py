"""Video files in: frames with their times, whatever the container.

GIFs are read with imageio. Other videos are read with PyAV itself: imageio's reader yields pixels
without their times and rotation (side data), which would have to be decoded for a second time, and
it reaches neither packets nor decoder flags. Both work inside this process, frame by frame, so that
a video of any length fits into memory. What a file does not say itself is decided here, once:

- times start at 0 with the first frame, go on where timestamps start anew, and end before a jump of
  minutes (`clock`); the last frame lasts as long as the average one;
- a frame is what a player shows: cropped, upright, with square pixels, in its colours, on white
  (`color`);
- frames before the first keyframe are left out: they refer to frames that are not there;
- a file that breaks off or is damaged is an error, even if some of its frames could be read, unless
  `Limits.damaged` says otherwise.
"""

import contextlib
import functools
import itertools
import pathlib
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from videogen_jax.data import read_limits, video_decoding, video_spans
from videogen_jax.data.clock import TIME_TOLERANCE
from videogen_jax.data.read_limits import Limits
from videogen_jax.data.video_decoding import VideoError
from videogen_jax.data.video_spans import WHOLE, Span

SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".gif", ".mkv", ".m4v")
SHORTEST_LAST = 0.1  # of an output frame; less is rounding (GIF counts in 1/100 s) and not shown


class FrameSample(NamedTuple):
    """Frames of a video, evenly spaced in time, or an image as the only one."""

    frames: np.ndarray  # (count, H, W, 3) uint8 RGB
    indices: tuple[int, ...]  # which frames of the file they are, from 0
    num_frames: int  # of the file
    fps: float | None  # frames per second of the file, on average; None: an image


def read_frames(path, *args, **options) -> Iterator[tuple[float, np.ndarray]]:
    """Reads a video frame by frame; arguments and errors as `read_numbered_frames`.

    Yields:
      (seconds, frame): seconds since the first frame, and (H, W, 3) uint8 RGB.
    """
    for _, seconds, frame in read_numbered_frames(path, *args, **options):
        yield seconds, frame


def read_numbered_frames(
    path,
    fps=None,
    threads=1,
    first=0,
    count=None,
    limits: Limits = read_limits.DEFAULTS,
    on_cut: Callable[[str], None] = warnings.warn,
    on_end: Callable[[int], None] = lambda count: None,
    on_frame: Callable[[np.ndarray], None] | None = None,
    span: Span = WHOLE,
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Reads a video frame by frame, and tells which frame of the file each one is.

    Args:
      path: a video file.
      fps: None for every frame of the file at its own time, else frames per second of the result,
        as `resample` chooses them.
      threads: decoder threads; 0 lets the decoder choose. More than 1 pays for long videos only.
      first: frames of the result to leave out before those wanted, which are
      count: frames; None: all up to the end. The others are decoded all the same: a file that
        breaks off behind the last one wanted is broken.
      limits: bounds for what the file may cost.
      on_cut: takes a sentence that begins with the file, where the rest of a video is left out:
        behind a jump of its timestamps, or behind damage if `limits.damaged` is "cut".
      on_end: takes the number of frames of the file, or of what is kept of it, after the last one.
      on_frame: takes every frame of the file, (H, W, 3) uint8 RGB, before any frame that is chosen later; all frames
        are converted then.
      span: part of the video that is read as if it were the file: indices, times and `first` count
        from its first frame. What comes behind it is not decoded.
    Yields:
      (index, seconds, frame): which frame of the file it is, seconds since the first one, and (H, W, 3) uint8 RGB.
    Raises:
      VideoError: the file is empty, broken off, damaged, not a video, has sound only, or exceeds
        the limits.
      FileNotFoundError: there is no such file.
      OSError: it cannot be opened or read from the disk.
    """
    path = _check_file(path)
    # Frames that are not wanted are never converted to RGB, which costs as much as decoding.
    stop = float("inf") if count is None else first + count
    with contextlib.closing(video_spans.open_span(path, span, threads, limits, on_cut)) as decode:
        total = 0

        def number():
            nonlocal total
            for seconds, convert in decode:
                total += 1
                if on_frame:
                    convert = functools.cache(convert)  # it may be chosen as well
                    on_frame(convert())
                yield seconds, (total - 1, convert)

        frames = number()
        if fps is not None:
            frames = resample(_refuse_repeats(path, frames, fps, limits), fps)
        for index, (seconds, (source, convert)) in enumerate(frames):
            if first <= index < stop:
                yield source, seconds, convert()
    on_end(total)


def probe_video(
    path, fps: float, limits: Limits = read_limits.DEFAULTS, span: Span = WHOLE
) -> tuple[int, int, int]:
    """Tells how large and how long a video is, decoding only its first frame.

    The times are those of the packets. Where a decoder would give fewer or more frames than there
    are packets (a damaged file, say), so does `read_frames`. A span is decoded, but only its first
    frame converted to RGB.

    Args:
      path: a video file.
      fps: frames per second of the result.
      limits: bounds for what the file may cost.
      span: part of the video, as in `read_numbered_frames`.
    Returns:
      (height, width, count): of the frames, and how many `read_frames` gives at this rate.
    Raises:
      VideoError, OSError: as `read_frames`, as far as the packets tell.
    """
    path = _check_file(path)
    decode = video_spans.open_span(path, span, 1, limits, lambda sentence: None)
    with contextlib.closing(decode):
        first = next(decode)
        height, width = first[1]().shape[:2]
        times = decode  # a GIF has no index; its frames are decoded, but never converted
        if span == WHOLE and not video_decoding.is_gif(path):
            decode.close()
            first, *times = video_decoding.packet_times(path, limits)
        times = _refuse_repeats(path, itertools.chain([first], times), fps, limits)
        return height, width, sum(1 for _ in resample(times, fps))


def sample_frames(
    path,
    count: int,
    threads=1,
    limits: Limits = read_limits.DEFAULTS,
    on_cut: Callable[[str], None] = warnings.warn,
    span: Span = WHOLE,
) -> FrameSample:
    """Reads frames that are evenly spaced in time: those shown in the middle of `count` equal parts of the video.

    The file is decoded to its end, as by `read_frames`, so that what is damaged is found; frames that are not chosen
    are neither converted to RGB nor kept.

    Args:
      path: a video file.
      count: number of frames; of a video that has fewer frames, as many as it has. 1 is the middle one.
      threads: as for `read_numbered_frames`.
      limits: bounds for what the file may cost.
      on_cut: as for `read_numbered_frames`.
      span: part of the video, as in `read_numbered_frames`.
    Returns:
      The frames; those of another size than the first one are resized and cropped to it.
    Raises:
      VideoError, OSError: as `read_frames`.
    """
    path = _check_file(path)
    with contextlib.closing(video_spans.open_span(path, span, threads, limits, on_cut)) as decode:
        first = next(decode)
        times = [seconds for seconds, _ in _read_times(path, limits, span)]
        duration = _measure(times[-1], len(times))
        wanted, total = min(count, len(times)), 0

        def number():
            nonlocal total
            for seconds, convert in itertools.chain([first], decode):
                total += 1
                yield seconds, (total - 1, convert)

        frames, indices = [], []
        # Of twice as many frames as are wanted, every other one is in the middle of a part.
        fps = 2 * wanted / duration if duration else 1.0
        for half, (_, (index, convert)) in enumerate(resample(number(), fps)):
            if (half % 2 or not duration) and len(frames) < wanted:
                frame = convert()
                frames.append(fit_frame(frame, (frames or [frame])[0].shape[:2]))
                indices.append(index)
    if not frames:
        raise VideoError(f"{path} holds fewer frames than its index lists: re-encode it.")
    fps = total / duration if duration else 1.0
    return FrameSample(np.stack(frames), tuple(indices), total, fps)


def _read_times(path, limits, span) -> Iterator[tuple[float, object]]:
    """Yields (seconds, _) of each frame; those of a span or a GIF, without an index, are decoded, but not converted."""
    if span == WHOLE and not video_decoding.is_gif(path):
        yield from video_decoding.packet_times(path, limits)
        return
    decode = video_spans.open_span(path, span, 1, limits, lambda sentence: None)
    with contextlib.closing(decode):
        yield from decode


def _check_file(path) -> pathlib.Path:
    """Returns the path of a file that can be opened and is not empty."""
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no video file {path}: check the path.")
    if not stat.S_ISREG(path.stat().st_mode):
        raise VideoError(f"{path} is no regular file: remove it.")
    with open(path, "rb"):  # where libav cannot, it does not always say why
        pass
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes): copy it again.")
    return path


def _refuse_repeats(path, frames, fps, limits):
    """Passes on frames as long as they are not repeated out of all proportion."""
    for count, (seconds, frame) in enumerate(frames, 1):
        _check_repeats(path, seconds * fps, count, limits)
        yield seconds, frame


def _check_repeats(path, due, count, limits):
    if due > limits.max_repeats * count:
        raise VideoError(
            f"{path} is due {due:.0f} frames by its times where it holds {count}, more than "
            f"--max_repeats={limits.max_repeats:g} for each: re-encode it, or raise this option of pack."
        )


def read_video(path, fps=None) -> np.ndarray:
    """Reads a whole video into memory.

    Args:
      path: a video file.
      fps: as in `read_frames`.
    Returns:
      (T, H, W, 3) uint8 RGB.
    Raises:
      VideoError: as `read_frames`, or the frame size changes on the way.
    """
    frames = [frame for _, frame in read_frames(path, fps, threads=0)]
    if len({frame.shape for frame in frames}) != 1:
        raise VideoError(f"{path} changes its frame size on the way: re-encode it at one size.")
    return np.stack(frames)


def resample(frames: Iterable[tuple[float, object]], fps: float) -> Iterator[tuple[float, object]]:
    """Chooses frames for a constant frame rate: the latest at or before each output time.

    Output k shows time k / fps, for every k / fps at least SHORTEST_LAST / fps before the end of
    the video; the last frame lasts as long as the average one. Times count as equal within
    TIME_TOLERANCE. A slower video is repeated, never blended.

    Args:
      frames: (seconds, frame) with rising seconds, starting at 0.
      fps: output frames per second.
    Yields:
      (k / fps, frame).
    """
    count, shown, last_seconds, last_frame = 0, 0, 0.0, None
    for seconds, frame in frames:
        while count and shown / fps < seconds - TIME_TOLERANCE:
            yield shown / fps, last_frame
            shown += 1
        count, last_seconds, last_frame = count + 1, seconds, frame
    if not count:
        return
    end = _measure(last_seconds, count)
    while shown == 0 or shown + SHORTEST_LAST < end * fps:
        yield shown / fps, last_frame
        shown += 1


def _measure(last_seconds: float, count: int) -> float:
    """Returns the seconds of a video: its last frame lasts as long as the average one."""
    return last_seconds * count / max(count - 1, 1)


def fit_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a frame until it covers a size, and cuts what sticks out: half on each side.

    Bicubic with antialiasing (Pillow's, whose support grows with the reduction).

    Args:
      frame: (H, W, 3) uint8.
      size: (height, width) of the result in pixels.
    Returns:
      (height, width, 3) uint8.
    """
    height, width = frame.shape[:2]
    if (height, width) == tuple(size):
        return frame
    scale = min(height / size[0], width / size[1])  # source pixels per output pixel
    top = (height - scale * size[0]) / 2
    left = (width - scale * size[1]) / 2
    box = (left, top, left + scale * size[1], top + scale * size[0])
    image = Image.fromarray(frame)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))
