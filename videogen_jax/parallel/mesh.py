"""The mesh of devices, and how a batch lies on it.

Axes: `data` holds replicas, `fsdp` shards parameters, optimizer state and EMA. A batch is split over both.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)


def make_mesh(data: int = 1, fsdp: int = 1) -> Mesh:
    """Builds the mesh over the first data * fsdp devices.

    Args:
      data: number of replicas.
      fsdp: number of devices that share one copy of the parameters.
    Returns:
      A mesh with automatic axes (Explicit ones, JAX's default, refuse FSDP's Dense layers).
    Raises:
      ValueError: there are fewer devices.
    """
    count = data * fsdp
    if count > jax.device_count():
        raise ValueError(
            f"The mesh data={data} x fsdp={fsdp} wants {count} devices, but {jax.device_count()} "
            f"({jax.devices()[0].platform}) are there: lower mesh.data or mesh.fsdp."
        )
    devices = np.asarray(jax.devices()[:count]).reshape(data, fsdp)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Refuses a batch that does not lie evenly on the mesh.

    Args:
      mesh: of `make_mesh`.
      batch_size: clips per optimizer step, over all devices.
      accumulation: parts in which a step takes its batch.
    Raises:
      ValueError: batch_size is not a multiple of devices x accumulation.
    """
    if batch_size % (mesh.size * accumulation):
        shape = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise ValueError(
            f"batch_size of {batch_size} does not divide over {mesh.size} devices ({shape}) in "
            f"{accumulation} accumulation steps: make it a multiple of {mesh.size * accumulation}."
        )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Lays this process's rows on its devices.

    Args:
      mesh: of `make_mesh`.
      batch: arrays (B / processes, ...).
    Returns:
      Arrays (B, ...), split over the mesh.
    """
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
