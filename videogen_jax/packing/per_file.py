"""Asks the workers one question about each file, such as its shape, before any is packed.

The answers are kept in a file of lines, [name, answer], from which an interrupted call resumes. An answer is a
NamedTuple, or the reason why the file cannot be read.
"""

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from videogen_jax.data import atomic_files, json_files
from videogen_jax.data.progress import show_progress
from videogen_jax.data.workers import explain_death
from videogen_jax.packing import sources, tar_shards
from videogen_jax.packing.sources import Source

FILES_AHEAD = 64  # queued per worker


class Question(NamedTuple):
    """What is asked about each file."""

    label: str  # in front of lines of progress, such as "Probing"
    ask: Callable[..., Any]  # takes the path, the arguments and `span`, and returns an answer
    arguments: tuple
    answer: type  # a NamedTuple, of fields as `json_files` takes them


def answer_all(
    cache: pathlib.Path,
    folder,
    found: Sequence[Source],
    question: Question,
    *,
    workers: int,
    pool,
    strict: bool = False,
    progress: bool | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Returns the answer for the name of each source, and appends new ones to a file.

    Args:
      cache: file of the answers; files from archives are copied beside it while they are read.
      folder: folder of the files.
      found: sources, of different names.
      question: what is asked.
      workers: number of workers of the pool.
      pool: worker pool.
      strict: whether a file that cannot be read is an error.
      progress: whether a bar is drawn, as for `show_progress`.
      stop: called after each new answer; whether to return without the others.
    Raises:
      ValueError: `strict` found a file that cannot be read.
      WorkerDied: a worker process died.
      FileNotFoundError: the folder has vanished.
    """
    known = read_answers(cache, question.answer)
    left = [source for source in found if source.name not in known]
    done = len(found) - len(left)
    with (
        show_progress(question.label, len(found), "file", progress, done) as advance,
        open(cache, "a", encoding="utf-8") as file,
    ):
        for name, answer in ask(folder, left, question, workers, pool, cache.parent):
            known[name] = answer
            file.write(json.dumps([name, answer]) + "\n")
            file.flush()
            advance()
            if strict and isinstance(answer, str):
                sources.refuse_skipped(name, answer)
            if stop():
                break
    return {s.name: known[s.name] for s in found if s.name in known}


def read_answers(cache: pathlib.Path, kind: type) -> dict[str, Any]:
    """Reads a file of answers up to the first line that is incomplete or damaged, and truncates it there."""
    known = {}
    if cache.exists():
        complete = 0
        content = cache.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                name, answer = _parse(kind, *json_files.parse(cache, line, [object]))
            except (ValueError, TypeError):
                break
            known[name] = answer
            complete += len(line)
        if complete != len(content):
            atomic_files.write_text(cache, content[:complete].decode("utf-8"))
    return known


def _parse(kind, name, answer) -> tuple[str, Any]:
    """Checks a line: [name, the reason to skip the file or the fields of its answer]."""
    name = json_files.check(name, str)
    if isinstance(answer, str):
        return name, answer
    kinds = list(kind.__annotations__.values())[: len(answer)]
    return name, kind(*map(json_files.check, answer, kinds))


def ask(
    folder, found: Sequence[Source], question: Question, workers: int, pool, work: pathlib.Path
) -> Iterator[tuple[str, Any]]:
    """Yields the name of each source with the answer, or the reason why it cannot be read."""
    waiting = collections.deque()
    upcoming = enumerate(found)
    try:
        while True:
            for index, source in itertools.islice(upcoming, FILES_AHEAD * workers - len(waiting)):
                path = sources.locate(folder, source.file)
                copies = os.fspath(work / f"{index}{tar_shards.COPIES}")
                part = (path, source.span, source.members, copies)
                waiting.append((source, pool.submit(_ask, *part, question)))
            if not waiting:
                return
            source, task = waiting[0]
            try:
                answer = task.result()
            except FileNotFoundError as error:
                answer = str(error)
                if not sources.find_vanished(folder, source.file):
                    raise
            if isinstance(answer, str):
                answer = sources.find_vanished(folder, source.file) or answer
            waiting.popleft()
            yield source.name, answer
    except BrokenProcessPool as error:
        near = [source.name for source, _ in itertools.islice(waiting, workers)]
        raise explain_death(error, question.label.lower(), near) from None
    finally:
        for _, task in waiting:
            task.cancel()


def _ask(path, span, members, copies, question):
    """Runs in a worker; copies a file out of its archive first."""
    if members:
        try:
            with tar_shards.copy_members(path, members[:1], copies) as copy:
                return question.ask(copy, *question.arguments, span=span)
        except tar_shards.ArchiveError as error:
            return str(error)
    return question.ask(path, *question.arguments, span=span)
