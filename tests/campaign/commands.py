"""Runs the verbs in forked processes, so that a thousand trials do not import JAX and TensorFlow a thousand times.

The parent imports the libraries and never starts a device; each trial is a fork of it, in a process group and a session
of its own, which SIGKILL ends as a whole.
"""

import importlib
import multiprocessing
import os
import re
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
IMPORTED = (
    "jax",
    "tensorflow",
    "orbax.checkpoint",
    "clu.metric_writers",
    "videogen_jax.evaluation.scoring",
    "videogen_jax.generate.from_checkpoint",
    "videogen_jax.packing.encode_latents",
    "videogen_jax.packing.pack_folder",
    "videogen_jax.train.loop",
)
TRACEBACK = "Traceback (most recent call last)"


class Ended(NamedTuple):
    """How a command ended."""

    code: int | None  # the exit code; minus the signal; None after the time limit
    seconds: float
    output: str  # stdout and stderr

    @property
    def fault(self) -> str | None:
        """What no command may do, whatever it is given: "hang", "traceback", "no sentence" or "signal"."""
        if self.code is None:
            return "hang"
        if TRACEBACK in self.output:
            return "traceback"
        if self.code < 0:
            return "signal"
        if self.code and not re.search(r"^\w+: (error|stopped)", self.output, re.MULTILINE):
            return "no sentence"
        return None


def prepare(cache: Path) -> None:
    """Imports the libraries; compiled programs are kept in `cache`, one device is used."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name in IMPORTED:
        importlib.import_module(name)


def run(verb: str, *arguments: str, limit: float = 300, kill_after: float | None = None) -> Ended:
    """Runs python -m videogen_jax.VERB.

    Args:
      verb: pack, launch, sample, ...
      arguments: its flags.
      limit: seconds after which it counts as hanging and is killed.
      kill_after: seconds after which SIGKILL ends it and all its workers; None: never.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _become(output.fileno(), verb, arguments)
        code = _wait(child, started + (limit if kill_after is None else min(limit, kill_after)))
        seconds = time.perf_counter() - started
        if code is None:
            os.kill(child, signal.SIGKILL)  # it may not have a group of its own yet
            os.waitpid(child, 0)
            if kill_after is not None and kill_after <= limit:
                code = -signal.SIGKILL
        _kill_group(child)
        output.seek(0)
        return Ended(code, seconds, output.read().decode(errors="replace"))


def _become(output: int, verb: str, arguments: Sequence[str]) -> None:
    """Turns this fork into the command; does not return."""
    code = 70
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(ROOT)
        sys.argv = [verb, *arguments]
        runpy.run_module(f"videogen_jax.{verb}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        multiprocessing.active_children()
        os._exit(code)


def _wait(child: int, until: float) -> int | None:
    while time.perf_counter() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def call(function: Callable, *arguments: Any, limit: float = 600) -> Any:
    """Returns function(*arguments), computed in a fork: it may start JAX's devices.

    Raises:
      RuntimeError: it raised an error, which the message contains.
      TimeoutError: it did not return within `limit` seconds.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            sender.send((True, function(*arguments)))
        except BaseException:
            sender.send((False, traceback.format_exc()))
        finally:
            os._exit(0)
    sender.close()
    try:
        if not receiver.poll(limit):
            raise TimeoutError(f"{function.__name__} did not return within {limit} s.")
        good, value = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} died.") from None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not good:
        raise RuntimeError(value)
    return value
