"""The frames of a video file with their times, not yet converted to RGB; the work behind `video_io`.

`open_frames` chooses between Pillow, for GIFs, and libav. Both give frames from the first keyframe on, by their clock,
until the file ends, is damaged, breaks off before the length that it promises, or jumps in time.
"""

import errno
import pathlib
from collections.abc import Callable, Iterator

import av
import numpy as np

from videogen_jax.data import clock, color, gif_io
from videogen_jax.data import container as containers
from videogen_jax.data.read_limits import Limits

_PREDICTED = (av.video.frame.PictureType.P, av.video.frame.PictureType.B)
# Decoders that conceal damage without marking the frame unless they are told to stop at it.
_STRICT = ("mjpeg", "hevc", "png")
_INDEXED = ("mov,mp4", "matroska")  # formats of libav whose index has the times of keyframes


class VideoError(ValueError):
    """A file holds no video that can be read to its end; the sentence says why."""


class DamagedError(VideoError):
    """A video breaks off or is damaged behind its first frames."""


class SeekError(VideoError):
    """A video has to be decoded from its first frame on, because its index does not lead to a later one."""


def open_frames(
    path: pathlib.Path,
    threads: int,
    limits: Limits,
    on_cut: Callable[[str], None],
    start: float = 0.0,
) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Decodes a video, up to its end or to where it is cut.

    Args:
      path: an existing file.
      threads: decoder threads; 0 lets the decoder choose.
      limits: bounds for what the file may cost.
      on_cut: takes a sentence that begins with the file, where the rest is left out.
      start: seconds since the first frame; above 0, decoding starts at the last keyframe at or before it.
    Yields:
      (seconds since the first frame, function that makes the RGB frame).
    Raises:
      VideoError: as `video_io.read_frames`.
      SeekError: `start` is above 0, and the file cannot be decoded from a later keyframe.
    """
    frames = _decode_gif(path, limits) if is_gif(path) else _decode(path, threads, limits, start)
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


def is_gif(path: pathlib.Path) -> bool:
    """Says by its suffix whether a file is taken for a GIF."""
    return path.suffix.lower() == ".gif"


def _check_jump(path, watch, limits):
    """Raises VideoError if timestamps jump so early and so far that they mean nothing."""
    if watch.jump > limits.max_gap * watch.count:
        raise VideoError(
            f"{path} {watch.ended} for each of them: re-encode it, or raise this option of pack."
        )


def packet_times(path: pathlib.Path, limits: Limits) -> Iterator[tuple[float, None]]:
    """Reads the times of a file's frames from its packets, without decoding them.

    Args:
      path: a video file, no GIF.
      limits: bounds for its times.
    Yields:
      (seconds since the first frame, None).
    Raises:
      VideoError: the file is damaged, or its times exceed the limits.
    """
    times, keyed = [], False
    try:
        with containers.open_container(path, limits.max_pixels) as container:
            stream = containers.choose_stream(container)
            watch = clock.Clock(_nominal_gap(stream), limits)
            for packet in container.demux(stream):
                keyed = keyed or packet.is_keyframe
                if not packet.size or packet.is_discard:  # the end, or cut away by an edit list
                    continue
                time = packet.pts if packet.pts is not None else packet.dts
                seconds = None if time is None else float(time * packet.time_base)
                times.append((seconds, packet.is_keyframe, keyed))
    except av.FFmpegError as error:
        if limits.damaged != "cut" or not times:
            raise DamagedError(_breaks_off(path, len(times))) from error
    shown = [time[:2] for time in times if time[2] or not keyed]  # from the first keyframe on
    for seconds in clock.order_packets(shown):
        if watch.advance(seconds) is None:
            _check_jump(path, watch, limits)
            return
        yield watch.seconds, None


def _nominal_gap(stream):
    return 1.0 / float(stream.average_rate or stream.guessed_rate or 25)


def _decode(path, threads, limits, start=0.0) -> Iterator:
    """Yields the clock, then (seconds, function that makes the RGB frame) of a file that PyAV opens."""
    watch = None
    try:
        with containers.open_container(path, limits.max_pixels) as container:
            stream = containers.choose_stream(container)
            watch = clock.Clock(_nominal_gap(stream), limits)
            crop = containers.read_crop(container, stream)
            convert = color.Converter(crop, stream.sample_aspect_ratio, limits)
            _limit_decoder(path, stream, threads, limits)
            if start:
                first = _seek(path, container, stream, watch, start)
                watch = clock.Clock(_nominal_gap(stream), limits, first)
            yield watch
            duration = 0.0
            for frame in _whole_frames(path, container, stream, watch):
                if start and frame.time is None:
                    raise SeekError(f"{path} has frames without a time.")
                if watch.advance(frame.time) is None:
                    return
                duration = float((frame.duration or 0) * (frame.time_base or 0))
                yield watch.seconds, _naming(path, convert, frame)
            if not watch.count:
                raise VideoError(f"{path} holds not a single whole frame: copy or re-encode it.")
            _check_length(path, container, stream, watch, duration)
    except av.FFmpegError as error:
        if watch and watch.count:
            raise DamagedError(_breaks_off(path, watch.count, watch.seconds)) from error
        raise VideoError(
            f"{path} cannot be read as a video ({error.strerror}): it is broken off, damaged or "
            "of another format; copy or re-encode it."
        ) from error
    except (containers.ContainerError, color.ConversionError) as error:
        raise VideoError(f"{path} {error}") from error


def _seek(path, container, stream, watch, start) -> float:
    """Goes to the last keyframe at or before a time; returns the timestamp of the first frame in seconds.

    An index whose times do not rise with the positions is that of files that were joined, whose times start anew.
    """
    if not container.format.name.startswith(_INDEXED):
        raise SeekError(f"{path} has no index of times.")
    first = next(_whole_frames(path, container, stream, watch), None)
    if first is None or first.time is None:
        raise SeekError(f"{path} has no first frame with a time.")
    container.seek(int((first.time + start) / stream.time_base), stream=stream)
    if container.format.name.startswith("matroska"):
        positions = [entry.pos for entry in stream.index_entries]
        if positions != sorted(positions):
            raise SeekError(f"{path} has times that start anew.")
    return first.time


def _limit_decoder(path, stream, threads, limits):
    """Sets up the decoder so that no frame can be larger than allowed, nor more threads work on it."""
    context = stream.codec_context
    if too_many := limits.too_many_pixels(context.height, context.width):
        raise VideoError(f"{path} {too_many}")
    # Frames can become larger on the way; libav refuses these before it makes room for them.
    context.options = {"max_pixels": str(limits.max_pixels)}
    if context.name in _STRICT:
        context.options |= {"err_detect": "crccheck+explode"}
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
            raise VideoError(
                f"{path} becomes transparent on the way, which is not read: re-encode it."
            )
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
        if containers.count_avi_index(path, stream.index) >= stream.frames:
            return
        missing_frames = watch.count < stream.frames
    start = watch.start
    if stream.start_time is not None:  # of the first packet; frames before a keyframe are not shown
        start = min(start, float(stream.start_time * stream.time_base))
    end = max(watch.start - start + watch.seconds, watch.last) + duration
    promised = containers.promised_seconds(container, stream)
    if missing_frames or promised - end > max(0.5, 2 * watch.largest_gap):
        raise DamagedError(_breaks_off(path, watch.count, watch.seconds))


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
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise  # an error of the disk: the file may be whole
        if watch.count:
            raise DamagedError(_breaks_off(path, watch.count, watch.seconds)) from error
        raise VideoError(f"{path} cannot be read as a GIF: copy it again.") from error
    if not watch.count:
        raise VideoError(f"{path} holds not a single whole frame: copy or re-encode it.")
    if not whole:  # Pillow takes the end of the file for the end of the video
        raise DamagedError(_breaks_off(path, watch.count, watch.seconds))
