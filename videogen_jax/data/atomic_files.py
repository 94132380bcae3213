"""Atomic file writes: a reader sees the old file or the complete new one, even after a crash."""

import contextlib
import json
import os
import pathlib
import tempfile


def publish(unfinished: pathlib.Path, path: pathlib.Path) -> None:
    """Renames a completely written file to its final name, after syncing it to disk."""
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    with contextlib.suppress(PermissionError):  # Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def write_text(path, text: str) -> None:
    """Writes a small UTF-8 file atomically; what is no character of Unicode is escaped, as JSON escapes it."""
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path, content) -> None:
    """Writes indented, human-readable JSON atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_writable(folder) -> None:
    """Tries whether files can be written to a folder, which need not exist yet; leaves nothing behind.

    Raises:
      OSError: they cannot; the message names the folder.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, parent in enumerate(missing) if os.path.lexists(parent))]
    made = []
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.append(parent)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tried")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"Nothing can be written to {folder} ({reason}): choose another folder."
        ) from error
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):  # another process writes there by now
                parent.rmdir()
