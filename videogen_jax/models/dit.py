"""A diffusion transformer for video: attention within frames and over frames, in turn.

    x_t (B, T, H, W, C) --patches--> tokens (B, T, N, D) + 3-D positions
      depth x [ attention, text cross-attention (optional), MLP ]     each gated by adaLN-Zero
        even blocks: spatial, over the N places of a frame            (B T) N D
        odd blocks:  temporal, over the T frames at a place           (B N) T D
    --linear--> patches --> prediction (B, T, H, W, C)

Time t is per clip (B,) or per frame (B, T), so that clean context frames can sit beside noisy ones.

Source: DiT, arXiv:2212.09748; alternation as in Latte, arXiv:2401.03048, variant 1.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models import layers, patches
from videogen_jax.models.text import CaptionEncoder

TIME_FEATURES = 256


class Block(nn.Module):
    """Attention, optional cross-attention to the caption, MLP; identity when it is new (adaLN-Zero)."""

    num_heads: int
    mlp_ratio: int
    temporal: bool
    cross_attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: jax.Array, text: jax.Array, text_mask: jax.Array
    ) -> jax.Array:
        """Computes one block.

        Args:
          x: (B, T, N, D).
          condition: (B, T or 1, D) float32, time and pooled text.
          text: (B, L, D), caption tokens; read only with `cross_attention`.
          text_mask: (B, L) bool.
        Returns:
          (B, T, N, D), same type as x.
        """
        batch, places, width = x.shape[0], x.shape[2], x.shape[3]
        modulation = nn.Dense(
            6 * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation"
        )(nn.silu(condition))
        modulation = modulation[:, :, None].astype(jnp.float32)  # (B, T or 1, 1, 6 D)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

        y = layers.modulate(x, shift_a, scale_a).astype(self.dtype)  # (B, T, N, D)
        attend = layers.Attention(self.num_heads, dtype=self.dtype, name="attention")
        if self.temporal:
            y = attend(einops.rearrange(y, "b t n d -> (b n) t d"))
            y = einops.rearrange(y, "(b n) t d -> b t n d", n=places)
        else:
            y = attend(einops.rearrange(y, "b t n d -> (b t) n d"))
            y = einops.rearrange(y, "(b t) n d -> b t n d", b=batch)
        x = x + (gate_a * y).astype(x.dtype)

        if self.cross_attention:
            y = einops.rearrange(layers.RMSNorm(name="text_norm")(x), "b t n d -> b (t n) d")
            y = layers.Attention(self.num_heads, dtype=self.dtype, name="text_attention")(
                y, text, text_mask
            )
            # A gate of its own, zero at first: adaLN has six parts in every public layout.
            gate_t = self.param("text_gate", nn.initializers.zeros, (width,))
            x = x + (gate_t * einops.rearrange(y, "b (t n) d -> b t n d", n=places)).astype(x.dtype)

        y = layers.modulate(x, shift_m, scale_m).astype(self.dtype)
        y = layers.MLP(self.mlp_ratio, dtype=self.dtype, name="mlp")(y)
        return x + (gate_m * y).astype(x.dtype)


class BlockPair(nn.Module):
    """A spatial block and a temporal block: what `nn.scan` repeats."""

    num_heads: int
    mlp_ratio: int
    cross_attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, condition, text, text_mask):
        """As `Block`; returns (x, None), the carry and output that scan wants."""
        shared = (self.cross_attention, self.dtype)
        x = Block(self.num_heads, self.mlp_ratio, False, *shared, name="spatial")(
            x, condition, text, text_mask
        )
        x = Block(self.num_heads, self.mlp_ratio, True, *shared, name="temporal")(
            x, condition, text, text_mask
        )
        return x, None


class VideoDiT(nn.Module):
    """The denoiser. `depth` counts spatial and temporal blocks together and is even."""

    patch_size: tuple[int, int, int]  # (pt, ph, pw)
    width: int
    depth: int
    num_heads: int
    mlp_ratio: int
    cross_attention: bool
    vocabulary_size: int
    text_depth: int
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        """Predicts noise, clean video or velocity, whichever the objective trains.

        Args:
          x_t: (B, T*pt, H*ph, W*pw, C), noisy video, float.
          t: (B,) or (B, T), diffusion time in steps of the schedule (0 is clean).
          text: (B, L) int32, caption ids; 0 is padding.
        Returns:
          (B, T*pt, H*ph, W*pw, C) float32.
        Raises:
          ValueError: depth is odd, heads do not divide the width, or a side of the video is not a
            multiple of the patch.
        """
        self._check()
        height, width, channels = x_t.shape[2:]
        grid = patches.patch_grid(x_t.shape[1:4], self.patch_size)
        x = patches.patchify(x_t, self.patch_size).astype(self.dtype)  # (B, T, N, pt*ph*pw*C)
        x = nn.Dense(
            self.width, kernel_init=layers.KERNEL_INIT, dtype=self.dtype, name="patch_embed"
        )(x)  # (B, T, N, D)
        x = x + patches.sincos_3d(grid, self.width).astype(self.dtype)

        tokens, mask, pooled = CaptionEncoder(
            self.vocabulary_size,
            self.width,
            self.text_depth,
            self.num_heads,
            dtype=self.dtype,
            name="caption_encoder",
        )(text)
        features = layers.timestep_embedding(t, TIME_FEATURES)
        time = layers.Embedder(self.width, dtype=self.dtype, name="time_embed")(features)
        pooled = layers.Embedder(self.width, dtype=self.dtype, name="text_embed")(pooled)
        time = time if t.ndim == 2 else time[:, None]
        condition = (time + pooled[:, None]).astype(jnp.float32)  # (B, T or 1, D)

        x = self._blocks()(x, condition, tokens, mask)[0]

        modulation = nn.Dense(
            2 * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation"
        )(nn.silu(condition))
        shift, scale = jnp.split(modulation[:, :, None].astype(jnp.float32), 2, axis=-1)
        x = layers.modulate(x, shift, scale).astype(self.dtype)
        size = self.patch_size[0] * self.patch_size[1] * self.patch_size[2] * channels
        x = nn.Dense(size, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="unembed")(x)
        return patches.unpatchify(x.astype(jnp.float32), self.patch_size, height, width)

    def _blocks(self) -> nn.Module:
        pair = nn.remat(BlockPair, prevent_cse=False) if self.remat else BlockPair
        scan = nn.scan(
            pair,
            length=self.depth // 2,
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return scan(self.num_heads, self.mlp_ratio, self.cross_attention, self.dtype, name="blocks")

    def _check(self) -> None:
        if self.depth % 2:
            raise ValueError(
                f"model.depth is {self.depth}, but spatial and temporal blocks come in pairs: make it even."
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"model.width of {self.width} is not a multiple of model.num_heads of {self.num_heads}: "
                "change one of them."
            )
