"""Records of packed clips: JPEG strips, captions and scalars, in TFRecord shards that TFDS can open.

TensorFlow is imported inside the functions that need it: importing it takes ten seconds, and the workers of `packing`
encode strips without it.
"""

import contextlib
import errno
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import imageio.v3 as iio
import numpy as np

from videogen_jax.data import annotations as clip_annotations
from videogen_jax.data import atomic_files
from videogen_jax.data.annotations import Annotations

FRAMES_PER_STRIP = 16
JPEG_QUALITY = 95
MAX_JPEG_SIDE = 65_500  # pixels; the limit of libjpeg, 35 below that of the format
DATASET_NAME = "clips"
CHECKSUMS = (
    "checksums.json"  # name of a shard -> `checksum`; absent in data sets of earlier versions
)
MOTION_SCORES = "motion_scores.npy"  # of the training clips, next to statistics.json
SMALL_FILES = ("statistics.json", MOTION_SCORES)  # with a checksum, as the shards
NUM_MOTION_BUCKETS = 256

LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601
_MOTION_SCALE = 8


def make_features(annotated: bool = True):
    """Makes the TFDS features of a record: the single definition of its fields.

    Args:
      annotated: False: with one text, "caption", instead of captions, episode and numbers, as earlier versions wrote
        them.
    Returns:
      tfds.features.FeaturesDict of
        strips: JPEG images of FRAMES_PER_STRIP vertically stacked frames each; strip s holds the frames
          16 s ... 16 s + 15. A single strip has num_frames frames; of several strips each has 16 frames, the last
          padded by repeating the last frame.
        captions: entries of all captions, caption by caption: the caption's number from 0, the first frame at which
          the entry's text holds, and the text.
        episode: name of the recording that the clip was cut from, or empty.
        numbers: names, and num_frames values of each, name after name.
        fps: frames per second.
        num_frames, height, width: shape of the clip.
        motion_score: from `motion_score`.
        source: path of the video file within its folder.
    """
    import tensorflow_datasets as tfds

    features = tfds.features
    said = clip_annotations.make_features() if annotated else {"caption": features.Text()}
    return features.FeaturesDict(
        said
        | {
            "strips": features.Sequence(
                features.Image(shape=(None, None, 3), encoding_format="jpeg")
            ),
            "fps": np.float32,
            "num_frames": np.int32,
            "height": np.int32,
            "width": np.int32,
            "motion_score": np.float32,
            "source": features.Text(),
        }
    )


def encode_strips(video: np.ndarray) -> list[bytes]:
    """Encodes a clip as JPEG strips of quality 95 without chroma subsampling (4:4:4).

    Args:
      video: (T, H, W, 3) uint8 RGB, T >= 1.
    Returns:
      ceil(T / 16) JPEG files, each of min(T, 16) vertically stacked frames; the last of several is padded with the
      clip's last frame.
    Raises:
      ValueError: a strip exceeds the size limit of JPEG.
    """
    frames, height, width = video.shape[:3]
    per_strip = check_strip_size(frames, height, width, "frames")
    missing = -frames % per_strip
    strips = []
    for first in range(0, frames, per_strip):
        strip = video[first : first + per_strip]  # (per_strip, H, W, 3), the last may be shorter
        if len(strip) < per_strip:
            strip = np.concatenate([strip, np.repeat(video[-1:], missing, axis=0)])
        stacked = np.ascontiguousarray(strip).reshape(per_strip * height, width, 3)
        options = {"plugin": "pillow", "extension": ".jpg", "quality": JPEG_QUALITY}
        strips.append(iio.imwrite("<bytes>", stacked, subsampling=0, **options))
    return strips


def check_strip_size(frames: int, height: int, width: int, what: str) -> int:
    """Checks that clips of a shape fit into JPEG strips.

    Args:
      frames: frames of the clip.
      height: frame height in pixels.
      width: frame width in pixels.
      what: subject of the error message.
    Returns:
      Number of frames per strip.
    Raises:
      ValueError: a strip exceeds the size limit of JPEG.
    """
    per_strip = min(frames, FRAMES_PER_STRIP)
    if max(per_strip * height, width) > MAX_JPEG_SIDE:
        raise ValueError(
            f"{what} of {height}x{width} pixels do not fit into strips of {per_strip} frames: a "
            f"JPEG side has at most {MAX_JPEG_SIDE} pixels, so choose a height of at most "
            f"{MAX_JPEG_SIDE // per_strip} and a width of at most {MAX_JPEG_SIDE}."
        )
    return per_strip


