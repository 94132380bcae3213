"""Worker processes that end when they should: with an error, with Ctrl-C, with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor


class WorkerDied(RuntimeError):
    """A worker process ended without an answer; the sentence says what it was doing."""


@contextlib.contextmanager
def make_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Starts worker processes, and ends them at once when the block is left by an exception.

    "spawn", because a fork of a process that runs TensorFlow or FFmpeg threads may hang. A worker
    that dies makes every pending result raise `BrokenProcessPool`; none waits for ever.

    Args:
      workers: number of processes.
    Yields:
      A ProcessPoolExecutor.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent():
    """Leaves Ctrl-C to the parent, and ends the worker when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)  # nobody is left to tell; open files are temporary ones

    threading.Thread(target=wait, daemon=True).start()
