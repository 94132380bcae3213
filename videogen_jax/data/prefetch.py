"""A thread that puts batches on the mesh while the step before them runs."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

EXIT_SECONDS = 10.0  # for the batch in the making; a source that hangs must not hang the exit


class prefetch_to_mesh:  # noqa: N801 - reads as the verb it is
    """Iterates over batches that a thread has put on the mesh beforehand; a context manager.

    `wait_seconds` is the time that the consumer has waited so far; set it to 0 to start over. The
    thread ends on `close`, when the iterator is garbage, and before the interpreter exits.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, np.ndarray]],
        put: Callable[[dict[str, np.ndarray]], Any],
        depth: int = 2,
    ) -> None:
        """Starts the thread.

        Args:
          batches: on the host.
          put: moves a batch to the devices.
          depth: batches kept ready.
        """
        self.wait_seconds = 0.0
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        closed = threading.Event()
        # The thread knows nothing of this object, or it would keep it from becoming garbage.
        arguments = (batches, put, self._queue, closed)
        thread = threading.Thread(target=_fill, args=arguments, daemon=True)
        self._end = weakref.finalize(self, _end, self._queue, closed, thread)
        thread.start()

    def __iter__(self) -> "prefetch_to_mesh":
        return self

    def __next__(self) -> Any:
        """The next batch; raises what the thread raised."""
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
        """Ends the thread and drops what it had ready; the iterator is at its end."""
        self._end()


def _fill(
    batches: Iterator[dict[str, np.ndarray]],
    put: Callable[[dict[str, np.ndarray]], Any],
    ready: queue.Queue,
    closed: threading.Event,
) -> None:
    def hand_over(batch: Any, error: BaseException | None) -> None:
        while not closed.is_set():
            try:
                return ready.put((batch, error), timeout=0.1)
            except queue.Full:  # look again whether anybody still wants it
                pass

    try:
        for batch in batches:
            if closed.is_set():
                return
            hand_over(put(batch), None)
        hand_over(None, StopIteration())
    except BaseException as error:  # handed to the consumer, in whose thread it counts
        hand_over(None, error)


def _end(ready: queue.Queue, closed: threading.Event, thread: threading.Thread) -> None:
    closed.set()
    if thread is not threading.current_thread():  # the garbage collector runs in any thread
        thread.join(EXIT_SECONDS)
    with ready.mutex:
        ready.queue.clear()  # batches on the devices
