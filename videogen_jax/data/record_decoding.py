"""Decodes TFRecords inside tf.data graphs.

Pixels are decoded clip by clip, only the strips that a temporal crop needs; latents and caption embeddings are decoded
a batch at a time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from videogen_jax.data import annotations, augment
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.packed_data import PackedData
from videogen_jax.data.records import FRAMES_PER_STRIP

Crop = tuple[tf.Tensor, tuple[int, int]]  # offset (row, column) and size (height, width) in pixels


def parse(
    record: tf.Tensor,
    data: PackedData,
    extra_texts: tuple[str, ...] = (),
    text_length: int = 0,
    numbers: bool = False,
    media: bool = True,
) -> dict[str, tf.Tensor]:
    """Parses the fields of a record of pixels, or of one or several records of latents.

    Args:
      record: () string, or (B,) string for latents.
      data: data set description.
      extra_texts: names of further string fields to parse.
      text_length: if above 0, caption embeddings are parsed.
      numbers: whether the numbers per frame are parsed.
      media: whether the strips, or the latents, are parsed.
    Returns:
      Field name -> serialized value, with a leading axis B for (B,) records; num_frames as int32. The captions' entries
      are under the names of `annotations`, padded with captions of number -1 to the clip of most entries; a data set
      of one text per clip has "caption".
    """
    scalars = {"fps": tf.float32, "num_frames": tf.int64}
    scalars |= {"motion_score": tf.float32} | dict.fromkeys(extra_texts, tf.string)
    sequences: dict[str, tuple[tf.DType, Any]] = {}  # name -> type and padding
    if data.annotated:
        sequences[annotations.NUMBER] = (tf.int64, -1)
        sequences |= {annotations.FIRST_FRAME: (tf.int64, 0), annotations.TEXT: (tf.string, "")}
    else:
        scalars["caption"] = tf.string
    if numbers:
        sequences |= {annotations.NAME: (tf.string, ""), annotations.VALUES: (tf.float32, 0.0)}
    if media and data.latents is not None:
        scalars |= dict.fromkeys(("latents", "mirrored_latents"), tf.string)
    if text_length:
        if data.annotated:
            sequences[annotations.TOKENS] = (tf.int64, 0)
        scalars |= dict.fromkeys(("text_tokens", "text_pooled"), tf.string)
    features = {name: tf.io.FixedLenFeature([], kind) for name, kind in scalars.items()}
    if media and data.latents is None:
        sequences["strips"] = (tf.string, "")
    for name, (kind, padding) in sequences.items():
        features[name] = tf.io.FixedLenSequenceFeature([], kind, True, padding)
    clip = tf.io.parse_example(record, features)  # accepts a single record too
    return clip | {"num_frames": tf.cast(clip["num_frames"], tf.int32)}


def cut_pixels(
    clip: dict[str, tf.Tensor],
    start: tf.Tensor,
    frames: int,
    data: PackedData,
    mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Decodes frames start ... start + frames - 1 of a pixel clip, mirrored or not.

    Args:
      clip: from `parse`.
      start: () int32.
      frames: T.
      data: data set description.
      mirrored: () bool; None: False.
    Returns:
      (T, H, W, 3) uint8.
    """
    return mirror(decode_frames(clip, start, frames, data), mirrored)


