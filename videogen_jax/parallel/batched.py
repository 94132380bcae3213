"""Rows through a network that stays as it is, some at a time, on all of a process's devices."""

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
    """Lays parameters on each of this process's devices, among which batches are then divided.

    Args:
      apply: (params, (B, ...)) to a tree of arrays (B, ...), each row of which is of its own row alone.
      params: tree of arrays.
      rows_per_device: in a batch. All batches have one shape, so that one program is compiled; the last is filled up,
        and what that gives is left out.
      devices: to use; by default all of this process.
    Returns:
      (N, ...) to the trees of N rows, NumPy, batch by batch.
    """
    devices = jax.local_devices() if devices is None else devices
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    rows, whole = NamedSharding(mesh, meshes.BATCH), NamedSharding(mesh, PartitionSpec())
    run = jax.jit(apply, in_shardings=(whole, rows), out_shardings=whole)
    placed = jax.device_put(params, whole)
    count = rows_per_device * len(devices)

    def run_all(inputs: np.ndarray) -> Iterator[Any]:
        for start in range(0, len(inputs), count):
            part = inputs[start : start + count]
            filled = part[np.arange(count) % len(part)]
            outputs = jax.device_get(run(placed, jax.device_put(filled, rows)))
            yield jax.tree.map(operator.itemgetter(slice(len(part))), outputs)

    return run_all


def in_full_precision(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with products in full float32, where a GPU would take TF32: for scores that agree anywhere."""

    def run(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return apply(*arguments)

    return run
