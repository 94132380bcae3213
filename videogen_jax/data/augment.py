"""Augmentation of clips as wholes, in pixels: a window, a speed and a change of colours for all frames of a clip.

    packed frames --rate--> frames at times 0, 1 / rate, 2 / rate ... --window--> (T, h, w, 3) --colours-->

Everything that is drawn for a clip follows from one key, so frames cannot differ in it, and a clip is the same whenever
it is drawn again. The functions run in the graphs of tf.data and eagerly alike. Mirroring (data.flip) comes behind.
"""

import hashlib
from typing import Any, NamedTuple

import tensorflow as tf

from videogen_jax.data.video_io import TIME_TOLERANCE

# Purposes, folded into a clip's key so that its numbers do not depend on each other.
RATE, ROW, COLUMN, COLOURS = range(4)

GRAY = (0.2989, 0.587, 0.114)  # weights of red, green and blue, torchvision's


class Augmentation(NamedTuple):
    """What is done to training clips; with nothing but a size that is the packed one, nothing."""

    size: tuple[int, int]  # (height, width) of the window in pixels
    fps_min: float = 0.0  # frames per second, slowest rate that clips are taken at; 0: as packed
    fps_max: float = 0.0  # frames per second, fastest
    jitter: float = 0.0  # strength of brightness, contrast and saturation
    variants: int = 1  # of each clip, where it is encoded

    def changes_rate(self, frames: int) -> bool:
        """Whether clips of so many frames get a rate of their own; pictures have none."""
        return self.fps_max > 0 and frames > 1

    def changes(self, packed: tuple[int, int], frames: int) -> bool:
        """Whether clips of this size (height, width) and so many frames come out otherwise than they were packed."""
        return self.size != tuple(packed) or self.changes_rate(frames) or self.jitter > 0

    def to_json(self) -> dict[str, Any]:
        """All but the size, by the names of the config's lines: JSON values."""
        return {name: getattr(self, name) for name in self._fields[1:]}


