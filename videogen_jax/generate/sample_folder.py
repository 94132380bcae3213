"""The folder that `sample` writes: samples.json names each finished video, so that a stopped run continues.

samples.json has the recipe (checkpoint, sampler, guidance, ...), `fps` and `videos`: file, prompt, seed and the SHA-256
of each. It is written anew whenever a batch is finished. Until all are, `unfinished` has the number of missing videos
and the flags, by which the same call is known that continues.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from videogen_jax.data import json_files
from videogen_jax.data.atomic_files import write_json
from videogen_jax.generate import contact_sheet

LISTING = "samples.json"
LISTING_FIELDS = {
    "videos": [{"file": str, "prompt": str, "seed": int}],
    "unfinished": json_files.Optional({"missing": int}),
}
WORD_CHARACTERS = 60  # of the prompt in a file name
# A file name has at most 255 bytes, of which number, suffix and the name of the unfinished file take up to 40.
WORD_BYTES = 200
UNCOMPARED = ("version", "videos", "fps", "unfinished")  # entries that are no part of the recipe


def name_file(number: int, prompt: str, suffix: str) -> str:
    """Names a video by its number and the words of its prompt, in at most 255 bytes of UTF-8.

    Raises:
      ValueError: the file system's encoding has no such characters.
    """
    words = re.sub(r"\W+", "_", prompt).strip("_")[:WORD_CHARACTERS]
    words = words.encode()[:WORD_BYTES].decode(errors="ignore")
    name = f"{number:04d}_{words}.{suffix}"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(
            f"The file name {name!a} cannot be written in the encoding of this system: set PYTHONUTF8=1."
        ) from None
    return name


def find_unfinished_step(
    folder: Path, flags: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> int | None:
    """The checkpoint's step of the same videos, of which some are missing in the folder; None if there are none.

    Args:
      folder: of the videos; need not exist.
      flags: as for `SampleFolder`.
      entries: the same.
    """
    listing = _read_listing(folder)
    unfinished = listing.get("unfinished", {})
    same = unfinished.get("flags") == _as_json(flags) and not _compare_videos(listing, entries)
    return listing.get("step") if same else None


class SampleFolder:
    """Writes videos that are made in batches, and knows those that an earlier call has made."""

    def __init__(
        self,
        folder: Path,
        recipe: Mapping[str, Any],
        fps: float,
        entries: Sequence[Mapping[str, Any]],
        flags: Mapping[str, Any],
    ):
        """Compares the folder's samples.json with what is to be made.

        Videos of the same recipe whose bytes are those that were written stay. With another recipe the folder starts
        anew, which is logged with what differs; files of other names stay, but are no longer listed.

        Args:
          folder: of the videos; exists.
          recipe: what made the videos, but for prompts and seeds: JSON values.
          fps: frames per second.
          entries: {"file", "prompt", "seed"} of each video.
          flags: of the call, but for prompts and seeds: JSON values.
        Raises:
          OSError: a file cannot be read or written.
        """
        self.folder, self.recipe, self.fps = folder, dict(recipe), fps
        self.entries = [dict(entry) for entry in entries]
        self.paths = [folder / entry["file"] for entry in entries]
        self._flags = _as_json(flags)
        self._hashes: list[str | None] = [None] * len(self.entries)
        self._remove_leftovers()
        listing = _read_listing(folder)
        is_new = listing == {"videos": []}
        difference = [] if is_new else self._find_difference(listing)
        if difference:
            logging.warning(
                "%s has videos of another recipe: %s. All are made anew; name another folder with --output_dir to "
                "keep both.",
                *(folder / LISTING, "; ".join(difference)),
            )
        else:
            found = {entry["file"]: entry.get("sha256") for entry in listing["videos"]}
            for index, entry in enumerate(self.entries):
                digest = found.get(entry["file"])
                if digest is not None and hash_file(folder / entry["file"]) == digest:
                    self._hashes[index] = digest
        self._finished = not is_new and not difference and "unfinished" not in listing
        self._finished &= None not in self._hashes
        if not self._finished:
            self._write()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._finished

    @property
    def num_made(self) -> int:
        """Videos that are there."""
        return len(self.entries) - self._hashes.count(None)

    def has(self, videos: Iterable[int]) -> bool:
        """Whether all these videos, by number, are there."""
        return all(self._hashes[index] is not None for index in videos)

    def add(self, videos: Iterable[int]) -> None:
        """Lists videos that were written.

        Raises:
          OSError: a file cannot be read or written.
        """
        for index in videos:
            self._hashes[index] = hash_file(self.folder / self.entries[index]["file"])
        self._write()

    def finish(self, sheet: bool = True) -> None:
        """Writes the contact sheet and the complete samples.json.

        Args:
          sheet: whether the videos are short enough for a contact sheet.
        Raises:
          OSError: a file cannot be read or written.
        """
        if sheet:
            count = contact_sheet.MOST_ROWS
            prompts = [entry["prompt"] for entry in self.entries[:count]]
            contact_sheet.write_sheet(
                self.folder / "contact_sheet.png", self.paths[:count], prompts, self.fps
            )
        self._finished = True
        self._write()

    def _remove_leftovers(self) -> None:
        """Removes what a killed process has left of files that are also written now."""
        names = {entry["file"] for entry in self.entries}
        for path in self.folder.glob(".*.unfinished"):
            match = re.fullmatch(r"\.(.+)\.(\d+)\.unfinished", path.name)  # of `video_writer`
            if match and match[1] in names and not _is_running(int(match[2])):
                path.unlink(missing_ok=True)

    def _find_difference(self, listing: Mapping[str, Any]) -> list[str]:
        """What differs between the recipes, a few words each."""
        ours = _as_json(self.recipe)
        names = [name for name in {**listing, **ours} if name not in UNCOMPARED]
        return [
            f"{name} was {json.dumps(listing.get(name), ensure_ascii=False)}, is "
            f"{json.dumps(ours.get(name), ensure_ascii=False)}"
            for name in names
            if listing.get(name) != ours.get(name)
        ] + _compare_videos(listing, self.entries)

    def _write(self) -> None:
        videos = [
            entry | {"sha256": digest}
            for entry, digest in zip(self.entries, self._hashes, strict=True)
            if digest is not None
        ]
        listing = self.recipe | {"fps": self.fps, "videos": videos}
        if not self._finished:
            missing = len(self.entries) - len(videos)
            listing["unfinished"] = {
                "missing": missing,
                "wanted_sha256": _hash_entries(self.entries),
                "flags": self._flags,
            }
        write_json(self.folder / LISTING, listing)


def _compare_videos(listing: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the videos of a samples.json differ from those that are wanted, a few words."""
    wanted = {entry["file"]: (entry["prompt"], entry["seed"]) for entry in entries}
    found = {entry["file"]: (entry.get("prompt"), entry.get("seed")) for entry in listing["videos"]}
    unfinished = listing.get("unfinished", {})
    total = len(found) + unfinished.get("missing", 0)
    if total != len(wanted):
        return [f"there were {total} videos, now there are {len(wanted)}"]
    digest = unfinished.get("wanted_sha256", _hash_entries(entries))
    if digest != _hash_entries(entries) or not found.items() <= wanted.items():
        return ["there were other prompts, seeds or formats"]
    return []


def _hash_entries(entries: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(list(entries)).encode()).hexdigest()


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as it is read back from a file: tuples become lists."""
    return json.loads(json.dumps(value))


def _read_listing(folder: Path) -> dict[str, Any]:
    """An earlier samples.json; without videos if there is none, or none that this module wrote."""
    nothing: dict[str, Any] = {"videos": []}
    try:
        listing = json_files.read(folder / LISTING, LISTING_FIELDS)
    except (FileNotFoundError, json_files.FieldError):
        return nothing
    return nothing if listing.get("unfinished", {}) is None else listing


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return process != os.getpid()


def hash_file(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
