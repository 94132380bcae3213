"""Records to clips: the frames that a crop needs of pixels, or a whole batch of latents and caption embeddings at once.

All of it runs in the graphs of tf.data.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from videogen_jax.data import augment
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.packed_data import PackedData
from videogen_jax.data.records import FRAMES_PER_STRIP

Window = tuple[tf.Tensor, tuple[int, int]]  # its corner and (height, width) in pixels


def parse(
    record: tf.Tensor, data: PackedData, more: tuple[str, ...] = (), text_length: int = 0
) -> dict[str, tf.Tensor]:
    """The fields of a record; of latents also those of a vector of records, as vectors.

    Args:
      record: () or, of latents, (B,) string.
      data: of `open_data`.
      more: names of further text fields.
      text_length: above 0 where caption embeddings are wanted.
    Returns:
      Name to what is stored; num_frames int32.
    """
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


def cut_pixels(
    clip: dict[str, tf.Tensor],
    start: tf.Tensor,
    frames: int,
    data: PackedData,
    mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Frames start .. start + frames of a clip of pixels, maybe mirrored.

    Args:
      clip: of `parse`.
      start: () int32.
      frames: T.
      data: of `open_data`.
      mirrored: () bool; None: no.
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
    """The same of a batch of latents, which are made to have mean 0; start is None where clips are no longer.

    Small latents cost less than the calls of TensorFlow that decode them: all are decoded as one.

    Args:
      clips: of `parse`, of B records.
      start: (B,) int32, or None.
      frames: T, of the latents.
      data: of `open_data`.
      mirrored: (B,) bool; None: none.
    Returns:
      (B, T, h, w, C) float16.
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


def decode_texts(
    clips: dict[str, tf.Tensor], data: PackedData, length: int
) -> dict[str, tf.Tensor]:
    """Caption embeddings of a batch, cut or padded to one length; none if it is 0.

    Args:
      clips: of `parse`, of B records.
      data: of `open_data`.
      length: L.
    Returns:
      text_tokens (B, L, E) and text_pooled (B, P) float16; text_count (B,) int32, how many tokens count.
    """
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


def mirror(video: tf.Tensor, mirrored: tf.Tensor | None) -> tf.Tensor:
    """A clip (T, H, W, 3), or what a mirror shows of it."""
    if mirrored is None:
        return video
    return tf.cond(mirrored, lambda: video[:, :, ::-1], lambda: video)


def augment_clip(
    clip: dict[str, tf.Tensor],
    place: Callable[[tf.Tensor], tf.Tensor],
    frames: int,
    data: PackedData,
    augmentation: Augmentation,
    key: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Frames of a clip of pixels, augmented; and their rate.

    Args:
      clip: of `parse`.
      place: () int32, the frames that there are at the clip's rate, to () int32, the first that is taken.
      frames: T.
      data: of `open_data`.
      augmentation: of the run.
      key: of the clip.
    Returns:
      (T, h, w, 3) uint8, and () float32 frames per second.
    """
    size = augmentation.size
    window = augment.draw_corner(key, (data.height, data.width), size), size
    rate, count = clip["fps"], clip["num_frames"]
    if augmentation.changes_rate(frames):
        rate = augment.draw_rate(key, clip["fps"], count, frames, augmentation)
        start = place(augment.count_frames(clip["fps"], count, rate))
        chosen = augment.choose_frames(clip["fps"], count, rate, start, frames)
        video = _decode_chosen(clip, chosen, data, window)
    else:
        video = decode_frames(clip, place(count), frames, data, window)
    video = tf.ensure_shape(video, [frames, *size, 3])
    if augmentation.jitter:
        video = augment.change_colours(video, augment.draw_colours(key, augmentation.jitter))
    return video, rate


def decode_frames(
    clip: dict[str, tf.Tensor],
    start: tf.Tensor,
    frames: int,
    data: PackedData,
    window: Window | None = None,
) -> tf.Tensor:
    """Frames start .. start + frames, out of the strips that hold them.

    Args:
      clip: of `parse`.
      start: () int32.
      frames: T.
      data: of `open_data`.
      window: that is kept of each frame; None: all.
    Returns:
      (T, h, w, 3) uint8.
    """
    first = last = tf.constant(0)
    if data.frames > FRAMES_PER_STRIP:
        first = start // FRAMES_PER_STRIP
        last = (start + frames - 1) // FRAMES_PER_STRIP
    video = decode_strips(clip["strips"][first : last + 1], data, window)
    start = start - first * FRAMES_PER_STRIP
    size = window[1] if window else (data.height, data.width)
    return tf.ensure_shape(video[start : start + frames], [frames, *size, 3])


def _decode_chosen(
    clip: dict[str, tf.Tensor], chosen: tf.Tensor, data: PackedData, window: Window
) -> tf.Tensor:
    """These frames, rising, out of the strips that hold any of them."""
    if data.frames <= FRAMES_PER_STRIP:
        return tf.gather(decode_strips(clip["strips"], data, window), chosen)
    strips, place = tf.unique(chosen // FRAMES_PER_STRIP)
    video = decode_strips(tf.gather(clip["strips"], strips), data, window)
    return tf.gather(video, place * FRAMES_PER_STRIP + chosen % FRAMES_PER_STRIP)


def decode_strips(strips: tf.Tensor, data: PackedData, window: Window | None = None) -> tf.Tensor:
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


def output(clip: dict[str, tf.Tensor], video: tf.Tensor) -> dict[str, tf.Tensor]:
    """What training gets of a clip or a batch: its frames and what is told of it."""
    return {"video": video} | {name: clip[name] for name in ("caption", "fps", "motion_score")}
