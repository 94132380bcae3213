"""Rematerialization (activation checkpointing): what is saved for the backward pass, and what is recomputed.

| remat | saved per block                                        | recomputed      |
| ----- | ------------------------------------------------------ | --------------- |
| none  | everything                                             | nothing         |
| block | its input; with `offload`, in pinned host memory       | the whole block |

A block's input is saved after the all-to-all before it, so that this is not repeated. Offloading has a backward pass of
its own, offloaded_scan.py.

There is nothing between: keeping the outputs of attention as well saved no time where it was tried
(docs/performance.md).

Source: arXiv:1604.06174.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.parallel.sequence_parallel import TokenSharding

POLICIES = ("none", "block")


def check_remat(policy: str, offload: bool) -> None:
    """Raises ValueError if the policy is unknown or conflicts with offloading."""
    if policy not in POLICIES:
        raise ValueError(f"Unknown memory.remat {policy!r}: choose one of {', '.join(POLICIES)}.")
    if offload and policy == "none":
        raise ValueError(
            "memory.offload_activations is True, but memory.remat is 'none', which saves more than the blocks' inputs: "
            "set it to 'block'."
        )


def wrap(block: type[nn.Module], policy: str) -> Callable[..., nn.Module]:
    """Adds rematerialization to the class of a block whose input stays on the device."""
    # Keep prevent_cse's barriers: without them XLA recomputes all blocks of a group early.
    return nn.remat(block) if policy == "block" else block


def in_pieces(
    run: Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array],
    layer: nn.Module,
    x: jax.Array,
    axis: int,
    pieces: int,
    token_sharding: TokenSharding | None,
) -> jax.Array:
    """Applies a tokenwise layer to equal pieces of the tokens in sequence, to save activation memory.

    Each piece is recomputed in the backward pass, so only x is saved. The layer's parameters are gathered once, not per
    piece.

    Args:
      run: (layer, (B, T, N, D)) to (B, T, N, E).
      layer: bound module with a name and a `dtype`.
      x: (B, T, N, D).
      axis: axis to split, 1 or 2.
      pieces: number of pieces.
      token_sharding: None on one device.
    Returns:
      (B, T, N, E).
    Raises:
      ValueError: the axis does not divide by `pieces`.
    """
    if x.shape[axis] % pieces:
        what = ("latent frames", "tokens of a frame")[axis - 1]
        raise ValueError(
            f"memory.pieces of {pieces} does not divide the {x.shape[axis]} {what}: choose one that does."
        )
    if pieces == 1 or layer.is_initializing():
        return run(layer, x)
    params = jax.tree.map(lambda leaf: leaf.astype(layer.dtype), layer.variables["params"])
    if token_sharding is not None:
        params = token_sharding.gather_params({layer.name: params})[layer.name]
    unbound = layer.clone(parent=None)

    @jax.checkpoint
    def run_piece(piece: jax.Array) -> jax.Array:
        return run(lambda x: unbound.apply({"params": params}, x), piece)

    outputs = jax.lax.map(run_piece, jnp.stack(jnp.split(x, pieces, axis)))  # (P, B, T, N, E)
    return jnp.concatenate(list(outputs), axis)
