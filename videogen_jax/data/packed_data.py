"""Opens a data set written by `pack` or `encode`: reads its description and checks its files."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format

from videogen_jax.data import json_files, records
from videogen_jax.data.latent_records import LatentInfo, TextInfo

tf.config.set_visible_devices([], "GPU")  # leaves GPU memory to JAX

FRAMING = 16  # bytes that TFRecord adds to each record: its length and two checksums
WAY_OUT = "bring back a copy of that file, or pack (or encode) into another folder."


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
    annotated: bool = False  # records have the fields of `annotations`; else one text, "caption"
    numbers: tuple[str, ...] = ()  # names of the numbers per frame that all clips have

    def count_video_frames(self, stored: Any) -> Any:
        """Number of video frames of `stored` (pixel or latent) frames, a number or a tensor."""
        return stored if self.latents is None else 1 + (stored - 1) * self.latents.time_stride


STATISTICS = {
    "words": {str: int},
    "frames": int,
    "min_frames": int,
    "height": int,
    "width": int,
    "fps": float,
    "motion_score_buckets": [float],
    "latents": json_files.Optional(LatentInfo),
    "texts": json_files.Optional(TextInfo),
    "numbers": json_files.Optional([str]),  # absent without any
}
DATASET_INFO = {"splits": [{"name": str, "shardLengths": [str], "numBytes": str}]}


def open_data(data_dir: str | Path) -> PackedData:
    """Opens a data set without reading its records.

    Args:
      data_dir: output folder of `videogen_jax.pack` or `videogen_jax.encode`.
    Raises:
      DataError: the folder is missing or unfinished, or a file is missing, damaged or of the wrong size.
      OSError: a file may not be read.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise DataError(
            f"There is no data set in {folder}: run videogen_jax.pack --output={folder} or, if it has moved, give its "
            "folder (--config.data.path, or --data of evaluate)."
        )
    if not (folder / "dataset_info.json").is_file():  # pack writes it last
        raise DataError(
            f"The data set in {folder} is not finished: run videogen_jax.pack again (or encode, for latents) with the "
            "same flags."
        )
    for name in ("statistics.json", "features.json"):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} is no data set of videogen_jax.pack or encode: it has no {name}."
            )
    try:
        json_files.read(folder / "dataset_info.json", DATASET_INFO, WAY_OUT)
        features = json_files.read(folder / "features.json", {str: object}, WAY_OUT)
        statistics = json_files.read(folder / "statistics.json", STATISTICS, WAY_OUT)
    except json_files.FieldError as error:
        raise DataError(str(error)) from error
    _check_feature_classes(folder / "features.json", features)
    verify(folder / "statistics.json", read_checksums(folder))
    try:
        info = tfds.builder_from_directory(folder).info
        splits, annotated = info.splits, "captions" in info.features
    except (OSError, ValueError, KeyError, TypeError, AttributeError, json_format.Error) as error:
        raise DataError(
            f"{folder / 'dataset_info.json'} or features.json beside it is damaged "
            f"({type(error).__name__}: {error}): bring back copies, or pack (or encode) into another folder."
        ) from error
    size = {name: statistics[name] for name in PackedData._fields[2:-5]}
    files = {name: [str(path) for path in split.filepaths] for name, split in splits.items()}
    lengths = {name: list(split.shard_lengths) for name, split in splits.items()}
    for path in (path for paths in files.values() for path in paths):
        if not Path(path).is_file():
            raise DataError(f"The TFRecord file {path} is missing: {WAY_OUT}")
    for name, split in splits.items():
        _check_sizes(files[name], lengths[name], split.num_bytes)
    return PackedData(
        files,
        lengths,
        **size,
        latents=statistics.get("latents"),
        texts=statistics.get("texts"),
        folder=str(folder),
        annotated=annotated,
        numbers=tuple(statistics.get("numbers") or ()),
    )


