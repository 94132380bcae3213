"""What the backward pass finds in memory, and what it computes again.

| remat     | kept of each block                       | computed again         |
| --------- | ---------------------------------------- | ---------------------- |
| none      | everything                               | nothing                |
| block     | its input                                | the whole block        |
| selective | its input, and the tensors named `saved` | what lies between them |

| saved     | numbers per token  | which                                                                              |
| --------- | ------------------ | ---------------------------------------------------------------------------------- |
| qkv       | 3 D                | queries, keys and values, as attention reads them                                  |
| attention | D                  | attention's result, so that its scores are not computed again                      |
| mlp       | mlp_ratio D        | the MLP's hidden layer ahead of its GELU                                           |

The input of a block is kept on this side of the exchange between devices, so that no exchange is done again. With
`offload` inputs wait in the host's pinned memory.

Source: arXiv:1604.06174; which tensors are worth keeping, arXiv:2205.05198, section 4.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.parallel.sequence_parallel import TokenSharding

POLICIES = ("none", "block", "selective")
SAVED = ("qkv", "attention", "mlp")
INPUT = "block_input"
# cuDNN's flash attention: its result and the sums that its backward pass reads.
FLASH_PRIMITIVES = ("dot_product_attention_fwd_wrapper", "dot_product_attention_fwd")


def check_remat(policy: str, saved: Sequence[str], offload: bool) -> None:
    """Refuses what has no meaning.

    Raises:
      ValueError: a name is unknown, or options do not go together.
    """
    if policy not in POLICIES:
        raise ValueError(f"Unknown memory.remat {policy!r}: choose one of {', '.join(POLICIES)}.")
    if unknown := [name for name in saved if name not in SAVED]:
        raise ValueError(
            f"Unknown memory.saved {', '.join(map(repr, unknown))}: choose among {', '.join(SAVED)}."
        )
    if (policy == "selective") != bool(saved):
        raise ValueError(
            f"memory.remat is {policy!r} and memory.saved is {tuple(saved)}: 'selective' wants names to save, "
            "and no other does."
        )
    if offload and policy == "none":
        raise ValueError(
            "memory.offload_activations is on, but memory.remat is 'none', which keeps more than the blocks' inputs: "
            "set it to 'block' or 'selective'."
        )


def wrap(
    block: type[nn.Module], group: type[nn.Module], policy: str, saved: Sequence[str], offload: bool
) -> tuple[Callable[..., nn.Module], type[nn.Module]]:
    """A block that is computed again, and the group of blocks around it that offloads their inputs.

    Args:
      block: class of a block.
      group: class of what names the inputs of its blocks INPUT, and calls them.
      policy: one of POLICIES.
      saved: names, of SAVED.
      offload: inputs go to the host.
    Returns:
      (block, group), to be used in their place.
    Raises:
      ValueError: of `check_remat`.
    """
    check_remat(policy, saved, offload)
    if policy == "none":
        return block, group
    # With barriers (prevent_cse), or XLA computes a whole group's blocks again ahead of their turn.
    block = nn.remat(block, policy=_keep(saved, ()))
    if offload:
        group = nn.remat(group, policy=_keep(saved, (INPUT,)), prevent_cse=False)
    return block, group


def _keep(saved: Sequence[str], offloaded: Sequence[str]) -> Callable[..., Any]:
    """A checkpoint policy."""
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


def in_pieces(
    run: Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array],
    layer: nn.Module,
    x: jax.Array,
    axis: int,
    pieces: int,
    token_sharding: TokenSharding | None,
) -> jax.Array:
    """Computes a layer that treats all tokens alike for equal parts of them, one after the other.

    Each part is computed again in the backward pass, so that no more than x is kept. Devices gather the layer's
    parameters once, not for each part.

    Args:
      run: (the layer, (B, T, N, D)) to (B, T, N, E).
      layer: bound, with a name and a `dtype`.
      x: (B, T, N, D).
      axis: to cut, 1 or 2.
      pieces: how many.
      token_sharding: how x is sharded over the mesh; None on one device.
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
    alone = layer.clone(parent=None)

    @jax.checkpoint
    def run_part(part: jax.Array) -> jax.Array:
        return run(lambda x: alone.apply({"params": params}, x), part)

    parts = jax.lax.map(run_part, jnp.stack(jnp.split(x, pieces, axis)))  # (P, B, T, N, E)
    return jnp.concatenate(list(parts), axis)
