"""Stable Diffusion's autoencoder (diffusers' `AutoencoderKL`): 8x in height and width, 4 channels or 16.

Each frame for itself. Modules carry the names that their tensors have in diffusers' files, so that a leaf's path is its
tensor's name. The decoder is in two: the head, at the latents' resolution, holds the attention over the whole picture;
the tail's group norms look at the whole picture too, so that in tiles it gives almost the same.

Source: Latent diffusion, arXiv:2112.10752; diffusers `models/autoencoders/vae.py`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import numpy as np

from videogen_jax.models.attention import attend
from videogen_jax.models.convolutions import conv, group_norm, upsample_nearest
from videogen_jax.models.weights import WeightsError

FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
EPSILON = 1e-6  # of all group norms
LOGVAR_RANGE = (-30.0, 20.0)
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What config.json may say beside the fields of `Config`: nothing of it changes a number here.
INERT = {"sample_size", "force_upcast"}
FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": "silu"}
BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


class Config(NamedTuple):
    """Fields of diffusers' config.json that shape the network; the defaults are Stable Diffusion 1's and 2's."""

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
    """Reads diffusers' config.json.

    Args:
      path: the file.
    Returns:
      Its fields. What it leaves out is as in diffusers.
    Raises:
      WeightsError: it is no JSON, or of another network.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON ({error}): fetch it again.") from None
    # diffusers' own defaults where they are not Stable Diffusion's.
    fields = {"block_out_channels": (64,), "layers_per_block": 1}
    for name, value in given.items():
        if name in Config._fields:
            fields[name] = tuple(value) if isinstance(value, list) else value
        elif name in BLOCK_TYPES:
            if set(value) != {BLOCK_TYPES[name]}:
                raise WeightsError(f"{path}: {name} {value}: only {BLOCK_TYPES[name]} is known.")
        elif name in FIXED:
            if value != FIXED[name]:
                raise WeightsError(f"{path}: {name} {value!r}: only {FIXED[name]!r} is known.")
        elif name == "_class_name":
            if value != "AutoencoderKL":
                raise WeightsError(f"{path} is of {value}: name the folder of an AutoencoderKL.")
        elif not (name in INERT or name.startswith("_")):
            raise WeightsError(f"{path}: {name} is not known: take weights without it.")
    return Config(**fields)


def normalisation(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """What diffusers' pipelines subtract from latents, and by what they multiply the difference.

    Args:
      config: of the network.
    Returns:
      (shift, scale), each (C,) float32.
    """
    shape = (config.latent_channels,)
    shift = np.full(shape, config.shift_factor or 0.0, np.float32)
    scale = np.full(shape, config.scaling_factor, np.float32)
    if config.latents_mean is not None and config.latents_std is not None:
        shift = np.asarray(config.latents_mean, np.float32)
        scale = scale / np.asarray(config.latents_std, np.float32)
    return shift, scale


def rename_old(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Attention's tensors as diffusers names and shapes them today.

    Args:
      tensors: name -> array; attention may be called query, key, value, proj_attn and be 1x1 convolutions.
    Returns:
      The same under today's names.
    """

    def name_today(name: str) -> str:
        return re.sub(
            rf"(attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.",
            lambda found: f"{found[1]}.{OLD_NAMES[found[2]]}.",
            name,
        )

    renamed = {name_today(name): array for name, array in tensors.items()}
    for name, array in renamed.items():
        if re.search(r"attentions\.\d+\.to_.*weight$", name) and array.shape[2:] == (1, 1):
            renamed[name] = array[:, :, 0, 0]
    return renamed


class Encoder(nn.Module):
    """Pixels to mean and log variance of the latents, without `quant_conv`."""

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
    """The decoder's layers at the latents' resolution, without `post_quant_conv`."""

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
    """The decoder's blocks that double."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Decodes features to pixels.

        Args:
          x: (N, h, w, D).
        Returns:
          (N, H, W, 3), [-1, 1] and a little around.
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
    """Two normed convolutions beside an identity, or a 1x1 convolution where the width changes."""

    width: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes one block.

        Args:
          x: (N, h, w, any).
        Returns:
          (N, h, w, width).
        """
        h = nn.silu(group_norm(self.groups, EPSILON, "norm1")(x))
        h = conv(self.width, "conv1", self.dtype)(h)
        h = nn.silu(group_norm(self.groups, EPSILON, "norm2")(h))
        h = conv(self.width, "conv2", self.dtype)(h)
        if x.shape[-1] != self.width:
            x = conv(self.width, "conv_shortcut", self.dtype, size=1)(x)
        return x + h


class Attention(nn.Module):
    """Attention of one head over all places of a frame."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes attention and adds it.

        Args:
          x: (N, h, w, D).
        Returns:
          The same shape.
        """
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
