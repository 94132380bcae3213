"""Clip-level augmentation in pixel space: one spatial crop, frame rate and colour jitter for all frames of a clip.

    packed frames --rate--> frames at times 0, 1 / rate, 2 / rate ... --crop--> (T, h, w, 3) --colour jitter-->

All random draws for a clip derive from one key, so they are shared by its frames and reproducible. The functions run
in tf.data graphs and eagerly. Horizontal flips (data.flip) are applied afterwards, in the pipeline.
"""

import hashlib
from typing import Any, NamedTuple

import tensorflow as tf

from videogen_jax.data.video_io import TIME_TOLERANCE

# Folded into a clip's key, so that its draws are independent.
RATE, ROW, COLUMN, COLOURS = range(4)

GRAY = (0.2989, 0.587, 0.114)  # RGB weights of torchvision


class Augmentation(NamedTuple):
    """Augmentation of training clips. With the packed size and default values it does nothing."""

    size: tuple[int, int]  # (height, width) of the crop in pixels
    fps_min: float = 0.0  # lowest frame rate that clips are resampled to; 0: the packed rate
    fps_max: float = 0.0  # highest frame rate
    jitter: float = 0.0  # strength of brightness, contrast and saturation jitter
    variants: int = 1  # augmented copies of each clip in a latent data set

    def changes_rate(self, frames: int) -> bool:
        """Whether training clips of `frames` frames are resampled to a random rate; images never are."""
        return self.fps_max > 0 and frames > 1

    def changes(self, packed: tuple[int, int], frames: int) -> bool:
        """Whether anything is done to clips packed at (height, width) of which `frames` frames are used."""
        return self.size != tuple(packed) or self.changes_rate(frames) or self.jitter > 0

    def to_json(self) -> dict[str, Any]:
        """Returns all fields but the size as JSON values, keyed by config option."""
        return {name: getattr(self, name) for name in self._fields[1:]}


def check_augmentation(augmentation: Augmentation, data: Any, frames: int) -> None:
    """Validates an augmentation and its fit to a packed data set.

    Args:
      augmentation: from the config.
      data: pixel data set, as returned by `pipeline.open_data`.
      frames: T, frames of a training clip.
    Raises:
      ValueError: names the config option to change.
    """
    low, high = augmentation.fps_min, augmentation.fps_max
    for name, wanted in zip(("height", "width"), augmentation.size, strict=True):
        packed = getattr(data, name)
        if not 1 <= wanted <= packed:
            raise ValueError(
                f"data.{name} is {wanted}, but the clips in {data.folder} were packed with {packed}: "
                f"set --config.data.{name}={packed}, or less for random crops, or pack again."
            )
    if not 0 <= augmentation.jitter < 1:
        raise ValueError(
            f"augment.jitter is {augmentation.jitter}: set it to at least 0 and less than 1."
        )
    if augmentation.variants < 1:
        raise ValueError(f"augment.variants is {augmentation.variants}: set it to at least 1.")
    if low == high == 0:
        return
    if not 0 < low <= high:
        raise ValueError(
            f"augment.fps_min is {low} and augment.fps_max is {high}: set both above 0 with fps_min <= fps_max, or "
            "both to 0 to keep the packed frame rate."
        )
    if high > data.fps:
        raise ValueError(
            f"augment.fps_max is {high}, but the clips in {data.folder} were packed at {data.fps} frames per second: "
            f"set --config.augment.fps_max={data.fps} or less, or pack again."
        )
    if not augmentation.changes_rate(frames):
        return
    if frames > data.min_frames:
        raise ValueError(
            f"data.frames is {frames}, but the shortest clips have {data.min_frames} frames: "
            f"set --config.data.frames={data.min_frames} or less, or pack again."
        )
    needed = min_rate(data.fps, data.frames, frames)
    if needed > high or low < high == needed:
        raise ValueError(
            f"augment.fps_max is {high}, but the longest clips ({data.frames} frames at {data.fps} per second) provide "
            f"{frames} frames only at {needed:.4g} per second or more: raise it, lower data.frames, or pack longer "
            "clips."
        )


def min_rate(fps: Any, num_frames: Any, frames: int) -> Any:
    """Returns the lowest rate, in frames per second, at which a clip still has enough frames.

    Args:
      fps: packed frame rate.
      num_frames: N, packed frames.
      frames: T >= 2, frames required.
    """
    return fps * (frames - 1) / (num_frames - 1)


