"""Tiny autoencoder for FLUX.2's latents (`taef2` of madebyollin/taesd): 8x in height and width, 32 latent channels.

Frames are processed independently. Modules are named like their tensors in the published file, so that a parameter's
path is its tensor's name. The decoder is split: the head, at latent resolution, has all global layers (group norms), so
that the tail can be tiled exactly.

Source: https://github.com/madebyollin/taesd.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models.convolutions import conv, group_norm, upsample_nearest

FILE = "taef2.safetensors"
CHANNELS = 32
WIDTH = 64
POOL_GROUPS = 4
MAGNITUDE = 3.0  # the decoder's soft limit of latents


def rename_published(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts tensor names of the hub's file, which follow diffusers, to taesd's.

    Args:
      tensors: name -> array, `encoder.layers.3...` or `encoder.3...`.
    Returns:
      The tensors as `encoder.3...`; the decoder's layer i of the hub is layer i + 1, after the soft limit.
    """

    def taesd_name(name: str) -> str:
        name = re.sub(r"^encoder\.layers\.", "encoder.", name)
        return re.sub(
            r"^decoder\.layers\.(\d+)", lambda found: f"decoder.{int(found[1]) + 1}", name
        )

    return {taesd_name(name): array for name, array in tensors.items()}


class Encoder(nn.Module):
    """Encoder from pixels to latents."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes frames.

        Args:
          x: (N, H, W, 3) in [0, 1].
        Returns:
          (N, H / 8, W / 8, 32).
        """
        x = conv(WIDTH, "0", self.dtype)(x)
        x = Block(False, self.dtype, name="1")(x)
        for i in (2, 6, 10):
            x = conv(WIDTH, str(i), self.dtype, stride=2, bias=False)(x)  # (N, H / 2, W / 2, 64)
            for j in (1, 2, 3):
                x = Block(i == 10, self.dtype, name=str(i + j))(x)
        return conv(CHANNELS, "14", self.dtype)(x)


class DecoderHead(nn.Module):
    """The decoder's layers at latent resolution."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Decodes latents to features.

        Args:
          x: (N, h, w, 32).
        Returns:
          (N, h, w, 64).
        """
        x = MAGNITUDE * jnp.tanh(x / MAGNITUDE)
        x = nn.relu(conv(WIDTH, "1", self.dtype)(x))
        for i in (3, 4, 5):
            x = Block(True, self.dtype, name=str(i))(x)
        return x


class DecoderTail(nn.Module):
    """The decoder's layers from the first upsampling on, all of them convolutions."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Decodes features to pixels.

        Args:
          x: (N, h, w, 64).
        Returns:
          (N, 8 h, 8 w, 3), about [0, 1], not clipped.
        """
        for i, blocks in ((7, 3), (12, 3), (17, 1)):
            x = upsample_nearest(x)  # (N, 2 h, 2 w, 64)
            x = conv(WIDTH, str(i), self.dtype, bias=False)(x)
            for j in range(1, blocks + 1):
                x = Block(False, self.dtype, name=str(i + j))(x)
        return conv(3, "19", self.dtype)(x)


class Block(nn.Module):
    """Residual block of three convolutions; with `pool`, after a residual branch with a global group norm."""

    pool: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, h, w, 64) to the same shape."""
        if self.pool:
            h = conv(4 * WIDTH, "pool.0", self.dtype, size=1, bias=False)(x)  # (N, h, w, 256)
            h = nn.relu(group_norm(POOL_GROUPS, 1e-5, "pool.1")(h))
            x = x + conv(WIDTH, "pool.3", self.dtype, size=1, bias=False)(h)
        h = nn.relu(conv(WIDTH, "conv.0", self.dtype)(x))
        h = nn.relu(conv(WIDTH, "conv.2", self.dtype)(h))
        return nn.relu(conv(WIDTH, "conv.4", self.dtype)(h) + x)
