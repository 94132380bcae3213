"""Stable Diffusion's autoencoder (diffusers' `AutoencoderKL`): 8x in height and width, 4 or 16 latent channels.

Frames are processed independently. Modules are named like their tensors in diffusers' files, so that a parameter's path
is its tensor's name. The decoder is split: the head, at latent resolution, has the global attention; the tail is tiled,
with a small difference, since its group norms are global too.

Source: Latent diffusion, arXiv:2112.10752; diffusers `models/autoencoders/vae.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import numpy as np

from videogen_jax.models import model_config
from videogen_jax.models.attention import attend
from videogen_jax.models.convolutions import conv, group_norm, upsample_nearest
from videogen_jax.models.weights import WeightsError

FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
EPSILON = 1e-6  # of all group norms
LOGVAR_RANGE = (-30.0, 20.0)
LEGACY_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Fields of config.json that are ignored, since they do not affect results here.
IGNORED_FIELDS = {"sample_size", "force_upcast"}
FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": "silu"}
BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


class Config(NamedTuple):
    """Fields of diffusers' config.json that define the network; the defaults are those of Stable Diffusion 1 and 2."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None


def read_config(path: Path) -> Config:
    """Reads diffusers' config.json; missing fields have diffusers' defaults.

    Raises:
      WeightsError: it is not JSON, or describes another network.
    """
    given = model_config.read_json(path)
    for name, kind in BLOCK_TYPES.items():
        value = given.pop(name, [kind])
        if not isinstance(value, list) or any(entry != kind for entry in value):
            raise WeightsError(f"{path}: {name} {value}: only {kind} is supported.")
    # diffusers' defaults where they differ from Stable Diffusion's.
    fields = {"block_out_channels": (64,), "layers_per_block": 1}
    fields |= model_config.pick_fields(path, given, Config, "AutoencoderKL", FIXED, IGNORED_FIELDS)
    config = model_config.make_config(path, Config, fields)
    if any(width % config.norm_num_groups for width in config.block_out_channels):
        raise WeightsError(
            f"{path}: block_out_channels {config.block_out_channels} are no multiples of norm_num_groups "
            f"{config.norm_num_groups}."
        )
    for name in ("latents_mean", "latents_std"):
        values = getattr(config, name)
        if values is not None and len(values) != config.latent_channels:
            raise WeightsError(
                f"{path}: {name} has {len(values)} entries for {config.latent_channels} latent_channels."
            )
    return config


