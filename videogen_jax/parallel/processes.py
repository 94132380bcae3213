"""Multi-process runs: start-up, batch shares, shared errors, and stopping on the same step.

All processes run the same program on their local devices and must reach the same collectives in the same order.
Therefore an event local to one process (a missing file, SIGTERM) is communicated to all before any of them acts on it.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.parallel.mesh import BATCH

START_SECONDS = 300  # timeout for all processes to join
# After an error in one process: how long its exit waits for the others, before JAX terminates them too.
SHUTDOWN_SECONDS = 60


class OtherProcessFailed(ValueError):
    """Another process of the run failed; the error is in its log."""


def join(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    detect: bool = False,
) -> None:
    """Joins a multi-process run; call it before any device is used.

    Without arguments it does nothing: the run has one process.

    Args:
      coordinator_address: host:port at which process 0 listens.
      num_processes: number of processes in the run.
      process_id: 0 to num_processes - 1.
      detect: get the three values from SLURM, Open MPI or Kubernetes, and use one GPU per process.
    Raises:
      ValueError: only some of the three are given, they are invalid, no cluster is found, or joining it fails.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if detect and len(missing) < len(given):
        raise ValueError(
            f"--distributed gets {', '.join(given)} from the cluster: give it or them, not both."
        )
    if not detect and len(missing) == len(given):
        return
    if not detect:
        _check_explicit(coordinator_address, num_processes, process_id, missing)
    # `catch_signals` handles SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            # Detecting SLURM's variables would restrict a process to one GPU.
            cluster_detection_method=None if detect else "deactivate",
            initialization_timeout=START_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        cause = str(error).splitlines()[0].rstrip(".")
        remedy = (
            "start the processes with srun, mpirun or a Kubernetes Job (which needs pip install kubernetes), or give "
            + ", ".join(given)
            if detect
            else f"start all {num_processes} of them, each with the address of process 0"
        )
        raise ValueError(f"This process could not join the others ({cause}): {remedy}.") from error


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
            f"--coordinator_address={address} is not host:port: give one like 10.0.0.1:12345."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id} is not among --num_processes={num_processes}: "
            f"number the processes from 0 to {num_processes - 1}."
        )


def find_share(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """The part of each batch that this process reads: the rows on its devices.

    Processes whose devices work on the same clips (`seq`, `tensor`) read the same rows.

    Args:
      mesh: from `mesh.make_mesh`.
      batch_size: rows over all devices; a multiple of the mesh's batch parts.
    Returns:
      (index, count): part `index` of `count` equal parts.
    Raises:
      ValueError: the mesh has no device of this process, or its rows are not such a part.
    """
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    spans = sorted({rows.indices(batch_size)[:2] for (rows,) in indices.values()})
    if not spans:
        raise ValueError(
            f"The mesh has {mesh.size} devices, none of which belongs to process {jax.process_index()}: "
            "raise mesh.data, or start fewer processes."
        )
    start, stop = spans[0][0], spans[-1][1]
    size = sum(end - begin for begin, end in spans)
    if stop - start != size or start % size or batch_size % size:
        raise ValueError(
            f"Process {jax.process_index()} holds the rows {spans} of a batch of {batch_size}, which is not an even "
            "share: make mesh.data times mesh.fsdp a multiple or a divisor of the number of processes."
        )
    return start // size, batch_size // size


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """Raises on every process if the block raises on one of them; the block must not wait for other processes.

    Raises:
      OtherProcessFailed: on the processes that had no error themselves.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # raised again below, once the others know of it
        error = caught
    failed = _processes_where(error is not None)
    if error is not None:
        raise error
    if failed:
        raise OtherProcessFailed(
            f"Process {failed[0]} of {jax.process_count()} failed: see its log for the error."
        )


def make_shared_folder(folder: Path) -> None:
    """Makes a folder and checks that all processes share it.

    Args:
      folder: may exist already.
    Raises:
      OSError: it cannot be made or written to.
      ValueError: a process does not see what process 0 writes, since the folder is on a local disk.
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
                "put the workdir on a file system that all hosts share."
            )
    if first:
        mark.unlink()


def _processes_where(flag: bool) -> list[int]:
    """The processes with the flag set; a collective call."""
    if jax.process_count() == 1:
        return [0] if flag else []
    return np.flatnonzero(multihost_utils.process_allgather(np.asarray(flag))).tolist()


@contextlib.contextmanager
def catch_signals(mesh: Mesh) -> Iterator[Callable[[], int]]:
    """Handles SIGTERM, SIGHUP and SIGINT (Ctrl-C), so that a run can save before it stops.

    A signal that is ignored (as nohup does with SIGHUP) stays so. A second Ctrl-C stops at once.

    (JAX's `reached_preemption_sync_point` conflicts with Orbax, which also calls it, with past steps.)

    Args:
      mesh: the devices of all processes.
    Yields:
      A function that says by which signal to stop, 0 for none; call it once per step. On several processes it says so
      at the same step everywhere, one step after any of them received the signal, so that no step waits for the
      all-reduce.
    """
    received = [0]

    def receive(number: int, _: Any) -> None:
        received[0] = number
        name = signal.Signals(number).name
        print(f"{name}: saving after this step; Ctrl-C stops at once.", file=sys.stderr, flush=True)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    names = ("SIGTERM", "SIGHUP", "SIGINT")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, receive)
    try:
        yield (lambda: received[0]) if jax.process_count() == 1 else _agree(mesh, received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _agree(mesh: Mesh, received: list[int]) -> Callable[[], int]:
    """What any process has received, one step later on all of them."""
    one_per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    all_reduce = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    pending: list[jax.Array] = []

    def stop() -> int:
        flag = np.asarray(received, np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            flags = jax.make_array_from_callback((mesh.size,), one_per_device, lambda _: flag)
        pending.append(all_reduce(flags))
        return int(jax.device_get(pending.pop(0))) if len(pending) > 1 else 0

    return stop
