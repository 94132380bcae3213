"""Offloading: parts of the train state kept in pinned host memory between their uses.

A step fetches them after the gradients are computed, when the activations have been freed, and stores them back.
Scalars stay on the devices.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding

HOST = "pinned_host"  # JAX's memory kind


def host_shardings(shardings: Any, shapes: Any) -> Any:
    """The same shardings, in host memory.

    Args:
      shardings: tree of NamedSharding.
      shapes: tree of arrays or shapes.
    Returns:
      Tree of NamedSharding.
    """

    def move(sharding: NamedSharding, leaf: Any) -> NamedSharding:
        return sharding.with_memory_kind(HOST) if is_offloaded(leaf) else sharding

    return jax.tree.map(move, shardings, shapes)


def fetch(tree: Any, after: Any) -> tuple[Any, Any]:
    """Inside a jitted function: copies from host to device memory, but not before `after` is computed.

    Args:
      tree: arrays with `host_shardings`.
      after: arrays whose computation needs the device memory first.
    Returns:
      (the tree on the devices, `after`).
    """
    leaves, structure = jax.tree.flatten(tree)
    offloaded = [leaf for leaf in leaves if is_offloaded(leaf)]
    # The barrier keeps XLA from starting the copies early.
    offloaded, after = jax.lax.optimization_barrier((offloaded, after))
    fetched = iter(jax.device_put(offloaded, jax.memory.Space.Device))
    leaves = [next(fetched) if is_offloaded(leaf) else leaf for leaf in leaves]
    return structure.unflatten(leaves), after


def store(tree: Any) -> Any:
    """Inside a jitted function: the inverse of `fetch`, back to host memory."""
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, jax.memory.Space.Host) if is_offloaded(leaf) else leaf,
        tree,
    )


def is_offloaded(leaf: Any) -> bool:
    """Whether a leaf of an offloaded tree is kept on the host: all but scalars."""
    return leaf.ndim > 0
