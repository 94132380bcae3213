"""Video files in and out: frames with their times, whatever the container.

Decoding and encoding run inside this process (PyAV; Pillow for GIF), frame by frame, so that a
video of any length fits into memory. What a file does not say itself is decided here, once:

- times start at 0 with the first frame; the last frame lasts as long as the average one;
- rotation metadata and non-square pixels are applied, so a frame is what a player shows;
- transparent pixels are white;
- a file that breaks off is an error, even if some of its frames could be read.
"""

import contextlib
import errno
import fractions
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageSequence

SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".gif", ".mkv", ".m4v")
WRITABLE_SUFFIXES = (".mp4", ".webm", ".gif")
TIME_TOLERANCE = 0.002  # seconds; containers round times to milliseconds
SHORTEST_LAST = 0.1  # of an output frame; less is rounding (GIF counts in 1/100 s) and not shown
MAX_GIF_FPS = 50  # a GIF counts in 1/100 s, and players slow down frames of 1/100 s

_ENCODERS = {
    # Near lossless; "veryfast" halves the time against the default and costs only file size.
    # Without "mbtree", whose vector code gives other bytes on every tenth run for small frames.
    ".mp4": ("mp4", "libx264", {"crf": "12", "preset": "veryfast", "x264-params": "mbtree=0"}),
    ".webm": ("webm", "libvpx-vp9", {"crf": "15", "b:v": "0", "cpu-used": "5"}),
}
_BT601 = 6  # colour space "SMPTE 170M" in ITU-T H.273: what swscale computes unless told otherwise
_LIMITED_RANGE = 1


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


def write_video(path, video: np.ndarray, fps: float) -> None:
    """Writes mp4 (H.264), webm (VP9) or gif, by the suffix; never leaves half a file behind.

    mp4 and webm as `open_writer` writes them. A GIF keeps the pixels' places but has 256 colours
    per frame, and shows equal neighbouring frames as one longer one.

    Args:
      path: file to write or replace; its folder exists.
      video: (T, H, W, 3) uint8 RGB, T >= 1.
      fps: frames per second.
    Raises:
      ValueError: the array is no such video, or the suffix is another.
      OSError: the disk is full, or the folder is missing.
    """
    path = pathlib.Path(path)
    video = _check_frames(video)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE_SUFFIXES:
        raise ValueError(
            f"cannot write {path.name}: name it with one of {', '.join(WRITABLE_SUFFIXES)}."
        )
    _check_rate(path, fps)
    if suffix != ".gif":
        with open_writer(path, fps) as write:
            write(video)
        return
    with _finish(path) as unfinished:
        _write_gif(unfinished, video, fps)


@contextlib.contextmanager
def open_writer(path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens mp4 (H.264) or webm (VP9), by the suffix, to write a video of any length bit by bit.

    yuv420p; an odd side is padded to even by repeating its last row or column. The file appears
    when the context is left, and only if it is left without an exception.

    >>> with open_writer("long.mp4", fps=8) as write:
    ...     for frames in chunks:
    ...         write(frames)

    Args:
      path: file to write or replace; its folder exists.
      fps: frames per second.
    Yields:
      write(frames): frames (N, H, W, 3) uint8 RGB, N >= 1, of one size in all calls. They are
      encoded at once but for the few dozen that the codec looks ahead.
    Raises:
      ValueError: the suffix is another, the frames are no such frames or of another size than
        those before, or none was written.
      OSError: the disk is full, or the folder is missing.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix == ".gif":
        raise ValueError(f"cannot write {path.name} frame by frame: write mp4 or webm.")
    if suffix not in _ENCODERS:
        raise ValueError(f"cannot write {path.name}: name it with one of {', '.join(_ENCODERS)}.")
    _check_rate(path, fps)
    with _finish(path) as unfinished, _encoder(unfinished, path, fps, *_ENCODERS[suffix]) as write:
        yield write


def _check_frames(frames) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(
            f"a video to write has shape (T, H, W, 3) and dtype uint8, not {frames.shape} "
            f"{frames.dtype}: convert it first."
        )
    return frames


def _check_rate(path, fps):
    if not fps > 0 or (path.suffix.lower() == ".gif" and fps > MAX_GIF_FPS):
        raise ValueError(
            f"cannot write {path.name} at {fps} frames per second: give more than 0, and at most "
            f"{MAX_GIF_FPS} for a GIF."
        )


@contextlib.contextmanager
def _finish(path):
    """Yields the name to write under until the file is whole; after an exception nothing is left."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except av.FFmpegError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _encoder(unfinished, path, fps, container_format, codec, options):
    """Encodes with PyAV; odd sides must not reach libx264, which aborts the process."""
    to_yuv = VideoReformatter()  # one for all frames: setting it up takes longer than its work
    size = None  # of the frames

    with av.open(os.fspath(unfinished), "w", format=container_format) as container:
        rate = fractions.Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate, options=options)

        def write(frames):
            nonlocal size
            frames = _check_frames(frames)
            height, width = frames.shape[1:3]
            if size is None:
                size = height, width
                stream.height, stream.width = height + height % 2, width + width % 2
            elif size != (height, width):
                raise ValueError(
                    f"cannot add frames of {height}x{width} to {path.name}, which began with "
                    f"{size[0]}x{size[1]}: write frames of one size."
                )
            padding = ((0, height % 2), (0, width % 2), (0, 0))
            for image in frames:
                image = np.pad(image, padding, mode="edge") if any(map(any, padding)) else image
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                container.mux(stream.encode(to_yuv.reformat(frame, format="yuv420p")))

        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # the same bytes whatever the machine; callers run many at once
        # Said in the file, because players guess BT.709 for large frames.
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        context.color_range = _LIMITED_RANGE
        yield write
        if size is None:
            raise ValueError(f"no frame was written to {path}: write at least one.")
        container.mux(stream.encode())


def _write_gif(path, video, fps):
    """Writes a GIF; the hundredths of a second are shared out so that the times do not drift."""
    times = np.round(np.arange(len(video) + 1) * 100 / fps).astype(int)
    first, *others = (Image.fromarray(image) for image in video)
    durations = [int(10 * gap) for gap in np.diff(times)]
    first.save(path, "GIF", save_all=True, append_images=others, duration=durations, loop=0)


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
        with Image.open(path, formats=["GIF"]) as image:
            for page in ImageSequence.Iterator(image):
                rgba = page.convert("RGBA")
                yield seconds, lambda rgba=rgba: _over_white(rgba)
                count += 1
                # Browsers show frames of 0 and 1/100 s for 1/10 s.
                duration = page.info.get("duration", 0)
                seconds += duration / 1000 if duration > 10 else 0.1
    except (OSError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
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


def _over_white(rgba):
    """Composites a Pillow RGBA image over white; returns (H, W, 3) uint8."""
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
