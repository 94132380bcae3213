"""3-D convolutions of videos that give the same chunk by chunk as on the whole video.

A layer keeps the last frames of its input in the collection STREAM until the next chunk. Frames come in whole groups,
the frames of one latent, so that all chunks are processed by one program; at the front of a video, of whose first group
only the last frame is real, layers find out from a `Clock` which frames are real.

A convolution that looks one frame ahead outputs each frame one later when it streams (`Clock.looks_ahead`), and what is
added to its output has to wait as long (`Delay`). So each frame is computed once.
"""

from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

STREAM = "stream"  # Flax collection of streaming states
LENGTH = "length"  # in it, of networks that look ahead: frames of the whole video, 0 while that is unknown
UNKNOWN = 2**30  # position of the end of a video of unknown length

Place = int | jax.Array


class Clock(NamedTuple):
    """Where a video is among the frames that a layer sees, counted from the first frame of the chunk."""

    begin: Place  # of its first real frame; negative if that was in an earlier chunk
    end: Place  # behind its last one, for layers that look ahead
    looks_ahead: bool  # whether convolutions see a later frame and delay their output by one

    def after(self, frames: int) -> "Clock":
        """The clock behind convolutions that look `frames` ahead in sum."""
        if not self.looks_ahead:
            return self
        return self._replace(begin=self.begin + frames, end=self.end + frames)

    def upsampled(self) -> "Clock":
        """The clock behind a layer that makes two frames of each, only the second one of the first."""
        return self._replace(begin=2 * self.begin + 1, end=2 * self.end)

    def downsampled(self) -> "Clock":
        """The clock behind a layer that makes one frame of two, the first one of the first alone."""
        return self._replace(begin=self.begin // 2, end=self.end // 2)


def start_clock(module: nn.Module, frames: int, begin: int, ahead: bool = False) -> Clock:
    """The clock of a module's input; to be called once in its `__call__`.

    Args:
      module: the outermost module, which counts the frames of the chunks in STREAM.
      frames: of this chunk.
      begin: frames ahead of the video's first one, in its first chunk.
      ahead: whether convolutions look ahead.
    """
    streams = module.is_mutable_collection(STREAM) and not module.is_initializing()
    if not streams:
        return Clock(begin, frames, False)
    end: Place = frames
    passed = module.variable(STREAM, "passed", lambda: jnp.zeros((), jnp.int32))
    if ahead:
        length = module.variable(STREAM, LENGTH, lambda: jnp.zeros((), jnp.int32)).value
        end = jnp.where(length > 0, begin + length - passed.value, UNKNOWN)
    start = begin - passed.value
    passed.value = passed.value + frames
    return Clock(start, end, ahead)


def set_length(state: Any, length: int) -> Any:
    """The streaming state with the length of the video filled in, where the network looks ahead.

    Args:
      state: tree of arrays on devices.
      length: frames of the whole video, of those that enter the network.
    """

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key != LENGTH:
            return leaf
        return jax.device_put(np.full(leaf.shape, length, leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(fill, state)


class VideoConv(nn.Module):
    """Convolution of videos with PyTorch's padding in space.

    What it sees before the first frame and behind the last one is said by `padding`: "zeros", or copies of the "first"
    frame, and only earlier frames are seen; "both": a copy of the first and one of the last frame, and the kernel is
    centred.
    """

    features: int
    dtype: Any
    kernel: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: str = "zeros"

    @nn.compact
    def __call__(self, x: jax.Array, clock: Clock) -> jax.Array:
        """(B, T, H, W, any) to (B, T / stride, H / stride, W / stride, features), of type `dtype`.

        If it looks ahead in a stream, output i is that of frame i - 1.
        """
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = x.astype(self.dtype)
        if self.kernel[0] > 1:
            x = self._extend(x, clock)
        sides = [(size // 2, size // 2) for size in self.kernel[1:]]
        x = jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            self.strides,
            [(0, 0), *sides],
            dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
        )
        return x + bias.astype(self.dtype)

    def _extend(self, x: jax.Array, clock: Clock) -> jax.Array:
        """Adds the frames that the kernel sees beside those of the chunk."""
        frames = x.shape[1]
        if self.padding == "both" and not clock.looks_ahead:
            x = jnp.where(_mask(jnp.arange(frames) < clock.begin), _frame(x, clock.begin), x)
            return jnp.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
        past = self.kernel[0] - (1 if self.padding == "both" else self.strides[0])
        place = jnp.arange(-past, frames)
        extended = jnp.concatenate([_recall(self, past, x), x], axis=1)
        if self.padding == "both":
            _keep(self, extended[:, -past:])
            following = jnp.roll(extended, -1, axis=1)
            extended = jnp.where(_mask(place == clock.begin - 1), following, extended)
            return jnp.where(_mask(place == clock.end), jnp.roll(extended, 1, axis=1), extended)
        filling = jnp.zeros((), x.dtype) if self.padding == "zeros" else _frame(x, clock.begin)
        # What is kept of earlier chunks has been filled.
        absent = (place < clock.begin) & (clock.begin >= 0)
        extended = jnp.where(_mask(absent), filling, extended)
        _keep(self, extended[:, -past:])
        return extended


class Delay(nn.Module):
    """Delays frames by as much as convolutions do that look `frames` ahead in sum."""

    frames: int

    @nn.compact
    def __call__(self, x: jax.Array, clock: Clock) -> jax.Array:
        """(B, T, H, W, D) to the same shape."""
        if not clock.looks_ahead:
            return x
        extended = jnp.concatenate([_recall(self, self.frames, x), x], axis=1)
        _keep(self, extended[:, -self.frames :])
        return extended[:, : x.shape[1]]


def fold(x: jax.Array, factors: tuple[int, int]) -> jax.Array:
    """Moves neighbouring frames, rows and columns to channels.

    Args:
      x: (B, T, H, W, D).
      factors: in time, and in height and width, (i, j).
    Returns:
      (B, T / i, H / j, W / j, D i j j).
    """
    sizes = dict(zip("ijk", (*factors, factors[1]), strict=True))
    return einops.rearrange(x, "b (t i) (h j) (w k) d -> b t h w (d i j k)", **sizes)


def unfold(x: jax.Array, factors: tuple[int, int]) -> jax.Array:
    """The inverse of `fold`: (B, T, H, W, D i j j) to (B, i T, j H, j W, D)."""
    sizes = dict(zip("ijk", (*factors, factors[1]), strict=True))
    return einops.rearrange(x, "b t h w (d i j k) -> b (t i) (h j) (w k) d", **sizes)


def average(x: jax.Array, factors: tuple[int, int], features: int) -> jax.Array:
    """The shortcut around a downsampling layer: `fold`, then means of neighbouring channels, `features` in number."""
    return einops.reduce(fold(x, factors), "b t h w (o g) -> b t h w o", "mean", o=features)


def _recall(module: nn.Module, count: int, x: jax.Array) -> jax.Array:
    """The last `count` frames before those of x, zeros at the beginning."""
    if module.has_variable(STREAM, "before") and not module.is_initializing():
        return module.get_variable(STREAM, "before")
    return jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)


def _keep(module: nn.Module, frames: jax.Array) -> None:
    if module.is_mutable_collection(STREAM) and not module.is_initializing():
        module.put_variable(STREAM, "before", frames)


def _frame(x: jax.Array, place: Place) -> jax.Array:
    """The frame at a place, or the nearest one: (B, 1, H, W, D)."""
    return jax.lax.dynamic_slice_in_dim(x, jnp.clip(place, 0, x.shape[1] - 1), 1, axis=1)


def _mask(frames: jax.Array) -> jax.Array:
    return frames[:, None, None, None]
