"""The part of packing that runs in workers: turns a video or an image into the pickled records of its clips.

Imports no TensorFlow, which would take ten seconds in each worker.
"""

import contextlib
import pickle
from collections.abc import Iterator

import numpy as np

from videogen_jax.data import image_io, records, video_io
from videogen_jax.packing.settings import Settings


def extract_clips(
    path: str, spill: str, settings: Settings, first: int = 0, count: int | None = None
) -> tuple[str | None, int]:
    """Decodes a video or image and writes its clips to a file, as pickled records; runs in a worker.

    Args:
      path: video or image file.
      spill: file to write, because the clips of an hour of video are too large to return.
      settings: settings of the data set.
      first: first frame, at the frame rate of the data set.
      count: number of frames; None: to the end.
    Returns:
      (None or the reason to skip the video, frames cut off after the last clip).
    Raises:
      OSError: the disk is full or fails.
    """
    clips, clip = 0, []
    with open(spill, "wb") as file:
        try:
            for frame in _read_frames(path, settings.fps, first, count):
                clip.append(video_io.fit_frame(frame, settings.size))
                if len(clip) == settings.frames:
                    pickle.dump(_make_record(clip, settings.fps), file)
                    clips, clip = clips + 1, []
        except (video_io.VideoError, image_io.ImageError) as error:
            return str(error).removeprefix(f"{path} "), 0
        except PermissionError as error:
            return f"cannot be opened ({error.strerror})", 0
        if len(clip) >= settings.min_frames:
            pickle.dump(_make_record(clip, settings.fps), file)
            clips, clip = clips + 1, []
    if clips:
        return None, len(clip)
    found = f"{first + len(clip)} frames at {settings.fps:g} frames per second"
    if count is None:
        return f"too short: {found}, and --min_frames is {settings.min_frames}", 0
    return f"too short: {found}, although its index lists {first + count}", 0


def _read_frames(path, fps, first, count) -> Iterator[np.ndarray]:
    if image_io.is_image(path):
        yield image_io.read_image(path)
        return
    for _, frame in video_io.read_frames(path, fps=fps, first=first, count=count):
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
    """Yields the records written by `extract_clips`."""
    with open(spill, "rb") as file, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(file)
