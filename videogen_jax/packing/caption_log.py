"""The log of the captions that models wrote into a folder, which tells them from those that people wrote.

FOLDER/caption_log.jsonl has lines of three kinds:

    {"made_by": {"model": ..., "prompt": ..., ...}}     settings of the lines that follow
    {"file": "a/name.mp4", "caption": "7d3f..."}        hash (blake2b, 64 bits) of the text that is written next
    {"file": "a/other.mp4", "skipped": "..."}           the reason

A caption that was changed since is a person's, as is every one of which there is no line. A line is written before its
caption, so that a call may end between them.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from videogen_jax.data import atomic_files, text_files

NAME = "caption_log.jsonl"


class CaptionLog:
    """The log of a folder, with the calls before and this one; a context manager."""

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]) -> None:
        """Reads what there is of the log; lines that are damaged are ignored.

        Args:
          folder: folder of the files.
          settings: what the captions of this call depend on, as JSON values.
        Raises:
          OSError: the log may not be read.
        """
        self._path = pathlib.Path(folder) / NAME
        self._settings = json.loads(json.dumps(settings))
        self._before: dict[str, tuple[str, Any]] = {}  # file -> hash of its caption, settings
        self._file = None  # opened when there is something to write
        self._read()

    def __enter__(self) -> "CaptionLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def is_outdated(self, name: str, caption: pathlib.Path) -> bool:
        """Whether a caption was written by a call with other settings, and has not been changed since.

        Args:
          name: of the file in the folder.
          caption: path of its name.txt.
        """
        digest, settings = self._before.get(name, (None, None))
        if digest is None or settings == self._settings:
            return False
        try:
            return _hash(text_files.read_text(caption)) == digest
        except (OSError, text_files.TextError):
            return False

    def write(self, name: str, caption: pathlib.Path, text: str) -> None:
        """Writes the caption of a file, atomically; arguments as for `is_outdated`, and its text."""
        self._append({"file": name, "caption": _hash(text)})
        atomic_files.write_text(caption, f"{text}\n")

    def skip(self, name: str, reason: str) -> None:
        """Notes why a file gets no caption."""
        self._append({"file": name, "skipped": reason})

    def _read(self) -> None:
        if not self._path.exists():
            return
        made_by = None
        for line in self._path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                made_by = entry.get("made_by", made_by)
                if isinstance(entry.get("caption"), str):
                    self._before[str(entry["file"])] = (entry["caption"], made_by)
            except (ValueError, RecursionError, AttributeError, KeyError):
                continue  # empty, or damaged, such as the last line of a call that was killed

    def _append(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            self._file = open(self._path, "a", encoding="utf-8")
            self._file.write("\n" if self._file.tell() else "")  # the last line may not be whole
            self._append({"made_by": self._settings})
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.strip().encode(), digest_size=8).hexdigest()
