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
import errno
import itertools
import os
import pathlib
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np
from PIL import Image

from videogen_jax.data import clock, color, gif_io, read_limits
from videogen_jax.data import container as containers
from videogen_jax.data.read_limits import Limits

SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".gif", ".mkv", ".m4v")
TIME_TOLERANCE = 0.002  # seconds; containers round times to milliseconds
SHORTEST_LAST = 0.1  # of an output frame; less is rounding (GIF counts in 1/100 s) and not shown

_OUTSIDE = (errno.EACCES, errno.EPERM, errno.EIO)  # errors of the disk, not of what the file holds
_PREDICTED = (av.video.frame.PictureType.P, av.video.frame.PictureType.B)
_Frames = Iterator[tuple[float, Callable[[], np.ndarray]]]


class VideoError(ValueError):
    """A file holds no video that can be read to its end; the sentence says why."""


class DamagedError(VideoError):
    """A video breaks off or is damaged behind its first frames."""


def read_frames(
    path,
    fps=None,
    threads=1,
    first=0,
    count=None,
    limits: Limits = read_limits.DEFAULTS,
    on_cut: Callable[[str], None] = warnings.warn,
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
      limits: bounds for what the file may cost.
      on_cut: takes a sentence that begins with the file, where the rest of a video is left out:
        behind a jump of its timestamps, or behind damage if `limits.damaged` is "cut".
    Yields:
      (seconds, frame): seconds since the first frame, and (H, W, 3) uint8 RGB.
    Raises:
      VideoError: the file is empty, broken off, damaged, not a video, has sound only, or exceeds
        the limits.
      FileNotFoundError: there is no such file.
      OSError: it cannot be opened or read from the disk.
    """
    path = _check_file(path)
    # Frames that are not wanted are never converted to RGB, which costs as much as decoding.
    stop = float("inf") if count is None else first + count
    with contextlib.closing(_open(path, threads, limits, on_cut)) as decode:
        frames = decode
        if fps is not None:
            frames = resample(_refuse_repeats(path, decode, fps, limits), fps)
        for index, (seconds, convert) in enumerate(frames):
            if first <= index < stop:
                yield seconds, convert()


def probe_video(
    path, fps: float, limits: Limits = read_limits.DEFAULTS
) -> tuple[int, int, int]:
    """Tells how large and how long a video is, decoding only its first frame.

    The times are those of the packets. Where a decoder would give fewer or more frames than there
    are packets (a damaged file, say), so does `read_frames`.

    Args:
      path: a video file.
      fps: frames per second of the result.
      limits: bounds for what the file may cost.
    Returns:
      (height, width, count): of the frames, and how many `read_frames` gives at this rate.
    Raises:
      VideoError, OSError: as `read_frames`, as far as the packets tell.
    """
    path = _check_file(path)
    decode = _open(path, 1, limits, lambda sentence: None)
    with contextlib.closing(decode):
        first = next(decode)
        height, width = first[1]().shape[:2]
        times = decode  # a GIF has no index; its frames are decoded, but never converted
        if not _is_gif(path):
            decode.close()
            first, *times = _packet_times(path, limits)
        times = _refuse_repeats(path, itertools.chain([first], times), fps, limits)
        return height, width, sum(1 for _ in resample(times, fps))


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


def _is_gif(path):
    return path.suffix.lower() == ".gif"


def _open(path, threads, limits, on_cut) -> _Frames:
    """Yields (seconds, function that makes the RGB frame), up to the end or to where it is cut."""
    frames = _decode_gif(path, limits) if _is_gif(path) else _decode(path, threads, limits)
    watch = next(frames)
    try:
        yield from frames
    except DamagedError as error:
        if limits.damaged != "cut" or not watch.count:
            raise
        on_cut(f"{error} What comes before is kept (--damaged=cut).")
    if watch.ended:
        _check_jump(path, watch, limits)
        on_cut(f"{path} {watch.ended}: the rest is left out.")


def _check_jump(path, watch, limits):
    """Raises VideoError if timestamps jump so early and so far that they mean nothing."""
    if watch.jump > limits.max_gap * watch.count:
        raise VideoError(f"{path} {watch.ended} for each of them: re-encode it, or raise the option.")


def _refuse_repeats(path, frames, fps, limits):
    """Passes on frames as long as they are not repeated out of all proportion."""
    for count, (seconds, frame) in enumerate(frames, 1):
        _check_repeats(path, seconds * fps, count, limits)
        yield seconds, frame


def _check_repeats(path, due, count, limits):
    if due > limits.max_repeats * count:
        raise VideoError(
            f"{path} is due {due:.0f} frames by its times where it holds {count}, more than "
            f"--max_repeats={limits.max_repeats:g} for each: re-encode it, or raise the option."
        )


def _packet_times(path, limits) -> Iterator[tuple[float, None]]:
    """Yields the times of a file's frames in seconds, from 0 on, by its packets."""
    times = []
    try:
        with containers.open_container(path) as container:
            stream = containers.choose_stream(container)
            watch = clock.Clock(_nominal_gap(stream), limits)
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:  # the end, or cut away by an edit list
                    continue
                time = packet.pts if packet.pts is not None else packet.dts
                seconds = None if time is None else float(time * packet.time_base)
                times.append((seconds, packet.is_keyframe))
    except av.FFmpegError as error:
        _raise_outside(error)
        if limits.damaged != "cut" or not times:
            raise DamagedError(_breaks_off(path, len(times))) from error
    keyed = itertools.dropwhile(lambda time: not time[1], times)
    for seconds in clock.order_packets(keyed if any(time[1] for time in times) else times):
        if watch.advance(seconds) is None:
            _check_jump(path, watch, limits)
            return
        yield watch.seconds, None


def _nominal_gap(stream):
    return 1.0 / float(stream.average_rate or stream.guessed_rate or 25)


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


def _decode(path, threads, limits) -> Iterator:
    """Yields the clock, then (seconds, function that makes the RGB frame) of a file that PyAV opens."""
    watch = None
    try:
        with containers.open_container(path) as container:
            stream = containers.choose_stream(container)
            watch = clock.Clock(_nominal_gap(stream), limits)
            crop = containers.read_crop(container, stream)
            convert = color.Converter(crop, stream.sample_aspect_ratio, limits)
            _limit_decoder(path, stream, threads, limits)
            yield watch
            duration = 0.0
            for frame in _whole_frames(path, container, stream, watch):
                if watch.advance(frame.time) is None:
                    return
                duration = float((frame.duration or 0) * (frame.time_base or 0))
                yield watch.seconds, _naming(path, convert, frame)
            if not watch.count:
                raise VideoError(f"{path} holds not a single whole frame: copy or re-encode it.")
            _check_length(path, container, stream, watch, duration)
    except av.FFmpegError as error:
        _raise_outside(error)
        if watch and watch.count:
            raise DamagedError(_breaks_off(path, watch.count, watch.seconds)) from error
        raise VideoError(
            f"{path} cannot be read as a video ({error.strerror}): it is broken off, damaged or "
            "of another format; copy or re-encode it."
        ) from error
    except (containers.ContainerError, color.ConversionError) as error:
        raise VideoError(f"{path} {error}") from error


def _limit_decoder(path, stream, threads, limits):
    """Sets up the decoder so that no frame can be larger than allowed, nor more threads work on it."""
    context = stream.codec_context
    if too_many := limits.too_many_pixels(context.height, context.width):
        raise VideoError(f"{path} {too_many}")
    # Frames can become larger on the way; libav refuses these before it makes room for them.
    context.options = {"max_pixels": str(int(limits.max_megapixels * 1e6))}
    context.thread_count = threads
    if threads != 1:
        context.thread_type = "AUTO"


def _whole_frames(path, container, stream, watch) -> Iterator[av.VideoFrame]:
    """Yields the frames from the first keyframe on, all of which the decoder takes for whole."""
    decoder, started, keyed = None, False, False
    for packet in container.demux(stream):
        if packet.is_corrupt:
            if started:
                raise DamagedError(_breaks_off(path, watch.count, watch.seconds))
            continue  # the first packet of a stream that was split anywhere
        decoder = decoder or containers.make_decoder(stream, packet)
        if decoder is stream.codec_context and packet.size and containers.has_alpha_beside(packet):
            raise VideoError(f"{path} becomes transparent on the way, which is not read: re-encode it.")
        keyed = keyed or packet.is_keyframe
        # An edit list may cut the keyframe away; it is decoded all the same, and not shown.
        started = started or (packet.is_keyframe and packet.is_discard)
        try:
            if decoder is stream.codec_context:
                frames = packet.decode()  # which keeps the times also at the end
            else:
                frames = decoder.decode(packet if packet.size else None)
        except av.FFmpegError:
            if started or keyed:
                raise
            continue
        for frame in frames:
            started = started or frame.key_frame or (keyed and frame.pict_type not in _PREDICTED)
            if started and frame.is_corrupt:
                raise DamagedError(_breaks_off(path, watch.count, watch.seconds))
            if started:
                yield frame


def _check_length(path, container, stream, watch, duration):
    """Raises DamagedError if a file ends before the length that it promises.

    Matroska and AVI end early without an error. A promise is rounded, and kept to the next frame. It counts from the
    first frame, or, as some writers of Matroska have it, from time 0.
    """
    missing_frames = False
    if container.format.name == "avi":
        if containers.has_avi_index(path):
            return
        missing_frames = watch.count < stream.frames
    start = watch.start
    if stream.start_time is not None:  # of the first packet; frames before a keyframe are not shown
        start = min(start, float(stream.start_time * stream.time_base))
    end = max(watch.start - start + watch.seconds, watch.last) + duration
    promised = containers.promised_seconds(container, stream)
    if missing_frames or promised - end > max(0.5, 2 * watch.largest_gap):
        raise DamagedError(_breaks_off(path, watch.count, watch.seconds))


def _raise_outside(error):
    """Raises an error of the disk or of permissions as it is: the file may be whole."""
    if isinstance(error, OSError) and error.errno in _OUTSIDE:
        raise OSError(error.errno, error.strerror, error.filename) from error


def _breaks_off(path, count, seconds=None):
    where = "" if seconds is None else f" ({seconds:.2f} s)"
    return (
        f"{path} breaks off after {count} frames{where} or is damaged there: copy or re-encode it."
    )


def _naming(path, convert, frame):
    """Returns a function that makes the RGB frame, or raises an error that names the file."""

    def make():
        try:
            return convert(frame)
        except color.ConversionError as error:
            raise VideoError(f"{path} {error}") from error

    return make


def _decode_gif(path, limits) -> Iterator:
    """Yields the clock, then (seconds, function that makes the RGB frame) of a GIF."""
    watch = clock.Clock(0.1, limits)
    yield watch
    with open(path, "rb") as file:
        if not file.read(6).startswith(gif_io.SIGNATURES):
            raise VideoError(f"{path} cannot be read as a GIF: copy it again.")
    height, width, whole = gif_io.scan(path)
    if too_many := limits.too_many_pixels(height, width):
        raise VideoError(f"{path} {too_many}")
    try:
        for seconds, convert in gif_io.decode(path):
            if watch.advance(seconds) is None:
                return
            yield watch.seconds, convert
    except (GeneratorExit, VideoError):
        raise
    except Exception as error:  # Pillow's readers raise whatever comes
        _raise_outside(error)
        if watch.count:
            raise DamagedError(_breaks_off(path, watch.count, watch.seconds)) from error
        raise VideoError(f"{path} cannot be read as a GIF: copy it again.") from error
    if not whole:  # Pillow takes the end of the file for the end of the video
        raise DamagedError(_breaks_off(path, watch.count, watch.seconds))
