"""What is written about a data set of `pack` or `encode`, read and checked before training starts."""

import json
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format

from videogen_jax.data.latent_records import LatentInfo, TextInfo

tf.config.set_visible_devices([], "GPU")  # they are JAX's

FRAMING = 16  # bytes that TFRecord puts around each record: its length and two checksums


class DataError(ValueError):
    """A data set that is missing, unfinished or damaged, or cannot serve what is asked of it."""


class PackedData(NamedTuple):
    """What training wants to know of a data set."""

    files: dict[str, list[str]]  # split -> shards
    lengths: dict[str, list[int]]  # split -> clips in each shard
    words: dict[str, int]  # how often each word occurs in the training captions
    frames: int  # of the longest clip
    min_frames: int  # of the shortest clip that packing let through
    height: int  # pixels
    width: int  # pixels
    fps: float
    motion_score_buckets: list[float]  # 255 edges between 256 equally full buckets
    latents: LatentInfo | None = None  # None: pixels
    texts: TextInfo | None = None  # None: captions alone
    folder: str = ""


def open_data(data_dir: str | Path) -> PackedData:
    """Reads what `videogen_jax.pack` or `videogen_jax.encode` wrote about a data set.

    Args:
      data_dir: its output folder.
    Returns:
      The description; no record is read.
    Raises:
      DataError: the folder is missing or unfinished, a file is missing, or has not the size it was packed with.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise DataError(
            f"There is no data set in {folder}: run videogen_jax.pack --output={folder}."
        )
    if not (folder / "dataset_info.json").is_file():  # pack writes it last
        raise DataError(
            f"The data set in {folder} is not finished: run videogen_jax.pack again (or encode, for latents) with the "
            "same flags."
        )
    try:
        splits = tfds.builder_from_directory(folder).info.splits
        statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        size = {name: statistics[name] for name in PackedData._fields[2:-3]}
        latents = LatentInfo(**statistics["latents"]) if "latents" in statistics else None
        texts = TextInfo(**statistics["texts"]) if "texts" in statistics else None
    except (OSError, ValueError, KeyError, TypeError, json_format.Error) as error:
        raise DataError(
            f"The folder {folder} is no data set of this videogen_jax.pack, or its JSON files are damaged: "
            "name the --output of pack, or delete the folder and pack again."
        ) from error
    files = {name: [str(path) for path in split.filepaths] for name, split in splits.items()}
    lengths = {name: list(split.shard_lengths) for name, split in splits.items()}
    for path in (path for paths in files.values() for path in paths):
        if not Path(path).is_file():
            raise DataError(
                f"The record file {path} is missing: delete {folder} and pack (or encode) again."
            )
    for name, split in splits.items():
        _check_sizes(files[name], lengths[name], split.num_bytes)
    return PackedData(files, lengths, **size, latents=latents, texts=texts, folder=str(folder))


def find_damaged(files: list[str]) -> str | None:
    """The first record file that cannot be read to its end, or None."""
    for path in files:
        try:
            for _ in tf.data.TFRecordDataset(path, buffer_size=1 << 20).batch(64):
                pass
        except tf.errors.OpError:
            return path
    return None


def count_records(path: str | Path) -> int | None:
    """Counts the records of a TFRecord file by the lengths before them, without reading them.

    Args:
      path: of the file.
    Returns:
      Their number, or None where the file ends within a record.
    """
    size = Path(path).stat().st_size
    count = position = 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            position += FRAMING + int.from_bytes(file.read(8), "little")
            count += 1
    return count if position == size else None


def _check_sizes(files: list[str], lengths: list[int], num_bytes: int) -> None:
    """Refuses files cut off between two records: TensorFlow takes such an end for the right one."""
    if sum(Path(path).stat().st_size for path in files) == num_bytes + FRAMING * sum(lengths):
        return
    for path, length in zip(files, lengths, strict=True):
        if count_records(path) != length:
            raise DataError(damaged(path))


def damaged(path: str) -> str:
    """The sentence about a record file that cannot be read."""
    return f"The record file {path} is damaged: delete its folder and run videogen_jax.pack (or encode) again."
