"""The video autoencoder that is trained here: causal convolutions in time, latents with a mean and a variance.

    1 + 4k frames  --the first one four times-->  4 (1 + k) frames  --4x in time, 8x in space-->  1 + k latents
    1 + k latents  -->  4 (1 + k) frames  --without the first three-->  1 + 4k frames

(for strides whose product is (4, 8, 8)). So the first frame alone is an image, latent i knows frames 0 .. 4i and no
later ones, and every group of four frames is treated alike. A 3-D kernel is in two: 3x3 in a frame, then 3 in time at a
place, which is padded before the first frame only. Norms are over the channels of one place: nothing looks at the whole
video or picture. Hence a long video comes chunk by chunk to exactly what it is as a whole: each convolution in time
keeps the last frames that it saw, in the collection STREAM.

Most of the work is done at low resolution: pixels enter and leave in patches.
"""

import math
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models.convolutions import conv
from videogen_jax.models.layers import RMSNorm

STREAM = "stream"  # the collection of states
LOGVAR_RANGE = (-30.0, 20.0)
REACH = 3  # frames that a convolution in time sees

Stride = tuple[int, int, int]  # in time, height, width


class Network(NamedTuple):
    """The sizes of the network."""

    channels: int = 16  # of the latents
    patch: Stride = (4, 4, 4)  # pixels that enter as one place
    strides: tuple[Stride, ...] = ((1, 2, 2),)  # from each level to the next
    widths: tuple[int, ...] = (64, 128)  # channels of each level
    blocks: int = 2  # of each level, in the encoder and in the decoder

    @property
    def downsample(self) -> Stride:
        """Pixels per latent, in (time, height, width)."""
        steps = (self.patch, *self.strides)
        return tuple(math.prod(step[axis] for step in steps) for axis in range(3))

    @property
    def margin(self) -> int:
        """Latents as far as which the decoder looks around, rounded up."""
        reach, size = 0.0, 1
        for level in reversed(range(len(self.widths))):
            reach += self.blocks / size  # a 3x3 kernel in each block
            size *= self.strides[level - 1][1] if level else 1
        return math.ceil(reach)


def check_network(network: Network) -> None:
    """Refuses sizes that make no network.

    Args:
      network: of the config.
    Raises:
      ValueError: names the line.
    """
    numbers = (network.channels, network.blocks, *network.widths, *network.patch)
    if min(numbers) < 1 or any(min(stride) < 1 for stride in network.strides):
        raise ValueError(
            f"The autoencoder's sizes {network} hold a number below 1: give at least 1."
        )
    if len(network.widths) != len(network.strides) + 1:
        raise ValueError(
            f"autoencoder.widths {network.widths} and autoencoder.strides {network.strides} do not go together: "
            "give one width for each level, and one stride from each to the next."
        )
    if any(len(stride) != 3 for stride in (network.patch, *network.strides)):
        raise ValueError(
            f"autoencoder.patch {network.patch} and autoencoder.strides {network.strides} are of time, height and "
            "width: give three numbers each."
        )
    if any(stride[1] != stride[2] for stride in (network.patch, *network.strides)):
        raise ValueError(
            f"autoencoder.patch {network.patch} or autoencoder.strides {network.strides} are not square: make height "
            "and width equal."
        )


class Encoder(nn.Module):
    """Whole groups of frames to mean and log variance of their latents."""

    network: Network
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Encodes videos.

        Args:
          video: (B, T, H, W, 3) in [-1, 1], T a multiple of the stride in time.
        Returns:
          (B, T / 4, h, w, 2 C) float32.
        """
        network, block = self.network, _block(self.remat)
        x = video.astype(self.dtype)
        steps = (network.patch, *network.strides)
        for level, (stride, width) in enumerate(zip(steps, network.widths, strict=True)):
            x = gather_places(x, stride)
            x = nn.Dense(width, dtype=self.dtype, name=f"enter_{level}")(x)  # (B, T', H', W', D)
            for i in range(network.blocks):
                x = block(self.dtype, name=f"block_{level}_{i}")(x)
        return nn.Dense(2 * network.channels, name="leave_0")(x.astype(jnp.float32))


class Decoder(nn.Module):
    """Latents to whole groups of frames."""

    network: Network
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Decodes latents.

        Args:
          latents: (B, T, h, w, C).
        Returns:
          (B, 4 T, H, W, 3) float32, [-1, 1] and a little around.
        """
        network, block = self.network, _block(self.remat)
        x = nn.Dense(network.widths[-1], dtype=self.dtype, name="enter_0")(latents)
        for level in reversed(range(len(network.widths))):
            for i in range(network.blocks):
                x = block(self.dtype, name=f"block_{level}_{i}")(x)
            if level:
                stride = network.strides[level - 1]
                width = network.widths[level - 1] * math.prod(stride)
                x = nn.Dense(width, dtype=self.dtype, name=f"leave_{level}")(x)
                x = spread_places(x, stride)  # (B, T', H', W', D)
        x = nn.Dense(3 * math.prod(network.patch), dtype=self.dtype, name="leave_0")(x)
        return spread_places(x, network.patch).astype(jnp.float32)


