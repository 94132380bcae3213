"""How every verb starts and ends: flags in, an exit code out, user errors as one sentence."""

import logging as python_logging
import os
import re
import sys
from collections.abc import Callable

from absl import app, flags, logging

from videogen_jax.config import find_config
from videogen_jax.parallel.host_memory import keep_freed_memory


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
