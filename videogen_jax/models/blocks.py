"""The transformer's blocks: attention, text cross-attention, MLP; all of them the identity when they are new.

    spatial:   over the N places of a frame     (B, T, N, D)
    temporal:  over the T frames at a place     (B, N, T, D)
    joint:     over all tokens                  (B, T N, D)

| modulation   | shift, scale and gate of attention and MLP                                                 |
| ------------ | ------------------------------------------------------------------------------------------ |
| adaln_zero   | of the condition, by a layer of each block that starts at zero (DiT, arXiv:2212.09748)     |
| adaln_single | of the condition, by one layer for all blocks, plus a table of each block, all zero at     |
|              | first (PixArt-alpha, arXiv:2310.00426, where the tables start at random)                   |

| cross_attention | where             | how                                                                      |
| --------------- | ----------------- | ------------------------------------------------------------------------ |
| gated           | every block       | of the normalised tokens, through a gate that starts at zero             |
| pixart          | spatial and joint | of the tokens as they are, through a projection that starts at zero      |
"""

from collections.abc import Callable

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from videogen_jax.models import layers
from videogen_jax.models.positions import ROTARY_AXES
from videogen_jax.models.remat import in_pieces
from videogen_jax.parallel.sequence_parallel import TokenSharding

KINDS = {"factorized": ("spatial", "temporal"), "joint": ("joint",)}  # of model.attention
MODULATIONS = ("adaln_zero", "adaln_single")
CROSS_ATTENTIONS = ("none", "gated", "pixart")

SEQUENCES = {"spatial": "b t n d", "temporal": "b n t d", "joint": "b (t n) d"}


