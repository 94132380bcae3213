"""Sets of clips to compare, whatever they come from: clips are read one by one, cut alike, and never lost silently."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videogen_jax.data.records import motion_score
from videogen_jax.data.video_io import fit_frame
from videogen_jax.evaluation import video_folders

CLIP_FRAMES = 16  # frames of each clip that I3D is given by default, as in published scores


class Clip(NamedTuple):
    """One video as it was found."""

    name: str
    video: np.ndarray | None  # (T, H, W, 3) uint8; None where it could not be read
    fps: float = 0.0  # frames per second
    reason: str = ""  # why it could not be read


Clips = Callable[[], Iterable[Clip]]  # reads a set, as often as it is called


class Window(NamedTuple):
    """What of each clip is looked at: its middle."""

    frames: int
    stride: int = 1  # every how many-th frame
    repeat: int = 1  # how often each is shown, one after the other
    size: tuple[int, int] | None = (
        None  # (height, width) that frames are brought to; None: as they are
    )

    def crop(self, video: np.ndarray) -> np.ndarray:
        """Cuts a video, (T, H, W, 3) uint8, to (frames, height, width, 3).

        Raises:
          ValueError: it is too short.
        """
        span = (self.frames - 1) * self.stride + 1
        if len(video) < span:
            raise ValueError(f"it has {len(video)} frames of the {span} that are looked at")
        first = (len(video) - span) // 2
        taken = video[first : first + span : self.stride]
        if self.size is not None:
            taken = np.stack([fit_frame(frame, self.size) for frame in taken])
        return taken

    def repeat_frames(self, cut: np.ndarray) -> np.ndarray:
        """What a network sees of a clip that is cut: each frame `repeat` times."""
        return np.repeat(cut, self.repeat, axis=0)


class SetSummary(NamedTuple):
    """What one reading of a set tells of it."""

    names: list[str]  # of the clips that count
    left_out: list[dict[str, str]]  # {"file", "reason"} of those that do not
    shape: tuple[int, int]  # (height, width) of the frames as they are looked at
    fps: float  # frames per second, the mean over the clips
    motion: np.ndarray  # (N,) motion scores, of `records.motion_score`
    digest: str  # of all pixels looked at


def read_folder(
    folder: str | Path, fps: float | None = None, names: Sequence[str] | None = None
) -> Clips:
    """The videos of a folder, in the order of `samples.json` or of their names.

    Args:
      folder: its path.
      fps: frames per second to read them at; by default all frames at the file's own rate.
      names: of the files to read instead, in this order.
    Returns:
      The set.
    Raises:
      ValueError: there is no folder, or no video in it.
    """
    folder = Path(folder)
    names = video_folders.list_files(folder) if names is None else names

    def read() -> Iterator[Clip]:
        for name in names:
            video, rate, reason = video_folders.try_to_read(folder / name, fps)
            yield Clip(name, video, rate, reason)

    return read


def read_data(data_dir: str | Path, split: str, size: tuple[int, int] | None = None) -> Clips:
    """The clips of a data set of `pack`, in order.

    Args:
      data_dir: its folder.
      split: train or validation.
      size: (height, width) of what is cut out of the middle of larger frames; None: all of them.
    Returns:
      The set.
    Raises:
      ValueError: it is no plain data set of pixels, or has no clips in this split.
    """
    from videogen_jax.data import (
        augment,
        bucketed_data,
        pipeline,  # TensorFlow: only where it is needed
    )

    if bucketed_data.is_bucketed(data_dir):
        raise ValueError(
            f"{data_dir} holds clips of several shapes: name one of its buckets with --reference={data_dir}/BUCKET."
        )
    data = pipeline.open_data(data_dir)
    if data.latents is not None:
        raise ValueError(
            f"{data_dir} holds latents: name the packed clips that they were made of with --reference=FOLDER."
        )
    if not sum(data.lengths.get(split, [])):
        raise ValueError(f"{data_dir} has no clips in its split {split!r}: choose another --split.")

    middle: tuple[slice, ...] = (slice(None),)
    if size is not None and size[0] <= data.height and size[1] <= data.width:
        corner = augment.centre_crop_offset((data.height, data.width), size).numpy()
        middle += tuple(slice(at, at + side) for at, side in zip(corner, size, strict=True))

    def read() -> Iterator[Clip]:
        for path in data.files[split]:
            for index, clip in enumerate(pipeline.read_clips(path, data)):
                yield Clip(f"{Path(path).name}:{index}", clip["video"][middle], float(clip["fps"]))

    return read


def keep_videos(path: Path, batches: Iterable[np.ndarray], count: int, fps: float) -> Clips:
    """Writes videos to a file as they come, uncompressed, and reads them from there.

    Args:
      path: of the file.
      batches: each (B, T, H, W, 3) uint8; N in all.
      count: N.
      fps: frames per second.
    Returns:
      The set.
    """
    file, first = None, 0
    for batch in batches:
        if file is None:
            shape = (count, *batch.shape[1:])
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        file[first : first + len(batch)] = batch
        first += len(batch)
    videos = np.load(path, mmap_mode="r")
    return lambda: (Clip(f"{i:04d}", np.asarray(video), fps) for i, video in enumerate(videos))


def every_other(clips: Clips, first: int) -> Clips:
    """Of a set of pairs, the first (0) or second (1) ones."""
    return lambda: itertools.islice(clips(), first, None, 2)


def pick(clips: Clips, names: Sequence[str]) -> Clips:
    """The clips of these names, in the set's order."""
    wanted = set(names)
    return lambda: (clip for clip in clips() if clip.name in wanted)


