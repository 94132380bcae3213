"""Ctrl-C ends a command with a sentence and exit code 130, also while its modules are being imported."""

import os
import signal
import sys
from typing import Any, NoReturn


def install(name: str) -> None:
    """Ends the process with the sentence, and not a traceback, where nothing else catches KeyboardInterrupt."""
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            stop(name)
        before(kind, error, trace)

    sys.excepthook = show


def stop(name: str) -> NoReturn:
    """Prints that the command was stopped and ends the process at once.

    The interpreter is not shut down: XLA's threads may be computing, and would crash when it goes away under them.
    """
    print(f"{name}: stopped by Ctrl-C.", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(128 + signal.SIGINT)
