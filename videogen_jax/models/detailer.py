"""Patch detailer head: convolutions that refine what the blocks predict, at the resolution of the latents (or pixels).

A patch of many numbers enters and leaves the blocks by one projection to the hidden size, which drops what is small and
rarely in the same place. The head sees the noisy input itself, beside features of the patch's token:

    x_t, the pt frames of a patch as channels  --dense-->  (B, T, H, W, D')  --+--> residual 3x3 blocks --> dense
    tokens, (B, T, N, D)  --dense, unpatchify------------>  (B, T, H, W, D')  --+

and its output is added to that of the last layer. Frames of different patches do not mix here, so that causal models,
KV caches and chunks need nothing from it.

Source: DiP, arXiv:2511.18822; there a U-Net within each patch, here blocks of one resolution over the whole frame.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models.causal_vae import Block, depth_to_space, space_to_depth
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
        height, width = x_t.shape[2:4]
        context = nn.Dense(ph * pw * self.width, dtype=self.dtype, name="context")(tokens)
        x = space_to_depth(x_t, (pt, 1, 1)).astype(self.dtype)
        x = nn.Dense(self.width, dtype=self.dtype, name="enter")(x)  # (B, T, H*ph, W*pw, D')
        x = x + unpatchify(context, (1, ph, pw), height, width)
        for i in range(self.blocks):
            x = Block(temporal_kernel=1, dtype=self.dtype, name=f"block_{i}")(x)
        zeros = nn.initializers.zeros
        leave = nn.Dense(pt * out_channels, kernel_init=zeros, dtype=self.dtype, name="leave")
        return depth_to_space(leave(x), (pt, 1, 1)).astype(jnp.float32)
