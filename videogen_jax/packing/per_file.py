"""Asks the workers one question about each file, such as its shape, before any is packed.

The answers are kept in a file of lines, [name, answer], from which an interrupted call resumes. An answer is a
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
from videogen_jax.packing import sources

FILES_AHEAD = 64  # queued per worker


class Question(NamedTuple):
    """What is asked about each file."""

    label: str  # in front of lines of progress, such as "Probing"
    ask: Callable[..., Any]  # takes the path and the arguments, and returns an answer
    arguments: tuple
    answer: type  # a NamedTuple, of fields as `json_files` takes them


def answer_all(
    cache: pathlib.Path,
    folder,
    names: Sequence[str],
    question: Question,
    *,
    workers: int,
    pool,
    strict: bool = False,
    progress: bool | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Returns the answer for each name, and appends new ones to a file.

    Args:
      cache: file of the answers.
      folder: folder of the files.
      names: paths within the folder, with "/".
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
    left = [name for name in names if name not in known]
    done = len(names) - len(left)
    with (
        show_progress(question.label, len(names), "file", progress, done) as advance,
        open(cache, "a", encoding="utf-8") as file,
    ):
        for name, answer in ask(folder, left, question, workers, pool):
            known[name] = answer
            file.write(json.dumps([name, answer]) + "\n")
            file.flush()
            advance()
            if strict and isinstance(answer, str):
                sources.refuse_skipped(name, answer)
            if stop():
                break
    return {name: known[name] for name in names if name in known}


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


def ask(folder, names: Sequence[str], question: Question, workers, pool) -> Iterator[tuple]:
    """Yields each name with the answer, or the reason why the file cannot be read."""
    waiting = collections.deque()
    upcoming = iter(names)
    try:
        while True:
            for name in itertools.islice(upcoming, FILES_AHEAD * workers - len(waiting)):
                path = sources.locate(folder, name)
                waiting.append((name, pool.submit(question.ask, path, *question.arguments)))
            if not waiting:
                return
            name, task = waiting[0]
            try:
                answer = task.result()
            except FileNotFoundError as error:
                answer = str(error)
                if not sources.find_vanished(folder, name):
                    raise
            if isinstance(answer, str):
                answer = sources.find_vanished(folder, name) or answer
            waiting.popleft()
            yield name, answer
    except BrokenProcessPool as error:
        near = [name for name, _ in itertools.islice(waiting, workers)]
        raise explain_death(error, question.label.lower(), near) from None
    finally:
        for _, task in waiting:
            task.cancel()
