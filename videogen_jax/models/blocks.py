"""Transformer blocks: attention, text cross-attention and MLP; the identity at initialization.

    spatial:   over the N tokens of a frame             (B, T, N, D)
    temporal:  over the T frames at a spatial position  (B, N, T, D)
    joint:     over all tokens                          (B, T N, D)

| modulation   | shift, scale and gate of attention and MLP                                                 |
| ------------ | ------------------------------------------------------------------------------------------ |
| adaln_zero   | a linear layer of the condition in each block, initialized to zero (DiT, arXiv:2212.09748) |
| adaln_single | one linear layer of the condition for all blocks plus a table per block, initialized to    |
|              | zero (PixArt-alpha, arXiv:2310.00426, where the tables start random)                       |

| cross_attention | where             | how                                                                      |
| --------------- | ----------------- | ------------------------------------------------------------------------ |
| gated           | every block       | queries from normalized tokens; output gate initialized to zero          |
| pixart          | spatial and joint | queries from unnormalized tokens; output projection initialized to zero  |
"""

from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models import layers, linear
from videogen_jax.models.positions import ROTARY_AXES
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
    token_sharding: TokenSharding | None = None  # None on one device
    kernel: str = "xla"  # see attention.py
    pieces: int = 1  # sequential pieces in which the MLP is computed

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        text: jax.Array | None,
        text_lengths: jax.Array | None,
        coordinates: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None = None,
        cached_length: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Computes one block.

        Args:
          x: (B, T, N, D).
          condition: float32, (B, T or 1, D) for adaln_zero; (B, T or 1, 6 D), the output of the shared layer, for
            adaln_single.
          text: (B, L, D), caption tokens; unused without cross-attention.
          text_lengths: (B,) int32, number of valid leading caption tokens.
          coordinates: (T, N, 3) float32, (t, h, w) of each token, for rotary positions.
          cached: for a causal temporal block, keys and values (B, N, P, K, Dh) of the frames before x.
          cached_length: () int32, number of valid slots among these; they are the last ones.
        Returns:
          (B, T, N, D), same type as x; with `cached` also x's keys and values, (B, N, T, K, Dh).
        """
        frames, spatial, width = x.shape[1:]
        of_attention, of_mlp = self._modulation(condition, width)

        sequence = SEQUENCES[self.kind]
        of_tokens, of_weights = linear.place(of_attention, self.token_sharding, self.dtype)
        y = layers.modulate(x, of_tokens).astype(self.dtype)  # (B, T, N, D)
        mask, rotary = self._frame_mask(frames, spatial), self._rotary(coordinates)
        if cached is not None:
            slots = cached[0].shape[2]
            mask = _cached_mask(slots, cached_length, frames)
            rotary = None if rotary is None else _cached_positions(slots, rotary)
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
            causal=self.causal and self.kind == "temporal" and cached is None,
            rotary=rotary,
            cached=cached,
            modulation=of_weights,
        )
        y, keys_values = (y, None) if cached is None else y
        y = einops.rearrange(y, f"{sequence} -> b t n d", t=frames, n=spatial)
        x = layers.add_gated(x, y, of_tokens.gate)

        if self.cross_attention == "gated":
            # The gate is a parameter, since adaLN has six parts in every published layout.
            gate_t = self.param("text_gate", nn.initializers.zeros, (width,))
            y, scale = layers.UnscaledRMSNorm(name="text_norm")(x)
            gates = (None, gate_t) if linear.can_fold(self.dtype) else (gate_t, None)
            of_weights = linear.Modulation(scale=scale - 1, gate=gates[1])
            y = self._cross_attend(y, text, text_lengths, modulation=of_weights)
            x = layers.add_gated(x, y, gates[0])
        elif self.cross_attention == "pixart" and self.kind != "temporal":
            x = x + self._cross_attend(x, text, text_lengths, nn.initializers.zeros).astype(x.dtype)

        of_tokens, of_weights = linear.place(of_mlp, self.token_sharding, self.dtype)
        y = layers.modulate(x, of_tokens).astype(self.dtype)
        mlp = layers.MLP(
            self.mlp_ratio, self.token_sharding, self.pieces, dtype=self.dtype, name="mlp"
        )
        axis = 1 if self.kind == "temporal" else 2  # the axis that is not sharded
        x = layers.add_gated(x, mlp(y, axis, modulation=of_weights), of_tokens.gate)
        return x if cached is None else (x, keys_values)

    def _modulation(self, condition: jax.Array, width: int) -> list[linear.Modulation]:
        """Modulations of tokens: of attention, then of the MLP."""
        if self.modulation == "adaln_zero":
            init = nn.initializers.zeros
            weights = linear.Linear((6 * width,), init, name="modulation")(width)
            condition = linear.multiply(linear.fold(weights, self.dtype), nn.silu(condition))
        parts = einops.rearrange(condition.astype(jnp.float32), "b t (p d) -> p b t 1 d", p=6)
        if self.modulation == "adaln_single":
            table = self.param("scale_shift_table", nn.initializers.zeros, (6, width))
            parts = parts + table[:, None, None, None]
        return [linear.Modulation(*parts[:3]), linear.Modulation(*parts[3:])]

    def _frame_mask(self, frames: int, spatial: int) -> jax.Array | None:
        """(1, M, M) bool over all tokens of a video: causal over frames, full within a frame."""
        if not self.causal or self.kind != "joint":
            return None
        frame = jnp.repeat(jnp.arange(frames), spatial)
        return (frame[:, None] >= frame[None, :])[None]

    def _rotary(self, coordinates: jax.Array) -> jax.Array | None:
        """(M, A), positions of the M tokens of a sequence along the A rotary axes; None for none."""
        axes = ROTARY_AXES.get((self.positions, self.kind))
        if axes is None:
            return None
        tokens = {"spatial": coordinates[0], "temporal": coordinates[:, 0]}
        tokens = tokens.get(self.kind, coordinates.reshape(-1, 3))
        return tokens[:, jnp.array(axes)]

    def _cross_attend(
        self,
        x: jax.Array,
        text: jax.Array,
        text_lengths: jax.Array,
        out_init: nn.initializers.Initializer = linear.KERNEL_INIT,
        modulation: linear.Modulation = linear.NO_MODULATION,
    ) -> jax.Array:
        # Use sequences that are not sharded, hence spatial ones for joint blocks.
        sequence = SEQUENCES["temporal" if self.kind == "temporal" else "spatial"]
        y = layers.Attention(
            self.num_heads,
            self.qk_norm,
            out_init,
            self.token_sharding,
            kernel=self.kernel,
            dtype=self.dtype,
            name="text_attention",
        )(
            einops.rearrange(x, f"b t n d -> {sequence}"),
            text,
            lengths=text_lengths,
            modulation=modulation,
        )
        return einops.rearrange(y, f"{sequence} -> b t n d", t=x.shape[1], n=x.shape[2])


class BlockGroup(nn.Module):
    """The unit of `nn.scan`: a spatial and a temporal block, or a joint one. Images skip temporal blocks."""

    kinds: tuple[str, ...]
    make_block: Callable[..., Block]
    token_sharding: TokenSharding | None

    @nn.compact
    def __call__(
        self,
        x,
        index,
        cached,
        condition,
        text,
        text_lengths,
        coordinates,
        time_table,
        cached_length,
    ):
        """As `Block`, with the group's `index` () and the `time_table` (T, 1, D) or (B, T, 1, D) added in group 0.

        Returns (x, keys and values or None without `cached`): carry and output of the scan.
        """
        keys_values = None
        for kind in find_kinds(self.kinds, x, cached):
            x = enter_block(x, index, time_table, kind, self.token_sharding)
            shared = (condition, text, text_lengths, coordinates)
            block = self.make_block(kind, name=kind)
            if kind == "temporal" and cached is not None:
                x, keys_values = block(x, *shared, cached, cached_length)
            else:
                x = block(x, *shared)
            x = leave_block(x, kind, self.token_sharding)
        return x, keys_values


def find_kinds(kinds: tuple[str, ...], x: jax.Array, cached: Any = None) -> tuple[str, ...]:
    """The kinds of blocks that x (B, T, N, D) passes: images skip temporal ones, which without a cache do nothing."""
    if x.shape[1] == 1 and cached is None:
        return tuple(kind for kind in kinds if kind != "temporal")
    return kinds


def enter_block(
    x: jax.Array,
    index: jax.Array,
    time_table: jax.Array | None,
    kind: str,
    token_sharding: TokenSharding | None,
) -> jax.Array:
    """The input of a block: with the time table in group 0, and sharded over space, for a temporal one."""
    if kind != "temporal":
        return x
    if time_table is not None:
        x = x + jnp.where(index == 0, time_table, 0).astype(x.dtype)
    return x if token_sharding is None else token_sharding.frames_to_space(x)


def leave_block(x: jax.Array, kind: str, token_sharding: TokenSharding | None) -> jax.Array:
    """The output of a block, sharded over frames again."""
    if kind != "temporal" or token_sharding is None:
        return x
    return token_sharding.space_to_frames(x)


def _cached_mask(slots: int, length: jax.Array, frames: int) -> jax.Array:
    """(1, T, P + T) bool: frames attend to the last `length` of the P slots, and causally to each other."""
    valid = jnp.arange(slots) >= slots - length  # (P,)
    valid = jnp.broadcast_to(valid, (frames, slots))
    return jnp.concatenate([valid, jnp.tri(frames, dtype=bool)], axis=1)[None]


def _cached_positions(slots: int, positions: jax.Array) -> jax.Array:
    """(P + T, A): positions of slots, counted back from the first frame, then of frames; RoPE is relative."""
    first = positions[:1] - jnp.arange(slots, 0, -1, dtype=positions.dtype)[:, None]
    return jnp.concatenate([first, positions])
