"""Wan's video autoencoder (diffusers' `AutoencoderKLWan`): 4x in time, 8x in height and width, 16 latent channels.

Wan 2.2's, of 16x in height and width and 48 channels, is the same class with `is_residual` and patches of 2x2 pixels.

    1 + 4k frames  --three frames in front that count as none-->  4 (1 + k) frames  -->  1 + k latents
    1 + k latents  -->  4 (1 + k) frames  --drop the first three-->  1 + 4k frames

All convolutions in time look back only, and see zeros before the first frame; changing the frame rate, the first frame
passes by. So every group of four frames is processed alike, and a stream of chunks equals the whole (video_convolutions
.py). Attention, at the latents' resolution, is over the places of one frame. Modules are named like their tensors in
diffusers' files.

Source: Wan, arXiv:2503.20314; diffusers `models/autoencoders/autoencoder_kl_wan.py`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models import model_config
from videogen_jax.models.attention import attend
from videogen_jax.models.convolutions import conv, upsample_nearest
from videogen_jax.models.video_convolutions import (
    Clock,
    VideoConv,
    average,
    start_clock,
    unfold,
)
from videogen_jax.models.weights import WeightsError

CLASS = "AutoencoderKLWan"
FIXED = {"attn_scales": []}
# Fields of config.json that are ignored, since they do not affect results here.
IGNORED_FIELDS = {"dropout", "scale_factor_temporal", "scale_factor_spatial", "clip_output"}
# fmt: off
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
DEVIATION = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on


class Config(NamedTuple):
    """Fields of diffusers' config.json that define the network; the defaults are those of Wan 2.1."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = MEAN
    latents_std: tuple[float, ...] = DEVIATION
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None

    @property
    def patch(self) -> int:
        """Rows and columns of pixels that enter as one place."""
        return self.patch_size or 1

    @property
    def group(self) -> int:
        """Frames of a latent."""
        return 2 ** sum(self.temperal_downsample)

    @property
    def downsample(self) -> tuple[int, int, int]:
        """Pixels per latent, in (time, height, width)."""
        side = self.patch * 2 ** (len(self.dim_mult) - 1)
        return (self.group, side, side)

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Widths of the decoder's blocks, from the latents on."""
        return tuple((self.decoder_base_dim or self.base_dim) * m for m in self.dim_mult[::-1])

    @property
    def margin(self) -> int:
        """Spatial radius of the receptive field of the decoder's upsampling blocks in latents, rounded up."""
        levels = len(self.dim_mult)
        # In each level two kernels of 3x3 a block and one of the next level's resolution; one at the end.
        blocks = sum(2 * (self.num_res_blocks + 1) / 2**i for i in range(levels))
        return math.ceil(blocks + sum(1 / 2**i for i in range(1, levels)) + 1 / 2 ** (levels - 1))


def read_config(path: Path) -> Config:
    """Reads diffusers' config.json; missing fields have diffusers' defaults.

    Raises:
      WeightsError: it is not JSON, or describes another network.
    """
    fields = model_config.pick_fields(
        path, model_config.read_json(path), Config, CLASS, FIXED, IGNORED_FIELDS
    )
    config = model_config.make_config(path, Config, fields)
    if len(config.temperal_downsample) != len(config.dim_mult) - 1:
        raise WeightsError(
            f"{path}: temperal_downsample has {len(config.temperal_downsample)} entries for {len(config.dim_mult)} "
            "levels of dim_mult, which should be one less: download it again."
        )
    if not config.in_channels == config.out_channels == 3 * config.patch**2:
        raise WeightsError(
            f"{path}: in_channels {config.in_channels} and out_channels {config.out_channels} are not those of RGB in "
            f"patches of patch_size {config.patch}: download it again."
        )
    for name in ("latents_mean", "latents_std"):
        if len(getattr(config, name)) != config.z_dim:
            raise WeightsError(
                f"{path}: {name} has {len(getattr(config, name))} entries for z_dim {config.z_dim}."
            )
    return config


