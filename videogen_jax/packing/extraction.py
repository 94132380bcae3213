"""The part of packing that runs in workers: turns a video or an image into the records of its clips.

Imports no TensorFlow, which would take ten seconds in each worker.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgpack
import numpy as np

from videogen_jax.data import image_io, video_io
from videogen_jax.data.annotations import Annotations, Timeline
from videogen_jax.data.video_spans import WHOLE, Span
from videogen_jax.packing import clip_writer, filters, scenes, sidecars, tar_shards
from videogen_jax.packing.settings import Settings
from videogen_jax.packing.sidecars import SidecarError


class Extracted(NamedTuple):
    """What became of a video or an image, beside its clips."""

    reason: str | None  # why it is left out, or what comes after its clips
    cut_off: int  # frames after the last clip of it, or of each scene
    counts: dict[str, int] = {}  # what the filters left out, by reason, and scene cuts


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
    ranges: Sequence[tuple[int, int]] = (),
) -> Extracted:
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
      ranges: (first frame, number of frames) of each of several parts, instead of `first` and `count`.
    Returns:
      Reason, frames cut off and counts.
    Raises:
      OSError: the disk is full or fails while clips are written.
    """
    if members:
        try:
            copies = tar_shards.copies_folder(*os.path.split(spill))
            with tar_shards.copy_members(path, members, copies) as copy:
                part = (first, count, captions, numbers, span, (), ranges)
                return extract_clips(copy, spill, settings, *part)
        except tar_shards.ArchiveError as error:
            return Extracted(str(error), 0)
    failures: list[str] = []  # at most one
    left_out: list[str] = []  # at most one
    try:
        said = Annotations(tuple(captions), numbers=sidecars.read_numbers(path, numbers))
    except SidecarError as error:
        return Extracted(str(error), 0)
    if ranges:
        first, count = ranges[0][0], sum(ranges[-1]) - ranges[0][0]
    frames = _read_frames(path, settings, first, count, said, left_out, span)
    if ranges:
        frames = _choose_ranges(frames, ranges)
    selection = settings.selection
    with open(spill, "wb") as file:
        writer = clip_writer.ClipWriter(file, settings, said, image=image_io.is_image(path))
        for index, frame, cut in _until_failure(path, frames, failures):
            if not writer.seen and (why := selection.filters.reject_picture(*frame.shape[:2])):
                return Extracted(None, 0, {why: 1})
            if cut:
                writer.end_scene()
            writer.add(index, frame)
        if failures:
            file.seek(0)
            file.truncate()
            return Extracted(failures[0], 0)
        writer.end_scene()
    rest = left_out[0].removeprefix(f"{path} ") if left_out else None
    counts = writer.counts
    if selection.scene_threshold is not None and not image_io.is_image(path):
        counts |= {filters.SCENE_CUTS: writer.scenes - 1}
    if writer.clips or counts.keys() - {filters.SHORT_SCENES, filters.SCENE_CUTS}:
        return Extracted(rest, writer.cut_off, counts)
    return Extracted(_describe_short(writer, first, count, settings, rest), 0)


def _describe_short(writer, first, count, settings, rest) -> str:
    """Returns why a video of which no scene is long enough for a clip is left out."""
    found = f"{first + writer.seen} frames at {settings.fps:g} frames per second"
    if rest:
        return f"too short: {found}, because it {rest}"
    if writer.scenes > 1:
        found += f" in {writer.scenes} scenes, the longest of {writer.longest}"
    if count is None or settings.selection.scene_threshold is not None:
        return f"too short: {found}, and --min_frames is {settings.min_frames}"
    return f"too short: {found}, although its index lists {first + count}"


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


def _until_failure(path, frames, failures) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Yields frames until reading them fails, and adds the reason to `failures`."""
    try:
        yield from frames
    except Exception as error:  # whatever a decoder raises is the fault of this file alone
        failures.append(describe_failure(path, error))


def _read_frames(path, settings, first, count, said, left_out, span):
    """Yields (index in the file, frame, whether a cut lies before it).

    At the end, checks captions and numbers against the number of frames.
    """
    total: list[int] = []
    if image_io.is_image(path):
        yield 0, image_io.read_image(path, settings.limits), False
        total.append(1)
    else:
        options = {"fps": settings.fps, "first": first, "count": count, "limits": settings.limits}
        options |= {"on_cut": left_out.append, "on_end": total.append, "span": span}
        yield from read_scenes(path, settings.selection.scene_threshold, **options)
    sidecars.check_length(path, said, *total, cut=bool(left_out))


def read_scenes(path, threshold: float | None, **options) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Reads a video, and marks its scene cuts.

    Args:
      path: video file.
      threshold: of the cuts, as for `scenes.CutDetector`; None: no frame is marked.
      options: as for `video_io.read_numbered_frames`.
    Yields:
      (index in the file, frame (H, W, 3) uint8 RGB, whether a cut lies between it and the frame before).
    Raises:
      VideoError, OSError: as `video_io.read_numbered_frames`.
    """
    detector = None if threshold is None else scenes.CutDetector(threshold)
    on_frame = detector.add if detector else None
    frames = (
        (index, frame)
        for index, _, frame in video_io.read_numbered_frames(path, on_frame=on_frame, **options)
    )
    if detector:
        return scenes.mark_scenes(frames, detector)
    return ((index, frame, False) for index, frame in frames)


def _choose_ranges(frames, ranges):
    """Yields the frames of several ranges of a video, with a cut before each; `frames` begin with the first range."""
    left = iter(ranges)
    first, count = next(left)
    for position, (index, frame, _) in enumerate(frames, first):
        if position == first + count:
            first, count = next(left)
        if position >= first:
            yield index, frame, position == first


def read_clips(spill) -> Iterator[dict]:
    """Yields the records written by `extract_clips`; none if it wrote no file."""
    with contextlib.suppress(FileNotFoundError), open(spill, "rb") as file:
        yield from msgpack.Unpacker(file, max_buffer_size=0)  # a clip may be of any size
