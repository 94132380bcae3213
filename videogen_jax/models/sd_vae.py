"""Stable Diffusion's autoencoder: 8 x 8 pixels to one latent, each frame by itself.

    encoder: conv - four levels of two residual blocks, halved after each but the last - middle - norm, conv - moments
    decoder: conv - middle - four levels of three residual blocks, doubled after each but the last - norm, conv - pixels
    middle:  residual block, attention over all places, residual block

Submodules are named as diffusers names its tensors, with _ for the dots.

Source: Latent Diffusion, arXiv:2112.10752, appendix G; diffusers, `AutoencoderKL`.
"""

from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models.attention import attend

GROUPS = 32
EPSILON = 1e-6


class Norm(nn.Module):
    """Group norm, float32 inside; the result is of the input's type."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) or (B, N, C) to the same."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = einops.rearrange(x, "b ... (g c) -> b (...) g c", g=GROUPS).astype(jnp.float32)
        mean = jnp.mean(y, axis=(1, 3), keepdims=True)
        y = y - mean
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 3), keepdims=True) + EPSILON)
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; beside it the input, through a 1 x 1 convolution if it has other channels."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) to (B, H, W, channels)."""
        y = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv1")(
            nn.silu(Norm(name="norm1")(x))
        )
        y = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv2")(
            nn.silu(Norm(name="norm2")(y))
        )
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + y


class Attention(nn.Module):
    """One head over all places of a frame."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) to the same."""
        width = x.shape[-1]
        y = einops.rearrange(x, "b h w c -> b (h w) c")
        y = Norm(name="group_norm")(y)
        query, key, value = (
            nn.Dense(width, dtype=self.dtype, name=name)(y)[:, :, None]  # (B, N, 1, C)
            for name in ("to_q", "to_k", "to_v")
        )
        y = attend(query, key, value)[:, :, 0]
        y = nn.Dense(width, dtype=self.dtype, name="to_out_0")(y)
        return x + y.reshape(x.shape)


class Middle(nn.Module):
    """Between encoder or decoder and the latents."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, channels) to the same."""
        x = ResidualBlock(self.channels, self.dtype, name="resnets_0")(x)
        x = Attention(self.dtype, name="attentions_0")(x)
        return ResidualBlock(self.channels, self.dtype, name="resnets_1")(x)


class Encoder(nn.Module):
    """Pixels to twice the latents' channels."""

    levels: Sequence[int]
    blocks: int
    out_channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) to (B, H/8, W/8, out_channels)."""
        x = nn.Conv(self.levels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        for i, channels in enumerate(self.levels):
            for j in range(self.blocks):
                name = f"down_blocks_{i}_resnets_{j}"
                x = ResidualBlock(channels, self.dtype, name=name)(x)
            if i < len(self.levels) - 1:
                # Padded at the far sides alone.
                x = nn.Conv(
                    channels,
                    (3, 3),
                    strides=2,
                    padding=((0, 1), (0, 1)),
                    dtype=self.dtype,
                    name=f"down_blocks_{i}_downsamplers_0_conv",
                )(x)
        x = Middle(self.levels[-1], self.dtype, name="mid_block")(x)
        x = nn.silu(Norm(name="conv_norm_out")(x))
        return nn.Conv(self.out_channels, (3, 3), dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents to pixels."""

    levels: Sequence[int]
    blocks: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H/8, W/8, C) to (B, H, W, 3)."""
        x = nn.Conv(self.levels[-1], (3, 3), dtype=self.dtype, name="conv_in")(x)
        x = Middle(self.levels[-1], self.dtype, name="mid_block")(x)
        for i, channels in enumerate(reversed(self.levels)):
            for j in range(self.blocks + 1):
                name = f"up_blocks_{i}_resnets_{j}"
                x = ResidualBlock(channels, self.dtype, name=name)(x)
            if i < len(self.levels) - 1:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                name = f"up_blocks_{i}_upsamplers_0_conv"
                x = nn.Conv(channels, (3, 3), dtype=self.dtype, name=name)(x)
        x = nn.silu(Norm(name="conv_norm_out")(x))
        return nn.Conv(3, (3, 3), dtype=self.dtype, name="conv_out")(x)


class AutoencoderKL(nn.Module):
    """Both halves, as diffusers' class of this name."""

    latent_channels: int = 4
    levels: Sequence[int] = (128, 256, 512, 512)
    blocks: int = 2
    dtype: jnp.dtype = jnp.float32

    def setup(self):  # noqa: D102
        self.encoder = Encoder(self.levels, self.blocks, 2 * self.latent_channels, self.dtype)
        self.decoder = Decoder(self.levels, self.blocks, self.dtype)
        self.quant_conv = nn.Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Frames through both halves, which makes all parameters."""
        return self.decode(self.encode(frames)[0])

    def encode(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of the latents.

        Args:
          frames: (B, H, W, 3) in [-1, 1].
        Returns:
          Two of (B, H/8, W/8, C) float32; the variance's is clamped to [-30, 20].
        """
        moments = self.quant_conv(self.encoder(frames.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Frames of latents.

        Args:
          latents: (B, H/8, W/8, C).
        Returns:
          (B, H, W, 3) float32, about [-1, 1].
        """
        x = self.post_quant_conv(latents.astype(self.dtype))
        return self.decoder(x).astype(jnp.float32)
