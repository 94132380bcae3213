"""A pool of worker processes that end on an error, on Ctrl-C and with their parent."""

import contextlib
import math
import multiprocessing
import os
import pathlib
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

UNGUARDED = 47  # exit code of a worker that was about to call the packer itself


class WorkerDied(RuntimeError):
    """A worker process died; the message says what it was working on."""


class TaskDied(BrokenProcessPool):
    """A worker died with one task, which is known."""


def explain_death(error: BrokenProcessPool, doing: str, names: Sequence[str]) -> WorkerDied:
    """Returns the error for the user after the death of a worker.

    Args:
      error: what a task raised.
      doing: what it did with the files, such as "reading".
      names: files of the unfinished tasks that the workers were at, the one that raised the error first.
    """
    if isinstance(error, TaskDied):
        names = names[:1]  # otherwise, the culprit is unknown, but among them
    return WorkerDied(
        f"a worker process died while {doing} {' or '.join(names)} (out of memory, killed, or a crash of the decoder): "
        "call the same command again to resume, with fewer --workers or without that file."
    )


def count_usable_cpus(root: str | os.PathLike = "/") -> int:
    """Counts the CPUs that this process may use: by its affinity, and by the CPU quota of its cgroups, rounded up.

    Args:
      root: folder that holds proc/self/cgroup and sys/fs/cgroup.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cpus = os.cpu_count() or 1
    quotas = _read_quotas(pathlib.Path(root))
    return max(1, min([cpus, *(math.ceil(quota) for quota in quotas)]))


def _read_quotas(root: pathlib.Path) -> Iterator[float]:
    """Yields the CPUs that each cgroup of this process is limited to; the groups above limit it too."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount, names = root / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        below = pathlib.PurePosixPath(path.lstrip("/"))
        for group in (below, *below.parents):  # in a container, only the last one exists
            try:
                text = " ".join((mount / group / name).read_text() for name in names)
            except OSError:
                continue
            if match := re.fullmatch(r"(\d+)\s+(\d+)\s*", text):  # else "max", or -1: unlimited
                yield int(match[1]) / int(match[2])


def end_unguarded_child() -> None:
    """Ends a worker process in which the main script, which workers import, calls the packer again.

    The parent then says what is missing (`make_pool`); without this, each worker would print a traceback.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


@contextlib.contextmanager
def make_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Starts a pool of worker processes, which are terminated if the block raises.

    Uses "spawn", because a fork of a process with TensorFlow or FFmpeg threads may hang. If a worker dies, every
    pending result raises `BrokenProcessPool`.
    """
    end_unguarded_child()
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        _start_worker(pool, others)
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(pool, others):
    """Waits for a first worker, which fails to start if the main script has no main guard."""
    task = pool.submit(os.getpid)
    children = set(multiprocessing.active_children()) - others
    try:
        task.result()
    except BrokenProcessPool:
        for child in children:
            child.join(timeout=5)
        if any(child.exitcode == UNGUARDED for child in children):
            raise WorkerDied(
                "workers import the main script, which calls the packer outside of a main guard: put the call under "
                'if __name__ == "__main__": in that script.'
            ) from None
        raise WorkerDied(
            "a worker process died while it started (out of memory, or killed): call the same command again, with "
            "fewer --workers."
        ) from None


def _follow_parent():
    """Ignores Ctrl-C, which the parent handles, and exits when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)  # without cleanup: all open files are temporary

    threading.Thread(target=wait, daemon=True).start()
