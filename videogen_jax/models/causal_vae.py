"""Causal video VAE, trained from scratch.

    1 + 4k frames  --repeat the first four times-->  4 (1 + k) frames  --4x in time, 8x in space-->  1 + k latents
    1 + k latents  -->  4 (1 + k) frames  --drop the first three-->  1 + 4k frames

(for strides with the product (4, 8, 8)). So the first frame is encoded as an image, latent i depends on frames 0 .. 4i
only, and all groups of four frames are processed alike. 3-D kernels are factorized: 3x3 in space, then 3 in time with
padding before the first frame only. Norms are over the channels of one position, so no layer has a global receptive
field. Hence encoding a long video chunk by chunk equals encoding the whole: each temporal convolution keeps its last
input frames in the collection STREAM. With a temporal kernel of one frame, each frame is encoded by itself.

Most computation is at low resolution, since pixels enter and leave in patches.
"""

import functools
import math
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models.convolutions import conv
from videogen_jax.models.layers import RMSNorm
from videogen_jax.models.video_convolutions import STREAM

LOGVAR_RANGE = (-30.0, 20.0)

Stride = tuple[int, int, int]  # in time, height, width


class Network(NamedTuple):
    """The sizes of the network."""

    channels: int = 16  # latent channels
    patch: Stride = (4, 4, 4)  # pixels in an input patch
    strides: tuple[Stride, ...] = ((1, 2, 2),)  # from each level to the next
    widths: tuple[int, ...] = (64, 128)  # channels per level
    blocks: int = 2  # per level, in the encoder and in the decoder
    temporal_kernel: int = 3  # frames

    @property
    def causal(self) -> bool:
        """Whether a latent depends on earlier frames."""
        return self.temporal_kernel > 1

    @property
    def downsample(self) -> Stride:
        """Pixels per latent, in (time, height, width)."""
        steps = (self.patch, *self.strides)
        return tuple(math.prod(step[axis] for step in steps) for axis in range(3))

    @property
    def margin(self) -> int:
        """Spatial radius of the decoder's receptive field in latents, rounded up."""
        radius, size = 0.0, 1
        for level in reversed(range(len(self.widths))):
            radius += self.blocks / size  # a 3x3 kernel in each block
            size *= self.strides[level - 1][1] if level else 1
        return math.ceil(radius)


