"""The files of a checkpoint on disk: which steps there are, and whether each byte is the one that was written.

`FOLDER/STEP` holds items (`ema`, `state`: arrays by Orbax; `metadata`, `metrics`: JSON) and `checksums.json`, the size
and SHA-256 of every other file. A step gets its number last of all: what has a number was written to the end.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import logging

from videogen_jax.data import locking
from videogen_jax.data.atomic_files import write_json

CHECKSUMS = "checksums.json"
INDEX = "_CHECKPOINT_METADATA"  # by which Orbax finds the items
MARK = "orbax.checkpoint"  # is in every step that has checksums, and in no older one
UNFINISHED = ".unfinished"  # ending of a step that is being written
DELETED = ".deleted"  # ending of a step that is being removed
THREADS = 4  # that hash files at the same time


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or another model's."""


class DamagedError(CheckpointError):
    """A step that cannot be read, or whose bytes are not those that were written."""


def list_steps(folder: Path) -> list[int]:
    """The steps in a folder, rising; files and other names are passed over."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name)]
    return sorted(int(name) for name in names if (folder / name).is_dir())


def list_unfinished(folder: Path) -> list[int]:
    """The steps in a folder that are being written, or were when the run was killed, rising."""
    if not folder.is_dir():
        return []
    ending = re.compile(rf"([0-9]+)(\{UNFINISHED}|\.orbax-checkpoint-tmp).*")
    matches = [ending.fullmatch(path.name) for path in folder.iterdir()]
    return sorted({int(match[1]) for match in matches if match})


def explain_none(folder: Path) -> str:
    """The sentence on a folder without a step that can be read."""
    holder = locking.find_holder(folder.parent)
    if holder and (unfinished := list_unfinished(folder)):
        return f"Checkpoint {unfinished[0]} in {folder} is being written by {holder}: try again when it is there."
    if holder:
        return f"There is no checkpoint in {folder} yet: wait for the first of {holder}, which is training."
    return f"There is no checkpoint in {folder}: train first, or name another --workdir."


def clean_up(folder: Path, warn: bool = True) -> None:
    """Removes what a killed run left half written or half removed; warns of the former."""
    for step in list_unfinished(folder) if warn else ():
        logging.warning("Checkpoint %d was never finished: going back to the one before.", step)
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.search(rf"(\{UNFINISHED}|\{DELETED}|\.orbax-checkpoint-tmp)", path.name):
            shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path, step: int) -> None:
    """Removes a step. It is renamed first, so that nobody who lists the steps finds one without some of its files."""
    path = folder / f"{step}{DELETED}"
    shutil.rmtree(path, ignore_errors=True)
    (folder / str(step)).rename(path)
    shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, step: int) -> None:
    """Frees the number of a damaged step; what is there is kept."""
    place = folder.parent / f"{folder.name}_damaged" / f"{step}_{time.time_ns()}"
    place.parent.mkdir(exist_ok=True)
    (folder / str(step)).rename(place)
    logging.warning("Moved the damaged checkpoint %d to %s.", step, place)


def publish(unfinished: Path, step: int, documents: Mapping[str, Any]) -> None:
    """Gives a step that Orbax has written its JSON documents, its checksums and its number.

    Args:
      unfinished: folder of the step, beside the one it is to become.
      step: its number; a folder that has it already is set aside.
      documents: item to what JSON can hold.
    """
    for name, content in documents.items():
        (unfinished / name).mkdir()
        write_json(unfinished / name / name, content)
    paths = sorted(path for path in unfinished.rglob("*") if path.is_file())
    names = [path.relative_to(unfinished).as_posix() for path in paths]
    sums = dict(zip(names, _checksums(paths), strict=True))
    write_json(unfinished / CHECKSUMS, {"algorithm": "sha256", "files": sums})
    if (unfinished.parent / str(step)).exists():
        set_aside(unfinished.parent, step)
    unfinished.rename(unfinished.parent / str(step))


def verify(path: Path, items: Iterable[str], share: tuple[int, int] = (0, 1)) -> bool:
    """Compares the files of some items with their checksums.

    Args:
      path: of a step.
      items: names of its sub-folders.
      share: (index, count) of the part of the files that this process reads.
    Returns:
      Whether there are checksums; steps of earlier versions have none.
    Raises:
      DamagedError: a file is missing, or has other bytes; the sentence names it.
    """
    if not (path / CHECKSUMS).is_file():
        if (path / MARK).exists():
            raise DamagedError(f"{CHECKSUMS} is missing")
        if not any(path.iterdir()):
            raise DamagedError("its folder is empty")
        return False
    try:
        files = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        files = {name: (int(size), str(digest)) for name, (size, digest) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{CHECKSUMS} cannot be read") from error
    items = set(items)
    names = sorted(name for name in files if name.split("/")[0] in items)
    if missing := items - {name.split("/")[0] for name in names}:
        raise DamagedError(f"{CHECKSUMS} does not list {', '.join(sorted(missing))}")
    for name in names:
        size = (path / name).stat().st_size if (path / name).is_file() else -1
        if size != files[name][0]:
            found = "is missing" if size < 0 else f"has {size} bytes instead of {files[name][0]}"
            raise DamagedError(f"{name} {found}")
    mine = names[share[0] :: share[1]]
    for name, found in zip(mine, _checksums([path / name for name in mine]), strict=True):
        if found[1] != files[name][1]:
            raise DamagedError(f"{name} has other bytes than were written")
    return True


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON metadata of a step, verified.

    Raises:
      DamagedError: it is not what was written.
    """
    verified = verify(path, ["metadata"])
    try:
        metadata = json.loads((path / "metadata" / "metadata").read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError("its metadata cannot be read") from error
    if not isinstance(metadata, dict) or not (verified or "config" in metadata):
        raise DamagedError("its metadata holds no config")
    return metadata


def read_loss(path: Path) -> float | None:
    """The validation loss of a step; None if it was not measured, or is damaged."""
    file = path / "metrics" / "metrics"
    if not file.exists():
        return None
    try:
        verify(path, ["metrics"])
        return float(json.loads(file.read_text(encoding="utf-8"))["validation_loss"])
    except (DamagedError, OSError, ValueError, KeyError, TypeError):
        logging.warning("The validation loss of %s is damaged: it does not count.", path)
        return None


def _checksums(paths: list[Path]) -> list[tuple[int, str]]:
    """Size and SHA-256 of each file."""

    def hash_file(path: Path) -> tuple[int, str]:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(hash_file, paths))
