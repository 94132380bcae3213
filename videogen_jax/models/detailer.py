"""Patch detailer head: convolutions that refine what the blocks predict, at the resolution of the latents (or pixels).

A patch of many numbers enters and leaves the blocks by one projection to the hidden size, which drops what is small and
rarely in the same place. The head sees the noisy input itself, beside features of the patch's token:

    x_t, the pt frames of a patch as channels  --dense-->  (B, T, H, W, D')  --+--> residual 3x3 blocks --> dense
    tokens, (B, T, N, D)  --dense, unpatchify------------>  (B, T, H, W, D')  --+

and its output is added to that of the last layer. Frames of different patches do not mix here, so that causal models,
KV caches and chunks need nothing from it.

Source: DiP, arXiv:2511.18822; there a U-Net within each patch, here blocks of one resolution over the whole frame.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models.convolutions import conv
from videogen_jax.models.layers import RMSNorm
from videogen_jax.models.patches import unpatchify


class PatchDetailer(nn.Module):
    """The head."""

    patch_size: tuple[int, int, int]  # (pt, ph, pw)
    width: int  # D', channels
    blocks: int  # residual blocks
    dtype: jnp.dtype  # of convolutions and matrix products

    @nn.compact
    def __call__(self, x_t: jax.Array, tokens: jax.Array, out_channels: int) -> jax.Array:
        """Refines the prediction.

        Args:
          x_t: noisy input, (B, T*pt, H*ph, W*pw, C).
          tokens: output of the blocks, normed and modulated, (B, T, N, D).
          out_channels: C' of the output.
        Returns:
          (B, T*pt, H*ph, W*pw, C') float32; zero at the start of training.
        """
        pt, ph, pw = self.patch_size
        x = einops.rearrange(x_t, "b (t p) h w c -> b t h w (p c)", p=pt).astype(self.dtype)
        batch, _, height, width = x.shape[:4]
        context = self._dense(ph * pw * self.width, "context")(tokens)
        x = self._dense(self.width, "enter")(x)
        x = x + unpatchify(context, (1, ph, pw), height, width)
        x = einops.rearrange(x, "b t h w d -> (b t) h w d")
        for i in range(self.blocks):
            h = nn.silu(RMSNorm(name=f"norm_{2 * i}")(x))
            h = conv(self.width, f"spatial_{i}", self.dtype)(h)
            h = nn.silu(RMSNorm(name=f"norm_{2 * i + 1}")(h))
            # A small initialization, so that each block starts near the identity.
            init = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
            x = x + self._dense(self.width, f"mix_{i}", init)(h)
        x = self._dense(pt * out_channels, "leave", nn.initializers.zeros)(x)
        x = einops.rearrange(x, "(b t) h w (p c) -> b (t p) h w c", b=batch, p=pt)
        return x.astype(jnp.float32)

    def _dense(
        self, features: int, name: str, init: nn.initializers.Initializer | None = None
    ) -> nn.Module:
        init = nn.initializers.lecun_normal() if init is None else init
        return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)