def check_network(network: Network) -> None:
    """Raises ValueError, naming the option, if sizes are invalid."""
    numbers = (network.channels, network.blocks, network.temporal_kernel)
    if min(*numbers, *network.widths, *network.patch) < 1 or any(
        min(stride) < 1 for stride in network.strides
    ):
        raise ValueError(
            f"The autoencoder's sizes {network} include a number below 1: give at least 1."
        )
    if len(network.widths) != len(network.strides) + 1:
        raise ValueError(
            f"autoencoder.widths {network.widths} and autoencoder.strides {network.strides} do not match: "
            "give one width per level, and one stride from each level to the next."
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
    if not network.causal and network.downsample[0] > 1:
        raise ValueError(
            f"autoencoder.temporal_kernel of 1 encodes each frame by itself, but autoencoder.patch {network.patch} and "
            f"autoencoder.strides {network.strides} join frames: give them 1 in time, or a kernel of 3."
        )


class Encoder(nn.Module):
    """Encoder from whole groups of frames to mean and log variance of latents."""

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
        network, block = self.network, _block(self.network, self.remat)
        x = video.astype(self.dtype)
        steps = (network.patch, *network.strides)
        for level, (stride, width) in enumerate(zip(steps, network.widths, strict=True)):
            x = space_to_depth(x, stride)
            x = nn.Dense(width, dtype=self.dtype, name=f"enter_{level}")(x)  # (B, T', H', W', D)
            for i in range(network.blocks):
                x = block(dtype=self.dtype, name=f"block_{level}_{i}")(x)
        return nn.Dense(2 * network.channels, name="leave_0")(x.astype(jnp.float32))


class Decoder(nn.Module):
    """Decoder from latents to whole groups of frames."""

    network: Network
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Decodes latents.

        Args:
          latents: (B, T, h, w, C).
        Returns:
          (B, 4 T, H, W, 3) float32, about [-1, 1], not clipped.
        """
        network, block = self.network, _block(self.network, self.remat)
        x = nn.Dense(network.widths[-1], dtype=self.dtype, name="enter_0")(latents)
        for level in reversed(range(len(network.widths))):
            for i in range(network.blocks):
                x = block(dtype=self.dtype, name=f"block_{level}_{i}")(x)
            if level:
                stride = network.strides[level - 1]
                width = network.widths[level - 1] * math.prod(stride)
                x = nn.Dense(width, dtype=self.dtype, name=f"leave_{level}")(x)
                x = depth_to_space(x, stride)  # (B, T', H', W', D)
        x = nn.Dense(3 * math.prod(network.patch), dtype=self.dtype, name="leave_0")(x)
        return depth_to_space(x, network.patch).astype(jnp.float32)


class Block(nn.Module):
    """Residual block: a 3x3 spatial convolution and a causal temporal one."""

    temporal_kernel: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, D) to the same shape."""
        count, width = x.shape[0], x.shape[-1]
        h = nn.silu(RMSNorm(name="norm_1")(x))
        h = einops.rearrange(h, "b t h w d -> (b t) h w d")
        h = conv(width, "spatial", self.dtype)(h)
        h = einops.rearrange(h, "(b t) h w d -> b t h w d", b=count)
        h = nn.silu(RMSNorm(name="norm_2")(h))
        return x + TemporalConv(width, self.temporal_kernel, self.dtype, name="temporal")(h)


class TemporalConv(nn.Module):
    """Causal convolution over `kernel` frames, padded with zeros or with the state in STREAM."""

    width: int
    kernel: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, any) to (B, T, H, W, width)."""
        padding, frames = self.kernel - 1, x.shape[1]
        if self.has_variable(STREAM, "before") and not self.is_initializing():
            before = self.get_variable(STREAM, "before")
        else:
            before = jnp.zeros((x.shape[0], padding, *x.shape[2:]), x.dtype)
        x = jnp.concatenate([before, x], axis=1)
        if self.is_mutable_collection(STREAM):
            self.put_variable(STREAM, "before", x[:, -padding:])
        # As one matrix product, since XLA's CPU backend is slower with a 3x1x1 kernel.
        x = jnp.concatenate([x[:, i : i + frames] for i in range(self.kernel)], axis=-1)
        # A small initialization, so that each block starts near the identity.
        init = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="mix")(x)


def split_moments(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits the output of `Encoder`, (..., 2 C), into mean and log variance, the latter clipped to LOGVAR_RANGE."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)


def draw_latents(mean: jax.Array, logvar: jax.Array, key: jax.Array) -> jax.Array:
    """Samples latents from N(mean, exp(logvar)), of mean's shape."""
    return mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def repeat_first(video: jax.Array, times: int) -> jax.Array:
    """Repeats the first frame to `times` copies, so that 1 + times k frames become whole groups of `times` frames.

    Args:
      video: (B, T, H, W, C).
      times: frames per group.
    Returns:
      (B, T + times - 1, H, W, C).
    """
    return jnp.concatenate([video[:, :1]] * (times - 1) + [video], axis=1)


def space_to_depth(x: jax.Array, stride: Stride) -> jax.Array:
    """Folds blocks of neighbouring positions in time and space into channels.

    Args:
      x: (B, T, H, W, C).
      stride: block size (st, sh, sw).
    Returns:
      (B, T / st, H / sh, W / sw, st sh sw C).
    """
    sizes = dict(zip(("i", "j", "k"), stride, strict=True))
    pattern = "b (t i) (h j) (w k) c -> b t h w (i j k c)"
    return einops.rearrange(x, pattern, **sizes)


def depth_to_space(x: jax.Array, stride: Stride) -> jax.Array:
    """The inverse of `space_to_depth`.

    Args:
      x: (B, T, H, W, st sh sw C).
      stride: block size (st, sh, sw).
    Returns:
      (B, st T, sh H, sw W, C).
    """
    sizes = dict(zip(("i", "j", "k"), stride, strict=True))
    pattern = "b t h w (i j k c) -> b (t i) (h j) (w k) c"
    return einops.rearrange(x, pattern, **sizes)


def init_params(network: Network, key: jax.Array) -> Any:
    """Initializes parameters: {"encoder": ..., "decoder": ...}, float32."""
    encoder_key, decoder_key = jax.random.split(key)
    video = jnp.zeros((1, *network.downsample, 3))
    latents = jnp.zeros((1, 1, 1, 1, network.channels))
    return {
        "encoder": Encoder(network, jnp.float32).init(encoder_key, video)["params"],
        "decoder": Decoder(network, jnp.float32).init(decoder_key, latents)["params"],
    }


def _block(network: Network, remat: bool) -> Any:
    block = nn.remat(Block) if remat else Block
    return functools.partial(block, temporal_kernel=network.temporal_kernel)