def motion_score(video: np.ndarray, fps: float) -> float:
    """Computes the amount of motion of a clip: mean absolute luma change per second at 1/8 resolution.

    Y = (0.299 R + 0.587 G + 0.114 B) / 255, averaged over blocks of 8x8 pixels (a side below 8 pixels is one block;
    rows and columns of incomplete blocks are ignored); score = fps * mean of |Y[t + 1] - Y[t]| over the T - 1 pairs of
    consecutive frames and the blocks.

    Args:
      video: (T, H, W, 3) uint8 RGB.
      fps: frames per second.
    Returns:
      The score in luma (0 to 1) per second; 0 for a single frame.
    """
    frames, height, width = video.shape[:3]
    if frames < 2:
        return 0.0
    rows, columns = min(_MOTION_SCALE, height), min(_MOTION_SCALE, width)
    shape = (height // rows, rows, width // columns, columns)
    video = video[:, : shape[0] * rows, : shape[2] * columns]
    total, previous = 0.0, None
    for frame in video:  # one at a time, because a long clip in float32 would not fit into memory
        luma = frame.astype(np.float32) @ LUMA / 255.0  # (H, W)
        small = luma.reshape(shape).mean(axis=(1, 3))  # (H / 8, W / 8)
        if previous is not None:
            total += float(np.abs(small - previous).mean())
        previous = small
    return fps * total / (frames - 1)


def motion_edges(scores: Sequence[np.ndarray]) -> list[float]:
    """Computes the 255 inner edges of 256 quantile buckets of motion scores.

    Args:
      scores: arrays (N,), pooled.
    Returns:
      Edges; `np.searchsorted(edges, score, side="right")` is in 0 ... 255.
    """
    levels = np.arange(1, NUM_MOTION_BUCKETS) / NUM_MOTION_BUCKETS
    return np.quantile(np.concatenate(scores).astype(np.float64), levels).tolist()


def serialize_clip(
    features,
    *,
    strips: Sequence[bytes],
    annotations: Annotations,
    fps: float,
    num_frames: int,
    height: int,
    width: int,
    motion_score: float,
    source: str,
) -> bytes:
    """Serializes a record with the fields of `make_features`.

    Returns:
      A serialized tf.train.Example; the bytes are deterministic.
    """
    import tensorflow as tf

    example = features.serialize_example(
        features.encode_example(
            annotations.to_record()
            | {
                "strips": [io.BytesIO(strip) for strip in strips],
                "fps": fps,
                "num_frames": num_frames,
                "height": height,
                "width": width,
                "motion_score": motion_score,
                "source": source,
            }
        )
    )
    # The field order of TFDS differs between processes.
    return tf.train.Example.FromString(example).SerializeToString(deterministic=True)


def encode_clip(video: np.ndarray, caption: str | Annotations, fps: float, source: str) -> bytes:
    """Encodes a clip as a record.

    Args:
      video: (T, H, W, 3) uint8 RGB.
      caption: text that holds for the whole clip, or its annotations.
      fps: frames per second.
      source: path of the video file within its folder.
    Returns:
      A serialized tf.train.Example.
    Raises:
      ValueError: as `encode_strips`.
    """
    return serialize_clip(
        make_features(),
        strips=encode_strips(video),
        annotations=Annotations.of_text(caption) if isinstance(caption, str) else caption,
        fps=fps,
        num_frames=video.shape[0],
        height=video.shape[1],
        width=video.shape[2],
        motion_score=motion_score(video, fps),
        source=source,
    )


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """Returns the file name of a shard in the format of TFDS: clips-train.tfrecord-00000-of-00004."""
    return f"{DATASET_NAME}-{split}.tfrecord-{shard:05d}-of-{num_shards:05d}"


def write_shard(path, examples: Iterable[bytes]) -> tuple[int, int]:
    """Writes a TFRecord file atomically.

    Args:
      path: file to write or replace.
      examples: serialized records.
    Returns:
      (number of records, total size of the records in bytes).
    Raises:
      OSError: the disk is full or fails; no partial file remains.
    """
    import tensorflow as tf

    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    count = size = 0
    try:
        with _os_errors(path), tf.io.TFRecordWriter(os.fspath(unfinished)) as writer:
            for example in examples:
                writer.write(example)
                count, size = count + 1, size + len(example)
        atomic_files.publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count, size


@contextlib.contextmanager
def _os_errors(path) -> Iterator[None]:
    """Turns TensorFlow's errors of writing into OSErrors."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message, os.fspath(path)) from error


def checksum(path) -> str:
    """Hashes the bytes of a file (blake2b, 128 bits, hexadecimal)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_dataset_info(
    folder, shards: Mapping[str, Sequence[tuple[int, int]]], work, features=None
) -> None:
    """Writes features.json, then dataset_info.json, which marks the data set as finished.

    Args:
      folder: folder of the shards, which are named by `shard_name`.
      shards: split -> results of `write_shard` for its shards, in order.
      work: an empty folder on the same disk.
      features: features of the records; None: those of `make_features`.
    """
    import tensorflow_datasets as tfds

    folder, work = pathlib.Path(folder), pathlib.Path(work)
    splits = []
    for split, sizes in shards.items():
        for shard in range(len(sizes)):
            # TFDS needs only the names of the shards, so its metadata is written in `work` next to empty files.
            (work / shard_name(split, shard, len(sizes))).touch()
        counts, num_bytes = zip(*sizes, strict=True)
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=list(counts), num_bytes=sum(num_bytes))
        )
    with _os_errors(folder):
        tfds.folder_dataset.write_metadata(
            data_dir=work,
            features=make_features() if features is None else features,
            split_infos=splits,
            version="1.0.0",
            check_data=False,
            description="Captioned video clips, packed by videogen_jax.",
        )
    for name in ("features.json", "dataset_info.json"):
        atomic_files.publish(work / name, folder / name)
