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

import functools
from collections.abc import Callable
from typing import Any

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


def gather(weights: Any, pieces: int, token_sharding: TokenSharding | None) -> Any:
    """Weights for use in several pieces: gathered, so that no piece repeats it.

    Args:
      weights: of `linear.fold`, in a tree that ends their paths in `sharding.PARAMETER_AXES`.
      pieces: number of pieces; for one, the weights are returned as they are.
      token_sharding: None on one device.
    """
    if pieces == 1 or token_sharding is None:
        return weights
    return token_sharding.gather_weights(weights)


def in_pieces(
    run: Callable[[Any, jax.Array], jax.Array], weights: Any, x: jax.Array, axis: int, pieces: int
) -> jax.Array:
    """Applies a tokenwise function to equal pieces of the tokens in sequence, to save activation memory.

    Each piece is recomputed in the backward pass, so only x is saved.

    Args:
      run: (weights, (B, T, N, D)) to (B, T, N, E).
      weights: pytree of all that is not split; see `gather`.
      x: (B, T, N, D).
      axis: axis to split, 1 or 2.
      pieces: number of pieces.
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
    if pieces == 1:
        return run(weights, x)
    run_piece = jax.checkpoint(functools.partial(run, weights))
    outputs = jax.lax.map(run_piece, jnp.stack(jnp.split(x, pieces, axis)))  # (P, B, T, N, E)
    return jnp.concatenate(list(outputs), axis)
