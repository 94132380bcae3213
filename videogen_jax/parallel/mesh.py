"""The mesh of devices, and how a batch lies on it.

| axis   | holds                                                                                          |
| ------ | ---------------------------------------------------------------------------------------------- |
| data   | copies of the parameters, each with its part of the batch                                      |
| fsdp   | parts of the parameters, optimizer state and EMA, each with its part of the batch              |
| seq    | parts of each clip (sequence_parallel.py), and of the parameters too                                      |
| tensor | parts of each layer: heads, and columns of the MLP                                             |

Devices on `seq` and `tensor` work on the same clips: one clip can use them all.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "seq", "tensor")
BATCH_AXES = ("data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    seq: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Builds the mesh over the first data * fsdp * seq * tensor devices.

    Args:
      data: see the table above, as the next three.
      fsdp: of the same.
      seq: of the same.
      tensor: of the same.
      devices: to take them from; by default those that there are.
    Returns:
      A mesh with automatic axes (Explicit ones, JAX's default, refuse FSDP's Dense layers).
    Raises:
      ValueError: there are fewer devices.
    """
    sizes = (data, fsdp, seq, tensor)
    count = int(np.prod(sizes))
    devices = jax.devices() if devices is None else devices
    if count > len(devices):
        shape = " x ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        raise ValueError(
            f"The mesh {shape} wants {count} devices, but {len(devices)} ({devices[0].platform}) are there: "
            f"lower one of mesh.{', mesh.'.join(AXES)}."
        )
    grid = np.asarray(devices[:count]).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Refuses a batch that does not lie evenly on the mesh.

    Args:
      mesh: of `make_mesh`.
      batch_size: clips per optimizer step, over all devices.
      accumulation: parts in which a step takes its batch.
    Raises:
      ValueError: batch_size is not a multiple of the mesh's parts x accumulation.
    """
    parts = batch_parts(mesh)
    if batch_size % (parts * accumulation):
        shape = " x ".join(f"{name}={mesh.shape[name]}" for name in BATCH_AXES)
        raise ValueError(
            f"batch_size of {batch_size} does not divide into {parts} parts ({shape}) in "
            f"{accumulation} accumulation steps: make it a multiple of {parts * accumulation}, "
            "or put devices on mesh.seq."
        )


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Lays this process's rows on its devices.

    Args:
      mesh: of `make_mesh`.
      batch: tree of arrays (B / processes, ...).
    Returns:
      The same of arrays (B, ...), split over the mesh.
    """
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
