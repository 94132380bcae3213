"""Opens a data set written by `pack` or `encode`: reads its description and checks its files."""

import json
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format

from videogen_jax.data.latent_records import LatentInfo, TextInfo

tf.config.set_visible_devices([], "GPU")  # leaves GPU memory to JAX

FRAMING = 16  # bytes that TFRecord adds to each record: its length and two checksums


class DataError(ValueError):
    """A data set is missing, unfinished or damaged, or does not support the request."""


class PackedData(NamedTuple):
    """Description of a data set."""

    files: dict[str, list[str]]  # split -> shards
    lengths: dict[str, list[int]]  # split -> number of clips of each shard
    words: dict[str, int]  # word counts of the training captions
    frames: int  # of the longest clip
    min_frames: int  # lower bound on the frames of a clip
    height: int  # pixels
    width: int  # pixels
    fps: float
    motion_score_buckets: list[float]  # 255 inner edges of 256 quantile buckets
    latents: LatentInfo | None = None  # None: pixels
    texts: TextInfo | None = None  # None: no caption embeddings
    folder: str = ""


def open_data(data_dir: str | Path) -> PackedData:
    """Opens a data set without reading its records.

    Args:
      data_dir: output folder of `videogen_jax.pack` or `videogen_jax.encode`.
    Raises:
      DataError: the folder is missing or unfinished, or a file is missing or of the wrong size.
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
            f"{folder} is not a data set of videogen_jax.pack, or its JSON files are damaged: give the --output folder "
            "of pack, or delete it and pack again."
        ) from error
    files = {name: [str(path) for path in split.filepaths] for name, split in splits.items()}
    lengths = {name: list(split.shard_lengths) for name, split in splits.items()}
    for path in (path for paths in files.values() for path in paths):
        if not Path(path).is_file():
            raise DataError(
                f"The TFRecord file {path} is missing: delete {folder} and pack (or encode) again."
            )
    for name, split in splits.items():
        _check_sizes(files[name], lengths[name], split.num_bytes)
    return PackedData(files, lengths, **size, latents=latents, texts=texts, folder=str(folder))


def find_damaged(files: list[str]) -> str | None:
    """Returns the first TFRecord file that cannot be read to its end, or None."""
    for path in files:
        try:
            for _ in tf.data.TFRecordDataset(path, buffer_size=1 << 20).batch(64):
                pass
        except tf.errors.OpError:
            return path
    return None


def count_records(path: str | Path) -> int | None:
    """Counts the records of a TFRecord file from their length fields, without reading them.

    Returns:
      The number of records, or None if the file ends within a record.
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
    """Refuses files truncated between two records, which TensorFlow reads without an error."""
    if sum(Path(path).stat().st_size for path in files) == num_bytes + FRAMING * sum(lengths):
        return
    for path, length in zip(files, lengths, strict=True):
        if count_records(path) != length:
            raise DataError(damaged_message(path))


def damaged_message(path: str) -> str:
    """Returns the error message for a TFRecord file that cannot be read."""
    return f"The TFRecord file {path} is damaged: delete its folder and run videogen_jax.pack (or encode) again."
