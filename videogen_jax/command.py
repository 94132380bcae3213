"""How every verb starts and ends: flags in, an exit code out, user errors as one sentence."""

import ctypes
import logging as python_logging
import math
import os
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata

from absl import app, flags, logging

from videogen_jax.config import find_config

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def start(
    name: str,
    body: Callable[[list[str]], int | None],
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> None:
    """Parses the flags, runs the verb and exits.

    Args:
      name: of the verb, in front of its errors.
      body: takes the arguments that are no flags; returns an exit code, None for 0.
      errors: what counts as the user's to mend: exit code 1, without a traceback (--verbosity=1 shows it).
    """

    def fail(error: Exception) -> int:
        logging.debug("Where it came from:", exc_info=True)
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS([_find_config(argument) for argument in argv])
        # A config file is read here too: a misspelt line of it is an AttributeError.
        except (flags.Error, AttributeError, OSError, *errors) as error:
            sys.exit(fail(error))

    def main(argv: list[str]) -> int | None:
        try:
            return body(argv[1:])
        except errors as error:
            return fail(error)

    keep_freed_memory()
    quiet_libraries()
    quiet_tensorflow()
    app.run(main, flags_parser=parse)


def _find_config(argument: str) -> str:
    """--config=dit_512 with the path of that config; other arguments as they are."""
    match = re.fullmatch(r"--?config=([^:]+)(:.*)?", argument)
    return f"--config={find_config(match[1])}{match[2] or ''}" if match else argument


def keep_freed_memory() -> None:
    """Keeps freed memory in the process instead of returning it to the system.

    On the CPU a compiled program allocates its whole workspace in each call, gigabytes in a train step; the system maps
    and zeroes it page by page, which takes a tenth of the step's time. Call it before JAX starts its threads. It does
    nothing if the C library is not glibc, or if JAX has a plug-in for other devices, whose memory is not the process's.

    Source: mallopt(3) of the Linux manual.
    """
    if platform.libc_ver()[0] != "glibc" or metadata.entry_points(group="jax_plugins"):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never return the top of the heap
    libc.mallopt(M_MMAP_MAX, 0)  # no separate mappings for large blocks, which free would return
    libc.mallopt(M_ARENA_MAX, 1)  # a thread's arena is too small for such blocks


def want_finite(*names: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Lets float flags refuse NaN and infinity, which their bounds let pass."""
    for name in names:
        flags.register_validator(
            name,
            lambda value: value is None or math.isfinite(value),
            message="give a finite number.",
            flag_values=flag_values,
        )


def quiet_tensorflow() -> None:
    """Keeps TensorFlow, which only reads records here, from greeting on stderr when it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # On some CPUs it reports oneDNN whatever the level; nothing here would run faster with it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def quiet_libraries() -> None:
    """Keeps the messages of Orbax and TFDS on each file they open out of the log, but not their warnings."""
    names = ("orbax", "tensorflow_datasets")

    def keep(record: python_logging.LogRecord) -> bool:
        ours = not any(f"{os.sep}{name}{os.sep}" in record.pathname for name in names)
        return ours or record.levelno >= python_logging.WARNING

    logging.get_absl_handler().addFilter(keep)


def refuse(arguments: list[str]) -> None:
    """Refuses arguments that are no flags.

    Raises:
      ValueError: there are some.
    """
    if arguments:
        raise ValueError(f"{arguments[0]!r} is not a flag: flags look like --name=value.")


def parse_share(text: str) -> tuple[int, int]:
    """Reads "3/64" as (3, 64).

    Raises:
      ValueError: it is no part of a whole.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    part, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if part >= count:
        raise ValueError(
            f"--shard does not understand {text!r}: write it like 3/64, for the parts 0/64 to 63/64."
        )
    return part, count
