"""Lists the captioned videos and images of a folder in packing order."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

from videogen_jax.data import image_io, text_files, video_io

UNWANTED_IMAGE = (
    "it is an image, and the clips have several frames: pack images with --frames=1, or with --buckets "
    "of one frame"
)
LINKED_FOLDER = "it is a link to a folder: pack with --follow_links to pack what is in it"
OUTSIDE_LINK = "is a link that leads out of the folder: pack with --follow_links to read it"
VANISHED = "it vanished while the folder was packed"
NOT_UTF8 = "the file's name is not UTF-8 text: rename it"
MAX_CAPTION_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Source:
    """A captioned video or image file, or a range of frames of a video."""

    name: str  # path within the folder, with "/"
    caption: str
    order_key: float  # hash in [0, 1) that determines order and split
    num_bytes: int
    first: int = 0  # first frame, at the frame rate of the data set
    count: int | None = None  # number of frames; None: to the end
    split: str | None = None  # "train" or "validation"; None: chosen while packing


def list_sources(
    folder,
    images: bool = True,
    follow_links: bool = False,
    max_caption_bytes: int = MAX_CAPTION_BYTES,
) -> tuple[list[Source], dict[str, str]]:
    """Finds the captioned videos and images of a folder and its subfolders.

    The caption of `name.mp4` is `name.txt` next to it: UTF-8 with or without a byte order mark, stripped. Hidden files
    and folders are ignored.

    Args:
      folder: path of the folder.
      images: whether to pack images; otherwise they are skipped with a reason.
      follow_links: whether to follow links to folders, and to read files and captions outside the folder. A folder
        that several links lead to, or that is in the folder itself, is listed once.
      max_caption_bytes: size above which a caption is refused.
    Returns:
      (sources, skipped): the sources sorted by order key, a hash (blake2b) of the name without its suffix, so that
      neighbours are unrelated and a video stays in its split when others are added or removed; and name -> reason for
      the videos and images without a usable caption, and for folders ("name/") that were not listed.
    Raises:
      ValueError: the folder does not exist, or has nothing to pack or no usable caption.
      OSError: the folder cannot be read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: set --input to the folder of your videos.")
    skipped: dict[str, str] = {}
    sources = []
    for path in _walk(folder, follow_links, skipped):
        name = _shown(path.relative_to(folder))
        num_bytes, reason = _check_file(path, folder, follow_links)
        if not images and image_io.is_image(path):
            reason = UNWANTED_IMAGE
        if not reason:
            text = path.with_suffix(".txt")
            caption, reason = _read_caption(text, folder, follow_links, max_caption_bytes)
        if reason:
            skipped[name] = reason
        else:
            sources.append(Source(name, caption, _order_key(name, path.suffix), num_bytes))
    if not sources:
        raise ValueError(_no_sources_message(folder, images, skipped))
    return sorted(sources, key=lambda source: (source.order_key, source.name)), skipped


def locate(folder, name: str) -> str:
    """Returns the path of a source; names are UTF-8 whatever the locale says."""
    return os.path.join(folder, os.fsdecode(name.encode("utf-8")))


