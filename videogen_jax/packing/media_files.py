"""Finds the videos and images of a folder, and says why files cannot be read."""

import collections
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence

from videogen_jax.data import image_io, video_io
from videogen_jax.packing import sidecars
from videogen_jax.packing.sidecars import OUTSIDE_LINK

MEDIA = (*video_io.SUFFIXES, *image_io.SUFFIXES)

UNWANTED_IMAGE = (
    "it is an image, and the clips have several frames: pack images with --frames=1, or with --buckets "
    "of one frame"
)
LINKED_FOLDER = "it is a link to a folder: use --follow_links to read what is in it"
VANISHED = "it vanished while the folder was packed"
NOT_UTF8 = "the file's name is not UTF-8 text: rename it"


def list_files(folder, follow_links: bool = False) -> tuple[list[str], dict[str, str]]:
    """Finds the videos and images of a folder and its subfolders, whether or not they have captions.

    Args:
      folder: path of the folder.
      follow_links: as for `sources.list_sources`.
    Returns:
      (names, skipped): paths within the folder with "/", sorted; and name -> reason for files and folders that cannot
      be read.
    Raises:
      ValueError: the folder does not exist, or holds no video or image.
      OSError: the folder cannot be read.
    """
    skipped: dict[str, str] = {}
    names = []
    for _, name, _, reason in find_media(folder, follow_links, skipped):
        if reason:
            skipped[name] = reason
        else:
            names.append(name)
    if not names:
        raise ValueError(no_media_message(folder, True, skipped))
    return sorted(names), skipped


def stem(name: str) -> str:
    """A name without its last suffix."""
    return name.removesuffix(pathlib.PurePosixPath(name).suffix)


def find_media(
    folder, follow_links: bool, skipped: dict[str, str]
) -> Iterator[tuple[pathlib.Path, str, int, str | None]]:
    """Yields (path, name within the folder, bytes, reason why it cannot be read, or None) of each video and image.

    Adds the folders that cannot be listed to `skipped`. Raises as `list_files`, but for an empty folder.
    """
    folder = find_folder(folder)
    for path in walk(folder, follow_links, skipped, MEDIA):
        yield path, shown(path.relative_to(folder)), *check_file(path, folder, follow_links)


def find_folder(folder) -> pathlib.Path:
    """Returns the path of a folder, or raises ValueError if there is none."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: set --input to the folder of your videos.")
    return folder


def locate(folder, name: str) -> str:
    """Returns the path of a source; names are UTF-8 whatever the locale says."""
    return os.path.join(folder, os.fsdecode(name.encode("utf-8")))


def shown(path: pathlib.PurePath) -> str:
    """A path within the folder with "/", as UTF-8 text whatever the locale says."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def walk(
    folder: pathlib.Path, follow_links: bool, skipped: dict[str, str], suffixes: Sequence[str]
) -> Iterator[pathlib.Path]:
    """Yields the files with one of some suffixes; adds the folders that cannot be listed to `skipped`.

    Linked folders come last, and no folder comes twice, so that a circle ends and no clip has a copy.
    """
    seen = set()
    pending, links = collections.deque([folder]), collections.deque()
    while pending or links:
        link = not pending
        parent = links.popleft() if link else pending.popleft()
        place = f"{shown(parent.relative_to(folder))}/"
        try:
            status = parent.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            if link and not follow_links:
                skipped[place] = LINKED_FOLDER
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if parent == folder:
                raise
            gone = isinstance(error, FileNotFoundError)
            skipped[place] = VANISHED if gone else f"the folder cannot be read ({error.strerror})"
            continue
        for entry in entries:
            path = parent / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_symlink() and os.path.isdir(path):
                links.append(path)
            elif path.suffix.lower() in suffixes:
                yield path


def check_file(
    path: pathlib.Path, folder: pathlib.Path, follow_links: bool
) -> tuple[int, str | None]:
    """Returns (size, None) of a file that may be read, or (0, the reason why not)."""
    if not _is_utf8(path.relative_to(folder)):
        return 0, NOT_UTF8
    return check_status(path, folder, follow_links)


def check_status(
    path: pathlib.Path, folder: pathlib.Path, follow_links: bool
) -> tuple[int, str | None]:
    """As `check_file`, of a file whose name is UTF-8."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, "it is a link to a missing file" if path.is_symlink() else VANISHED
    except OSError as error:
        return 0, f"it cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return 0, "it is not a regular file"
    if not follow_links and sidecars.leads_out(path, folder):
        return 0, f"it {OUTSIDE_LINK}"
    return status.st_size, None


def _is_utf8(path) -> bool:
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def no_media_message(folder, images, skipped):
    """Returns the error message for a folder of which no video or image can be used; `skipped` as of `list_files`."""
    unusable = {name: why for name, why in skipped.items() if why != UNWANTED_IMAGE}
    what = "videos or images" if images else "videos"
    if unusable:
        name, reason = min(unusable.items())
        if "caption" not in reason:
            return (
                f"none of the {len(unusable)} {what} in {folder} can be packed ({name}: {reason})."
            )
        return (
            f"none of the {len(unusable)} {what} in {folder} has a usable caption ("
            f"{name}: {reason}): write the caption of name.mp4 to name.txt next to it, as UTF-8 text."
        )
    if skipped:
        return (
            f"{folder} holds no video, only {len(skipped)} images: pack images with --frames=1, or "
            "with --buckets of one frame."
        )
    suffixes = MEDIA if images else video_io.SUFFIXES
    return (
        f"{folder} holds no video{' or image' if images else ''}: add files with one of the "
        f"suffixes {', '.join(suffixes)}."
    )


def find_vanished(folder, name: str) -> str | None:
    """Returns the reason to skip a source whose file has vanished, or None if it is there.

    Raises:
      FileNotFoundError: the whole folder has vanished, such as a disk that is no longer mounted.
    """
    if os.path.lexists(locate(folder, name)):
        return None
    if not os.path.isdir(folder) or not os.listdir(folder):
        raise FileNotFoundError(
            f"{folder} has vanished or is empty now: bring it back and call the same command again, which resumes "
            "after the finished shards."
        )
    return VANISHED
