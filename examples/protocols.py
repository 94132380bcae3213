"""Arranges public data sets for `pack`: name.mp4 with every n-th frame, 8 a second, and its caption in name.txt.

    python examples/protocols.py ucf101 --input=UCF-101 --output=runs/ucf101/videos
    python examples/protocols.py faceforensics --input=preprocess_ffs/train/videos --output=runs/faceforensics/videos
    python examples/protocols.py taichi --input=taichi-256/frames/train --output=runs/taichi/videos
    python examples/protocols.py bair --input=softmotion30_44k/train --output=runs/bair/train

| data set      | --input, as downloaded                                      | caption             | every n-th |
| ------------- | ----------------------------------------------------------- | ------------------- | ---------- |
| ucf101        | CLASS/v_CLASS_g01_c01.avi                                    | CLASS, in one word  | 3          |
| faceforensics | NAME.avi                                                     | face                | 3          |
| taichi        | NAME/0000000.png: a folder of numbered pictures for a video  | taichi              | 6          |
| bair          | traj_0_to_255.tfrecords: 30 frames of the camera image_aux1  | robot               | 1          |

Frames are counted, whatever the rate of a file, as Latte and FAR count them (docs/protocols). What is written stays;
the same command again does the rest. BAIR's 64x64 pixels are stored without loss, the others nearly so.

The reference of a published FVD is one clip of each video that has 16 * n frames:

    python examples/protocols.py ucf101 --input=UCF-101 --output=runs/ucf101/reference --clip=16

begins anywhere, from a seed and the name, as in StyleGAN-V's and Latte's; --start=first is FAR's.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videogen_jax.data import atomic_files, image_io, video_io, video_writer
from videogen_jax.data.workers import count_usable_cpus, make_pool

FPS = 8.0  # that data.fps of the configs says; the real rate differs from data set to data set
BAIR_FRAMES, BAIR_SIZE = 30, 64
BAIR_CAMERA = "image_aux1"  # the camera of published scores

Item = tuple[
    str, str, Callable[[], list[np.ndarray]]
]  # name, caption, function that reads the frames


def list_ucf101(folder: Path, names: set[str] | None = None) -> Iterator[Item]:
    """The videos of UCF-101, whose caption is the name of their folder.

    Args:
      folder: of the folders of classes.
      names: videos to list, without folder and suffix; None: all.
    """
    for path in sorted(folder.glob("*/*.avi")):
        if names is None or path.stem in names:
            yield path.stem, path.parent.name, functools.partial(read_video, path)


def list_videos(folder: Path, caption: str) -> Iterator[Item]:
    """The video files of a folder."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in video_io.SUFFIXES:
            yield path.stem, caption, functools.partial(read_video, path)


def list_picture_folders(folder: Path, caption: str) -> Iterator[Item]:
    """The folders of numbered pictures in a folder, each of them a video."""
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield path.name, caption, functools.partial(read_pictures, path)


def list_bair(folder: Path, caption: str) -> Iterator[Item]:
    """The trajectories of TFRecord files."""
    for path in sorted(folder.glob("*.tfrecords")):
        for number, frames in enumerate(read_trajectories(path)):
            yield f"{path.stem}_{number:03d}", caption, functools.partial(list, frames)


def read_video(path: Path) -> list[np.ndarray]:
    """All frames of a file."""
    return [frame for _, frame in video_io.read_frames(path)]


def read_pictures(folder: Path) -> list[np.ndarray]:
    """The pictures of a folder in the order of the last number in their names."""
    numbered = []
    for path in folder.iterdir():
        if image_io.is_image(path):
            numbers = re.findall(r"\d+", path.stem)
            if not numbers:
                raise ValueError(f"{path} has no number in its name: name pictures by their order.")
            numbered.append((int(numbers[-1]), path))
    return [image_io.read_image(path) for _, path in sorted(numbered)]


def read_trajectories(path: Path) -> Iterator[np.ndarray]:
    """The videos of a TFRecord file of BAIR, each (30, 64, 64, 3) uint8.

    Raises:
      ValueError: a record lacks a frame.
    """
    import tensorflow as tf  # seconds, which the other data sets need not wait

    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        frames = []
        for number in range(BAIR_FRAMES):
            pixels = feature[f"{number}/{BAIR_CAMERA}/encoded"].bytes_list.value
            if not pixels or len(pixels[0]) != 3 * BAIR_SIZE**2:
                raise ValueError(
                    f"{path} has a record without {number}/{BAIR_CAMERA}/encoded of {BAIR_SIZE}x{BAIR_SIZE} pixels: "
                    "give the folder train or test of softmotion30_44k."
                )
            frames.append(np.frombuffer(pixels[0], np.uint8).reshape(BAIR_SIZE, BAIR_SIZE, 3))
        yield np.stack(frames)


