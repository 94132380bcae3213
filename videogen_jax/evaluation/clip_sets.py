"""Sets of clips to compare: read one clip at a time, cropped alike, with the reason for each clip that is skipped."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from videogen_jax.data.annotations import Annotations
from videogen_jax.data.progress import show_progress
from videogen_jax.data.records import motion_score
from videogen_jax.data.video_io import fit_frame
from videogen_jax.evaluation import video_folders

CLIP_FRAMES = 16  # frames of each clip that I3D is given by default, as in published scores


class Clip(NamedTuple):
    """One video of a set."""

    name: str
    video: np.ndarray | None  # (T, H, W, 3) uint8; None if it could not be read
    fps: float = 0.0  # frames per second
    reason: str = ""  # why it could not be read
    caption: str | None = None  # the first one; None: unknown
    annotations: Annotations | None = None  # of a clip of a data set


Clips = Callable[[], Iterable[Clip]]  # iterates over a set; may be called repeatedly


class Window(NamedTuple):
    """The frames of each clip that are evaluated: a centre crop in time, optionally resized."""

    frames: int
    stride: int = 1  # take every stride-th frame
    repeat: int = 1  # times that I3D is given each frame, consecutively
    size: tuple[int, int] | None = None  # (height, width) to resize frames to; None: no resizing

    def crop(self, video: np.ndarray) -> np.ndarray:
        """Crops a video, (T, H, W, 3) uint8, to (frames, height, width, 3).

        Raises:
          ValueError: the video is too short.
        """
        return self.resize(video[self.choose_frames(len(video))])

    def choose_frames(self, length: int) -> slice:
        """The frames that are evaluated of a video of so many.

        Raises:
          ValueError: the video is too short.
        """
        span = (self.frames - 1) * self.stride + 1
        if length < span:
            raise ValueError(f"it has {length} frames, but {span} are needed")
        first = (length - span) // 2
        return slice(first, first + span, self.stride)

    def resize(self, frames: np.ndarray) -> np.ndarray:
        """Brings frames (T, H, W, 3) uint8 to the window's size, if it has one."""
        if self.size is None:
            return frames
        return np.stack([fit_frame(frame, self.size) for frame in frames])

    def repeat_frames(self, frames: np.ndarray) -> np.ndarray:
        """The input of I3D for cropped frames: each `repeat` times, (frames * repeat, height, width, 3)."""
        return np.repeat(frames, self.repeat, axis=0)


class SetSummary(NamedTuple):
    """Statistics of the usable clips of a set, from one pass over it."""

    names: list[str]  # of the N usable clips
    left_out: list[dict[str, str]]  # {"file", "reason"} of each skipped clip
    shape: tuple[int, int]  # (height, width) of cropped frames
    fps: float  # mean frames per second over the clips
    motion: np.ndarray  # (N,) of `records.motion_score`
    digest: str  # SHA-256 of all cropped frames
    captions: list[str | None] = []  # of the usable clips; None: unknown
    episodes: list[str] = []  # of the usable clips; empty: unknown


def open_set(
    path: str,
    split: str,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Clips, dict[str, str]]:
    """Opens a reference set, either a data set of `pack` or a folder of videos.

    Args:
      path: its folder.
      split: split of a data set.
      fps: see `read_folder`.
      size: see `read_data`.
      names: see `read_folder`.
    Returns:
      (the set, its entries in the protocol).
    Raises:
      ValueError: there is no such folder, or it cannot be used.
    """
    folder = find_pixels(Path(path))
    entries = {"reference_folder": path if folder == Path(path) else str(folder)}
    if (folder / "dataset_info.json").is_file() or (folder / "buckets.json").is_file():
        return read_data(folder, split, size), entries | {"split": split}
    if not folder.is_dir():
        raise ValueError(f"There is no reference {path}: name a folder with --reference.")
    return read_folder(path, fps, names), entries


