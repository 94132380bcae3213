"""Batches of packed clips: tf.data over TFRecords, a pure function of (seed, step).

    epoch e: shards in a random order -> records -> shuffled window by window -> the rows of this process
             pixels:  decode the strips of a random temporal crop -> augment, flip -> batch
             latents: batch -> random temporal crop, flip -> decode the batch at once

Position p = step * batch_size + row counts clips over all epochs. It determines the epoch, the shuffle window and the
index in it, so training resumes at any step without reading earlier batches: it opens the shard in which the window
starts, and reads at most the rest of that shard (256 clips or 256 MiB) and one window. Every process reads all records
of a window but decodes only its own rows. So the global batch does not depend on the number of processes, at the price
of reading (not decoding) the other processes' bytes.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from videogen_jax.data import augment, draws, packed_data, record_decoding
from videogen_jax.data.annotations import Annotations
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.packed_data import DataError, PackedData, open_data

Clips = dict[str, np.ndarray]
SECONDS_BETWEEN_CHECKS = 60.0  # of whether the files are still those of the data set
CLIP_FIELDS = ("video", "caption", "fps", "num_frames", "motion_score", "source")
SHARE_OF_CHECKS = 0.005  # of the time, at most: they take long for many shards on a slow disk


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
    numbers: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> Iterator[Clips]:
    """Yields shuffled batches endlessly, each clip randomly cropped in time.

    Of a clip with several captions one is drawn in each epoch. Of its texts over time that in force for most frames of
    the crop is the caption, the earlier one of equals.

    Latents of a causal autoencoder are not cropped, because their first frame encodes a single video frame.

    Args:
      data: from `open_data` or `bucketed_data.open_buckets`, or the folder.
      split: "train" or "validation".
      batch_size: B, over all processes.
      frames: T, consecutive frames of each clip.
      seed: of order, crops, flips and augmentation.
      start_step: number of batches already consumed; they are not read.
      flip: mirror half of the clips horizontally. Latents must have been encoded with mirrored copies.
      augmentation: of pixels, including their size; None: as packed. Latents are augmented before encoding.
      shuffle_window: records shuffled together, held in memory undecoded.
      text_length: L, tokens of the caption embeddings of latents; 0: embeddings are not read.
      numbers: names of numbers per frame to read.
      share: (i, P): this process reads the i-th of P equal parts of each batch, as `processes.find_share` returns.
      threads: decoding threads.
    Returns:
      Batches of video (B/P, T, H, W, 3) uint8, or (B/P, T, h, w, C) float16 latents of mean 0 and deviation 1; caption
      (B/P,) bytes; fps, the frame rate of the clip as cropped, and motion_score (B/P,) float32. With `text_length` also
      text_tokens (B/P, L, E) float16, zero-padded; text_count (B/P,) int32, tokens before padding; text_pooled
      (B/P, P) float16. With `numbers` also numbers, name -> (B/P, T) float32, of the frames of the video.
    Raises:
      DataError: the data set does not support the arguments or, while iterating, a record is damaged (names the file).
    """
    data = data if isinstance(data, PackedData) else open_data(data)
    rows = _check(data, split, batch_size, frames, share, numbers)
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
    records = draws.shuffled_records(
        data.files[split], data.lengths[split], seed, position, shuffle_window
    )
    numbered = records.enumerate(position)
    if share[1] > 1:
        numbered = numbered.filter(
            lambda p, _: (p % batch_size >= rows.start) & (p % batch_size < rows.stop)
        )
    common = {"batch_size": len(rows), "frames": frames, "seed": seed, "flip": flip}
    common["numbers"] = tuple(numbers)
    if data.latents is not None:
        clips = _batch_latents(numbered, data, text_length=text_length, threads=threads, **common)
    else:
        clips = _batch_pixels(numbered, data, augmentation=augmentation, threads=threads, **common)
    return _iterate(clips.prefetch(2), data.files[split], threads)


def _batch_pixels(
    numbered: tf.data.Dataset,
    data: PackedData,
    *,
    batch_size: int,
    frames: int,
    seed: int,
    flip: bool,
    augmentation: Augmentation | None,
    numbers: tuple[str, ...],
    threads: int,
) -> tf.data.Dataset:
    """Batches pixel clips, drawing crop, augmentation, flip and caption of each from its position."""

    def decode(p: tf.Tensor, record: tf.Tensor) -> dict[str, Any]:
        clip = record_decoding.parse(record, data, numbers=bool(numbers))
        mirrored = draws.uniform(seed, draws.FLIP, p, maxval=2) == 1 if flip else None
        draw_start = lambda count: draws.uniform(seed, draws.CROP, p, maxval=count - frames + 1)  # noqa: E731
        if augmentation is None:
            start = draw_start(clip["num_frames"])
            chosen = start + tf.range(frames)
            video = record_decoding.cut_pixels(clip, start, frames, data, mirrored)
        else:
            key = draws.make_key(seed, draws.AUGMENT, p)
            video, rate, chosen = record_decoding.decode_augmented(
                clip, draw_start, frames, data, augmentation, key
            )
            video = record_decoding.mirror(video, mirrored)
            clip |= {"fps": rate}
        draw_caption = lambda count: draws.uniform(seed, draws.CAPTION, p, maxval=count)  # noqa: E731
        clip = record_decoding.choose_caption(clip, chosen, draw_caption)
        cut = record_decoding.cut_numbers(clip, numbers, chosen, data)
        return record_decoding.select_fields(clip, video) | cut

    clips = numbered.map(decode, num_parallel_calls=threads, deterministic=True)
    return clips.batch(batch_size, drop_remainder=True)


def _batch_latents(
    numbered: tf.data.Dataset,
    data: PackedData,
    *,
    batch_size: int,
    frames: int,
    seed: int,
    flip: bool,
    text_length: int,
    numbers: tuple[str, ...],
    threads: int,
) -> tf.data.Dataset:
    """Batches latent clips, drawing crop, flip and caption of each from its position; decodes a batch at once."""
    length = _stored_length(data, frames)
    moves = frames < data.frames or flip
    purposes = ((draws.CROP, draws.FLIP) if moves else ()) + (
        (draws.CAPTION,) if data.annotated else ()
    )
    if purposes:  # drawn before batching, because stateless random operations take a single key
        numbered = numbered.map(
            lambda p, record: (*(draws.bits(seed, purpose, p) for purpose in purposes), record),
            num_parallel_calls=threads,
            deterministic=True,
        )

    def decode(*batch: tf.Tensor) -> dict[str, Any]:
        clips = record_decoding.parse(
            batch[-1], data, text_length=text_length, numbers=bool(numbers)
        )
        bits = dict(zip(purposes, batch, strict=False))
        start = mirrored = None
        if moves:
            start = draws.within(bits[draws.CROP], clips["num_frames"] - length + 1)
            mirrored = (
                draws.within(bits[draws.FLIP], tf.fill([batch_size], 2)) == 1 if flip else None
            )
        video = record_decoding.cut_latents(clips, start, length, data, mirrored)
        chosen = _frames_of_crops(start, batch_size, frames)
        clips = record_decoding.choose_caption(
            clips, chosen, lambda count: draws.within(bits[draws.CAPTION], count)
        )
        embeddings = record_decoding.decode_text_embeddings(clips, data, text_length)
        cut = record_decoding.cut_numbers(clips, numbers, chosen, data)
        return record_decoding.select_fields(clips, video) | embeddings | cut

    groups = numbered.batch(batch_size, drop_remainder=True)
    return groups.map(decode, num_parallel_calls=threads, deterministic=True)


def _frames_of_crops(start: tf.Tensor | None, batch_size: int, frames: int) -> tf.Tensor:
    """The frames of the video, (B, T) int32, that crops of latents from `start`, (B,) or None for 0, encode."""
    start = tf.zeros([batch_size], tf.int32) if start is None else start
    return start[:, None] + tf.range(frames)


def make_validation_clips(
    data: str | Path | PackedData,
    *,
    batch_size: int,
    frames: int,
    num_batches: int,
    size: tuple[int, int] | None = None,
    text_length: int = 0,
    numbers: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
) -> Iterator[Clips]:
    """Yields the first clips of the validation split in order, centre-cropped in time, without augmentation.

    Of several captions of a clip the first is taken.

    Args:
      data: from `open_data` or `bucketed_data.open_buckets`, or the folder.
      batch_size: B, over all processes.
      frames: T.
      num_batches: number of batches; a split with fewer clips is repeated.
      size: (height, width) of a spatial centre crop in pixels; None: whole frames.
      text_length: as for `make_clips`.
      numbers: as for `make_clips`.
      share: as for `make_clips`.
    Returns:
      Batches as from `make_clips`.
    Raises:
      DataError: as `make_clips`.
    """
    data = data if isinstance(data, PackedData) else open_data(data)
    split, length = "validation", _stored_length(data, frames)
    rows = _check(data, split, batch_size, frames, share, numbers)

    def decode(record: tf.Tensor) -> dict[str, Any]:
        clip = record_decoding.parse(record, data, text_length=text_length, numbers=bool(numbers))
        start = (clip["num_frames"] - length) // 2
        chosen = start[..., None] + tf.range(frames)
        clip = record_decoding.choose_caption(clip, chosen, None)
        cut = record_decoding.cut_numbers(clip, numbers, chosen, data)
        if data.latents is not None:
            video = record_decoding.cut_latents(clip, start, length, data)
            embeddings = record_decoding.decode_text_embeddings(clip, data, text_length)
            return record_decoding.select_fields(clip, video) | embeddings | cut
        crop = size and (augment.centre_crop_offset((data.height, data.width), size), size)
        video = record_decoding.decode_frames(clip, start, frames, data, crop)
        return record_decoding.select_fields(clip, video) | cut

    records = tf.data.TFRecordDataset(data.files[split]).repeat().take(batch_size * num_batches)
    shares = records.batch(batch_size).map(lambda batch: batch[rows.start : rows.stop])
    if data.latents is not None:
        return _iterate(shares.map(decode), data.files[split], threads=1)
    return _iterate(shares.unbatch().map(decode).batch(len(rows)), data.files[split], threads=1)


def read_clips(path: str, data: PackedData) -> Iterator[dict[str, np.ndarray]]:
    """Reads all clips of a TFRecord file of pixels in order, uncropped.

    Args:
      path: TFRecord file.
      data: the data set that it belongs to.
    Yields:
      video (T, H, W, 3) uint8; annotations, its `Annotations`; caption, as from `read_captions`; fps, num_frames,
      motion_score and source.
    Raises:
      DataError: a record is damaged.
    """
    texts = ("source", "episode") if data.annotated else ("source",)

    def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
        clip = record_decoding.parse(record, data, texts, numbers=data.annotated)
        clip = record_decoding.choose_caption(clip, tf.range(clip["num_frames"]), None)
        video = record_decoding.decode_strips(clip["strips"], data)[: clip["num_frames"]]
        return {name: clip[name] for name in clip if name != "strips"} | {"video": video}

    clips = tf.data.TFRecordDataset(path).map(decode, tf.data.AUTOTUNE)
    for clip in _iterate(clips.prefetch(1), [path], threads=2):
        fields = {name: clip[name] for name in CLIP_FIELDS}
        yield fields | {"annotations": Annotations.from_record(clip)}


def read_annotations(path: str, data: PackedData, count: int = -1) -> Iterator[Annotations]:
    """Reads what the clips of a TFRecord file carry beside pixels or latents, in order.

    Args:
      path: TFRecord file.
      data: the data set that it belongs to.
      count: most clips to read; -1: all.
    Yields:
      Captions over time, episode and numbers per frame of each clip.
    Raises:
      DataError: a record is damaged.
    """
    texts = ("episode",) if data.annotated else ()
    options = {"extra_texts": texts, "numbers": data.annotated, "media": False}
    records = tf.data.TFRecordDataset(path).take(count)
    clips = records.map(lambda record: record_decoding.parse(record, data, **options))
    for clip in _iterate(clips, [path], threads=1):
        yield Annotations.from_record(clip)


def read_token_counts(path: str, data: PackedData, count: int = -1) -> list[int]:
    """Reads how many tokens the stored embedding of each caption entry of a TFRecord file has, in order.

    Args:
      path: TFRecord file of a data set with caption embeddings.
      data: the data set that it belongs to.
      count: most clips to read; -1: all.
    Raises:
      DataError: a record is damaged.
    """
    records = tf.data.TFRecordDataset(path).take(count)
    clips = records.map(
        lambda record: record_decoding.count_stored_tokens(
            record_decoding.parse(record, data, text_length=1, media=False), data
        )
    )
    return [int(n) for counts in _iterate(clips, [path], threads=1) for n in counts]


def read_captions(path: str, data: PackedData, count: int = -1) -> list[bytes]:
    """Reads a caption of each clip of a TFRecord file in order: of its first caption the text that most frames have.

    Args:
      path: TFRecord file.
      data: the data set that it belongs to.
      count: most captions to read; -1: all.
    Returns:
      UTF-8 bytes, one caption per clip.
    Raises:
      DataError: a record is damaged.
    """

    def decode(record: tf.Tensor) -> tf.Tensor:
        clip = record_decoding.parse(record, data, media=False)
        frames = data.count_video_frames(clip["num_frames"])
        return record_decoding.choose_caption(clip, tf.range(frames), None)["caption"]

    captions = tf.data.TFRecordDataset(path).take(count).map(decode)
    return list(_iterate(captions, [path], threads=1))


def _check_augmentation(augmentation: Augmentation, data: PackedData, frames: int) -> None:
    if data.latents is not None:
        raise DataError("Latents are augmented before they are encoded: pass no augmentation.")
    augment.check_augmentation(augmentation, data, frames)
    if augmentation.variants != 1:
        raise DataError(
            f"augment.variants is {augmentation.variants}, but pixels are augmented on the fly in every epoch: "
            "set it to 1."
        )


def _stored_length(data: PackedData, frames: int) -> int:
    """Number of stored (pixel or latent) frames of `frames` video frames."""
    return frames if data.latents is None else data.latents.count_frames(frames)


def _check(
    data: PackedData,
    split: str,
    batch_size: int,
    frames: int,
    share: tuple[int, int],
    numbers: Sequence[str],
) -> range:
    """Validates the arguments; returns the rows of this process in the global batch."""
    for name, value in (("batch_size", batch_size), ("data.frames", frames)):
        if value < 1:
            raise DataError(f"{name} is {value}: make it 1 or more.")
    if not sum(data.lengths.get(split, [])):
        raise DataError(
            f"The data set in {data.folder} has no {split} clips: pack more clips, "
            "or with another --validation_fraction."
        )
    for name in numbers:
        if name not in data.numbers:
            present = ", ".join(data.numbers) or "none"
            raise DataError(
                f"The clips in {data.folder} do not all have a number {name!r} per frame: those there are {present}."
            )
    if frames > data.min_frames:
        raise DataError(
            f"data.frames is {frames}, but the clips in {data.folder} have {data.min_frames} frames: "
            f"set --config.data.frames={data.min_frames} or less, or pack again with --frames={frames}."
        )
    if data.latents is not None and data.latents.time_stride > 1:
        _check_uncropped(data, frames)
    index, count = share
    if batch_size % count:
        raise DataError(
            f"batch_size of {batch_size} does not divide over {count} processes: "
            f"make it a multiple of {count}."
        )
    rows = batch_size // count
    return range(index * rows, (index + 1) * rows)


def _check_uncropped(data: PackedData, frames: int) -> None:
    """Refuses temporal crops of latents whose first frame encodes a single video frame."""
    if data.min_frames != data.frames:
        raise DataError(
            f"The latents in {data.folder} have clips of {data.min_frames} to {data.frames} frames and cannot be "
            "cropped to one length, because the first latent encodes a single frame: pack with one --frames, or in "
            "buckets."
        )
    if frames != data.frames:
        raise DataError(
            f"data.frames is {frames}, but the latents in {data.folder} have clips of {data.frames} frames and cannot "
            f"be cropped, because the first latent encodes a single frame: set --config.data.frames={data.frames}."
        )


def _iterate(clips: tf.data.Dataset, files: list[str], threads: int) -> Iterator[Clips]:
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.deterministic = True
    op_error = tf.errors.OpError  # bound here, because module globals are gone at interpreter exit
    stamps = packed_data.stamp_files(files)
    due = time.monotonic() + SECONDS_BETWEEN_CHECKS
    try:
        for batch in clips.with_options(options).as_numpy_iterator():
            yield batch
            if (now := time.monotonic()) >= due:
                packed_data.check_unchanged(stamps)
                spent = time.monotonic() - now
                due = now + max(SECONDS_BETWEEN_CHECKS, spent / SHARE_OF_CHECKS)
    except op_error as error:
        packed_data.check_unchanged(stamps)
        logging.warning("A record cannot be read: searching %d files for it.", len(files))
        path = packed_data.find_damaged(files)
        if path is None:
            raise
        raise DataError(packed_data.damaged_message(path)) from error
