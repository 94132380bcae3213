"""LTX's video autoencoder (diffusers' `AutoencoderKLLTXVideo`): 8x in time, 32x in height and width, 128 channels.

    1 + 8k frames  --the first one eight times-->  8 (1 + k) frames  -->  1 + k latents
    1 + k latents  -->  8 (1 + k) frames  --drop the first seven-->  1 + 8k frames

Convolutions of the encoder look back in time only, and see copies of the first frame before it. Those of the published
decoders also look one frame ahead, and see a copy of the last frame behind it. So frames decoded in chunks are later by
`Config.delay`, 191 for LTX-Video 0.9, and as many are pushed through behind the end. Latents are normalized by
`latents_mean` and `latents_std`, which are among the weights.

The decoders from 0.9.5 on are conditioned on a diffusion time, since they may be given latents with some noise left;
here the time is 0, the default of diffusers' pipeline. Those of 0.9.1, which draw noise themselves, are refused.

Source: LTX-Video, arXiv:2501.00103; diffusers `models/autoencoders/autoencoder_kl_ltx.py`.
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
from videogen_jax.models.layers import timestep_embedding
from videogen_jax.models.video_convolutions import (
    Clock,
    Delay,
    VideoConv,
    average,
    fold,
    start_clock,
    unfold,
)
from videogen_jax.models.weights import WeightsError

CLASS = "AutoencoderKLLTXVideo"
FIXED = {"in_channels": 3, "out_channels": 3, "encoder_causal": True, "patch_size_t": 1}
# Fields of config.json that are ignored, since they follow from others.
IGNORED_FIELDS = {"spatial_compression_ratio", "temporal_compression_ratio"}
OLD_BLOCK, BLOCK = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
# Factors in time, and height and width.
STRIDES = {"conv": (2, 2), "spatial": (1, 2), "temporal": (2, 1), "spatiotemporal": (2, 2)}
NORM_EPSILON = 1e-8  # of norms without scales
MULTIPLIER = "decoder.timestep_scale_multiplier"
TIME = 0.0  # of diffusion, at which decoders that are conditioned on it decode


class Config(NamedTuple):
    """Fields of diffusers' config.json that define the network; the defaults are those of LTX-Video 0.9."""

    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    down_block_types: tuple[str, ...] = (OLD_BLOCK,) * 4
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    decoder_layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_inject_noise: tuple[bool, ...] = (False,) * 5
    downsample_type: tuple[str, ...] = ("conv",) * 4
    upsample_residual: tuple[bool, ...] = (False,) * 4
    upsample_factor: tuple[int, ...] = (1,) * 4
    timestep_conditioning: bool = False
    patch_size: int = 4
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    decoder_causal: bool = False

    @property
    def newer(self) -> bool:
        """Whether it is of version 0.9.5 or later."""
        return self.down_block_types[-1] == BLOCK

    @property
    def down_blocks(self) -> list[tuple[int, int, str | None]]:
        """Of the encoder's blocks: layers, channels behind it, and the kind of downsampling."""
        channels = self.block_out_channels[1:]
        if not self.newer:
            channels = (*channels, self.block_out_channels[-1])
        kinds = self.downsample_type if self.newer else ("conv",) * len(channels)
        scaled = zip(self.spatio_temporal_scaling, kinds, strict=False)
        kinds = [kind if scales else None for scales, kind in scaled]
        return list(zip(self.layers_per_block, channels, kinds, strict=False))

    @property
    def up_blocks(self) -> list[tuple[int, int, bool, bool, int]]:
        """Of the decoder's blocks, from the latents on: layers, channels, upsamples, with a shortcut, factor."""
        return [
            (layers, channels // factor, scales, shortcut, factor)
            for layers, channels, scales, shortcut, factor in zip(
                self.decoder_layers_per_block[-2::-1],
                self.decoder_block_out_channels[::-1],
                self.decoder_spatio_temporal_scaling[::-1],
                self.upsample_residual[::-1],
                self.upsample_factor[::-1],
                strict=True,
            )
        ]

    @property
    def downsample(self) -> tuple[int, int, int]:
        """Pixels per latent, in (time, height, width)."""
        strides = [STRIDES[kind] for *_, kind in self.down_blocks if kind]
        time, side = (math.prod(stride[axis] for stride in strides) for axis in range(2))
        return (time, self.patch_size * side, self.patch_size * side)

    @property
    def head_reach(self) -> int:
        """Latents that the decoder's head sees to each side."""
        return 1 + 2 * self.decoder_layers_per_block[-1]

    @property
    def tail_reach(self) -> tuple[int, float]:
        """What the decoder's upsampling blocks see to each side: frames of the video in time, latents in space."""
        frames, latents, size, width = 0, 0.0, 1, self.decoder_block_out_channels[-1]
        for layers, channels, scales, _, factor in self.up_blocks:
            seen = 2 * (width // factor != channels) + scales
            frames, latents = frames + seen, latents + seen / size
            if scales:
                frames, size = 2 * frames, 2 * size
            frames, latents, width = frames + 2 * layers, latents + 2 * layers / size, channels
        return frames + 1, latents + 1 / size

    @property
    def delay(self) -> int:
        """Frames that decoded chunks are behind: what the decoder sees ahead."""
        if self.decoder_causal:
            return 0
        return self.head_reach * self.downsample[0] + self.tail_reach[0]


def read_config(path: Path) -> Config:
    """Reads diffusers' config.json; missing fields have diffusers' defaults.

    Raises:
      WeightsError: it is not JSON, or describes another network.
    """
    fields = model_config.pick_fields(
        path, model_config.read_json(path), Config, CLASS, FIXED, IGNORED_FIELDS
    )
    config = model_config.make_config(path, Config, fields)
    for name, names in (("down_block_types", (OLD_BLOCK, BLOCK)), ("downsample_type", STRIDES)):
        if unknown := sorted(set(getattr(config, name)) - set(names)):
            raise WeightsError(
                f"{path}: {name} {unknown[0]!r}: only {' and '.join(names)} are supported."
            )
    if len(set(config.down_block_types)) > 1:
        raise WeightsError(
            f"{path}: down_block_types {config.down_block_types}: only all of one kind are supported."
        )
    if any(config.decoder_inject_noise):
        raise WeightsError(
            f"{path}: decoder_inject_noise {list(config.decoder_inject_noise)}: decoders that draw noise (LTX-Video "
            "0.9.1) are not supported: use those of 0.9.0, or of 0.9.5 and later."
        )
    _check_lengths(path, config)
    return config


def _check_lengths(path: Path, config: Config) -> None:
    up = len(config.decoder_block_out_channels)
    blocks = len(config.block_out_channels) - config.newer
    expected = {
        "layers_per_block": blocks + 1,
        "spatio_temporal_scaling": blocks,
        "decoder_layers_per_block": up + 1,
        "decoder_spatio_temporal_scaling": up,
        "upsample_residual": up,
        "upsample_factor": up,
    } | ({"downsample_type": blocks} if config.newer else {})
    for name, count in expected.items():
        if len(getattr(config, name)) != count:
            raise WeightsError(
                f"{path}: {name} has {len(getattr(config, name))} entries for {count} blocks: download it again."
            )
    factor = 2 ** sum(config.decoder_spatio_temporal_scaling)
    if config.downsample != (factor, config.patch_size * factor, config.patch_size * factor):
        raise WeightsError(
            f"{path}: the encoder makes latents of {config.downsample} pixels, but the decoder's scaling goes back by "
            f"{factor} and patch_size by {config.patch_size}: download it again."
        )


def drop_multiplier(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the factor of the diffusion time, since that is 0."""
    return {name: array for name, array in tensors.items() if name != MULTIPLIER}


class Encoder(nn.Module):
    """Encoder from whole groups of frames to normalized mean and log variance of latents."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes videos.

        Args:
          x: (B, 8 T, H, W, 3) in [-1, 1]; a video's first chunk begins with its first frame, eight times.
        Returns:
          (B, T, h, w, 2 C) float32.
        """
        config, patch = self.config, self.config.patch_size
        clock = start_clock(self, x.shape[1], config.downsample[0] - 1)
        x = einops.rearrange(x, "b t (h j) (w k) c -> b t h w (c k j)", j=patch, k=patch)
        x = self._conv(config.block_out_channels[0], "encoder.conv_in")(x, clock)
        for i, (layers, channels, kind) in enumerate(config.down_blocks):
            block = f"encoder.down_blocks.{i}"
            for j in range(layers):
                x = self._residual(x.shape[-1], f"{block}.resnets.{j}")(x, clock)
            if kind:
                name = f"{block}.downsamplers.0"
                time, side = STRIDES[kind]
                if kind == "conv":
                    conv = self._conv(x.shape[-1], name, (2, 2, 2))
                    x = conv(x, clock)
                else:
                    shortcut = average(x, (time, side), channels)
                    x = self._conv(channels // (time * side**2), f"{name}.conv")(x, clock)
                    x = fold(x, (time, side)) + shortcut
                clock = clock.downsampled() if time == 2 else clock
            if not config.newer and channels != x.shape[-1]:
                x = self._residual(channels, f"{block}.conv_out")(x, clock)
        for j in range(config.layers_per_block[-1]):
            x = self._residual(x.shape[-1], f"encoder.mid_block.resnets.{j}")(x, clock)
        x = self._conv(config.latent_channels + 1, "encoder.conv_out")(nn.silu(rms_norm(x)), clock)
        mean, logvar = jnp.split(x.astype(jnp.float32), [config.latent_channels], axis=-1)
        shift, deviation = statistics(self, config.latent_channels)
        # The log variance is one for all channels.
        logvar = logvar - 2 * jnp.log(deviation)
        return jnp.concatenate([(mean - shift) / deviation, logvar], axis=-1)

    def _conv(self, features: int, name: str, strides: Any = (1, 1, 1)) -> VideoConv:
        name = f"{name}.conv"
        return VideoConv(features, self.dtype, strides=strides, padding="first", name=name)

    def _residual(self, features: int, name: str) -> "Residual":
        return Residual(features, self.config, self.dtype, "first", name=name)


class DecoderHead(nn.Module):
    """The decoder's first layers, at latent resolution."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalized latents (B, T, h, w, C) to features (B, T, h, w, D)."""
        config, padding = self.config, _decoder_padding(self.config)
        clock = start_clock(self, x.shape[1], 0, not config.decoder_causal)
        shift, deviation = statistics(self, config.latent_channels)
        x = x * deviation + shift
        width = config.decoder_block_out_channels[-1]
        name = "decoder.conv_in.conv"
        x = VideoConv(width, self.dtype, padding=padding, name=name)(x, clock)
        clock, name = clock.after(1), "decoder.mid_block"
        return _layers(self, config.decoder_layers_per_block[-1], width, name, x, clock)[0]


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
          (B, 8 T, H, W, 3), about [-1, 1], not clipped; of a video's first eight frames the last one counts.
        """
        config, patch, padding = self.config, self.config.patch_size, _decoder_padding(self.config)
        ahead = not config.decoder_causal
        clock = start_clock(self, x.shape[1], 0, ahead).after(config.head_reach)
        for i, (layers, width, scales, shortcut, factor) in enumerate(config.up_blocks):
            block = f"decoder.up_blocks.{i}"
            if x.shape[-1] // factor != width:
                name = f"{block}.conv_in"
                x = Residual(width, config, self.dtype, padding, name=name)(x, clock)
                clock = clock.after(2)
            if scales:
                x = Upsample(factor, shortcut, self.dtype, padding, name=f"{block}.upsamplers.0")(
                    x, clock
                )
                clock = clock.after(1).upsampled()
            x, clock = _layers(self, layers, width, block, x, clock)
        x = rms_norm(x)
        if config.timestep_conditioning:
            table = self.param(
                "decoder.scale_shift_table", nn.initializers.zeros_init(), (x.shape[-1], 2)
            )
            change = time_embedding(2 * x.shape[-1], "decoder.time_embedder")
            shift, scale = einops.rearrange(change, "(n d) -> n d", n=2) + table.T
            x = x * (1 + scale) + shift
        x = VideoConv(3 * patch**2, self.dtype, padding=padding, name="decoder.conv_out.conv")(
            nn.silu(x), clock
        )
        return einops.rearrange(x, "b t h w (c k j) -> b t (h j) (w k) c", j=patch, k=patch)


class Residual(nn.Module):
    """Residual block of two convolutions; a shortcut of another width has a layer norm and a 1x1x1 convolution."""

    width: int
    config: Config
    dtype: Any
    padding: str

    @nn.compact
    def __call__(self, x: jax.Array, clock: Clock, time: jax.Array | None = None) -> jax.Array:
        """(B, T, H, W, any) and an embedding of the time (4 D,) to (B, T, H, W, width), two frames later."""
        shifts, scales = (0, 0), (0, 0)
        if time is not None:
            shape = (x.shape[-1], 4)
            table = self.param("scale_shift_table", nn.initializers.zeros_init(), shape)
            rows = einops.rearrange(time, "(n d) -> n d", n=4) + table.T
            shifts, scales = rows[::2], rows[1::2]
        h = x
        for i, name in enumerate(("conv1", "conv2")):
            h = nn.silu(rms_norm(h) * (1 + scales[i]) + shifts[i])
            conv = VideoConv(self.width, self.dtype, padding=self.padding, name=f"{name}.conv")
            h = conv(h, clock.after(i))
        if x.shape[-1] != self.width:
            x = nn.LayerNorm(
                self.config.resnet_norm_eps,
                dtype=jnp.float32,
                use_fast_variance=False,
                name="norm3",
            )(x)
            name = "conv_shortcut.conv"
            x = VideoConv(self.width, self.dtype, (1, 1, 1), name=name)(x, clock)
        return h + Delay(2, name="delay")(x, clock)


class Upsample(nn.Module):
    """Doubles frame rate, height and width by a convolution whose channels become places."""

    factor: int  # by which it has fewer channels than its input
    shortcut: bool
    dtype: Any
    padding: str

    @nn.compact
    def __call__(self, x: jax.Array, clock: Clock) -> jax.Array:
        """(B, T, H, W, D) to (B, 2 T, 2 H, 2 W, D / factor), two frames later."""
        features = 8 * x.shape[-1] // self.factor
        conv = VideoConv(features, self.dtype, padding=self.padding, name="conv.conv")
        made = unfold(conv(x, clock), (2, 2))
        if not self.shortcut:
            return made
        shortcut = unfold(Delay(1, name="delay")(x, clock), (2, 2))
        return made + jnp.tile(shortcut, 8 // self.factor)


def rms_norm(x: jax.Array) -> jax.Array:
    """RMS norm over the channels of a place, (..., D) to (..., D) float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPSILON)


def statistics(module: nn.Module, channels: int) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of the latents of the training data, (C,) each, which are parameters."""
    mean = module.param("latents_mean", nn.initializers.zeros_init(), (channels,))
    return mean, module.param("latents_std", nn.initializers.ones_init(), (channels,))


def time_embedding(width: int, name: str) -> jax.Array:
    """Embedding of TIME, (width,): sines and two layers; to be called in a module's `__call__`."""
    x = timestep_embedding(jnp.asarray(TIME), 256)
    for i in (1, 2):
        x = nn.Dense(width, name=f"{name}.timestep_embedder.linear_{i}")(
            x if i == 1 else nn.silu(x)
        )
    return x


def _layers(
    module: Any, count: int, width: int, name: str, x: jax.Array, clock: Clock
) -> tuple[jax.Array, Clock]:
    """The residual blocks of a block of the decoder."""
    config = module.config
    time = (
        time_embedding(4 * width, f"{name}.time_embedder") if config.timestep_conditioning else None
    )
    padding = _decoder_padding(config)
    for i in range(count):
        block = Residual(width, config, module.dtype, padding, name=f"{name}.resnets.{i}")
        x, clock = block(x, clock, time), clock.after(2)
    return x, clock


def _decoder_padding(config: Config) -> str:
    return "first" if config.decoder_causal else "both"