def flatten_gammas(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with the scales of norms, (C, 1, 1) or (C, 1, 1, 1), as (C,)."""
    return {
        name: array.reshape(array.shape[:1]) if name.endswith(".gamma") else array
        for name, array in tensors.items()
    }


class Encoder(nn.Module):
    """Encoder from whole groups of frames to mean and log variance of latents."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes videos.

        Args:
          x: (B, 4 T, H, W, 3) in [-1, 1]; in a video's first chunk the first three frames count as none.
        Returns:
          (B, T, h, w, 2 C) float32.
        """
        config, patch = self.config, self.config.patch
        clock = start_clock(self, x.shape[1], config.group - 1)
        x = einops.rearrange(x, "b t (h j) (w k) c -> b t h w (c k j)", j=patch, k=patch)
        dims = [config.base_dim * multiple for multiple in config.dim_mult]
        x = VideoConv(config.base_dim, self.dtype, name="encoder.conv_in")(x, clock)
        number = 0  # of diffusers' flat list of layers
        for i, width in enumerate(dims):
            block, shortcut = f"encoder.down_blocks.{i}", x
            for j in range(config.num_res_blocks):
                name = (
                    f"{block}.resnets.{j}"
                    if config.is_residual
                    else f"encoder.down_blocks.{number}"
                )
                x = Residual(width, self.dtype, name=name)(x, clock)
                number += 1
            time = 1
            if i < len(dims) - 1:
                name = (
                    f"{block}.downsampler"
                    if config.is_residual
                    else f"encoder.down_blocks.{number}"
                )
                time = 2 if config.temperal_downsample[i] else 1
                # (B, T' / time, H' / 2, W' / 2, D)
                x = Downsample(time, self.dtype, name=name)(x, clock)
                number += 1
            if config.is_residual:
                # Frames before the first one are zeros in the shortcut too.
                absent = jnp.arange(shortcut.shape[1]) < clock.begin
                shortcut = jnp.where(absent[:, None, None, None], 0, shortcut)
                x = x + average(shortcut, (time, 2 if i < len(dims) - 1 else 1), width)
            clock = clock.downsampled() if time == 2 else clock
        x = _middle("encoder", self.dtype, x, clock)
        x = nn.silu(RMSNorm(name="encoder.norm_out")(x))
        x = VideoConv(2 * config.z_dim, self.dtype, name="encoder.conv_out")(x, clock)
        return VideoConv(2 * config.z_dim, jnp.float32, (1, 1, 1), name="quant_conv")(x, clock)


class DecoderHead(nn.Module):
    """The decoder's layers at latent resolution."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, h, w, C) to features (B, T, h, w, D)."""
        clock = start_clock(self, x.shape[1], 0)
        config = self.config
        x = VideoConv(config.z_dim, jnp.float32, (1, 1, 1), name="post_quant_conv")(x, clock)
        x = VideoConv(config.decoder_dims[0], self.dtype, name="decoder.conv_in")(x, clock)
        return _middle("decoder", self.dtype, x, clock)


class DecoderTail(nn.Module):
    """The decoder's upsampling blocks."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Decodes features.

        Args:
          x: (B, T, h, w, D).
        Returns:
          (B, 4 T, H, W, 3), about [-1, 1], not clipped; of the first four frames of a video the last one counts.
        """
        config, patch, dims = self.config, self.config.patch, self.config.decoder_dims
        clock = start_clock(self, x.shape[1], 0)
        for i, width in enumerate(dims):
            block, shortcut = f"decoder.up_blocks.{i}", x
            for j in range(config.num_res_blocks + 1):
                x = Residual(width, self.dtype, name=f"{block}.resnets.{j}")(x, clock)
            if i == len(dims) - 1:
                break
            time = 2 if config.temperal_downsample[::-1][i] else 1
            name = f"{block}.upsampler" if config.is_residual else f"{block}.upsamplers.0"
            halved = width if config.is_residual else width // 2
            x = Upsample(halved, time, self.dtype, name=name)(x, clock)
            if config.is_residual:
                copies = 4 * time * width // shortcut.shape[-1]
                x = x + unfold(jnp.repeat(shortcut, copies, axis=-1), (time, 2))
            clock = clock.upsampled() if time == 2 else clock
        x = nn.silu(RMSNorm(name="decoder.norm_out")(x))
        x = VideoConv(config.out_channels, self.dtype, name="decoder.conv_out")(x, clock)
        return einops.rearrange(x, "b t h w (c k j) -> b t (h j) (w k) c", j=patch, k=patch)


class RMSNorm(nn.Module):
    """RMS norm over the channels of a place, in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D) float32."""
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        # max(|x|, 1e-12) as of PyTorch's `normalize`.
        return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24)) * (math.sqrt(x.shape[-1]) * gamma)


