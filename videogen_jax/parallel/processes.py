"""The processes of a run: how they find each other, which rows each reads, and when all of them stop.

Every process runs the same program on the same config; devices are numbered by process, so that the first axes of the
mesh lie across processes and the last ones within.
"""

import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from videogen_jax.parallel.mesh import BATCH


def join(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None, detect: bool
) -> None:
    """Meets the other processes, before any device is used; does nothing where there are none.

    Args:
      coordinator_address: host:port of process 0; with the next two, or none of them.
      num_processes: in all.
      process_id: of this one.
      detect: ask SLURM, Open MPI or Kubernetes instead.
    Raises:
      ValueError: only some are given, or nothing is there to be asked.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not detect:
            return
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed found no SLURM, Open MPI or Kubernetes around this process ({error}): give "
                f"{', '.join(given)} instead."
            ) from error
        return
    if missing or detect:
        wrong = "without " + ", ".join(missing) if missing else "beside --distributed"
        raise ValueError(
            f"Several processes are asked for {wrong}: give {', '.join(given)}, or --distributed alone."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id is {process_id}, but processes count from 0 to {num_processes - 1}."
        )
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        cluster_detection_method="deactivate",  # else SLURM's variables leave it a single GPU
    )


def find_share(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Which part of each batch this process reads: the rows that its devices hold.

    Processes whose devices work on the same clips (`seq`, `tensor`) read the same rows.

    Args:
      mesh: of `mesh.make_mesh`.
      batch_size: rows over all devices; divides into the mesh's parts.
    Returns:
      (index, count): part `index` of `count` equal ones.
    Raises:
      ValueError: none of the mesh's devices is this process's, or its rows are no such part.
    """
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    spans = sorted({rows.indices(batch_size)[:2] for (rows,) in places.values()})
    if not spans:
        raise ValueError(
            f"The mesh has {mesh.size} devices, of which none is process {jax.process_index()}'s: "
            "raise mesh.data, or start fewer processes."
        )
    start, stop = spans[0][0], spans[-1][1]
    size = sum(end - begin for begin, end in spans)
    if stop - start != size or start % size or batch_size % size:
        raise ValueError(
            f"Process {jax.process_index()} holds the rows {spans} of a batch of {batch_size}, which are no even part "
            "of it: make mesh.data times mesh.fsdp a multiple of the processes, or a divisor of them."
        )
    return start // size, batch_size // size


def make_stop() -> Callable[[int], bool]:
    """Watches for SIGTERM.

    Returns:
      Asked once for each step number, whether to stop after it: of all processes at the same step, once one of them has
      been told to.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point  # its own handler came with `join`
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return lambda step: stop.is_set()
