"""The arrays of a checkpoint, by Orbax's V1 API: written in the background, read by each process for itself."""

import concurrent.futures
import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils.epath import gpath
from orbax.checkpoint import v1 as ocp

from videogen_jax.parallel import processes
from videogen_jax.run import step_files


class StepWriter:
    """Writes numbered folders of arrays in the background, one after the other; a context manager."""

    def __init__(self, folder: Path, after: Callable[[int], None] = lambda step: None):
        """Removes what a killed run left unfinished.

        Args:
          folder: of the steps; made with the first one.
          after: called on process 0 with each step that has been written.
        """
        self.folder, self._after = folder, after
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        with processes.propagate_errors():
            if jax.process_index() == 0:
                step_files.clean_up(folder)

    def save(self, step: int, items: Mapping[str, Any], documents: Mapping[str, Any]) -> None:
        """Starts writing a step; returns once the arrays are copied off the devices.

        Args:
          step: its number.
          items: name to nested dicts of arrays.
          documents: name to what JSON can hold.
        Raises:
          OSError: the step before could not be written.
        """
        self.wait_until_finished()
        with processes.propagate_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{step}{step_files.UNFINISHED}"
        # Orbax takes NumPy's arrays, but not its scalars.
        items = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, np.generic) else x, items)
        with self._explain(step), _context():
            response = ocp.save_checkpointables_async(path, dict(items))
        self._pending = self._pool.submit(self._finish, step, path, response, documents)

    def _finish(self, step: int, path: Path, response: Any, documents: Mapping[str, Any]) -> None:
        with self._explain(step):
            response.result()
            if jax.process_index() == 0:
                step_files.publish(path, step, documents)
        if jax.process_index() == 0:
            self._after(step)

    def check(self) -> None:
        """Raises OSError as soon as a write has failed; several processes learn of it at the next save."""
        if jax.process_count() == 1 and self._pending is not None and self._pending.done():
            self.wait_until_finished()

    def wait_until_finished(self) -> None:
        """Waits for the write under way; all processes call it at the same point.

        Raises:
          OSError: it failed.
        """
        pending, self._pending = self._pending, None
        with processes.propagate_errors():
            if pending is not None:
                pending.result()

    @contextlib.contextmanager
    def _explain(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            if jax.process_index() == 0:
                step_files.clean_up(self.folder, warn=False)  # gives its room back
            raise OSError(
                f"Checkpoint {step} could not be written to {self.folder} ({reason(error)}): make room there, or mend "
                "what is wrong, and run the same command again, which resumes from the checkpoint before."
            ) from error

    def __enter__(self) -> "StepWriter":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.wait_until_finished()
        self._pool.shutdown(wait=True)  # after an error too, the write under way is finished


def load_item(
    directory: Path, item: str | None, target: dict[str, Any], partial: bool = False
) -> dict[str, Any]:
    """Reads the arrays of an item.

    Args:
      directory: of the step.
      item: name of its sub-folder; None for a step that is one item.
      target: nested dicts of `jax.ShapeDtypeStruct`s with shardings.
      partial: there may be others in the item.
    Returns:
      The arrays, in the same dicts.
    """
    with _context(alone=True, partial=partial):
        return ocp.load(directory, target, checkpointable_name=item)


def describe_item(directory: Path, item: str | None) -> dict[str, Any]:
    """Shapes and types of an item's arrays, in nested dicts; the arguments are those of `load_item`."""
    with _context(alone=True):
        return ocp.metadata(directory, checkpointable_name=item).metadata


def reason(error: Exception) -> str:
    """What an error says, on a line."""
    for known in (errno.ENOSPC, errno.EDQUOT):  # at the end of long sentences
        if os.strerror(known) in str(error):
            return os.strerror(known)
    return ((str(error) or type(error).__name__).splitlines() or [""])[0][:200]


@contextlib.contextmanager
def _context(alone: bool = False, partial: bool = False) -> Iterator[None]:
    """The options of Orbax.

    Args:
      alone: this process does not wait for the others.
      partial: what the target lacks is not read.
    """
    context = ocp.Context()
    context.file.path_class = _LocalPath
    context.pytree.loading.partial_load = partial
    if alone:
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    logger = logging.get_absl_logger()
    logger.addFilter(_is_of_use)
    try:
        with context:
            yield
    finally:
        logger.removeFilter(_is_of_use)


def _is_of_use(record: logging.logging.LogRecord) -> bool:
    """Whether a message is none of those that Orbax logs for every item that is read without its siblings."""
    return not str(record.msg).startswith(
        ("Metadata file does not exist", "Failed to resolve hand")
    )


class _LocalPath(gpath.PosixGPath):
    """A path whose own characters are no pattern: etils would look for `x[1]` under the name `x1`."""

    def glob(self, pattern: str) -> Iterator["_LocalPath"]:
        return (type(self)(path) for path in pathlib.Path(str(self)).glob(pattern))
