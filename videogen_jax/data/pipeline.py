"""Batches from packed clips: tf.data over TFRecords, a pure function of (seed, step).

    epoch e: the shards in an order of their own -> records -> windows, each shuffled -> the rows of this process
             -> decode the strips that the crop needs -> random crop, window, speed, colours, flip -> batch -> the mesh
             -> or, of latents: batch -> random crop, flip, decode the batch as a whole -> the mesh

Position p = step * batch_size + row counts through all epochs. From p follow the epoch, the window
and the place in it, so a run can start at any step without reading what came before: it opens the
shard where the window starts and costs at most the rest of that shard (256 clips or 256 MiB) and one
window. Every process reads all records of a window but decodes only its own rows: a global batch is
the same for any number of processes, at the price of reading (not decoding) the others' bytes.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from google.protobuf import json_format

from videogen_jax.data import augment
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.latent_records import LatentInfo, TextInfo
from videogen_jax.data.records import FRAMES_PER_STRIP

Clips = dict[str, np.ndarray]
Window = tuple[tf.Tensor, tuple[int, int]]  # its corner and (height, width) in pixels

tf.config.set_visible_devices([], "GPU")  # they are JAX's

# Purposes of random numbers, folded into the seed so that they do not depend on each other.
SHARDS, WINDOWS, CROP, FLIP, AUGMENT = range(5)

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
            f"The data set in {folder} is not finished: run videogen_jax.pack again with the same flags."
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
            raise DataError(f"The record file {path} is missing: delete {folder} and pack again.")
    for name, split in splits.items():
        _check_sizes(files[name], lengths[name], split.num_bytes)
    return PackedData(files, lengths, **size, latents=latents, texts=texts, folder=str(folder))


def make_clips(
    data: str | Path | PackedData,
    split: str,
    *,
    batch_size: int,
    frames: int,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    augmentation: Augmentation | None = None,
    shuffle_window: int = 2048,
    text_length: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
) -> Iterator[Clips]:
    """Endless shuffled batches with random crops in time; latents whose first is of one frame alone are taken whole.

    Args:
      data: of `open_data` or `buckets.open_buckets`, or the folder.
      split: "train" or "validation".
      batch_size: B, over all processes.
      frames: T, consecutive frames cut out of each clip.
      seed: of order, crops and flips.
      start_step: batches that the run has had before; they are not read.
      flip: mirror half of the clips, each as a whole. Latents have to have been encoded with it.
      augmentation: of pixels, which gives them their size; None: as packed. Latents were augmented before they were
        encoded.
      shuffle_window: records shuffled together; so many undecoded ones are held in memory.
      text_length: L, of the caption embeddings, where latents have them; 0: none are read.
      process_index: whose rows, of
      process_count: P.
      threads: of decoding.
    Returns:
      Batches of video (B/P, T, H, W, 3) uint8, or (B/P, T, h, w, C) float16 latents of mean 0 and deviation 1; caption
      (B/P,) bytes; fps, the rate that the frames were taken at, and motion_score (B/P,) float32. With `text_length`
      also text_tokens (B/P, L, E) float16, zeros behind the end of text; text_count (B/P,) int32, how many count;
      text_pooled (B/P, P) float16.
    Raises:
      DataError: the data set does not serve this, or, while iterating, a record is damaged (names the file).
    """
    data = data if isinstance(data, PackedData) else open_data(data)
    rows = _check(data, split, batch_size, frames, process_index, process_count)
    if flip and data.latents is not None and not data.latents.mirrored:
        raise DataError(
            f"data.flip is on, but {data.folder} was encoded without mirrored latents: "
            "set --config.data.flip=False, or encode into another folder with it on."
        )
    if augmentation is not None:
        _check_augmentation(augmentation, data, frames)
    if shuffle_window < 1:
        raise DataError(f"data.shuffle_window is {shuffle_window}: make it 1 or more.")
    position = start_step * batch_size
    length = _count_frames(data, frames)
    records = _shuffled_records(
        data.files[split], data.lengths[split], seed, position, shuffle_window
    )
    numbered = records.enumerate(position)
    if process_count > 1:
        numbered = numbered.filter(
            lambda p, _: (p % batch_size >= rows.start) & (p % batch_size < rows.stop)
        )
    if data.latents is not None:
        drawn = frames < data.frames or flip
        if drawn:
            numbered = numbered.map(
                lambda p, record: (_bits(seed, CROP, p), _bits(seed, FLIP, p), record),
                num_parallel_calls=threads,
                deterministic=True,
            )
        groups = numbered.batch(len(rows), drop_remainder=True)

        def decode_batch(*batch: tf.Tensor) -> dict[str, tf.Tensor]:
            clips = _parse(batch[-1], data, text_length=text_length)
            embeddings = _decode_texts(clips, data, text_length)
            if not drawn:
                return _output(clips, _cut_latents(clips, None, length, data)) | embeddings
            start = _within(batch[0], clips["num_frames"] - length + 1)
            mirrored = _within(batch[1], tf.fill([len(rows)], 2)) == 1 if flip else None
            return _output(clips, _cut_latents(clips, start, length, data, mirrored)) | embeddings

        clips = groups.map(decode_batch, num_parallel_calls=threads, deterministic=True)
        return _iterate(clips.prefetch(2), data.files[split], threads)

    def decode(p: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        clip = _parse(record, data)
        mirrored = _uniform(seed, FLIP, p, maxval=2) == 1 if flip else None
        place = lambda count: _uniform(seed, CROP, p, maxval=count - frames + 1)  # noqa: E731
        if augmentation is None:
            return _output(clip, _cut(clip, place(clip["num_frames"]), frames, data, mirrored))
        key = _key(seed, AUGMENT, p)
        video, rate = _augment(clip, place, frames, data, augmentation, key)
        return _output(clip | {"fps": rate}, _mirror(video, mirrored))

    clips = numbered.map(decode, num_parallel_calls=threads, deterministic=True)
    clips = clips.batch(len(rows), drop_remainder=True).prefetch(2)
    return _iterate(clips, data.files[split], threads)


def make_validation_clips(
    data: str | Path | PackedData,
    *,
    batch_size: int,
    frames: int,
    num_batches: int,
    size: tuple[int, int] | None = None,
    text_length: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Clips]:
    """The first clips of the validation split in order, each cut to its middle frames; never mirrored or augmented.

    Args:
      data: of `open_data` or `buckets.open_buckets`, or the folder.
      batch_size: B, over all processes.
      frames: T.
      num_batches: how many batches; a split of fewer clips starts over.
      size: (height, width) in pixels that is cut out of the middle; None: all of it.
      text_length: as of `make_clips`.
      process_index: whose rows, of
      process_count: P.
    Returns:
      Batches as of `make_clips`.
    Raises:
      DataError: as `make_clips`.
    """
    data = data if isinstance(data, PackedData) else open_data(data)
    split, length = "validation", _count_frames(data, frames)
    rows = _check(data, split, batch_size, frames, process_index, process_count)

    def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
        clip = _parse(record, data, text_length=text_length)
        start = (clip["num_frames"] - length) // 2
        if data.latents is not None:
            embeddings = _decode_texts(clip, data, text_length)
            return _output(clip, _cut_latents(clip, start, length, data)) | embeddings
        window = size and (augment.centre_corner((data.height, data.width), size), size)
        return _output(clip, _decode_frames(clip, start, frames, data, window))

    records = tf.data.TFRecordDataset(data.files[split]).repeat().take(batch_size * num_batches)
    own = records.batch(batch_size).map(lambda batch: batch[rows.start : rows.stop])
    if data.latents is not None:
        return _iterate(own.map(decode), data.files[split], threads=1)
    return _iterate(own.unbatch().map(decode).batch(len(rows)), data.files[split], threads=1)


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


def locate_window(lengths: list[int], order: np.ndarray, record: int) -> tuple[int, int]:
    """Where the `record`-th record of an epoch lies.

    Args:
      lengths: records in each shard.
      order: of the shards in this epoch.
      record: counted from the start of the epoch.
    Returns:
      (place of its shard in `order`, number of the record within the shard).
    """
    ends = np.cumsum(np.asarray(lengths)[order])
    place = int(np.searchsorted(ends, record, side="right"))
    return place, int(record - (ends[place] - lengths[order[place]]))


def _check_sizes(files: list[str], lengths: list[int], num_bytes: int) -> None:
    """Refuses files cut off between two records: TensorFlow takes such an end for the right one."""
    if sum(Path(path).stat().st_size for path in files) == num_bytes + FRAMING * sum(lengths):
        return
    for path, length in zip(files, lengths, strict=True):
        if count_records(path) != length:
            raise DataError(_damaged(path))


def _shuffled_records(
    files: list[str], lengths: list[int], seed: int, position: int, window: int
) -> tf.data.Dataset:
    """Serialized clips from `position` on, for ever."""
    total = sum(lengths)
    first_epoch, within = divmod(position, total)
    first_window, skip = divmod(within, window)

    def shuffle(records: tf.data.Dataset, epoch: tf.Tensor, first: int) -> tf.data.Dataset:
        def permute(number: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            key = tf.random.experimental.stateless_fold_in(_key(seed, WINDOWS, epoch), number)
            return tf.random.experimental.stateless_shuffle(records, key)

        return records.batch(window).enumerate(first).map(permute).unbatch()

    def shard_order(epoch: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(
            tf.range(len(files)), _key(seed, SHARDS, epoch)
        )

    order = shard_order(tf.constant(first_epoch, tf.int64)).numpy()
    place, record = locate_window(lengths, order, first_window * window)
    names = [files[i] for i in order[place:]]
    started = tf.data.TFRecordDataset(names).skip(record)  # less than a shard
    started = shuffle(started, tf.constant(first_epoch, tf.int64), first_window).skip(skip)
    epochs = tf.data.Dataset.range(first_epoch + 1, np.iinfo(np.int64).max)
    following = epochs.flat_map(
        lambda epoch: shuffle(
            tf.data.TFRecordDataset(tf.gather(tf.constant(files), shard_order(epoch))), epoch, 0
        )
    )
    return started.concatenate(following)


def _key(seed: int, purpose: int, number: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(
        tf.constant([seed, purpose], tf.int64), tf.cast(number, tf.int64)
    )


def _uniform(seed: int, purpose: int, number: tf.Tensor, maxval: Any) -> tf.Tensor:
    key = _key(seed, purpose, number)
    return tf.random.stateless_uniform([], key, maxval=maxval, dtype=tf.int32)


def _bits(seed: int, purpose: int, number: tf.Tensor) -> tf.Tensor:
    """The 32 random bits of which `_within` makes what `_uniform` gives."""
    key = _key(seed, purpose, number)
    return tf.random.stateless_uniform([], key, minval=None, maxval=None, dtype=tf.uint32)


def _within(bits: tf.Tensor, maxval: tf.Tensor) -> tf.Tensor:
    """Random numbers below `maxval`, for a batch whose bounds are not known clip by clip."""
    return tf.cast(tf.cast(bits, tf.int64) % tf.cast(maxval, tf.int64), tf.int32)


def read_clips(path: str, data: PackedData) -> Iterator[dict[str, np.ndarray]]:
    """All clips of a record file of pixels, whole and in order.

    Args:
      path: of the file.
      data: of `open_data`.
    Yields:
      video (T, H, W, 3) uint8 and the record's other fields.
    Raises:
      DataError: a record is damaged.
    """

    def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
        clip = _parse(record, data, ("source",))
        video = _decode_strips(clip["strips"], data)[: clip["num_frames"]]
        return {name: clip[name] for name in clip if name != "strips"} | {"video": video}

    records = tf.data.TFRecordDataset(path)
    yield from _iterate(records.map(decode, tf.data.AUTOTUNE).prefetch(1), [path], threads=2)


def read_captions(path: str) -> list[bytes]:
    """The captions of a record file in order.

    Args:
      path: of the file.
    Returns:
      UTF-8, one for each clip.
    Raises:
      DataError: a record is damaged.
    """
    features = {"caption": tf.io.FixedLenFeature([], tf.string)}
    records = tf.data.TFRecordDataset(path)
    captions = records.map(lambda record: tf.io.parse_single_example(record, features))
    return [clip["caption"] for clip in _iterate(captions, [path], threads=1)]


def _parse(
    record: tf.Tensor, data: PackedData, more: tuple[str, ...] = (), text_length: int = 0
) -> dict[str, tf.Tensor]:
    """The fields of a record; of latents also those of a vector of records, as vectors."""
    scalars = {"caption": tf.string, "fps": tf.float32, "num_frames": tf.int64}
    scalars |= {"motion_score": tf.float32} | dict.fromkeys(more, tf.string)
    if data.latents is not None:
        scalars |= dict.fromkeys(("latents", "mirrored_latents"), tf.string)
    if text_length:
        scalars |= dict.fromkeys(("text_tokens", "text_pooled"), tf.string)
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in scalars.items()}
    if data.latents is None:
        features["strips"] = tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True)
    clip = tf.io.parse_example(record, features)  # takes a single one too
    return clip | {"num_frames": tf.cast(clip["num_frames"], tf.int32)}


def _cut(
    clip: dict[str, tf.Tensor],
    start: tf.Tensor,
    frames: int,
    data: PackedData,
    mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Frames start .. start + frames of a clip of pixels, maybe mirrored."""
    return _mirror(_decode_frames(clip, start, frames, data), mirrored)