def check_augmentation(augmentation: Augmentation, data: Any, frames: int) -> None:
    """Refuses an augmentation that means nothing, or that a packed data set cannot serve.

    Args:
      augmentation: of a run.
      data: of `pipeline.open_data`, of pixels.
      frames: T, of the clips that training takes.
    Raises:
      ValueError: names the line of the config.
    """
    low, high = augmentation.fps_min, augmentation.fps_max
    for name, wanted in zip(("height", "width"), augmentation.size, strict=True):
        packed = getattr(data, name)
        if not 1 <= wanted <= packed:
            raise ValueError(
                f"data.{name} is {wanted}, but the clips in {data.folder} were packed with {packed}: "
                f"set --config.data.{name}={packed}, or less to cut windows out of them, or pack again."
            )
    if not 0 <= augmentation.jitter < 1:
        raise ValueError(
            f"augment.jitter is {augmentation.jitter}: give a strength of at least 0 and below 1."
        )
    if augmentation.variants < 1:
        raise ValueError(f"augment.variants is {augmentation.variants}: give at least 1.")
    if low == high == 0:
        return
    if not 0 < low <= high:
        raise ValueError(
            f"augment.fps_min is {low} and augment.fps_max is {high}: give two rates above 0, the lower one first, or "
            "0 and 0 to take clips as they were packed."
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
    needed = least_rate(data.fps, data.frames, frames)
    if needed > high or low < high == needed:
        raise ValueError(
            f"augment.fps_max is {high}, but {frames} frames of the longest clips, {data.frames} frames at {data.fps} "
            f"per second, take at least {needed:.4g}: raise it, lower data.frames, or pack longer clips."
        )


def least_rate(fps: Any, num_frames: Any, frames: int) -> Any:
    """The slowest rate at which a clip has enough frames: its last packed one is shown as the last.

    Args:
      fps: at which it was packed.
      num_frames: N, that it has.
      frames: T, at least 2, that are wanted.
    Returns:
      Frames per second.
    """
    return fps * (frames - 1) / (num_frames - 1)


def make_variant_key(seed: int, source: bytes, number: int, variant: int) -> tf.Tensor:
    """The key of a clip that is encoded.

    Args:
      seed: of the run.
      source: name of the video.
      number: of the clip in its split.
      variant: counted from 0.
    Returns:
      (2,) int64.
    """
    name = int.from_bytes(hashlib.sha256(source).digest()[:8], "little", signed=True)
    key = _fold(_fold(tf.constant([seed, 0], tf.int64), name), number)
    return _fold(key, variant)


def draw_rate(
    key: tf.Tensor, fps: tf.Tensor, num_frames: tf.Tensor, frames: int, augmentation: Augmentation
) -> tf.Tensor:
    """The rate that a clip is taken at: log-uniform, so that halving and doubling are equally near.

    A short clip cannot be taken slowly: its range begins at `least_rate`. Where that lies above the whole range, it is
    the rate, so that no clip is lost.

    The motion score stays as it was packed. It is the change of luma per second, not per frame: where things move
    evenly, frames twice as far apart differ twice as much, half as often. It tells of the scene; how it was taken is
    told by the fps beside it. (Fast motion saturates, so a score measured anew would be lower at low rates: the same
    scene would be called calmer, by edges of buckets that were measured at the packed rate.)

    Args:
      key: of the clip.
      fps: () at which it was packed.
      num_frames: () int32, that it has.
      frames: T, at least 2, that are wanted.
      augmentation: of the run.
    Returns:
      () float32 frames per second, what the model is told.
    """
    fps, num_frames = tf.cast(fps, tf.float64), tf.cast(num_frames, tf.float64)
    low = tf.maximum(
        tf.constant(augmentation.fps_min, tf.float64), least_rate(fps, num_frames, frames)
    )
    high = tf.maximum(low, tf.constant(augmentation.fps_max, tf.float64))
    place = tf.random.stateless_uniform([], _fold(key, RATE), dtype=tf.float64)
    return tf.cast(low * (high / low) ** place, tf.float32)


def count_frames(fps: tf.Tensor, num_frames: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    """How many frames a whole clip has at another rate: those at or before its last packed one.

    Args:
      fps: () at which it was packed.
      num_frames: () int32, that it has.
      rate: of `draw_rate`.
    Returns:
      () int32.
    """
    fps, rate = tf.cast(fps, tf.float64), tf.cast(rate, tf.float64)
    last = tf.cast(num_frames - 1, tf.float64) * rate / fps
    return tf.cast(tf.floor(last * (1 + 1e-6)), tf.int32) + 1  # the rate was rounded to float32


def choose_frames(
    fps: tf.Tensor, num_frames: tf.Tensor, rate: tf.Tensor, start: tf.Tensor, frames: Any
) -> tf.Tensor:
    """The packed frames that are shown at the times start / rate, (start + 1) / rate ...: the latest at or before.

    The same choice as `video_io.resample` makes.

    Args:
      fps: () at which the clip was packed.
      num_frames: () int32, that it has.
      rate: of `draw_rate`.
      start: () int32, of `count_frames`.
      frames: how many.
    Returns:
      (frames,) int32, rising.
    """
    fps, rate = tf.cast(fps, tf.float64), tf.cast(rate, tf.float64)
    times = tf.cast(start + tf.range(frames), tf.float64) / rate  # seconds
    chosen = tf.cast(tf.floor((times + TIME_TOLERANCE) * fps), tf.int32)
    return tf.minimum(chosen, num_frames - 1)


def draw_corner(key: tf.Tensor, packed: tuple[int, int], size: tuple[int, int]) -> tf.Tensor:
    """Where the window lies, every place equally often.

    Args:
      key: of the clip.
      packed: (height, width) of its frames.
      size: (height, width) of the window.
    Returns:
      (2,) int32: row and column of its first pixel.
    """
    spare = [have - want for have, want in zip(packed, size, strict=True)]
    return tf.stack(
        [
            tf.random.stateless_uniform([], _fold(key, purpose), maxval=room + 1, dtype=tf.int32)
            for purpose, room in zip((ROW, COLUMN), spare, strict=True)
        ]
    )


def centre_corner(packed: tuple[int, int], size: tuple[int, int]) -> tf.Tensor:
    """Where the window of a validation clip lies; as `draw_corner`."""
    return tf.constant([(have - want) // 2 for have, want in zip(packed, size, strict=True)])


def cut_window(video: tf.Tensor, corner: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Cuts the same window out of all frames.

    Args:
      video: (T, H, W, 3).
      corner: of `draw_corner`.
      size: (height, width).
    Returns:
      (T, height, width, 3).
    """
    if tuple(video.shape[1:3]) == tuple(size):
        return video
    height, width = size
    rows = video[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
    return tf.ensure_shape(rows, [video.shape[0], height, width, 3])


def draw_colours(key: tf.Tensor, jitter: float) -> tf.Tensor:
    """Factors of brightness, contrast and saturation, each uniform in [1 - jitter, 1 + jitter].

    Args:
      key: of the clip.
      jitter: in [0, 1).
    Returns:
      (3,) float32.
    """
    return tf.random.stateless_uniform([3], _fold(key, COLOURS), 1 - jitter, 1 + jitter)


def change_colours(video: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Changes brightness, then contrast, then saturation: of a clip, not of its frames.

    With values clipped to [0, 255] behind each, x the clip and g(x) its gray picture:
      x <- brightness x;   x <- m + contrast (x - m), m the mean of g(x);   x <- g(x) + saturation (x - g(x)).

    Differs from torchvision's ColorJitter in that m is the mean over all frames, so that a colour becomes the same
    colour in each; that the order is this one; that values are rounded once, at the end; and that the hue is left
    alone: captions name colours.

    Args:
      video: (T, H, W, 3) uint8.
      factors: of `draw_colours`.
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

    def change(frame: tf.Tensor) -> tf.Tensor:
        frame = brighten(frame)
        frame = clip(middle + contrast * (frame - middle))
        frame = clip(gray(frame) + saturation * (frame - gray(frame)))
        return tf.cast(tf.round(frame), tf.uint8)

    # A frame at a time: a long clip in float32 would not fit into memory.
    means = tf.map_fn(
        lambda frame: tf.reduce_mean(gray(brighten(frame))), video, fn_output_signature=tf.float32
    )
    middle = tf.reduce_mean(means)
    changed = tf.map_fn(change, video, fn_output_signature=tf.uint8)
    return tf.ensure_shape(changed, video.shape)


def vary_clip(
    key: tf.Tensor, video: Any, fps: Any, frames: int, augmentation: Augmentation
) -> tuple[tf.Tensor, tf.Tensor]:
    """A whole clip, augmented, to be encoded.

    Args:
      key: of the clip and variant.
      video: (N, H, W, 3) uint8.
      fps: at which it was packed.
      frames: T, that training will cut out of it: the clip keeps so many at least.
      augmentation: of the run.
    Returns:
      (N or fewer, height, width, 3) uint8, and the rate that it was taken at.
    """
    video, rate = tf.convert_to_tensor(video), tf.cast(fps, tf.float32)
    if augmentation.changes_rate(frames):
        num_frames = tf.shape(video)[0]
        rate = draw_rate(key, fps, num_frames, frames, augmentation)
        count = count_frames(fps, num_frames, rate)
        video = tf.gather(video, choose_frames(fps, num_frames, rate, tf.constant(0), count))
    corner = draw_corner(key, tuple(video.shape[1:3]), augmentation.size)
    video = cut_window(video, corner, augmentation.size)
    if augmentation.jitter:
        video = change_colours(video, draw_colours(key, augmentation.jitter))
    return video, rate


def _fold(key: tf.Tensor, number: Any) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int64))