class Selection(NamedTuple):
    """Which frames of a video are taken."""

    every: int = 1  # n: one of each group of n frames
    clip: int | None = None  # so many; None: of all whole groups
    start: str = "random"  # of a clip: random or first
    seed: int = 0  # of a random start, with the name of the video

    def take(self, name: str, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Takes frames of a video.

        A clip needs clip * every frames, and a random one begins at any from which every n-th fits: as in StyleGAN-V's
        FVD (arXiv:2112.14683).

        Args:
          name: of the video.
          frames: all of it.
        Returns:
          (T, H, W, 3) uint8.
        Raises:
          ValueError: there are too few.
        """
        count = len(frames) // self.every if self.clip is None else self.clip
        needed = max(count, 1) * self.every
        if len(frames) < needed:
            raise ValueError(f"it has {len(frames)} frames, but {needed} are needed")
        first = 0
        if self.clip is not None and self.start == "random":
            most = len(frames) - needed + self.every - 1
            entropy = [self.seed, *name.encode()]
            first = int(np.random.default_rng(entropy).integers(most, endpoint=True))
        return np.stack(frames[first :: self.every][:count])


def arrange(item: Item, output: Path, selection: Selection, lossless: bool) -> str | None:
    """Writes one video and its caption; returns the reason if it cannot be read."""
    name, caption, read = item
    try:
        video = selection.take(name, read())
    except (ValueError, OSError, video_io.VideoError, image_io.ImageError) as error:
        return f"{name}: {error}"
    write = video_writer.write_lossless if lossless else video_writer.write_video
    write(output / f"{name}.mp4", video, FPS)
    atomic_files.write_text(output / f"{name}.txt", f"{caption}\n")
    return None


def arrange_all(
    items: Iterator[Item], output: Path, selection: Selection, lossless: bool, workers: int
) -> tuple[int, list[str]]:
    """Writes those videos that are not there yet.

    Args:
      items: of a `list_` function.
      output: folder to write to.
      selection: frames to take.
      lossless: whether to write without loss.
      workers: processes.
    Returns:
      (videos there now, reasons for those left out).
    """
    output.mkdir(parents=True, exist_ok=True)
    there, reasons, pending = 0, [], []
    with make_pool(workers) as pool:
        for item in items:
            if (output / f"{item[0]}.txt").is_file():  # written last
                there += 1
                continue
            pending.append(pool.submit(arrange, item, output, selection, lossless))
            if len(pending) > 4 * workers:  # frames of BAIR travel with them
                reasons.append(pending.pop(0).result())
        reasons += [job.result() for job in pending]
    failed = [reason for reason in reasons if reason]
    return there + len(reasons) - len(failed), failed


def read_list(path: Path) -> set[str]:
    """The names in one of UCF-101's lists, such as trainlist01.txt: CLASS/v_CLASS_g01_c01.avi and maybe a number."""
    return {Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()}


DEFAULT_EVERY = {"ucf101": 3, "faceforensics": 3, "taichi": 6, "bair": 1}


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns the exit code. Videos that are too short or damaged are left out, and named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=DEFAULT_EVERY)
    parser.add_argument("--input", type=Path, required=True, help="Folder as downloaded.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of mp4 and txt files.")
    parser.add_argument("--every", type=int, help="Take every n-th frame; see the table.")
    parser.add_argument("--clip", type=int, help="Take a clip of so many frames, not all.")
    parser.add_argument("--start", choices=("random", "first"), default="random", help="Of a clip.")
    parser.add_argument("--seed", type=int, default=0, help="Of random starts.")
    parser.add_argument("--list", type=Path, help="List of the videos wanted, of UCF-101.")
    parser.add_argument("--workers", type=int, default=count_usable_cpus(), help="Processes.")
    given = parser.parse_args(arguments)
    if not given.input.is_dir():
        parser.error(f"there is no folder {given.input}: give --input the folder as downloaded.")
    if given.list and given.protocol != "ucf101":
        parser.error("--list is of ucf101: leave it out.")
    every = DEFAULT_EVERY[given.protocol] if given.every is None else given.every
    for name, value in {"every": every, "clip": given.clip, "workers": given.workers}.items():
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}: give 1 or more.")
    if given.seed < 0:
        parser.error(f"--seed is {given.seed}: give 0 or more.")
    items = {
        "ucf101": lambda: list_ucf101(given.input, given.list and read_list(given.list)),
        "faceforensics": lambda: list_videos(given.input, "face"),
        "taichi": lambda: list_picture_folders(given.input, "taichi"),
        "bair": lambda: list_bair(given.input, "robot"),
    }[given.protocol]()
    lossless = given.protocol == "bair"
    selection = Selection(every, given.clip, given.start, given.seed)
    there, failed = arrange_all(items, given.output, selection, lossless, given.workers)
    for reason in failed:
        print(f"left out {reason}", file=sys.stderr)
    if not there:
        parser.error(f"{given.input} holds no video of {given.protocol}: see the table in --help.")
    print(f"{there} videos in {given.output}, {len(failed)} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