def normalization(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale of diffusers' pipelines, (latents - shift) * scale; each (C,) float32."""
    shape = (config.latent_channels,)
    shift = np.full(shape, config.shift_factor or 0.0, np.float32)
    scale = np.full(shape, config.scaling_factor, np.float32)
    if config.latents_mean is not None and config.latents_std is not None:
        shift = np.asarray(config.latents_mean, np.float32)
        scale = scale / np.asarray(config.latents_std, np.float32)
    return shift, scale


def rename_legacy(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts attention tensors of old files to diffusers' current names and shapes.

    Args:
      tensors: name -> array; attention may be named query, key, value, proj_attn and be 1x1 convolutions.
    Returns:
      The tensors under current names.
    """

    def current_name(name: str) -> str:
        return re.sub(
            rf"(attentions\.\d+)\.({'|'.join(LEGACY_NAMES)})\.",
            lambda found: f"{found[1]}.{LEGACY_NAMES[found[2]]}.",
            name,
        )

    renamed = {current_name(name): array for name, array in tensors.items()}
    for name, array in renamed.items():
        if re.search(r"attentions\.\d+\.to_.*weight$", name) and array.shape[2:] == (1, 1):
            renamed[name] = array[:, :, 0, 0]
    return renamed


class Encoder(nn.Module):
    """Encoder from pixels to mean and log variance of latents, without `quant_conv`."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes frames.

        Args:
          x: (N, H, W, 3) in [-1, 1].
        Returns:
          (N, h, w, 2 C).
        """
        config, channels = self.config, self.config.block_out_channels
        x = conv(channels[0], "conv_in", self.dtype)(x)
        for i, width in enumerate(channels):
            block = f"down_blocks.{i}"
            for j in range(config.layers_per_block):
                name = f"{block}.resnets.{j}"
                x = Residual(width, config.norm_num_groups, self.dtype, name=name)(x)
            if i < len(channels) - 1:
                name, padding = f"{block}.downsamplers.0.conv", ((0, 1), (0, 1))
                x = conv(width, name, self.dtype, stride=2, padding=padding)(x)  # (N, H / 2, ...)
        x = _middle(config, self.dtype, x)
        x = nn.silu(group_norm(config.norm_num_groups, EPSILON, "conv_norm_out")(x))
        return conv(2 * config.latent_channels, "conv_out", self.dtype)(x)


class DecoderHead(nn.Module):
    """The decoder's layers at latent resolution, without `post_quant_conv`."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Decodes latents to features.

        Args:
          x: (N, h, w, C).
        Returns:
          (N, h, w, D).
        """
        x = conv(self.config.block_out_channels[-1], "conv_in", self.dtype)(x)
        return _middle(self.config, self.dtype, x)


class DecoderTail(nn.Module):
    """The decoder's upsampling blocks."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Decodes features to pixels.

        Args:
          x: (N, h, w, D).
        Returns:
          (N, H, W, 3), about [-1, 1], not clipped.
        """
        config, channels = self.config, self.config.block_out_channels[::-1]
        for i, width in enumerate(channels):
            block = f"up_blocks.{i}"
            for j in range(config.layers_per_block + 1):
                name = f"{block}.resnets.{j}"
                x = Residual(width, config.norm_num_groups, self.dtype, name=name)(x)
            if i < len(channels) - 1:
                x = upsample_nearest(x)  # (N, 2 h, 2 w, D)
                x = conv(width, f"{block}.upsamplers.0.conv", self.dtype)(x)
        x = nn.silu(group_norm(config.norm_num_groups, EPSILON, "conv_norm_out")(x))
        return conv(3, "conv_out", self.dtype)(x)


class Residual(nn.Module):
    """Residual block of two convolutions with group norms; the shortcut is a 1x1 convolution if the width changes."""

    width: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, h, w, any) to (N, h, w, width)."""
        h = nn.silu(group_norm(self.groups, EPSILON, "norm1")(x))
        h = conv(self.width, "conv1", self.dtype)(h)
        h = nn.silu(group_norm(self.groups, EPSILON, "norm2")(h))
        h = conv(self.width, "conv2", self.dtype)(h)
        if x.shape[-1] != self.width:
            x = conv(self.width, "conv_shortcut", self.dtype, size=1)(x)
        return x + h


class Attention(nn.Module):
    """Residual single-head attention over all positions of a frame."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, h, w, D) to the same shape."""
        width = x.shape[-1]
        tokens = einops.rearrange(
            group_norm(self.groups, EPSILON, "group_norm")(x), "n h w d -> n (h w) 1 d"
        )
        query, key, value = (
            nn.Dense(width, dtype=self.dtype, name=name)(tokens)
            for name in ("to_q", "to_k", "to_v")
        )
        h = attend(query, key, value)
        h = nn.Dense(width, dtype=self.dtype, name="to_out.0")(h)
        return x + einops.rearrange(h, "n (h w) 1 d -> n h w d", h=x.shape[1])


def _middle(config: Config, dtype: Any, x: jax.Array) -> jax.Array:
    width, groups = x.shape[-1], config.norm_num_groups
    x = Residual(width, groups, dtype, name="mid_block.resnets.0")(x)
    if config.mid_block_add_attention:
        x = Attention(groups, dtype, name="mid_block.attentions.0")(x)
    return Residual(width, groups, dtype, name="mid_block.resnets.1")(x)
