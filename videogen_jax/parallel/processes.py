"""Several processes as one run: how they find each other, start together, and stop on the same step.

Every process runs the same program on devices of its own, and all must reach the same collectives in the same order. So
what one alone can meet (a missing file, SIGTERM) has to become known to all before any of them acts on it.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.parallel.mesh import BATCH

# How long processes may come after each other.
START_SECONDS = 300
# After an error of one process alone: how long its exit waits for the others, before JAX ends them too.
SHUTDOWN_SECONDS = 60


class OtherProcessFailed(ValueError):
    """Another process of the run met an error; its own log says which."""


def join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    detect: bool = False,
) -> None:
    """Makes this process one of a run's; call it before any device is used.

    Without arguments it does nothing: the run has one process.

    Args:
      coordinator_address: host:port at which process 0 listens.
      num_processes: of the run.
      process_id: 0 to num_processes - 1.
      detect: ask SLURM, Open MPI or Kubernetes for the three, and take one GPU for each process of a host.
    Raises:
      ValueError: the three are not given together or do not fit, there is no such cluster, or it cannot be joined.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if detect and len(missing) < len(given):
        raise ValueError(
            f"--distributed asks the cluster for {', '.join(given)}: give it or them, not both."
        )
    if not detect and len(missing) == len(given):
        return
    if not detect:
        _check_explicit(coordinator_address, num_processes, process_id, missing)
    # SIGTERM is for `catch_sigterm`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            # SLURM's variables would leave a process one GPU of its host.
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=START_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        cause = str(error).splitlines()[0].rstrip(".")
        way_out = (
            "start the processes with srun, mpirun or a Kubernetes Job (which wants pip install kubernetes), or give "
            + ", ".join(given)
            if detect
            else f"start all {num_processes} of them, each with the address of process 0"
        )
        raise ValueError(f"This process could not join the others ({cause}): {way_out}.") from error


def _check_explicit(
    address: str | None, num_processes: int | None, process_id: int | None, missing: list[str]
) -> None:
    if address is None or num_processes is None or process_id is None:
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id go together: "
            f"give {' and '.join(missing)} too, or none of them."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"--coordinator_address={address} is no host:port: give one like 10.0.0.1:12345."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id} is not among --num_processes={num_processes}: "
            f"number the processes from 0 to {num_processes - 1}."
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


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """Ends a block with an error on every process if one of them has one; nothing in it may wait for the others.

    Raises:
      OtherProcessFailed: on those that had none themselves.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # raised again below, when the others know of it
        error = caught
    failed = _processes_where(error is not None)
    if error is not None:
        raise error
    if failed:
        raise OtherProcessFailed(
            f"Process {failed[0]} of {jax.process_count()} met an error, which its own log names: mend it there."
        )


def make_shared_folder(folder: Path) -> None:
    """Makes a folder that every process sees.

    Args:
      folder: may be there already.
    Raises:
      OSError: it cannot be made or written to.
      ValueError: a process sees another folder of this name, on a disk of its own.
    """
    first = jax.process_index() == 0
    with propagate_errors():
        if first:
            folder.mkdir(parents=True, exist_ok=True)
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.uint32(time.time_ns() % 2**32))
    mark = folder / f".shared_{int(number)}"
    with propagate_errors():
        if first:
            mark.touch()
    with propagate_errors():
        if not mark.exists():
            raise ValueError(
                f"Process {jax.process_index()} does not see what process 0 writes to {folder}: "
                "put the workdir on a disk that all hosts share."
            )
    if first:
        mark.unlink()


def _processes_where(flag: bool) -> list[int]:
    """The processes that say yes; all must ask."""
    if jax.process_count() == 1:
        return [0] if flag else []
    return np.flatnonzero(multihost_utils.process_allgather(np.asarray(flag))).tolist()


def catch_sigterm(mesh: Mesh) -> Callable[[], bool]:
    """From now on SIGTERM does not end the process.

    (JAX's own `reached_preemption_sync_point` is of no use beside Orbax, which calls it too, with steps gone by.)

    Args:
      mesh: of all processes.
    Returns:
      Whether to stop because SIGTERM came; to be asked once a step. Of several processes each answers yes at the same
      step, one step after the signal came to any of them, so that none has to wait for the answer.
    """
    came = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: came.set())
    if jax.process_count() == 1:
        return came.is_set
    a_number_each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    asked: list[jax.Array] = []

    def stop() -> bool:
        number = np.asarray([came.is_set()], np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            own = jax.make_array_from_callback((mesh.size,), a_number_each, lambda _: number)
        asked.append(largest(own))
        return len(asked) > 1 and bool(jax.device_get(asked.pop(0)))

    return stop