def make_variant_key(seed: int, source: bytes, number: int, variant: int) -> tf.Tensor:
    """Makes the random key of one variant of a clip that is encoded to latents.

    Args:
      seed: config.seed.
      source: name of the video.
      number: index of the clip in its split.
      variant: index of the variant.
    Returns:
      (2,) int64.
    """
    name = int.from_bytes(hashlib.sha256(source).digest()[:8], "little", signed=True)
    key = _fold(_fold(tf.constant([seed, 0], tf.int64), name), number)
    return _fold(key, variant)


def draw_rate(
    key: tf.Tensor, fps: tf.Tensor, num_frames: tf.Tensor, frames: int, augmentation: Augmentation
) -> tf.Tensor:
    """Draws a clip's frame rate log-uniformly from [fps_min, fps_max].

    For a short clip the lower bound is raised to `min_rate`; if that exceeds fps_max, it is the rate, so that no clip
    is dropped.

    The motion score keeps its packed value. It is the change of luma per second, not per frame: with uniform motion,
    frames twice as far apart differ twice as much, half as often. So it describes the scene, while fps describes the
    sampling. (Fast motion saturates, so a score recomputed at a low rate would be lower, and would be compared with
    quantiles that were measured at the packed rate.)

    Args:
      key: random key of the clip.
      fps: (), packed frame rate.
      num_frames: () int32, packed frames.
      frames: T >= 2, frames required.
      augmentation: gives the range.
    Returns:
      () float32 frames per second, the value on which the model is conditioned.
    """
    fps, num_frames = tf.cast(fps, tf.float64), tf.cast(num_frames, tf.float64)
    low = tf.maximum(
        tf.constant(augmentation.fps_min, tf.float64), min_rate(fps, num_frames, frames)
    )
    high = tf.maximum(low, tf.constant(augmentation.fps_max, tf.float64))
    u = tf.random.stateless_uniform([], _fold(key, RATE), dtype=tf.float64)
    return tf.cast(low * (high / low) ** u, tf.float32)


