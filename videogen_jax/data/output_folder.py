"""Folders that a command writes to: tried before the work, not after."""

import contextlib
import os
import tempfile
from pathlib import Path


def check_output_folder(path: str | Path, flag: str) -> None:
    """Tries whether files can be written to a folder, which need not exist yet; leaves nothing behind.

    Args:
      path: of the folder.
      flag: that names another one, for the error.
    Raises:
      OSError: they cannot; the sentence names the folder and the flag.
    """
    folder = Path(os.path.abspath(path))
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, parent in enumerate(missing) if os.path.lexists(parent))]
    made: list[Path] = []
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.append(parent)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"{path} cannot be written to ({reason}): name another place with {flag}."
        ) from error
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):  # another process writes there by now
                parent.rmdir()


def make_output_folder(path: str | Path, flag: str) -> Path:
    """Tries a folder as `check_output_folder` does and makes it, with those above it; returns its path."""
    check_output_folder(path, flag)
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)
