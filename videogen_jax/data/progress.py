"""Progress of long work: a bar on a terminal, and in a log a line every half minute."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging
from tqdm import tqdm

LOG_SECONDS = 30.0


@contextlib.contextmanager
def show_progress(
    what: str, total: int, unit: str, shown: bool | None = None, initial: int = 0
) -> Iterator[Callable[..., None]]:
    """Shows how much of a piece of work is done, while the context is open.

    A line of the log comes every LOG_SECONDS, also while nothing is finished, so that silence means a dead process.

    Args:
      what: is being done, such as "Sampling".
      total: units of the work.
      unit: in the singular, such as "video".
      shown: draw a bar, also where there is no terminal; False: show nothing.
      initial: units that were done before.
    Yields:
      advance(count=1): says that `count` more units are done.
    """
    started, done, ended = time.monotonic(), initial, threading.Event()
    # None: tqdm disables itself where there is no terminal, as in a log.
    disable = None if shown is None else not shown
    with tqdm(desc=what, total=total, unit=unit, initial=initial, disable=disable) as bar:

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            bar.update(count)

        def speak() -> None:
            while not ended.wait(LOG_SECONDS):
                seconds = time.monotonic() - started
                logging.info("%s", describe(what, done, total, unit, seconds, initial))

        thread = threading.Thread(target=speak, name="progress", daemon=True)
        if bar.disable and shown is None:
            thread.start()
        try:
            yield advance
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()


def describe(what: str, done: int, total: int, unit: str, seconds: float, initial: int = 0) -> str:
    """One line of progress, of which `initial` units were done before.

    >>> describe("Sampling", 16, 64, "video", 120.0)
    'Sampling: 16 of 64 videos in 2:00, about 6:00 left.'
    """
    line = f"{what}: {done} of {total} {unit}s in {format_time(seconds)}"
    if done == initial:
        return f"{line}."
    return f"{line}, about {format_time(seconds * (total - done) / (done - initial))} left."


def format_time(seconds: float) -> str:
    """A duration as minutes:seconds, or hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
