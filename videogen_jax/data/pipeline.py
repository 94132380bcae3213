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

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from videogen_jax.data import augment, packed_data, record_decoding
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.packed_data import DataError, PackedData, open_data

Clips = dict[str, np.ndarray]


# Purposes of random numbers, folded into the seed so that they do not depend on each other.
SHARDS, WINDOWS, CROP, FLIP, AUGMENT = range(5)


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
    share: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> Iterator[Clips]:
    """Endless shuffled batches with random crops in time; latents whose first is of one frame alone are taken whole.

    Args:
      data: of `open_data` or `bucketed_data.open_buckets`, or the folder.
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
      share: (i, P): this process reads the i-th of P equal parts of each batch's rows, as of `processes.find_share`.
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
    rows = _check(data, split, batch_size, frames, share)
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
    if share[1] > 1:
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
            clips = record_decoding.parse(batch[-1], data, text_length=text_length)
            embeddings = record_decoding.decode_texts(clips, data, text_length)
            if not drawn:
                return (
                    record_decoding.output(
                        clips, record_decoding.cut_latents(clips, None, length, data)
                    )
                    | embeddings
                )
            start = _within(batch[0], clips["num_frames"] - length + 1)
            mirrored = _within(batch[1], tf.fill([len(rows)], 2)) == 1 if flip else None
            return (
                record_decoding.output(
                    clips, record_decoding.cut_latents(clips, start, length, data, mirrored)
                )
                | embeddings
            )

        clips = groups.map(decode_batch, num_parallel_calls=threads, deterministic=True)
        return _iterate(clips.prefetch(2), data.files[split], threads)

    def decode(p: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
        clip = record_decoding.parse(record, data)
        mirrored = _uniform(seed, FLIP, p, maxval=2) == 1 if flip else None
        place = lambda count: _uniform(seed, CROP, p, maxval=count - frames + 1)  # noqa: E731
        if augmentation is None:
            return record_decoding.output(
                clip,
                record_decoding.cut_pixels(clip, place(clip["num_frames"]), frames, data, mirrored),
            )
        key = _key(seed, AUGMENT, p)
        video, rate = record_decoding.augment_clip(clip, place, frames, data, augmentation, key)
        return record_decoding.output(clip | {"fps": rate}, record_decoding.mirror(video, mirrored))

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
    share: tuple[int, int] = (0, 1),
) -> Iterator[Clips]:
    """The first clips of the validation split in order, each cut to its middle frames; never mirrored or augmented.

    Args:
      data: of `open_data` or `bucketed_data.open_buckets`, or the folder.
      batch_size: B, over all processes.
      frames: T.
      num_batches: how many batches; a split of fewer clips starts over.
      size: (height, width) in pixels that is cut out of the middle; None: all of it.
      text_length: as of `make_clips`.
      share: (i, P): this process reads the i-th of P equal parts of each batch's rows, as of `processes.find_share`.
    Returns:
      Batches as of `make_clips`.
    Raises:
      DataError: as `make_clips`.
    """
    data = data if isinstance(data, PackedData) else open_data(data)
    split, length = "validation", _count_frames(data, frames)
    rows = _check(data, split, batch_size, frames, share)

    def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
        clip = record_decoding.parse(record, data, text_length=text_length)
        start = (clip["num_frames"] - length) // 2
        if data.latents is not None:
            embeddings = record_decoding.decode_texts(clip, data, text_length)
            return (
                record_decoding.output(clip, record_decoding.cut_latents(clip, start, length, data))
                | embeddings
            )
        window = size and (augment.centre_corner((data.height, data.width), size), size)
        return record_decoding.output(
            clip, record_decoding.decode_frames(clip, start, frames, data, window)
        )

    records = tf.data.TFRecordDataset(data.files[split]).repeat().take(batch_size * num_batches)
    own = records.batch(batch_size).map(lambda batch: batch[rows.start : rows.stop])
    if data.latents is not None:
        return _iterate(own.map(decode), data.files[split], threads=1)
    return _iterate(own.unbatch().map(decode).batch(len(rows)), data.files[split], threads=1)


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
        clip = record_decoding.parse(record, data, ("source",))
        video = record_decoding.decode_strips(clip["strips"], data)[: clip["num_frames"]]
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


def _check_augmentation(augmentation: Augmentation, data: PackedData, frames: int) -> None:
    if data.latents is not None:
        raise DataError("Latents are augmented before they are encoded: give no augmentation.")
    augment.check_augmentation(augmentation, data, frames)
    if augmentation.variants != 1:
        raise DataError(
            f"augment.variants is {augmentation.variants}, but pixels are augmented anew in every epoch: set it to 1."
        )


def _count_frames(data: PackedData, frames: int) -> int:
    return frames if data.latents is None else data.latents.count_frames(frames)


def _check(
    data: PackedData, split: str, batch_size: int, frames: int, share: tuple[int, int]
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
    index, count = share
    if batch_size % count:
        raise DataError(
            f"batch_size of {batch_size} does not divide over {count} processes: "
            f"make it a multiple of {count}."
        )
    rows = batch_size // count
    return range(index * rows, (index + 1) * rows)


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
        path = packed_data.find_damaged(files)
        if path is None:
            raise
        raise DataError(packed_data.damaged(path)) from error
