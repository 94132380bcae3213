"""What a run uses of its machine: memory, and the peak FLOP/s that utilisation is measured against."""

import jax
import psutil
from jax.sharding import Mesh

from videogen_jax.parallel import device_specs

GIB = 2**30


def measure_memory() -> dict[str, float]:
    """Memory of this process, in GiB.

    Returns:
      `memory/host_gib`, resident memory of the process; and on devices that report it (GPUs, not CPUs), of the fullest
      one of this process `memory/device_gib`, in use, `memory/device_peak_gib`, the most since the start,
      and `memory/device_limit_gib`, the most that JAX may take.
    """
    measured = {"memory/host_gib": psutil.Process().memory_info().rss / GIB}
    reported = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {
        "memory/device_gib": "bytes_in_use",
        "memory/device_peak_gib": "peak_bytes_in_use",
        "memory/device_limit_gib": "bytes_limit",
    }
    for name, key in names.items():
        if values := [stats[key] for stats in reported if key in stats]:
            measured[name] = max(values) / GIB
    return measured


def find_peak_flops(mesh: Mesh) -> float | None:
    """Peak FLOP/s of all devices together; None for devices that parallel/device_specs.py does not know."""
    kinds = [device_specs.find_card(device.device_kind) for device in mesh.devices.flat]
    if not all(card and card.flops for card in kinds):
        return None
    return sum(card.flops for card in kinds)