def cut_latents(
    clips: dict[str, tf.Tensor],
    start: tf.Tensor | None,
    frames: int,
    data: PackedData,
    mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Decodes a temporal crop of each clip of a batch of latents, normalized to mean 0 and deviation 1.

    The batch is decoded in one operation, because TensorFlow's overhead per call exceeds the cost of a small latent.

    Args:
      clips: from `parse`, of B records.
      start: (B,) int32, first latent frame of each crop; None: clips have exactly `frames` latent frames.
      frames: T, latent frames.
      data: data set description.
      mirrored: (B,) bool, clips to read mirrored; None: none.
    Returns:
      (B, T, h, w, C) float16.
    """
    info = data.latents
    dtype = tf.as_dtype(info.dtype)
    stored = clips["latents"]  # (B,) bytes
    if mirrored is not None:
        stored = tf.where(mirrored, clips["mirrored_latents"], stored)
    if start is not None:
        size = math.prod(info.shape) * dtype.size
        stored = tf.strings.substr(stored, start * size, tf.fill(tf.shape(start), frames * size))
    video = tf.reshape(tf.io.decode_raw(stored, dtype), [tf.size(stored), -1, *info.shape])
    video = (tf.cast(video, tf.float32) - tf.constant(info.mean)) / tf.constant(info.deviation)
    return tf.ensure_shape(tf.cast(video, tf.float16), [None, frames, *info.shape])


def decode_text_embeddings(
    clips: dict[str, tf.Tensor], data: PackedData, length: int
) -> dict[str, tf.Tensor]:
    """Decodes the embeddings of the chosen captions of a batch, truncated or zero-padded to one length.

    Args:
      clips: from `parse` and `choose_caption`, of B records.
      data: data set description.
      length: L tokens; 0: the result is empty.
    Returns:
      text_tokens (B, L, E) and text_pooled (B, P) float16; text_count (B,) int32, number of tokens before padding.
    """
    if not length:
        return {}
    info = data.texts
    dtype = tf.as_dtype(info.dtype)

    def decode(stored: tf.Tensor, *shape: int) -> tf.Tensor:
        size = math.prod(shape) * dtype.size  # decode_raw pads with zeros or truncates to it
        halves = tf.io.decode_raw(stored, tf.uint16, fixed_length=size)
        values = tf.cast(tf.bitcast(halves, dtype), tf.float16)
        return tf.ensure_shape(tf.reshape(values, [-1, *shape]), [None, *shape])

    tokens, pooled = clips["text_tokens"], clips["text_pooled"]  # (B,) bytes
    if "entry" in clips:
        row = dtype.size * info.width
        counts, entry = clips[annotations.TOKENS], clips["entry"]  # (B, E) and (B,)
        first = tf.gather(tf.cumsum(counts, -1, exclusive=True), entry, batch_dims=1)
        tokens = tf.strings.substr(
            tokens, first * row, tf.gather(counts, entry, batch_dims=1) * row
        )
        size = tf.cast(dtype.size * info.pooled_width, tf.int64)
        pooled = tf.strings.substr(pooled, entry * size, tf.fill(tf.shape(entry), size))
    count = tf.strings.length(tokens) // (info.width * dtype.size)
    return {
        "text_tokens": decode(tokens, length, info.width),
        "text_count": tf.minimum(count, length),
        "text_pooled": decode(pooled, info.pooled_width),
    }


def count_stored_tokens(clip: dict[str, tf.Tensor], data: PackedData) -> tf.Tensor:
    """Tokens of the embedding of each entry of a record's captions, (E,) int64, from `parse` with a text length."""
    if data.annotated:
        return clip[annotations.TOKENS]
    row = data.texts.width * tf.as_dtype(data.texts.dtype).size
    return tf.cast(tf.strings.length(clip["text_tokens"]) // row, tf.int64)[None]


def choose_caption(
    clip: dict[str, tf.Tensor], chosen: tf.Tensor, draw: Callable[[tf.Tensor], tf.Tensor] | None
) -> dict[str, tf.Tensor]:
    """Chooses the caption of a crop: of one of the clip's captions, the text in force for most of its frames.

    Args:
      clip: from `parse`, of a clip or of a batch (B,).
      chosen: (T,) or (B, T) int32, frames of the crop.
      draw: draws the number of the caption, () or (B,) int32, given how many the clip has; None: the first one.
    Returns:
      The clip with "caption", () or (B,) string, of texts in force for equally many frames the one that comes first in
      the crop; and "entry", () or (B,) int64, its index among the entries. A data set of one text per clip has
      its "caption" already.
    """
    if annotations.TEXT not in clip:
        return clip
    number, first = clip[annotations.NUMBER], clip[annotations.FIRST_FRAME]  # (..., E)
    text = clip[annotations.TEXT]

    def choose() -> tf.Tensor:
        count = tf.cast(tf.reduce_max(number, -1) + 1, tf.int32)
        drawn = tf.zeros_like(count) if draw is None else draw(count)
        own = number == tf.cast(drawn, tf.int64)[..., None]
        more = number[..., 1:] == number[..., :-1]  # does the caption go on?
        end = tf.where(more, first[..., 1:], tf.int64.max)
        end = tf.concat([end, tf.fill(tf.shape(first[..., :1]), tf.int64.max)], -1)
        frame = tf.cast(chosen, tf.int64)[..., None]  # (..., T, 1)
        in_force = (frame >= first[..., None, :]) & (frame < end[..., None, :])  # (..., T, E)
        shown = tf.math.count_nonzero(in_force, -2)  # (..., E)
        same = (text[..., :, None] == text[..., None, :]) & own[..., None, :]  # (..., E, E)
        total = tf.reduce_sum(tf.where(same, shown[..., None, :], 0), -1)  # over equal texts
        entries = tf.shape(number, tf.int64)[-1]
        # All scores differ, so that the earlier of equals wins whatever argmax does with ties.
        score = tf.where(own & (shown > 0), total * entries - tf.range(entries), -entries)
        return tf.argmax(score, -1)

    if number.shape.rank > 1:
        row = choose()
    else:  # most clips have a single entry, and operations on clips one by one cost time
        row = tf.cond(tf.size(text) == 1, lambda: tf.zeros([], tf.int64), choose)
    return clip | {"caption": tf.gather(text, row, batch_dims=row.shape.rank), "entry": row}


def cut_numbers(
    clip: dict[str, tf.Tensor], names: Sequence[str], chosen: tf.Tensor, data: PackedData
) -> dict[str, dict[str, tf.Tensor]]:
    """Cuts numbers per frame to those of a crop.

    Args:
      clip: from `parse` with `numbers`, of a clip or of a batch (B,).
      names: names of numbers that the clip has.
      chosen: (T,) or (B, T) int32, frames of the crop.
      data: data set description.
    Returns:
      {"numbers": name -> (T,) or (B, T) float32}; empty without names.
    """
    if not names:
        return {}
    values, found = clip[annotations.VALUES], clip[annotations.NAME]
    batch = found.shape.rank - 1
    count = tf.cast(data.count_video_frames(clip["num_frames"]), tf.int64)  # values of each name

    def cut(name: str) -> tf.Tensor:
        at = tf.cast(found == name, tf.int64)  # (..., N)
        start = tf.argmax(at, -1) * count
        start = tf.where(tf.reduce_max(at, -1) == 1, start, -(2**40))  # not found: gather fails
        return tf.gather(values, start[..., None] + tf.cast(chosen, tf.int64), batch_dims=batch)

    return {"numbers": {name: cut(name) for name in names}}


def mirror(video: tf.Tensor, mirrored: tf.Tensor | None) -> tf.Tensor:
    """Flips a clip (T, H, W, 3) horizontally if `mirrored`, () bool, is true; None: False."""
    if mirrored is None:
        return video
    return tf.cond(mirrored, lambda: video[:, :, ::-1], lambda: video)


def decode_augmented(
    clip: dict[str, tf.Tensor],
    draw_start: Callable[[tf.Tensor], tf.Tensor],
    frames: int,
    data: PackedData,
    augmentation: Augmentation,
    key: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes and augments a temporal crop of a pixel clip.

    Args:
      clip: from `parse`.
      draw_start: draws the first frame of the crop, () int32, given the clip's number of frames at the drawn rate.
      frames: T.
      data: data set description.
      augmentation: to apply.
      key: random key of the clip.
    Returns:
      (T, h, w, 3) uint8; the frame rate, () float32 frames per second; and which frames of the clip they are, (T,)
      int32.
    """
    size = augmentation.size
    crop = augment.draw_crop_offset(key, (data.height, data.width), size), size
    rate, count = clip["fps"], clip["num_frames"]
    if augmentation.changes_rate(frames):
        rate = augment.draw_rate(key, clip["fps"], count, frames, augmentation)
        start = draw_start(augment.count_frames(clip["fps"], count, rate))
        chosen = augment.choose_frames(clip["fps"], count, rate, start, frames)
        video = _decode_chosen(clip, chosen, data, crop)
    else:
        start = draw_start(count)
        chosen = start + tf.range(frames)
        video = decode_frames(clip, start, frames, data, crop)
    video = tf.ensure_shape(video, [frames, *size, 3])
    if augmentation.jitter:
        video = augment.jitter_colours(video, augment.draw_colour_factors(key, augmentation.jitter))
    return video, rate, chosen


def decode_frames(
    clip: dict[str, tf.Tensor],
    start: tf.Tensor,
    frames: int,
    data: PackedData,
    crop: Crop | None = None,
) -> tf.Tensor:
    """Decodes frames start ... start + frames - 1, reading only the strips that hold them.

    Args:
      clip: from `parse`.
      start: () int32.
      frames: T.
      data: data set description.
      crop: spatial crop; None: whole frames.
    Returns:
      (T, h, w, 3) uint8.
    """
    first = last = tf.constant(0)
    if data.frames > FRAMES_PER_STRIP:
        first = start // FRAMES_PER_STRIP
        last = (start + frames - 1) // FRAMES_PER_STRIP
    video = decode_strips(clip["strips"][first : last + 1], data, crop)
    start = start - first * FRAMES_PER_STRIP
    size = crop[1] if crop else (data.height, data.width)
    return tf.ensure_shape(video[start : start + frames], [frames, *size, 3])


def _decode_chosen(
    clip: dict[str, tf.Tensor], chosen: tf.Tensor, data: PackedData, crop: Crop
) -> tf.Tensor:
    """Decodes the frames with indices `chosen` (T,), reading only the strips that hold them."""
    if data.frames <= FRAMES_PER_STRIP:
        return tf.gather(decode_strips(clip["strips"], data, crop), chosen)
    strips, strip_of = tf.unique(chosen // FRAMES_PER_STRIP)
    video = decode_strips(tf.gather(clip["strips"], strips), data, crop)
    return tf.gather(video, strip_of * FRAMES_PER_STRIP + chosen % FRAMES_PER_STRIP)


def decode_strips(strips: tf.Tensor, data: PackedData, crop: Crop | None = None) -> tf.Tensor:
    """Decodes strips (S,) of JPEG bytes to their frames, (T, H, W, 3) uint8, cropped in space."""
    offset, size = crop or (tf.constant([0, 0]), (data.height, data.width))

    def decode(strip: tf.Tensor) -> tf.Tensor:
        # The default, INTEGER_FAST, is 5 dB less accurate at quality 95 and no faster here.
        picture = tf.io.decode_jpeg(strip, channels=3, dct_method="INTEGER_ACCURATE")
        video = tf.reshape(picture, [-1, data.height, data.width, 3])
        return augment.crop_frames(video, offset, size)

    if data.frames <= FRAMES_PER_STRIP:
        return decode(strips[0])
    shape = tf.TensorSpec([None, *size, 3], tf.uint8)
    video = tf.map_fn(decode, strips, fn_output_signature=shape)
    return tf.reshape(video, [-1, *size, 3])


def select_fields(clip: dict[str, tf.Tensor], video: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the fields that training reads of a clip or a batch: video, caption, fps and motion score."""
    return {"video": video} | {name: clip[name] for name in ("caption", "fps", "motion_score")}
