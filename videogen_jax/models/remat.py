"""Rematerialization (activation checkpointing): what is saved for the backward pass, and what is recomputed.

| remat     | saved per block                          | recomputed             |
| --------- | ---------------------------------------- | ---------------------- |
| none      | everything                               | nothing                |
| block     | its input                                | the whole block        |
| selective | its input, and the tensors in `saved`    | the rest               |

| saved     | elements per token | which                                                                              |
| --------- | ------------------ | ---------------------------------------------------------------------------------- |
| qkv       | 3 D                | queries, keys and values, after norm and rotary embedding                          |
| attention | D                  | output of attention, so that its scores are not recomputed                         |
| mlp       | mlp_ratio D        | hidden layer of the MLP before its GELU                                            |

A block's input is saved after the all-to-all before it, so that this is not repeated. With `offload`, inputs are kept
in pinned host memory.

Source: arXiv:1604.06174; the choice of tensors, arXiv:2205.05198, section 4.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.parallel.sequence_parallel import TokenSharding

POLICIES = ("none", "block", "selective")
SAVED = ("qkv", "attention", "mlp")
INPUT = "block_input"
# cuDNN's flash attention: its output and the softmax statistics for its backward pass.
FLASH_PRIMITIVES = ("dot_product_attention_fwd_wrapper", "dot_product_attention_fwd")


def check_remat(policy: str, saved: Sequence[str], offload: bool) -> None:
    """Raises ValueError if a name is unknown or options conflict."""
    if policy not in POLICIES:
        raise ValueError(f"Unknown memory.remat {policy!r}: choose one of {', '.join(POLICIES)}.")
    if unknown := [name for name in saved if name not in SAVED]:
        raise ValueError(
            f"Unknown memory.saved {', '.join(map(repr, unknown))}: choose among {', '.join(SAVED)}."
        )
    if (policy == "selective") != bool(saved):
        raise ValueError(
            f"memory.remat is {policy!r} and memory.saved is {tuple(saved)}: 'selective' requires names to save, "
            "and the other policies allow none."
        )
    if offload and policy == "none":
        raise ValueError(
            "memory.offload_activations is True, but memory.remat is 'none', which saves more than the blocks' inputs: "
            "set it to 'block' or 'selective'."
        )


def wrap(
    block: type[nn.Module], group: type[nn.Module], policy: str, saved: Sequence[str], offload: bool
) -> tuple[Callable[..., nn.Module], type[nn.Module]]:
    """Adds rematerialization to a block, and offloading of block inputs to the group around it.

    Args:
      block: class of a block.
      group: class of a group, which names the inputs of its blocks INPUT and calls the blocks.
      policy: one of POLICIES.
      saved: names of SAVED.
      offload: keep inputs in pinned host memory.
    Returns:
      (block, group), the wrapped classes.
    Raises:
      ValueError: see `check_remat`.
    """
    check_remat(policy, saved, offload)
    if policy == "none":
        return block, group
    # Keep prevent_cse's barriers: without them XLA recomputes all blocks of a group early.
    block = nn.remat(block, policy=_make_policy(saved, ()))
    if offload:
        group = nn.remat(group, policy=_make_policy(saved, (INPUT,)), prevent_cse=False)
    return block, group


def _make_policy(saved: Sequence[str], offloaded: Sequence[str]) -> Callable[..., Any]:
    """A checkpoint policy that also saves cuDNN's flash attention for the name "attention"."""
    names = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=saved,
        names_which_can_be_offloaded=offloaded,
        offload_src="device",
        offload_dst="pinned_host",
    )

    def policy(primitive: Any, *avals: Any, **params: Any) -> Any:
        if "attention" in saved and primitive.name in FLASH_PRIMITIVES:
            return True
        return names(primitive, *avals, **params)

    return policy


def gather(
    weights: Any, dtype: jnp.dtype, pieces: int, token_sharding: TokenSharding | None
) -> Any:
    """Parameters for use in several pieces: cast to `dtype` and gathered, so that no piece repeats it.

    Args:
      weights: parameters, in a tree that ends their paths in `sharding.PARAMETER_AXES`.
      dtype: of the products.
      pieces: number of pieces; for one, the parameters are returned as they are.
      token_sharding: None on one device.
    """
    if pieces == 1 or token_sharding is None:
        return weights
    return token_sharding.gather_params(jax.tree.map(lambda leaf: leaf.astype(dtype), weights))


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
