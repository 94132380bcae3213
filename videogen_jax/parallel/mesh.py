"""The device mesh, and how batches are sharded over it.

| axis   | what is sharded                                                                                |
| ------ | ---------------------------------------------------------------------------------------------- |
| data   | the batch; parameters are replicated                                                           |
| fsdp   | the batch; parameters, optimizer state and EMA                                                 |
| seq    | the tokens of each clip (sequence_parallel.py); parameters, optimizer state and EMA            |
| tensor | layers: attention heads and MLP columns                                                        |

Devices along `seq` and `tensor` work on the same clips.
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
    """Builds the mesh over the first data * fsdp * seq * tensor devices (table at the top of this file).

    Args:
      data: devices along each axis, as the next three.
      fsdp: see data.
      seq: see data.
      tensor: see data.
      devices: the devices to choose from; all of them by default.
    Returns:
      A mesh with Auto axes (with Explicit ones, JAX's default, FSDP's Dense layers fail).
    Raises:
      ValueError: there are fewer devices.
    """
    sizes = (data, fsdp, seq, tensor)
    count = int(np.prod(sizes))
    devices = jax.devices() if devices is None else devices
    if count > len(devices):
        shape = " x ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        raise ValueError(
            f"The mesh {shape} needs {count} devices, but there are {len(devices)} ({devices[0].platform}): "
            f"lower one of mesh.{', mesh.'.join(AXES)}."
        )
    grid = np.asarray(devices[:count]).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_parts(mesh: Mesh) -> int:
    """Number of parts into which the mesh splits a batch."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts this process's rows on its devices.

    Args:
      mesh: from `make_mesh`.
      batch: tree of arrays (B / processes, ...).
    Returns:
      Tree of global arrays (B, ...), sharded over the mesh.
    """
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
