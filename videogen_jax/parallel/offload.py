"""Parts of the train state that wait in the pinned memory of each device's host while the devices do without.

A step brings them to the devices once the gradients are there, when the activations have gone, and sends them back.
Scalars stay on the devices.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding

HOST = "pinned_host"  # JAX's name of this memory


def host_shardings(shardings: Any, shapes: Any) -> Any:
    """The same places, in the host's memory.

    Args:
      shardings: tree of NamedSharding.
      shapes: of the arrays.
    Returns:
      Tree of NamedSharding.
    """

    def move(place: NamedSharding, leaf: Any) -> NamedSharding:
        return place.with_memory_kind(HOST) if is_offloaded(leaf) else place

    return jax.tree.map(move, shardings, shapes)


def fetch(tree: Any, after: Any) -> tuple[Any, Any]:
    """Inside a jitted function: from the host to the devices, but no sooner than `after`.

    Args:
      tree: arrays that `host_shardings` has placed.
      after: arrays to be computed first, while that still needs the devices' memory.
    Returns:
      (the tree on the devices, `after`).
    """
    leaves, structure = jax.tree.flatten(tree)
    waiting = [leaf for leaf in leaves if is_offloaded(leaf)]
    waiting, after = jax.lax.optimization_barrier((waiting, after))
    arrived = iter(jax.device_put(waiting, jax.memory.Space.Device))
    return structure.unflatten(
        [next(arrived) if is_offloaded(leaf) else leaf for leaf in leaves]
    ), after


def store(tree: Any) -> Any:
    """Inside a jitted function: what `fetch` brought, back to the host."""
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, jax.memory.Space.Host) if is_offloaded(leaf) else leaf,
        tree,
    )


def is_offloaded(leaf: Any) -> bool:
    """Whether a part of an offloaded tree goes to the host."""
    return leaf.ndim > 0