class Residual(nn.Module):
    """Residual block of two causal convolutions; the shortcut is a 1x1x1 convolution if the width changes."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, clock: Clock) -> jax.Array:
        """(B, T, H, W, any) to (B, T, H, W, width)."""
        h = nn.silu(RMSNorm(name="norm1")(x))
        h = VideoConv(self.width, self.dtype, name="conv1")(h, clock)
        h = nn.silu(RMSNorm(name="norm2")(h))
        h = VideoConv(self.width, self.dtype, name="conv2")(h, clock)
        if x.shape[-1] != self.width:
            x = VideoConv(self.width, self.dtype, (1, 1, 1), name="conv_shortcut")(x, clock)
        return x + h


class Attention(nn.Module):
    """Residual single-head attention over all places of a frame."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, h, w, D) to the same shape."""
        count, frames, rows, columns, width = x.shape
        h = einops.rearrange(RMSNorm(name="norm")(x), "b t h w d -> (b t) h w d")
        h = conv(3 * width, "to_qkv", self.dtype, size=1)(h)
        query, key, value = jnp.split(h.reshape(count * frames, rows * columns, 1, -1), 3, axis=-1)
        h = attend(query, key, value).reshape(count * frames, rows, columns, width)
        return x + conv(width, "proj", self.dtype, size=1)(h).reshape(x.shape)


class Downsample(nn.Module):
    """Halves height and width, and with a stride in time of 2 the frame rate."""

    time: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, clock: Clock) -> jax.Array:
        """(B, T, H, W, D) to (B, T / time, H / 2, W / 2, D)."""
        width, count = x.shape[-1], x.shape[0]
        frames = einops.rearrange(x, "b t h w d -> (b t) h w d")
        padding = ((0, 1), (0, 1))
        frames = conv(width, "resample.1", self.dtype, stride=2, padding=padding)(frames)
        x = einops.rearrange(frames, "(b t) h w d -> b t h w d", b=count)
        if self.time == 1:
            return x
        joined = VideoConv(width, self.dtype, (3, 1, 1), (2, 1, 1), name="time_conv")(x, clock)
        return jnp.where(_is_first(joined, clock.begin // 2), x[:, 1::2], joined)


class Upsample(nn.Module):
    """Doubles height and width, and with a factor in time of 2 the frame rate."""

    features: int
    time: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, clock: Clock) -> jax.Array:
        """(B, T, H, W, D) to (B, time T, 2 H, 2 W, features)."""
        count, width = x.shape[0], x.shape[-1]
        if self.time == 2:
            # The video's first frame passes by, and the second one does not see it.
            behind = clock._replace(begin=clock.begin + 1)
            pairs = VideoConv(2 * width, self.dtype, (3, 1, 1), name="time_conv")(x, behind)
            both = jnp.concatenate([x, x], axis=-1)
            pairs = jnp.where(_is_first(pairs, clock.begin), both, pairs)
            x = einops.rearrange(pairs, "b t h w (i d) -> b (t i) h w d", i=2)
        frames = upsample_nearest(einops.rearrange(x, "b t h w d -> (b t) h w d"))
        frames = conv(self.features, "resample.1", self.dtype)(frames)
        return einops.rearrange(frames, "(b t) h w d -> b t h w d", b=count)


def _is_first(x: jax.Array, place: Any) -> jax.Array:
    return (jnp.arange(x.shape[1]) == place)[:, None, None, None]


def _middle(part: str, dtype: Any, x: jax.Array, clock: Clock) -> jax.Array:
    width = x.shape[-1]
    x = Residual(width, dtype, name=f"{part}.mid_block.resnets.0")(x, clock)
    x = Attention(dtype, name=f"{part}.mid_block.attentions.0")(x)
    return Residual(width, dtype, name=f"{part}.mid_block.resnets.1")(x, clock)
