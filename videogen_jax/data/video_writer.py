"""Video files out: mp4 and webm of any length, frame by frame, and GIF, all through imageio.

imageio has no arguments for an encoder's options, its threads and the colours that a file names:
these are set on the PyAV stream that imageio's writer holds.
"""

import contextlib
import fractions
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import av
import imageio.v3 as iio
import numpy as np
from imageio.plugins.pyav import PyAVPlugin

from videogen_jax.data import image_io

WRITABLE_SUFFIXES = (".mp4", ".webm", ".gif")
MAX_GIF_FPS = 50  # a GIF counts in 1/100 s, and players slow down frames of 1/100 s

_ENCODERS = {
    # Near lossless; "veryfast" halves the time against the default and costs only file size.
    # Without "mbtree", whose vector code gives other bytes on every tenth run for small frames.
    ".mp4": ("mp4", "libx264", {"crf": "12", "preset": "veryfast", "x264-params": "mbtree=0"}),
    ".webm": ("webm", "libvpx-vp9", {"crf": "15", "b:v": "0", "cpu-used": "5"}),
}
_BT601 = 6  # colour space "SMPTE 170M" in ITU-T H.273: what swscale computes unless told otherwise
_LIMITED_RANGE = 1


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
    # The hundredths of a second are shared out so that the times do not drift.
    times = np.round(np.arange(len(video) + 1) * 100 / fps).astype(int)
    gif = image_io.encode_gif(video, [int(10 * gap) for gap in np.diff(times)])
    with _finish(path) as file, _disk_errors(path):
        file.write(gif)


def write_lossless(path, video: np.ndarray, fps: float) -> None:
    """Writes an mp4 of H.264 in RGB without loss: `read_frames` gives the same bytes back.

    For small frames, whose pixels are compared; the files are some ten times as large as those of `write_video`, and
    many players do not show them.

    Args:
      path: file to write or replace; its folder exists.
      video: (T, H, W, 3) uint8 RGB, T >= 1.
      fps: frames per second.
    Raises:
      ValueError: the array is no such video, or the suffix is not .mp4.
      OSError: the disk is full, or the folder is missing.
    """
    path = pathlib.Path(path)
    video = _check_frames(video)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"cannot write {path.name} without loss: name it with .mp4.")
    _check_rate(path, fps)
    rate = fractions.Fraction(fps).limit_denominator(1001)
    with _finish(path) as file, _disk_errors(path), av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.codec_context.thread_count = 1
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


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
    with _finish(path) as file, _encoder(file, path, fps, *_ENCODERS[suffix]) as write:
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
def _finish(path) -> Iterator[BinaryIO]:
    """Yields a file that becomes `path` when it is whole; after an exception nothing is left."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with _disk_errors(path):
            file = open(unfinished, "wb")
        try:
            yield file
            with _disk_errors(path):
                file.close()
                os.replace(unfinished, path)
        finally:
            with contextlib.suppress(OSError):  # what cannot be written is removed anyway
                file.close()
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(path):
    """Names the file in errors of writing it."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def _encoder(file, path, fps, container, codec, options):
    """Encodes with imageio; odd sides must not reach libx264, which aborts the process."""
    size = None  # of the frames
    video = iio.imopen(file, "w", plugin=_Writer, extension=path.suffix, container=container)
    rate = fractions.Fraction(fps).limit_denominator(1001)
    video.init_video_stream(codec, fps=float(rate), pixel_format="yuv420p")
    video.set_up_encoder(options)

    def write(frames):
        nonlocal size
        frames = _check_frames(frames)
        height, width = frames.shape[1:3]
        size = size or (height, width)
        if size != (height, width):
            raise ValueError(
                f"cannot add frames of {height}x{width} to {path.name}, which began with "
                f"{size[0]}x{size[1]}: write frames of one size."
            )
        padding = ((0, height % 2), (0, width % 2), (0, 0))
        with _disk_errors(path):
            for image in frames:
                video.write_frame(np.pad(image, padding, mode="edge"))

    yield write
    if size is None:
        raise ValueError(f"no frame was written to {path}: write at least one.")
    with _disk_errors(path):
        video.close()


class _Writer(PyAVPlugin):
    """imageio's pyav plugin with the encoder's options, and closed only where a video is whole.

    The plugin closes its file from the destructor too, where it would go on encoding after an
    error, and each time it collects the garbage of the whole process (0.2 s beside TensorFlow) for
    the sake of filters, which are not used here.
    """

    def set_up_encoder(self, options):
        context = self._video_stream.codec_context
        context.options.update(options)
        context.thread_count = 1  # the same bytes whatever the machine; callers run many at once
        # Said in the file, because players guess BT.709 for large frames.
        context.colorspace = context.color_primaries = context.color_trc = _BT601
        context.color_range = _LIMITED_RANGE

    def close(self):
        self._flush_writer()
        self._container.close()
        self.request.finish()

    def __del__(self):
        pass
