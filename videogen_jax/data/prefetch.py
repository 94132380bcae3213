"""A thread that transfers batches to the mesh while the previous step runs."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

DEPTH = 2  # batches kept ready
MOST_ON_DEVICES = DEPTH + 1  # one more is in the thread's hands

EXIT_SECONDS = (
    10.0  # longest wait for the current batch, so that a hanging source cannot block the exit
)


class prefetch_to_mesh:  # noqa: N801 - reads as the verb it is
    """Iterates over batches that a thread has already transferred to the mesh; a context manager.

    `wait_seconds` is the total time that the consumer has waited; set it to 0 to restart the measurement. The thread
    ends on `close`, when the iterator is garbage-collected, and before the interpreter exits.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, np.ndarray]],
        put: Callable[[dict[str, np.ndarray]], Any],
        depth: int = DEPTH,
    ) -> None:
        """Starts the thread.

        Args:
          batches: batches on the host.
          put: transfers a batch to the devices.
          depth: number of batches kept ready.
        """
        self.wait_seconds = 0.0
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        closed = threading.Event()
        # The thread holds no reference to this object, which could otherwise never be garbage-collected.
        arguments = (batches, put, self._queue, closed)
        thread = threading.Thread(target=_fill, args=arguments, daemon=True)
        self._end = weakref.finalize(self, _end, self._queue, closed, thread)
        thread.start()

    def __iter__(self) -> "prefetch_to_mesh":
        return self

    def __next__(self) -> Any:
        """Returns the next batch; re-raises an exception of the thread."""
        if not self._end.alive:
            raise StopIteration
        started = time.perf_counter()
        batch, error = self._queue.get()
        self.wait_seconds += time.perf_counter() - started
        if error is not None:
            self.close()
            raise error
        return batch

    def __enter__(self) -> "prefetch_to_mesh":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread, drops the batches that are ready and exhausts the iterator."""
        self._end()


def _fill(
    batches: Iterator[dict[str, np.ndarray]],
    put: Callable[[dict[str, np.ndarray]], Any],
    ready: queue.Queue,
    closed: threading.Event,
) -> None:
    def deliver(batch: Any, error: BaseException | None) -> None:
        while not closed.is_set():
            try:
                return ready.put((batch, error), timeout=0.1)
            except queue.Full:  # check again whether the consumer has closed
                pass

    try:
        for batch in batches:
            if closed.is_set():
                return
            deliver(put(batch), None)
        deliver(None, StopIteration())
    except BaseException as error:  # re-raised in the consumer's thread
        deliver(None, error)


def _end(ready: queue.Queue, closed: threading.Event, thread: threading.Thread) -> None:
    closed.set()
    if thread is not threading.current_thread():  # the finalizer may run in any thread
        thread.join(EXIT_SECONDS)
    with ready.mutex:
        ready.queue.clear()  # frees device memory
