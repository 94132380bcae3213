"""The part of packing that runs in workers: turns a video or an image into the records of its clips.

Imports no TensorFlow, which would take ten seconds in each worker.
"""

import contextlib
from collections.abc import Iterator

import msgpack
import numpy as np

from videogen_jax.data import image_io, records, video_io
from videogen_jax.packing.settings import Settings


def extract_clips(
    path: str, spill: str, settings: Settings, first: int = 0, count: int | None = None
) -> tuple[str | None, int]:
    """Decodes a video or image and writes its clips to a file, as records of msgpack; runs in a worker.

    Args:
      path: video or image file.
      spill: file to write, because the clips of an hour of video are too large to return.
      settings: settings of the data set.
      first: first frame, at the frame rate of the data set.
      count: number of frames; None: to the end.
    Returns:
      (None or the reason to leave out the video, or what comes after its clips; frames cut off after the last clip).
    Raises:
      OSError: the disk is full or fails while clips are written.
    """
    clips, clip = 0, []
    failures: list[str] = []  # at most one
    left_out: list[str] = []  # at most one
    frames = _read_frames(path, settings, first, count, left_out.append)
    with open(spill, "wb") as file:
        for frame in _until_failure(path, frames, failures):
            clip.append(video_io.fit_frame(frame, settings.size))
            if len(clip) == settings.frames:
                msgpack.pack(_make_record(clip, settings.fps), file)
                clips, clip = clips + 1, []
        if failures:
            file.seek(0)
            file.truncate()
            return failures[0], 0
        if len(clip) >= settings.min_frames:
            msgpack.pack(_make_record(clip, settings.fps), file)
            clips, clip = clips + 1, []
    rest = left_out[0].removeprefix(f"{path} ") if left_out else None
    if clips:
        return rest, len(clip)
    found = f"{first + len(clip)} frames at {settings.fps:g} frames per second"
    if rest:
        return f"too short: {found}, because it {rest}", 0
    if count is None:
        return f"too short: {found}, and --min_frames is {settings.min_frames}", 0
    return f"too short: {found}, although its index lists {first + count}", 0


def describe_failure(path: str, error: Exception) -> str:
    """Returns why a file is skipped: what its decoder raised, in one line without the path in front."""
    if isinstance(error, video_io.VideoError | image_io.ImageError):
        return str(error).removeprefix(f"{path} ")
    if isinstance(error, FileNotFoundError):
        return "is no longer there"
    if isinstance(error, PermissionError):
        return f"cannot be opened ({error.strerror})"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    text = " ".join(str(error).split())
    return f"cannot be read ({type(error).__name__}{': ' if text else ''}{text}): re-encode it"


def _until_failure(path, frames, failures) -> Iterator[np.ndarray]:
    """Yields frames until reading them fails, and adds the reason to `failures`."""
    try:
        yield from frames
    except Exception as error:  # whatever a decoder raises is the fault of this file alone
        failures.append(describe_failure(path, error))


def _read_frames(path, settings, first, count, on_cut) -> Iterator[np.ndarray]:
    if image_io.is_image(path):
        yield image_io.read_image(path, settings.limits)
        return
    options = {"fps": settings.fps, "first": first, "count": count}
    for _, frame in video_io.read_frames(path, **options, limits=settings.limits, on_cut=on_cut):
        yield frame


def _make_record(clip, fps):
    """Returns the fields of `records.serialize_clip` that are computed from the pixels."""
    video = np.stack(clip)  # (T, H, W, 3)
    return {
        "strips": records.encode_strips(video),
        "fps": fps,
        "num_frames": video.shape[0],
        "height": video.shape[1],
        "width": video.shape[2],
        "motion_score": records.motion_score(video, fps),
    }


def read_clips(spill) -> Iterator[dict]:
    """Yields the records written by `extract_clips`; none if it wrote no file."""
    with contextlib.suppress(FileNotFoundError), open(spill, "rb") as file:
        yield from msgpack.Unpacker(file, max_buffer_size=0)  # a clip may be of any size