def count_frames(fps: tf.Tensor, num_frames: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    """Counts the frames of a clip resampled to another rate.

    Args:
      fps: (), packed frame rate.
      num_frames: () int32, packed frames.
      rate: (), from `draw_rate`.
    Returns:
      () int32, frames whose time is at most that of the last packed frame.
    """
    fps, rate = tf.cast(fps, tf.float64), tf.cast(rate, tf.float64)
    last = tf.cast(num_frames - 1, tf.float64) * rate / fps
    return tf.cast(tf.floor(last * (1 + 1e-6)), tf.int32) + 1  # the rate was rounded to float32


def choose_frames(
    fps: tf.Tensor, num_frames: tf.Tensor, rate: tf.Tensor, start: tf.Tensor, frames: Any
) -> tf.Tensor:
    """Chooses the latest packed frame at or before each of the times start / rate, (start + 1) / rate, ...

    This is the rule of `video_io.resample`.

    Args:
      fps: (), packed frame rate.
      num_frames: () int32, packed frames.
      rate: (), from `draw_rate`.
      start: () int32, index of the first frame at the new rate, below `count_frames`.
      frames: number of frames.
    Returns:
      (frames,) int32 indices of packed frames, non-decreasing.
    """
    fps, rate = tf.cast(fps, tf.float64), tf.cast(rate, tf.float64)
    times = tf.cast(start + tf.range(frames), tf.float64) / rate  # seconds
    chosen = tf.cast(tf.floor((times + TIME_TOLERANCE) * fps), tf.int32)
    return tf.minimum(chosen, num_frames - 1)


def draw_crop_offset(key: tf.Tensor, packed: tuple[int, int], size: tuple[int, int]) -> tf.Tensor:
    """Draws the position of a spatial crop uniformly.

    Args:
      key: random key of the clip.
      packed: (height, width) of its frames.
      size: (height, width) of the crop.
    Returns:
      (2,) int32: row and column of the crop's first pixel.
    """
    margins = [have - want for have, want in zip(packed, size, strict=True)]
    return tf.stack(
        [
            tf.random.stateless_uniform([], _fold(key, axis), maxval=margin + 1, dtype=tf.int32)
            for axis, margin in zip((ROW, COLUMN), margins, strict=True)
        ]
    )


def centre_crop_offset(packed: tuple[int, int], size: tuple[int, int]) -> tf.Tensor:
    """Returns (2,) int32: row and column of the first pixel of a centre crop."""
    return tf.constant([(have - want) // 2 for have, want in zip(packed, size, strict=True)])


def crop_frames(video: tf.Tensor, offset: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Applies the same spatial crop to all frames.

    Args:
      video: (T, H, W, 3).
      offset: (2,) int32, row and column of the crop's first pixel.
      size: (height, width).
    Returns:
      (T, height, width, 3).
    """
    if tuple(video.shape[1:3]) == tuple(size):
        return video
    height, width = size
    cropped = video[:, offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    return tf.ensure_shape(cropped, [video.shape[0], height, width, 3])


def draw_colour_factors(key: tf.Tensor, jitter: float) -> tf.Tensor:
    """Draws factors of brightness, contrast and saturation, each uniform in [1 - jitter, 1 + jitter].

    Args:
      key: random key of the clip.
      jitter: in [0, 1).
    Returns:
      (3,) float32.
    """
    return tf.random.stateless_uniform([3], _fold(key, COLOURS), 1 - jitter, 1 + jitter)


def jitter_colours(video: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Scales brightness, then contrast, then saturation of a whole clip.

    With x the clip and g(x) its grayscale, values clipped to [0, 255] after each step:
      x <- brightness x;   x <- m + contrast (x - m), m the mean of g(x);   x <- g(x) + saturation (x - g(x)).

    Differs from torchvision's ColorJitter: m is the mean over all frames, so that a colour maps to the same colour in
    every frame; the order is fixed; values are rounded once, at the end; the hue is unchanged, because captions name
    colours.

    Args:
      video: (T, H, W, 3) uint8.
      factors: (3,) float32, from `draw_colour_factors`.
    Returns:
      (T, H, W, 3) uint8.
    Source: torchvision.transforms.ColorJitter.
    """
    brightness, contrast, saturation = tf.unstack(tf.cast(factors, tf.float32))

    def clip(frame: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(frame, 0.0, 255.0)

    def gray(frame: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(frame * tf.constant(GRAY), axis=-1, keepdims=True)

    def brighten(frame: tf.Tensor) -> tf.Tensor:
        return clip(tf.cast(frame, tf.float32) * brightness)

    def jitter(frame: tf.Tensor) -> tf.Tensor:
        frame = brighten(frame)
        frame = clip(mean + contrast * (frame - mean))
        frame = clip(gray(frame) + saturation * (frame - gray(frame)))
        return tf.cast(tf.round(frame), tf.uint8)

    # One frame at a time: a long clip in float32 would not fit into memory.
    means = tf.map_fn(
        lambda frame: tf.reduce_mean(gray(brighten(frame))), video, fn_output_signature=tf.float32
    )
    mean = tf.reduce_mean(means)
    jittered = tf.map_fn(jitter, video, fn_output_signature=tf.uint8)
    return tf.ensure_shape(jittered, video.shape)


def augment_clip(
    key: tf.Tensor, video: Any, fps: Any, frames: int, augmentation: Augmentation
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Augments a whole clip before it is encoded to latents.

    Args:
      key: random key, from `make_variant_key`.
      video: (N, H, W, 3) uint8.
      fps: packed frame rate.
      frames: T, frames of a training clip; the result has at least as many.
      augmentation: applied to the clip.
    Returns:
      (K, height, width, 3) uint8, K at most N; its frame rate; and which frames of the clip they are, (K,) int32.
    """
    video, rate = tf.convert_to_tensor(video), tf.cast(fps, tf.float32)
    chosen = tf.range(tf.shape(video)[0])
    if augmentation.changes_rate(frames):
        num_frames = tf.shape(video)[0]
        rate = draw_rate(key, fps, num_frames, frames, augmentation)
        count = count_frames(fps, num_frames, rate)
        chosen = choose_frames(fps, num_frames, rate, tf.constant(0), count)
        video = tf.gather(video, chosen)
    offset = draw_crop_offset(key, tuple(video.shape[1:3]), augmentation.size)
    video = crop_frames(video, offset, augmentation.size)
    if augmentation.jitter:
        video = jitter_colours(video, draw_colour_factors(key, augmentation.jitter))
    return video, rate, chosen


def _fold(key: tf.Tensor, number: Any) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int64))