def shrink(video: np.ndarray, side: int) -> np.ndarray:
    """Videos whose longer side is `side` pixels at most, (T, H, W, 3) uint8."""
    scale = side / max(video.shape[1:3])
    if scale >= 1:
        return video
    size = tuple(max(1, round(length * scale)) for length in video.shape[1:3])
    return np.stack([fit_frame(frame, size) for frame in video])


def crop_clips(
    clips: Clips,
    window: Window,
    count: int | None,
    left_out: list[dict[str, str]],
    alike: bool = True,
) -> Iterator[tuple[Clip, np.ndarray]]:
    """The first clips of a set that can be looked at, with what is looked at.

    Args:
      clips: the set.
      window: what of each clip.
      count: how many at most; None: all.
      left_out: gets {"file", "reason"} of each clip that was passed over.
      alike: whether all frames have to be of one size.
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
            cut = window.crop(clip.video)
        except ValueError as error:
            left_out.append({"file": clip.name, "reason": str(error)})
            continue
        if alike and shape not in (None, cut.shape[1:3]):
            raise ValueError(
                f"{clip.name} has {cut.shape[1]}x{cut.shape[2]} pixels and those before it {shape[0]}x{shape[1]}: "
                "bring all to one size with --size=HEIGHTxWIDTH."
            )
        shape = cut.shape[1:3]
        found += 1
        yield clip, cut


def summarize(clips: Clips, window: Window, count: int | None = None) -> SetSummary:
    """Reads a set once.

    Args:
      clips: the set.
      window: what of each clip is looked at.
      count: clips at most; None: all.
    Returns:
      What there is to know of it.
    Raises:
      ValueError: fewer than 2 clips can be looked at, or frames differ in size.
    """
    names, left_out, rates, motion = [], [], [], []
    digest, shape = hashlib.sha256(), (0, 0)
    for clip, cut in crop_clips(clips, window, count, left_out):
        names.append(clip.name)
        rates.append(clip.fps)
        motion.append(motion_score(cut, clip.fps / window.stride))
        digest.update(f"{cut.shape} {window.repeat}".encode())
        digest.update(np.ascontiguousarray(cut).data)
        shape = cut.shape[1:3]
    if len(names) < 2:
        why = f"; left out: {left_out[0]['file']}: {left_out[0]['reason']}" if left_out else ""
        raise ValueError(
            f"Only {len(names)} clips can be looked at, but 2 are the least that have a spread{why}: give more "
            "videos, or look at fewer --frames."
        )
    fps = float(np.mean(rates))
    return SetSummary(names, left_out, shape, fps, np.asarray(motion), digest.hexdigest())