def _shown(path) -> str:
    """A path within the folder with "/", as UTF-8 text whatever the locale says."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _walk(folder, follow_links, skipped) -> Iterator[pathlib.Path]:
    """Yields the video and image files of a folder; adds the folders that cannot be listed to `skipped`.

    Linked folders come last, and no folder comes twice, so that a circle ends and no clip has a copy.
    """
    wanted = (*video_io.SUFFIXES, *image_io.SUFFIXES)
    seen = set()
    pending, links = collections.deque([folder]), collections.deque()
    while pending or links:
        link = not pending
        parent = links.popleft() if link else pending.popleft()
        place = f"{_shown(parent.relative_to(folder))}/"
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
            elif path.suffix.lower() in wanted:
                yield path


def _check_file(path, folder, follow_links) -> tuple[int, str | None]:
    """Returns (size, None) of a file that may be read, or (0, the reason why not)."""
    if not _is_utf8(path.relative_to(folder)):
        return 0, NOT_UTF8
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, "it is a link to a missing file" if path.is_symlink() else VANISHED
    except OSError as error:
        return 0, f"it cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return 0, "it is not a regular file"
    if not follow_links and _leads_out(path, folder):
        return 0, f"it {OUTSIDE_LINK}"
    return status.st_size, None


def _is_utf8(path) -> bool:
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _leads_out(path, folder) -> bool:
    """Whether a path is a link to a file outside the folder."""
    if not path.is_symlink():
        return False
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(path)]) != root


def _no_sources_message(folder, images, skipped):
    """Returns the error message for a folder without a usable source."""
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
    suffixes = (*video_io.SUFFIXES, *(image_io.SUFFIXES if images else ()))
    return (
        f"{folder} holds no video{' or image' if images else ''}: add files with one of the "
        f"suffixes {', '.join(suffixes)}."
    )


def _order_key(name, suffix):
    """Hashes a name without its suffix to [0, 1)."""
    digest = hashlib.blake2b(name.removesuffix(suffix).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits, or 1 - 2**-60 rounds to 1


def _read_caption(path, folder, follow_links, max_bytes):
    """Returns (caption, None), or (None, the reason why it is unusable)."""
    try:
        if not follow_links and _leads_out(path, folder):
            return None, f"the caption {path.name} {OUTSIDE_LINK}"
        caption = text_files.read_text(path, max_bytes).strip()
    except FileNotFoundError:
        return None, f"no caption: {path.name} is missing"
    except text_files.TextError as error:
        return None, f"the caption {path.name} {str(error).removeprefix(f'{path} ').rstrip('.')}"
    except OSError as error:
        return None, f"the caption {path.name} cannot be read ({error.strerror})"
    return (caption, None) if caption else (None, f"the caption {path.name} is empty")


def fingerprint(sources: Sequence[Source], skipped: Mapping[str, str]) -> dict:
    """Returns {"count", "digest"} of a set of videos.

    The digest covers names, file sizes and captions, but not pixels. Skipped images and folders are ignored, so that
    they may be added or removed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(json.dumps([source.name, source.num_bytes, source.caption]).encode())
    names = sorted(
        name
        for name, reason in skipped.items()
        if reason != UNWANTED_IMAGE and not name.endswith("/")
    )
    digest.update(json.dumps(names).encode())
    return {"count": len(sources) + len(names), "digest": digest.hexdigest()}


def sum_fingerprint(pieces: Iterable[Source]) -> dict:
    """Returns {"count", "digest"} of pieces, independent of their order and additive over disjoint lists."""
    parts = []
    for piece in pieces:
        fields = dataclasses.asdict(piece)
        del fields["order_key"]  # follows from the name
        digest = hashlib.blake2b(json.dumps(fields).encode(), digest_size=16)
        parts.append({"count": 1, "digest": digest.hexdigest()})
    return add_fingerprints(parts)


def add_fingerprints(parts: Iterable[Mapping]) -> dict:
    """Adds the fingerprints from `sum_fingerprint` of disjoint parts."""
    count = total = 0
    for part in parts:
        count += part["count"]
        total = (total + int(part["digest"], 16)) % 2**128
    return {"count": count, "digest": f"{total:032x}"}


def fix_splits(sources: Sequence[Source], fraction: float) -> list[Source]:
    """Chooses the split of each source before any is read, so that all parts agree.

    Args:
      sources: all sources of the folder, from `list_sources`.
      fraction: fraction of the validation split.
    Returns:
      The sources with their splits: validation if the order key is below `fraction`; at least the first name, and never
      the last. Files whose names differ only in their suffix stay together.
    """
    held_out = [source.order_key < fraction for source in sources]
    if fraction and not any(held_out):
        held_out = [source.order_key == sources[0].order_key for source in sources]
    if all(held_out):
        held_out = [source.order_key != sources[-1].order_key for source in sources]
    return [
        dataclasses.replace(source, split="validation" if out else "train")
        for source, out in zip(sources, held_out, strict=True)
    ]


def without_vanished(
    folder, sources: Sequence[Source], skipped: Mapping[str, str]
) -> tuple[list[Source], dict[str, str]]:
    """Leaves out the files that have vanished since they were listed, whether they were packed before or not.

    Args:
      folder: folder of the sources.
      sources: as listed when packing began.
      skipped: name -> reason, now that it is finished.
    Returns:
      (sources, skipped) as `list_sources` would return them now, without new files.
    """
    listed = {source.name for source in sources}
    kept = [
        source
        for source in sources
        if skipped.get(source.name) != VANISHED and os.path.lexists(locate(folder, source.name))
    ]
    rest = {
        name: reason
        for name, reason in skipped.items()
        if name not in listed
        and (reason == NOT_UTF8 or (reason != VANISHED and os.path.lexists(locate(folder, name))))
    }
    return kept, rest


def refuse_skipped(name: str, reason: str) -> None:
    """Raises the ValueError of --strict for a source that would be skipped."""
    raise ValueError(
        f"{name} would be skipped ({reason}), and --strict stops there: repair or remove it, or call "
        "again without --strict."
    )