class Block(nn.Module):
    """A causal convolution over 3 frames and 3x3 places beside an identity."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes one block.

        Args:
          x: (B, T, H, W, D).
        Returns:
          The same shape.
        """
        count, width = x.shape[0], x.shape[-1]
        h = nn.silu(RMSNorm(name="norm_1")(x))
        h = einops.rearrange(h, "b t h w d -> (b t) h w d")
        h = conv(width, "spatial", self.dtype)(h)
        h = einops.rearrange(h, "(b t) h w d -> b t h w d", b=count)
        h = nn.silu(RMSNorm(name="norm_2")(h))
        return x + TemporalConv(width, self.dtype, name="temporal")(h)


class TemporalConv(nn.Module):
    """A convolution over REACH frames, the last of which is the one of its result.

    Before the first frame are zeros, or what the collection STREAM has kept.
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes the convolution.

        Args:
          x: (B, T, H, W, any).
        Returns:
          (B, T, H, W, width).
        """
        kept, frames = REACH - 1, x.shape[1]
        if self.has_variable(STREAM, "before") and not self.is_initializing():
            before = self.get_variable(STREAM, "before")
        else:
            before = jnp.zeros((x.shape[0], kept, *x.shape[2:]), x.dtype)
        x = jnp.concatenate([before, x], axis=1)
        if self.is_mutable_collection(STREAM):
            self.put_variable(STREAM, "before", x[:, -kept:])
        # One product: XLA's CPU is slower with a kernel of 3x1x1.
        x = jnp.concatenate([x[:, i : i + frames] for i in range(REACH)], axis=-1)
        # Small at first, so that each block begins near the identity.
        init = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="mix")(x)


def split_moments(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance of latents.

    Args:
      moments: (..., 2 C) of `Encoder`.
    Returns:
      (..., C) each, the log variance within LOGVAR_RANGE.
    """
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)


def draw_latents(mean: jax.Array, logvar: jax.Array, key: jax.Array) -> jax.Array:
    """Latents out of N(mean, exp(logvar)).

    Args:
      mean: any shape.
      logvar: the same.
      key: of the noise.
    Returns:
      The same shape.
    """
    return mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def repeat_first(video: jax.Array, times: int) -> jax.Array:
    """Puts `times` - 1 copies of the first frame before it, which makes 1 + times k frames whole groups.

    Args:
      video: (B, T, H, W, C).
      times: frames of a group.
    Returns:
      (B, T + times - 1, H, W, C).
    """
    return jnp.concatenate([video[:, :1]] * (times - 1) + [video], axis=1)


def gather_places(x: jax.Array, stride: Stride) -> jax.Array:
    """Blocks of neighbouring places as one place of more channels.

    Args:
      x: (B, T, H, W, C).
      stride: sizes of a block.
    Returns:
      (B, T / st, H / sh, W / sw, st sh sw C).
    """
    sizes = dict(zip(("i", "j", "k"), stride, strict=True))
    pattern = "b (t i) (h j) (w k) c -> b t h w (i j k c)"
    return einops.rearrange(x, pattern, **sizes)


def spread_places(x: jax.Array, stride: Stride) -> jax.Array:
    """The inverse of `gather_places`.

    Args:
      x: (B, T, H, W, st sh sw C).
      stride: sizes of a block.
    Returns:
      (B, st T, sh H, sw W, C).
    """
    sizes = dict(zip(("i", "j", "k"), stride, strict=True))
    pattern = "b t h w (i j k c) -> b (t i) (h j) (w k) c"
    return einops.rearrange(x, pattern, **sizes)


def init_params(network: Network, key: jax.Array) -> Any:
    """New parameters.

    Args:
      network: sizes.
      key: of the random numbers.
    Returns:
      {"encoder": ..., "decoder": ...}, float32.
    """
    encoder_key, decoder_key = jax.random.split(key)
    video = jnp.zeros((1, *network.downsample, 3))
    latents = jnp.zeros((1, 1, 1, 1, network.channels))
    return {
        "encoder": Encoder(network, jnp.float32).init(encoder_key, video)["params"],
        "decoder": Decoder(network, jnp.float32).init(decoder_key, latents)["params"],
    }


def _block(remat: bool) -> type[nn.Module]:
    return nn.remat(Block) if remat else Block
