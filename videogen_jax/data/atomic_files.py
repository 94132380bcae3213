"""Atomic file writes: a reader sees the old file or the complete new one, even after a crash."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable


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
    write_parts(path, [text])


def write_parts(path, parts: Iterable[str]) -> None:
    """Writes a UTF-8 file of any size atomically, part by part, as `write_text`."""
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with open(unfinished, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(parts)
        publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path, content) -> None:
    """Writes indented, human-readable JSON atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