def _check_feature_classes(path: Path, content: Any) -> None:
    """Raises DataError unless all classes that features.json names are of TFDS, which imports the modules of any."""
    if isinstance(content, dict):
        for key in ("pythonClassName", "python_class_name", "type", "proto_cls"):  # old and new
            name = content.get(key)
            if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
                raise DataError(f"{path} names {name!r}, a class that is not of TFDS: {WAY_OUT}")
        for value in content.values():
            _check_feature_classes(path, value)
    elif isinstance(content, str) and content.lstrip().startswith(("{", "[")):
        within = None
        with contextlib.suppress(ValueError):
            within = json.loads(content)  # JSON within JSON, which TFDS parses
        _check_feature_classes(path, within)
    elif isinstance(content, list):
        for value in content:
            _check_feature_classes(path, value)


def read_checksums(folder: str | Path) -> dict[str, str]:
    """Reads checksums.json of a plain data set: file name -> `records.checksum`; empty in sets of earlier versions.

    Raises:
      DataError: it is damaged.
    """
    path = Path(folder) / records.CHECKSUMS
    if not path.exists():
        return {}
    try:
        return json_files.read(path, {str: str}, WAY_OUT)
    except json_files.FieldError as error:
        raise DataError(str(error)) from error


def verify(path: str | Path, checksums: Mapping[str, str]) -> None:
    """Checks that the bytes of a file are those that were written, if its checksum is known.

    Raises:
      DataError: they are not.
    """
    expected = checksums.get(Path(path).name)
    if expected is not None and records.checksum(path) != expected:
        raise DataError(f"{path} is damaged, or was changed since it was written: {WAY_OUT}")


def read_scores(folder: str | Path) -> np.ndarray:
    """Reads the motion scores (N,) float32 of the training clips of a plain data set.

    Raises:
      DataError: the file is missing or damaged.
    """
    path = Path(folder) / records.MOTION_SCORES
    try:
        scores = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {WAY_OUT}") from None
    except (ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise DataError(f"{path} is damaged ({error}): {WAY_OUT}") from error
    if not isinstance(scores, np.ndarray) or scores.ndim != 1 or scores.dtype != np.float32:
        raise DataError(f"{path} should hold float32 numbers (N,), but does not: {WAY_OUT}")
    if not np.isfinite(scores).all():
        raise DataError(f"{path} holds a number that is not finite: {WAY_OUT}")
    verify(path, read_checksums(folder))
    return scores


def stamp_files(files: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns the size in bytes and the time of modification in ns of each file, for `check_unchanged`.

    Raises:
      DataError: a file is missing.
      OSError: it may not be read.
    """
    try:
        stats = {path: Path(path).stat() for path in files}
    except FileNotFoundError as error:
        raise DataError(f"The TFRecord file {error.filename} is missing: {WAY_OUT}") from None
    return {path: (found.st_size, found.st_mtime_ns) for path, found in stats.items()}


def check_unchanged(stamps: Mapping[str, tuple[int, int]]) -> None:
    """Checks that the files of a data set are those that it had when reading began.

    Raises:
      DataError: a file has vanished or was replaced.
      OSError: a file may not be read.
    """
    for path, stamp in stamps.items():
        try:
            found = stamp_files([path])[path]
        except (DataError, NotADirectoryError):
            raise DataError(
                f"The TFRecord file {path} has vanished while it was in use: bring it back (is the disk mounted?) and "
                "call the same command again."
            ) from None
        if found != stamp:
            raise DataError(
                f"The TFRecord file {path} was replaced while it was in use: later batches would be those of another "
                "data set. Bring the earlier file back, or call the same command again to continue with the new one."
            )


def find_damaged(files: list[str]) -> str | None:
    """Returns the first TFRecord file that cannot be read to its end, or None.

    Raises:
      PermissionError: a file may not be read, so it may be whole.
    """
    for path in files:
        try:
            for _ in tf.data.TFRecordDataset(path, buffer_size=1 << 20).batch(64):
                pass
        except tf.errors.PermissionDeniedError as error:
            raise PermissionError(
                f"The TFRecord file {path} may not be read: permission denied."
            ) from error
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
    return f"The TFRecord file {path} is damaged: {WAY_OUT}"
