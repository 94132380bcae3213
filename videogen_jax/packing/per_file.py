"""Runs a function on each file in the workers, such as one that reads its shape, before any is packed.

The results are kept in a file of lines, [name, result], from which an interrupted call resumes. A result is a
NamedTuple, or the reason why the file cannot be read.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from videogen_jax.data import atomic_files, json_files
from videogen_jax.data.progress import show_progress
from videogen_jax.data.workers import explain_death
from videogen_jax.packing import media_files, sources, tar_shards
from videogen_jax.packing.sources import Source

FILES_AHEAD = 64  # queued per worker


class FileTask(NamedTuple):
    """What is run on each file."""

    label: str  # in front of lines of progress, such as "Probing"
    function: Callable[..., Any]  # takes the path, the arguments and `span`, and returns a result
    arguments: tuple
    result: type  # a NamedTuple, of fields as `json_files` takes them


def run_all(
    cache: pathlib.Path,
    folder,
    found: Sequence[Source],
    task: FileTask,
    *,
    workers: int,
    pool,
    strict: bool = False,
    progress: bool | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Returns the result for the name of each source, and appends new ones to a file.

    Args:
      cache: file of the results; files from archives are copied beside it while they are read.
      folder: folder of the files.
      found: sources, of different names.
      task: what is run on each.
      workers: number of workers of the pool.
      pool: worker pool.
      strict: whether a file that cannot be read is an error.
      progress: whether a bar is drawn, as for `show_progress`.
      stop: called after each new result; whether to return without the others.
    Raises:
      ValueError: `strict` found a file that cannot be read.
      WorkerDied: a worker process died.
      FileNotFoundError: the folder has vanished.
    """
    known = read_results(cache, task.result)
    left = [source for source in found if source.name not in known]
    done = len(found) - len(left)
    with (
        show_progress(task.label, len(found), "file", progress, done) as advance,
        open(cache, "a", encoding="utf-8") as file,
    ):
        for name, result in run(folder, left, task, workers, pool, cache):
            known[name] = result
            file.write(json.dumps([name, result]) + "\n")
            file.flush()
            advance()
            if strict and isinstance(result, str):
                sources.refuse_skipped(name, result)
            if stop():
                break
    return {s.name: known[s.name] for s in found if s.name in known}


def read_results(cache: pathlib.Path, kind: type) -> dict[str, Any]:
    """Reads a file of results up to the first line that is incomplete or damaged, and truncates it there."""
    known = {}
    if cache.exists():
        complete = 0
        content = cache.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                name, result = _parse(kind, *json_files.parse(cache, line, [object]))
            except (ValueError, TypeError):
                break
            known[name] = result
            complete += len(line)
        if complete != len(content):
            atomic_files.write_text(cache, content[:complete].decode("utf-8"))
    return known


def _parse(kind, name, result) -> tuple[str, Any]:
    """Checks a line: [name, the reason to skip the file or the fields of its result]."""
    name = json_files.check(name, str)
    if isinstance(result, str):
        return name, result
    kinds = list(kind.__annotations__.values())[: len(result)]
    return name, kind(*map(json_files.check, result, kinds))


def run(
    folder, found: Sequence[Source], task: FileTask, workers: int, pool, cache: pathlib.Path
) -> Iterator[tuple[str, Any]]:
    """Yields the name of each source with the result, or the reason why it cannot be read."""
    waiting = collections.deque()
    upcoming = enumerate(found)
    try:
        while True:
            for index, source in itertools.islice(upcoming, FILES_AHEAD * workers - len(waiting)):
                path = media_files.locate(folder, source.file)
                # Calls of an earlier cache may still be running.
                copies = tar_shards.copies_folder(cache.parent, f"{cache.stem}-{index}")
                part = (path, source.span, source.members, copies)
                waiting.append((source, pool.submit(_run, *part, task)))
            if not waiting:
                return
            source, call = waiting[0]
            try:
                result = call.result()
            except FileNotFoundError as error:
                result = str(error)
                if not media_files.find_vanished(folder, source.file):
                    raise
            if isinstance(result, str):
                result = media_files.find_vanished(folder, source.file) or result
            waiting.popleft()
            yield source.name, result
    except BrokenProcessPool as error:
        near = [source.name for source, _ in itertools.islice(waiting, workers)]
        raise explain_death(error, task.label.lower(), near) from None
    finally:
        for _, call in waiting:
            call.cancel()


def _run(path, span, members, copies, task):
    """Runs in a worker; copies a file out of its archive first."""
    if members:
        try:
            with tar_shards.copy_members(path, members[:1], copies) as copy:
                return task.function(copy, *task.arguments, span=span)
        except tar_shards.ArchiveError as error:
            return str(error)
    return task.function(path, *task.arguments, span=span)
