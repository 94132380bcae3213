"""Video files in: frames with their times, whatever the container.

GIFs are read with imageio. Other videos are read with PyAV itself: imageio's reader yields pixels
without their times and rotation (side data), which would have to be decoded for a second time, and
it reaches neither packets nor decoder flags. Both work inside this process, frame by frame, so that
a video of any length fits into memory. What a file does not say itself is decided here, once:

- times start at 0 with the first frame; the last frame lasts as long as the average one;
- rotation metadata and non-square pixels are applied, so a frame is what a player shows;
- transparent pixels are white;
- a file that breaks off is an error, even if some of its frames could be read.
"""

import contextlib
import errno
import functools
import itertools
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from videogen_jax.data import image_io

SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".gif", ".mkv", ".m4v")
TIME_TOLERANCE = 0.002  # seconds; containers round times to milliseconds
SHORTEST_LAST = 0.1  # of an output frame; less is rounding (GIF counts in 1/100 s) and not shown

# What Pillow raises for damaged GIFs.
_GIF_ERRORS = (
    *(OSError, EOFError, SyntaxError, IndexError, ValueError, struct.error),
    Image.DecompressionBombError,
)


class VideoError(ValueError):
    """A file holds no video that can be read to its end; the sentence says why."""


def read_frames(
    path, fps=None, threads=1, first=0, count=None
) -> Iterator[tuple[float, np.ndarray]]:
    """Reads a video frame by frame.

    Args:
      path: a video file.
      fps: None for every frame of the file at its own time, else frames per second of the result,
        as `resample` chooses them.
      threads: decoder threads; 0 lets the decoder choose. More than 1 pays for long videos only.
      first: frames of the result to leave out before those wanted, which are
      count: frames; None: all up to the end. The others are decoded all the same: a file that
        breaks off behind the last one wanted is broken.
    Yields:
      (seconds, frame): seconds since the first frame, and (H, W, 3) uint8 RGB.
    Raises:
      VideoError: the file is empty, broken off, damaged, not a video, or has sound only.
      FileNotFoundError: there is no such file.
    """
    path = _check_file(path)
    decode = _decode_gif(path) if path.suffix.lower() == ".gif" else _decode(path, threads)
    # Frames that are not wanted are never converted to RGB, which costs as much as decoding.
    stop = float("inf") if count is None else first + count
    with contextlib.closing(decode):
        frames = decode if fps is None else resample(decode, fps)
        for index, (seconds, convert) in enumerate(frames):
            if first <= index < stop:
                yield seconds, convert()


def probe_video(path, fps: float) -> tuple[int, int, int]:
    """Tells how large and how long a video is, decoding only its first frame.

    The times are those of the packets. Where a decoder would give fewer or more frames than there
    are packets (a damaged file, say), so does `read_frames`.

    Args:
      path: a video file.
      fps: frames per second of the result.
    Returns:
      (height, width, count): of the frames, and how many `read_frames` gives at this rate.
    Raises:
      VideoError, FileNotFoundError: as `read_frames`, as far as the packets tell.
    """
    path = _check_file(path)
    if path.suffix.lower() == ".gif":
        # A GIF has no index; its frames are decoded, but never converted.
        with contextlib.closing(_decode_gif(path)) as decode:
            first = next(decode)
            count = sum(1 for _ in resample(itertools.chain([first], decode), fps))
        return *first[1]().shape[:2], count
    with contextlib.closing(_decode(path, 1)) as decode:
        height, width = next(decode)[1]().shape[:2]
    times = _packet_times(path)
    return height, width, sum(1 for _ in resample(((time, None) for time in times), fps))


def _check_file(path) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no video file {path}: check the path.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes): copy it again.")
    return path


def _packet_times(path) -> list[float]:
    """Returns the times of a file's frames in seconds, from 0 on, by its packets."""
    times = []
    try:
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            stream = _video_stream(container, path)
            gap = 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:  # the end, or cut away by an edit list
                    continue
                time = packet.pts if packet.pts is not None else packet.dts
                known = time is not None
                times.append(
                    float(time * packet.time_base) if known else times[-1] + gap if times else 0.0
                )
    except av.FFmpegError as error:
        raise VideoError(_breaks_off(path, len(times), max(times, default=0.0))) from error
    times.sort()  # packets come in the order of decoding
    return [time - times[0] for time in times]


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
    end = last_seconds * count / max(count - 1, 1)
    while shown == 0 or shown + SHORTEST_LAST < end * fps:
        yield shown / fps, last_frame
        shown += 1


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


