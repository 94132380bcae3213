"""The part of packing that runs in workers: turns a video or an image into the records of its clips.

Imports no TensorFlow, which would take ten seconds in each worker.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import msgpack
import numpy as np

from videogen_jax.data import image_io, records, video_io
from videogen_jax.data.annotations import Annotations, Timeline
from videogen_jax.data.video_spans import WHOLE, Span
from videogen_jax.packing import sidecars, tar_shards
from videogen_jax.packing.settings import Settings
from videogen_jax.packing.sidecars import SidecarError


def extract_clips(
    path: str,
    spill: str,
    settings: Settings,
    first: int = 0,
    count: int | None = None,
    captions: Sequence[Timeline] = (),
    numbers: Mapping[str, str] = MappingProxyType({}),
    span: Span = WHOLE,
    members: Sequence[tuple[str, int, int]] = (),
) -> tuple[str | None, int]:
    """Decodes a video or image and writes its clips to a file, as records of msgpack; runs in a worker.

    Args:
      path: video or image file, or the archive that has it.
      spill: file to write, because the clips of an hour of video are too large to return.
      settings: settings of the data set.
      first: first frame, at the frame rate of the data set.
      count: number of frames; None: to the end.
      captions: over time, in frames of the file.
      numbers: name -> hash of the numbers per frame, as `sidecars.hash_numbers` makes them.
      span: part of the video, from whose first frame on frames are counted.
      members: of the archive, as in `Source`; empty: the file is none.
    Returns:
      (None or the reason to leave out the video, or what comes after its clips; frames cut off after the last clip).
    Raises:
      OSError: the disk is full or fails while clips are written.
    """
    if members:
        try:
            with tar_shards.copy_members(path, members, spill + tar_shards.COPIES) as copy:
                return extract_clips(copy, spill, settings, first, count, captions, numbers, span)
        except tar_shards.ArchiveError as error:
            return str(error), 0
    clips, clip, shown = 0, [], []  # shown: which frame of the file each frame of the clip is
    failures: list[str] = []  # at most one
    left_out: list[str] = []  # at most one
    try:
        said = Annotations(tuple(captions), numbers=sidecars.read_numbers(path, numbers))
    except SidecarError as error:
        return str(error), 0
    frames = _read_frames(path, settings, first, count, said, left_out, span)
    with open(spill, "wb") as file:
        for index, frame in _until_failure(path, frames, failures):
            clip.append(video_io.fit_frame(frame, settings.size))
            shown.append(index)
            if len(clip) == settings.frames:
                msgpack.pack(_make_record(clip, settings.fps, said.select(shown)), file)
                clips, clip, shown = clips + 1, [], []
        if failures:
            file.seek(0)
            file.truncate()
            return failures[0], 0
        if len(clip) >= settings.min_frames:
            msgpack.pack(_make_record(clip, settings.fps, said.select(shown)), file)
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
    if isinstance(error, SidecarError):
        return str(error)
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


def _until_failure(path, frames, failures) -> Iterator[tuple[int, np.ndarray]]:
    """Yields frames until reading them fails, and adds the reason to `failures`."""
    try:
        yield from frames
    except Exception as error:  # whatever a decoder raises is the fault of this file alone
        failures.append(describe_failure(path, error))


def _read_frames(
    path, settings, first, count, said, left_out, span
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index in the file, frame); at the end, checks captions and numbers against the number of frames."""
    total: list[int] = []
    if image_io.is_image(path):
        yield 0, image_io.read_image(path, settings.limits)
        total.append(1)
    else:
        options = {"fps": settings.fps, "first": first, "count": count, "limits": settings.limits}
        options |= {"on_cut": left_out.append, "on_end": total.append, "span": span}
        for index, _, frame in video_io.read_numbered_frames(path, **options):
            yield index, frame
    sidecars.check_length(path, said, *total, cut=bool(left_out))


def _make_record(clip, fps, annotations):
    """Returns the fields of a record as msgpack takes them, except for its source and episode."""
    video = np.stack(clip)  # (T, H, W, 3)
    return {
        "captions": annotations.captions,
        "numbers": {name: values.tobytes() for name, values in annotations.numbers.items()},
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