def _cut_latents(
    clips: dict[str, tf.Tensor],
    start: tf.Tensor | None,
    frames: int,
    data: PackedData,
    mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """The same of a batch of latents, which are made to have mean 0; start is None where clips are no longer.

    Small latents cost less than the calls of TensorFlow that decode them: all are decoded as one.
    """
    info = data.latents
    dtype = tf.as_dtype(info.dtype)
    stored = clips["latents"]  # (B,) of bytes
    if mirrored is not None:
        stored = tf.where(mirrored, clips["mirrored_latents"], stored)
    if start is not None:
        size = math.prod(info.shape) * dtype.size
        stored = tf.strings.substr(stored, start * size, tf.fill(tf.shape(start), frames * size))
    video = tf.reshape(tf.io.decode_raw(stored, dtype), [tf.size(stored), -1, *info.shape])
    video = (tf.cast(video, tf.float32) - tf.constant(info.mean)) / tf.constant(info.deviation)
    return tf.ensure_shape(tf.cast(video, tf.float16), [None, frames, *info.shape])


def _decode_texts(
    clips: dict[str, tf.Tensor], data: PackedData, length: int
) -> dict[str, tf.Tensor]:
    """Caption embeddings of a batch, cut or padded to one length; none if it is 0."""
    if not length:
        return {}
    info = data.texts
    dtype = tf.as_dtype(info.dtype)

    def decode(stored: tf.Tensor, *shape: int) -> tf.Tensor:
        size = math.prod(shape) * dtype.size  # zeros fill up, what is beyond is cut
        halves = tf.io.decode_raw(stored, tf.uint16, fixed_length=size)
        values = tf.cast(tf.bitcast(halves, dtype), tf.float16)
        return tf.ensure_shape(tf.reshape(values, [-1, *shape]), [None, *shape])

    count = tf.strings.length(clips["text_tokens"]) // (info.width * dtype.size)
    return {
        "text_tokens": decode(clips["text_tokens"], length, info.width),
        "text_count": tf.minimum(count, length),
        "text_pooled": decode(clips["text_pooled"], info.pooled_width),
    }


def _mirror(video: tf.Tensor, mirrored: tf.Tensor | None) -> tf.Tensor:
    if mirrored is None:
        return video
    return tf.cond(mirrored, lambda: video[:, :, ::-1], lambda: video)


def _augment(
    clip: dict[str, tf.Tensor],
    place: Callable[[tf.Tensor], tf.Tensor],
    frames: int,
    data: PackedData,
    augmentation: Augmentation,
    key: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Frames of a clip of pixels, augmented, from a place among so many on; and their rate."""
    size = augmentation.size
    window = augment.draw_corner(key, (data.height, data.width), size), size
    rate, count = clip["fps"], clip["num_frames"]
    if augmentation.changes_rate(frames):
        rate = augment.draw_rate(key, clip["fps"], count, frames, augmentation)
        start = place(augment.count_frames(clip["fps"], count, rate))
        chosen = augment.choose_frames(clip["fps"], count, rate, start, frames)
        video = _decode_chosen(clip, chosen, data, window)
    else:
        video = _decode_frames(clip, place(count), frames, data, window)
    video = tf.ensure_shape(video, [frames, *size, 3])
    if augmentation.jitter:
        video = augment.change_colours(video, augment.draw_colours(key, augmentation.jitter))
    return video, rate


def _decode_frames(
    clip: dict[str, tf.Tensor],
    start: tf.Tensor,
    frames: int,
    data: PackedData,
    window: Window | None = None,
) -> tf.Tensor:
    """Frames start .. start + frames, out of the strips that hold them."""
    first = last = tf.constant(0)
    if data.frames > FRAMES_PER_STRIP:
        first = start // FRAMES_PER_STRIP
        last = (start + frames - 1) // FRAMES_PER_STRIP
    video = _decode_strips(clip["strips"][first : last + 1], data, window)
    start = start - first * FRAMES_PER_STRIP
    size = window[1] if window else (data.height, data.width)
    return tf.ensure_shape(video[start : start + frames], [frames, *size, 3])


def _decode_chosen(
    clip: dict[str, tf.Tensor], chosen: tf.Tensor, data: PackedData, window: Window
) -> tf.Tensor:
    """These frames, rising, out of the strips that hold any of them."""
    if data.frames <= FRAMES_PER_STRIP:
        return tf.gather(_decode_strips(clip["strips"], data, window), chosen)
    strips, place = tf.unique(chosen // FRAMES_PER_STRIP)
    video = _decode_strips(tf.gather(clip["strips"], strips), data, window)
    return tf.gather(video, place * FRAMES_PER_STRIP + chosen % FRAMES_PER_STRIP)


def _decode_strips(strips: tf.Tensor, data: PackedData, window: Window | None = None) -> tf.Tensor:
    """(T, H, W, 3) uint8, the frames of these strips behind each other; of each the window alone is kept."""
    corner, size = window or (tf.constant([0, 0]), (data.height, data.width))

    def decode(strip: tf.Tensor) -> tf.Tensor:
        picture = tf.io.decode_jpeg(strip, channels=3)
        video = tf.reshape(picture, [-1, data.height, data.width, 3])
        return augment.cut_window(video, corner, size)

    if data.frames <= FRAMES_PER_STRIP:
        return decode(strips[0])
    shape = tf.TensorSpec([None, *size, 3], tf.uint8)
    video = tf.map_fn(decode, strips, fn_output_signature=shape)
    return tf.reshape(video, [-1, *size, 3])


def _check_augmentation(augmentation: Augmentation, data: PackedData, frames: int) -> None:
    if data.latents is not None:
        raise DataError("Latents are augmented before they are encoded: give no augmentation.")
    augment.check_augmentation(augmentation, data, frames)
    if augmentation.variants != 1:
        raise DataError(
            f"augment.variants is {augmentation.variants}, but pixels are augmented anew in every epoch: set it to 1."
        )


def _output(clip: dict[str, tf.Tensor], video: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"video": video} | {name: clip[name] for name in ("caption", "fps", "motion_score")}


def _count_frames(data: PackedData, frames: int) -> int:
    return frames if data.latents is None else data.latents.count_frames(frames)


def _check(
    data: PackedData,
    split: str,
    batch_size: int,
    frames: int,
    process_index: int,
    process_count: int,
) -> range:
    """The rows of this process in the global batch."""
    for name, value in (("batch_size", batch_size), ("data.frames", frames)):
        if value < 1:
            raise DataError(f"{name} is {value}: make it 1 or more.")
    if not sum(data.lengths.get(split, [])):
        raise DataError(
            f"The data set in {data.folder} has no {split} clips: pack more clips, "
            "or with another --validation_fraction."
        )
    if frames > data.min_frames:
        raise DataError(
            f"data.frames is {frames}, but the clips in {data.folder} have {data.min_frames} frames: "
            f"set --config.data.frames={data.min_frames} or less, or pack again with --frames={frames}."
        )
    if data.latents is not None and data.latents.time_stride > 1:
        _check_whole(data, frames)
    if batch_size % process_count:
        raise DataError(
            f"batch_size of {batch_size} does not divide over {process_count} processes: "
            f"make it a multiple of {process_count}."
        )
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


def _check_whole(data: PackedData, frames: int) -> None:
    """Refuses to cut latents whose first is of one frame alone: they begin with their clip."""
    if data.min_frames != data.frames:
        raise DataError(
            f"The latents in {data.folder} are of clips of {data.min_frames} to {data.frames} frames and cannot be cut "
            "to one length, for the first latent is of one frame alone: pack with one --frames, or in buckets."
        )
    if frames != data.frames:
        raise DataError(
            f"data.frames is {frames}, but the latents in {data.folder} are of clips of {data.frames} frames and "
            f"cannot be cut, for the first latent is of one frame alone: set --config.data.frames={data.frames}."
        )


def _iterate(clips: tf.data.Dataset, files: list[str], threads: int) -> Iterator[Clips]:
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.deterministic = True
    op_error = tf.errors.OpError  # bound here: at interpreter exit the module's names are gone
    try:
        yield from clips.with_options(options).as_numpy_iterator()
    except op_error as error:
        logging.warning("A record cannot be read: looking for it in %d files.", len(files))
        path = find_damaged(files)
        if path is None:
            raise
        raise DataError(_damaged(path)) from error


def _damaged(path: str) -> str:
    return f"The record file {path} is damaged: delete its folder and run videogen_jax.pack again."