def find_pixels(folder: Path) -> Path:
    """The packed clips that latents were encoded from; other folders as they are.

    They are where encode read them, or in a folder beside the latents, and are known by their settings and number.
    """
    try:
        report = json.loads((folder / "encode_report.json").read_text(encoding="utf-8"))
        packed, source = report["settings"]["packed"], report.get("source")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return folder
    beside = sorted(path.parent for path in folder.absolute().parent.glob("*/pack_report.json"))
    for candidate in [*([Path(source)] if isinstance(source, str) else []), *beside]:
        try:
            found = json.loads((candidate / "pack_report.json").read_text(encoding="utf-8"))
            if found["settings"] | {"clips": found["clips"]} == packed:
                logging.info("%s holds latents: comparing with %s.", folder, candidate)
                return candidate
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return folder


def read_folder(
    folder: str | Path, fps: float | None = None, names: Sequence[str] | None = None
) -> Clips:
    """The videos of a folder, in the order of `samples.json` if present, else of their names.

    Args:
      folder: its path.
      fps: frames per second to resample to; by default all frames at the file's rate.
      names: files to read instead, in this order.
    Raises:
      ValueError: there is no folder, or no video in it.
    """
    folder = Path(folder)
    names = video_folders.list_files(folder) if names is None else names
    captions = video_folders.find_captions(folder)

    def read() -> Iterator[Clip]:
        for name in names:
            video, rate, reason = video_folders.try_to_read(folder / name, fps)
            yield Clip(name, video, rate, reason, captions.get(name))

    return read


def read_data(data_dir: str | Path, split: str, size: tuple[int, int] | None = None) -> Clips:
    """The clips of a data set of `pack`, in order.

    Args:
      data_dir: its folder.
      split: train or validation.
      size: (height, width) of the centre crop of larger frames; None: whole frames.
    Raises:
      ValueError: the data set is bucketed, holds latents, or has no clips in this split.
    """
    from videogen_jax.data import (  # TensorFlow: only where it is needed
        augment,
        bucketed_data,
        pipeline,
    )

    if bucketed_data.is_bucketed(data_dir):
        raise ValueError(
            f"{data_dir} holds clips of several shapes: name one of its buckets with --reference={data_dir}/BUCKET."
        )
    data = pipeline.open_data(data_dir)
    if data.latents is not None:
        raise ValueError(
            f"{data_dir} holds latents, and the packed clips that they were encoded from are not where they were, nor "
            "beside them: name these with --reference=FOLDER."
        )
    if not sum(data.lengths.get(split, [])):
        raise ValueError(f"{data_dir} has no clips in its split {split!r}: choose another --split.")

    crop: tuple[slice, ...] = (slice(None),)
    if size is not None and size[0] <= data.height and size[1] <= data.width:
        corner = augment.centre_crop_offset((data.height, data.width), size).numpy()
        crop += tuple(slice(at, at + side) for at, side in zip(corner, size, strict=True))

    def read() -> Iterator[Clip]:
        for path in data.files[split]:
            for index, clip in enumerate(pipeline.read_clips(path, data)):
                yield Clip(
                    f"{Path(path).name}:{index}",
                    clip["video"][crop],
                    float(clip["fps"]),
                    caption=clip["caption"].decode(),
                    annotations=clip["annotations"],
                )

    return read


def store_videos(
    path: Path,
    batches: Iterable[np.ndarray],
    count: int,
    fps: float,
    captions: Sequence[str | None] | None = None,
    label: str = "Making videos",
) -> Clips:
    """Writes generated videos to an uncompressed .npy file, and reads them from there.

    Args:
      path: file to write.
      batches: arrays (B, T, H, W, 3) uint8, N videos in all.
      count: N.
      fps: frames per second.
      captions: N, that the videos were made for; None: unknown.
      label: in front of lines of progress.
    """
    file, first = None, 0
    with show_progress(label, count, "video") as advance:
        for batch in batches:
            if file is None:
                shape = (count, *batch.shape[1:])
                file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            file[first : first + len(batch)] = batch
            first += len(batch)
            advance(len(batch))
    videos = np.load(path, mmap_mode="r")
    known = [None] * count if captions is None else captions
    return lambda: (
        Clip(f"{i:04d}", np.asarray(video), fps, caption=caption)
        for i, (video, caption) in enumerate(zip(videos, known, strict=True))
    )


