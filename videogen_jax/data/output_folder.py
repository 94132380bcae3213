"""Folders that a command writes to: made and tried before the work, not after."""

import os
import tempfile
from pathlib import Path


def make_output_folder(path: str | Path, flag: str) -> Path:
    """Makes a folder, with those above it, and tries to write a file there.

    Args:
      path: of the folder; may be there already.
      flag: that names another one, for the error.
    Returns:
      The path.
    Raises:
      OSError: the folder cannot be made or written to; the sentence names it and the flag.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({os.strerror(error.errno or 0)}): name another place with {flag}."
        ) from error
    return folder
