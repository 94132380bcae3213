"""Batched inference of a fixed network on all devices of a process."""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.parallel import mesh as meshes


def make_batched(
    apply: Callable[[Any, jax.Array], Any],
    params: Any,
    rows_per_device: int,
    devices: Sequence[jax.Device] | None = None,
    largest_replicated: int | None = None,
) -> Callable[..., Iterator[Any]]:
    """Lays parameters on the devices, and shards batches over them.

    Args:
      apply: (params, (B, ...)) to a tree of arrays (B, ...), computed row by row.
      params: tree of arrays.
      rows_per_device: batch size per device. All batches have the same shape, so that one program is compiled; the last
        is padded, and the padding removed from its results.
      devices: devices to use; by default all of this process.
      largest_replicated: bytes of parameters above which each device holds a part of them, gathered layer by layer, and
        not all; None: never.
    Returns:
      A generator function of (N, ...) and optionally other rows per device: yields NumPy trees batch by batch, N rows
      in total.
    """
    devices = jax.local_devices() if devices is None else devices
    shardings, rows, replicated = lay_out(params, devices, largest_replicated)
    run = jax.jit(apply, in_shardings=(shardings, rows), out_shardings=replicated)
    placed = jax.device_put(params, shardings)

    def run_all(inputs: np.ndarray, rows_per_device: int = rows_per_device) -> Iterator[Any]:
        count = rows_per_device * len(devices)
        for start in range(0, len(inputs), count):
            part = inputs[start : start + count]
            padded = part[np.arange(count) % len(part)]
            outputs = jax.device_get(run(placed, jax.device_put(padded, rows)))
            yield jax.tree.map(operator.itemgetter(slice(len(part))), outputs)

    return run_all


def lay_out(
    params: Any, devices: Sequence[jax.Device], largest_replicated: int | None = None
) -> tuple[Any, NamedSharding, NamedSharding]:
    """How `make_batched` lays parameters, batches and results on devices.

    Args:
      params: tree of arrays or jax.ShapeDtypeStruct.
      devices: as of `make_batched`, as the next one.
      largest_replicated: see devices.
    Returns:
      Shardings of the parameters, of a batch's rows and of its results.
    """
    mesh = meshes.make_mesh(fsdp=len(devices), devices=devices)
    rows, replicated = NamedSharding(mesh, meshes.BATCH), NamedSharding(mesh, PartitionSpec())
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    if largest_replicated is None or size <= largest_replicated:
        return jax.tree.map(lambda _: replicated, params), rows, replicated
    return jax.tree.map(lambda leaf: _split(mesh, leaf), params), rows, replicated


def _split(mesh: Mesh, leaf: Any) -> NamedSharding:
    """Splits an array along its last axis, of features, that divides by the number of devices."""
    count = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
    spec = [None] * (axes[-1]) + ["fsdp"] if axes and leaf.ndim > 1 else []
    return NamedSharding(mesh, PartitionSpec(*spec))


def in_full_precision(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with full float32 matrix products instead of a GPU's TF32, for reproducible scores."""

    def run(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return apply(*arguments)

    return run