def take_every_second(clips: Clips, first: int) -> Clips:
    """Clips first, first + 2, ...: of a set of alternating originals and reconstructions, one kind."""
    return lambda: itertools.islice(clips(), first, None, 2)


def split_windows(clips: Clips, window: Window) -> Clips:
    """Each clip as its consecutive windows, named CLIP@FIRST by their first frames; the last one ends with the clip.

    Args:
      clips: set to read; clips that cannot be read or are shorter than a window stay as they are.
      window: frames that are evaluated.
    """
    span = (window.frames - 1) * window.stride + 1

    def read() -> Iterator[Clip]:
        for clip in clips():
            if clip.video is None or len(clip.video) < span:
                yield clip
                continue
            last = len(clip.video) - span
            for first in [*range(0, last, span), last]:
                video = clip.video[first : first + span]
                yield clip._replace(name=f"{clip.name}@{first}", video=video)

    return read


def find_window(name: str) -> int | None:
    """The first frame in the name of a window of `split_windows`; None for other clips."""
    _, at, first = name.rpartition("@")
    return int(first) if at and first.isdecimal() else None


def select_by_name(clips: Clips, names: Sequence[str]) -> Clips:
    """The clips with these names, in the order of the set."""
    wanted = set(names)
    return lambda: (clip for clip in clips() if clip.name in wanted)


def select_others(clips: Clips, names: Sequence[str]) -> Clips:
    """The clips with other names, in the order of the set."""
    unwanted = set(names)
    return lambda: (clip for clip in clips() if clip.name not in unwanted)


def crop_clips(
    clips: Clips,
    window: Window,
    count: int | None,
    left_out: list[dict[str, str]],
    same_size: bool = True,
) -> Iterator[tuple[Clip, np.ndarray]]:
    """Iterates over the first usable clips of a set and their cropped frames.

    Args:
      clips: set to read.
      window: frames of each clip.
      count: most clips; None: all.
      left_out: list that {"file", "reason"} of each skipped clip is appended to.
      same_size: whether frames of different sizes are an error.
    Yields:
      (clip, (frames, height, width, 3) uint8).
    Raises:
      ValueError: frames differ in size.
    """
    shape, found = None, 0
    for clip in clips():
        if found == count:
            return
        if clip.video is None:
            left_out.append({"file": clip.name, "reason": clip.reason})
            continue
        try:
            frames = window.crop(clip.video)
        except ValueError as error:
            left_out.append({"file": clip.name, "reason": str(error)})
            continue
        if same_size and shape not in (None, frames.shape[1:3]):
            raise ValueError(
                f"{clip.name} has {frames.shape[1]}x{frames.shape[2]} pixels, but the clips before it have "
                f"{shape[0]}x{shape[1]}: resize all with --size=HEIGHTxWIDTH."
            )
        shape = frames.shape[1:3]
        found += 1
        yield clip, frames


def summarize(clips: Clips, window: Window, count: int | None = None) -> SetSummary:
    """Reads a set once and summarizes its usable clips.

    Args:
      clips: set to read.
      window: frames of each clip that are evaluated.
      count: most clips; None: all.
    Raises:
      ValueError: fewer than 2 clips are usable, or frames differ in size.
    """
    names, captions, episodes, left_out, rates, motion = [], [], [], [], [], []
    digest, shape = hashlib.sha256(), (0, 0)
    for clip, frames in crop_clips(clips, window, count, left_out):
        names.append(clip.name)
        captions.append(clip.caption)
        episodes.append(clip.annotations.episode if clip.annotations else "")
        rates.append(clip.fps)
        motion.append(motion_score(frames, clip.fps / window.stride))
        digest.update(f"{frames.shape} {window.repeat}".encode())
        digest.update(np.ascontiguousarray(frames).data)
        shape = frames.shape[1:3]
    if len(names) < 2:
        why = f" (left out: {left_out[0]['file']}: {left_out[0]['reason']})" if left_out else ""
        raise ValueError(
            f"Only {len(names)} clips are usable, but a distance needs at least 2{why}: add videos, or use fewer "
            "--frames."
        )
    fps = float(np.mean(rates))
    texts = captions, episodes
    return SetSummary(names, left_out, shape, fps, np.asarray(motion), digest.hexdigest(), *texts)