class Block(nn.Module):
    """Attention, optional cross-attention to the caption, MLP."""

    kind: str  # spatial, temporal, joint
    num_heads: int
    mlp_ratio: int
    causal: bool
    positions: str
    modulation: str
    qk_norm: bool
    cross_attention: str
    dtype: jnp.dtype
    token_sharding: TokenSharding | None = None  # how they lie on the mesh; None for one device
    kernel: str = "xla"  # of attention.py
    pieces: int = 1  # in which the MLP is computed

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        text: jax.Array | None,
        text_lengths: jax.Array | None,
        coordinates: jax.Array,
        past: tuple[jax.Array, jax.Array] | None = None,
        past_length: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Computes one block.

        Args:
          x: (B, T, N, D).
          condition: float32, (B, T or 1, D) for adaln_zero; (B, T or 1, 6 D), the output of the shared layer, for
            adaln_single.
          text: (B, L, D), caption tokens; read only with cross-attention.
          text_lengths: (B,) int32, the leading tokens of the caption that are seen.
          coordinates: (T, N, 3) float32, (t, h, w) of each token, for rotary positions.
          past: of a causal temporal block, keys and values (B, N, P, K, Dh) of the frames ahead of x.
          past_length: () int32, so many of these are seen, the last ones.
        Returns:
          (B, T, N, D), same type as x; with a past also x's own keys and values, (B, N, T, K, Dh).
        """
        frames, places, width = x.shape[1:]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulation(condition, width)

        sequence = SEQUENCES[self.kind]
        y = layers.modulate(x, shift_a, scale_a).astype(self.dtype)  # (B, T, N, D)
        mask, rotary = self._frame_mask(frames, places), self._rotary(coordinates)
        if past is not None:
            mask = _past_mask(past[0].shape[2], past_length, frames)
            rotary = None if rotary is None else _past_positions(past[0].shape[2], rotary)
        y = layers.Attention(
            self.num_heads,
            self.qk_norm,
            token_sharding=self.token_sharding,
            joint=self.kind == "joint",
            kernel=self.kernel,
            dtype=self.dtype,
            name="attention",
        )(
            einops.rearrange(y, f"b t n d -> {sequence}"),
            mask=mask,
            causal=self.causal and self.kind == "temporal" and past is None,
            rotary=rotary,
            past=past,
        )
        y, own = (y, None) if past is None else y
        y = einops.rearrange(y, f"{sequence} -> b t n d", t=frames, n=places)
        x = x + (gate_a * y).astype(x.dtype)

        if self.cross_attention == "gated":
            # A gate of its own: adaLN has six parts in every public layout.
            gate_t = self.param("text_gate", nn.initializers.zeros, (width,))
            y = self._read(layers.RMSNorm(name="text_norm")(x), text, text_lengths)
            x = x + (gate_t * y).astype(x.dtype)
        elif self.cross_attention == "pixart" and self.kind != "temporal":
            x = x + self._read(x, text, text_lengths, nn.initializers.zeros).astype(x.dtype)

        y = layers.modulate(x, shift_m, scale_m).astype(self.dtype)
        mlp = layers.MLP(self.mlp_ratio, dtype=self.dtype, name="mlp")
        # Along the axis that is whole on each device.
        axis = 1 if self.kind == "temporal" else 2
        y = in_pieces(self._run_mlp, mlp, y, axis, self.pieces, self.token_sharding)
        x = x + (gate_m * y).astype(x.dtype)
        return x if past is None else (x, own)

    def _run_mlp(self, mlp: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        if self.token_sharding is not None and self.token_sharding.parts > 1:
            return mlp(x)  # axes that are split over devices must not be joined
        # As one matrix: XLA's CPU copies arrays of more axes for the gradient of the weights.
        return mlp(x.reshape(-1, x.shape[-1])).reshape(x.shape)

    def _modulation(self, condition: jax.Array, width: int) -> list[jax.Array]:
        """Shift, scale and gate of attention, then of the MLP: six of (B, T or 1, 1, D) float32."""
        if self.modulation == "adaln_zero":
            condition = nn.Dense(
                6 * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation"
            )(nn.silu(condition))
        parts = einops.rearrange(condition.astype(jnp.float32), "b t (p d) -> p b t 1 d", p=6)
        if self.modulation == "adaln_single":
            table = self.param("scale_shift_table", nn.initializers.zeros, (6, width))
            parts = parts + table[:, None, None, None]
        return list(parts)

    def _frame_mask(self, frames: int, places: int) -> jax.Array | None:
        """(1, M, M) bool over all tokens of a video: frames see themselves and those before."""
        if not self.causal or self.kind != "joint":
            return None
        frame = jnp.repeat(jnp.arange(frames), places)
        return (frame[:, None] >= frame[None, :])[None]

    def _rotary(self, coordinates: jax.Array) -> jax.Array | None:
        """(M, A), positions of the M tokens of a sequence along the axes that rotate them."""
        axes = ROTARY_AXES.get((self.positions, self.kind))
        if axes is None:
            return None
        tokens = {"spatial": coordinates[0], "temporal": coordinates[:, 0]}
        tokens = tokens.get(self.kind, coordinates.reshape(-1, 3))
        return tokens[:, jnp.array(axes)]

    def _read(
        self,
        x: jax.Array,
        text: jax.Array,
        text_lengths: jax.Array,
        out_init: nn.initializers.Initializer = layers.KERNEL_INIT,
    ) -> jax.Array:
        # In sequences that are whole on each device, which those of joint attention are not.
        sequence = SEQUENCES["temporal" if self.kind == "temporal" else "spatial"]
        y = layers.Attention(
            self.num_heads,
            self.qk_norm,
            out_init,
            self.token_sharding,
            kernel=self.kernel,
            dtype=self.dtype,
            name="text_attention",
        )(einops.rearrange(x, f"b t n d -> {sequence}"), text, lengths=text_lengths)
        return einops.rearrange(y, f"{sequence} -> b t n d", t=x.shape[1], n=x.shape[2])


class BlockGroup(nn.Module):
    """What `nn.scan` repeats: a spatial and a temporal block, or a joint one. Pictures skip temporal blocks."""

    kinds: tuple[str, ...]
    make_block: Callable[..., Block]
    token_sharding: TokenSharding | None

    @nn.compact
    def __call__(
        self,
        x,
        index,
        past,
        condition,
        text,
        text_lengths,
        coordinates,
        time_table,
        past_length,
    ):
        """As `Block`, with `index` () of the group and `time_table` (T, 1, D) or (B, T, 1, D), or None, for the first.

        Returns (x, own keys and values, or None without a past): the carry and output that scan wants.
        """
        own = None
        for kind in self.kinds:
            temporal = kind == "temporal"
            if temporal and x.shape[1] == 1 and past is None:
                continue
            if temporal and time_table is not None:
                x = x + jnp.where(index == 0, time_table, 0).astype(x.dtype)
            if temporal and self.token_sharding is not None:
                x = self.token_sharding.frames_to_space(x)
            x = checkpoint_name(x, "block_input")
            shared = (condition, text, text_lengths, coordinates)
            block = self.make_block(kind, name=kind)
            if temporal and past is not None:
                x, own = block(x, *shared, past, past_length)
            else:
                x = block(x, *shared)
            if temporal and self.token_sharding is not None:
                x = self.token_sharding.space_to_frames(x)
        return x, own


def _past_mask(slots: int, length: jax.Array, frames: int) -> jax.Array:
    """(1, T, P + T) bool: frames see the last `length` of the P slots, themselves, and those between."""
    seen = jnp.arange(slots) >= slots - length  # (P,)
    seen = jnp.broadcast_to(seen, (frames, slots))
    return jnp.concatenate([seen, jnp.tri(frames, dtype=bool)], axis=1)[None]


def _past_positions(slots: int, positions: jax.Array) -> jax.Array:
    """(P + T, A): the slots' positions in time, then those of the frames: rotations see differences alone."""
    first = positions[:1] - jnp.arange(slots, 0, -1, dtype=positions.dtype)[:, None]
    return jnp.concatenate([first, positions])