def _decode(path, threads) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Yields (seconds, function that makes the RGB frame) of a file that PyAV opens."""
    count, first, seconds, largest_gap, end = 0, 0.0, 0.0, 0.0, 0.0
    to_rgb = VideoReformatter()
    try:
        # Metadata may be in any encoding: titles are none of our business.
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            stream = _video_stream(container, path)
            stream.codec_context.thread_count = threads
            if threads != 1:
                stream.thread_type = "AUTO"
            gap = 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise VideoError(_breaks_off(path, count, seconds))
                for frame in packet.decode():
                    time = frame.time if frame.time is not None else first + seconds + gap
                    first = time if not count else first
                    largest_gap = max(largest_gap, time - first - seconds)
                    seconds, count = time - first, count + 1
                    end = seconds + float((frame.duration or 0) * (frame.time_base or 0))
                    yield seconds, _converter(path, to_rgb, frame, stream.sample_aspect_ratio)
            promised = _promised_seconds(container, stream)
            missing_frames = container.format.name == "avi" and count < stream.frames
    except av.FFmpegError as error:
        if count:
            raise VideoError(_breaks_off(path, count, seconds)) from error
        raise VideoError(
            f"{path} cannot be read as a video ({error.strerror}): it is broken off, damaged or "
            "of another format; copy or re-encode it."
        ) from error
    if not count:
        raise VideoError(f"{path} holds not a single frame: copy or re-encode it.")
    # Matroska and AVI end early without an error; a promise is rounded, and kept to the next frame.
    if missing_frames or promised - end > max(0.5, 2 * largest_gap):
        raise VideoError(_breaks_off(path, count, seconds))


def _video_stream(container, path):
    """Returns the first stream of moving pictures; a song's cover is not one."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise VideoError(f"{path} has no video stream, only sound or subtitles: remove it.")


def _promised_seconds(container, stream):
    """Returns how long the file says that the video lasts; 0 where it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    said = stream.metadata.get("DURATION", "")  # "00:00:20.000000000", as Matroska has it
    with contextlib.suppress(ValueError):
        hours, minutes, seconds = said.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if len(container.streams) == 1 and container.duration:
        return container.duration / av.time_base
    return 0.0


def _breaks_off(path, count, seconds):
    return (
        f"{path} breaks off after {count} frames ({seconds:.2f} s) or is damaged there: copy or "
        "re-encode it."
    )


def _converter(path, to_rgb, frame, pixel_aspect):
    """Returns a function that makes (H, W, 3) uint8 RGB of a decoded frame, upright and square."""

    def convert():
        width = frame.width
        if pixel_aspect and pixel_aspect != 1:
            width = max(1, round(frame.width * pixel_aspect))
        try:
            image = to_rgb.reformat(frame, format="rgb24", width=width).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(
                f"{path} has pixels that cannot be converted to RGB ({frame.format.name}): "
                "re-encode it."
            ) from error
        # Display matrices turn by multiples of 90 degrees in practice, counter-clockwise.
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))

    return convert


def _decode_gif(path) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Yields (seconds, function that makes the RGB frame) of a GIF, by its frames' durations."""
    count, seconds = 0, 0.0
    try:
        with image_io.open_pictures(path, (b"GIF87a", b"GIF89a")) as (_, file):
            for rgba in file.iter(mode="RGBA", writeable_output=False):
                yield seconds, functools.partial(image_io.over_white, rgba)
                # Browsers show frames of 0 and 1/100 s for 1/10 s.
                duration = file.metadata(index=count).get("duration", 0)
                count += 1
                seconds += duration / 1000 if duration > 10 else 0.1
    except _GIF_ERRORS as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EIO):
            raise
        if count:
            raise VideoError(_breaks_off(path, count, seconds)) from error
        raise VideoError(f"{path} cannot be read as a GIF: copy it again.") from error
    # Pillow takes the end of the file for the end of the video; a whole GIF ends with ";".
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        if not file.read().rstrip(b"\0\r\n").endswith(b";"):
            raise VideoError(_breaks_off(path, count, seconds))
