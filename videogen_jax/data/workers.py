"""A pool of worker processes that end on an error, on Ctrl-C and with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor


class WorkerDied(RuntimeError):
    """A worker process died; the message says what it was working on."""


@contextlib.contextmanager
def make_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Starts a pool of worker processes, which are terminated if the block raises.

    Uses "spawn", because a fork of a process with TensorFlow or FFmpeg threads may hang. If a worker dies, every
    pending result raises `BrokenProcessPool`.
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
    """Ignores Ctrl-C, which the parent handles, and exits when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)  # without cleanup: all open files are temporary

    threading.Thread(target=wait, daemon=True).start()
