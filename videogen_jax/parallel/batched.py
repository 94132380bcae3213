"""Batched inference of a fixed network on all devices of a process."""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.parallel import mesh as meshes


def make_batched(
    apply: Callable[[Any, jax.Array], Any],
    params: Any,
    rows_per_device: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[np.ndarray], Iterator[Any]]:
    """Replicates parameters on the devices, and shards batches over them.

    Args:
      apply: (params, (B, ...)) to a tree of arrays (B, ...), computed row by row.
      params: tree of arrays.
      rows_per_device: batch size per device. All batches have the same shape, so that one program is compiled; the last
        is padded, and the padding removed from its results.
      devices: devices to use; by default all of this process.
    Returns:
      A generator function of (N, ...): yields NumPy trees batch by batch, N rows in total.
    """
    devices = jax.local_devices() if devices is None else devices
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    rows, replicated = NamedSharding(mesh, meshes.BATCH), NamedSharding(mesh, PartitionSpec())
    run = jax.jit(apply, in_shardings=(replicated, rows), out_shardings=replicated)
    placed = jax.device_put(params, replicated)
    count = rows_per_device * len(devices)

    def run_all(inputs: np.ndarray) -> Iterator[Any]:
        for start in range(0, len(inputs), count):
            part = inputs[start : start + count]
            padded = part[np.arange(count) % len(part)]
            outputs = jax.device_get(run(placed, jax.device_put(padded, rows)))
            yield jax.tree.map(operator.itemgetter(slice(len(part))), outputs)

    return run_all


def in_full_precision(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with full float32 matrix products instead of a GPU's TF32, for reproducible scores."""

    def run(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return apply(*arguments)

    return run
