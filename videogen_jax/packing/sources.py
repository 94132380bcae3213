"""The captioned videos and images of a folder, in the order in which they are packed."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from videogen_jax.data import image_io, video_io

UNWANTED_IMAGE = (
    "it is an image, and the clips have more frames: pack images with --frames=1, or with --buckets "
    "of one frame"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A video or image file with its caption; or some of the frames of a video."""

    name: str  # path within the folder, with "/"
    caption: str
    place: float  # in [0, 1): order and split follow from it
    num_bytes: int
    first: int = 0  # frame at which it starts, counted at the frame rate of the data set
    count: int | None = None  # frames of it; None: up to the end
    split: str | None = None  # "train" or "validation"; None: decided while packing


def list_sources(folder, images: bool = True) -> tuple[list[Source], dict[str, str]]:
    """Finds the captioned videos and images of a folder and its subfolders.

    `name.mp4` takes its caption from `name.txt` beside it: UTF-8, with or without a byte order
    mark, surrounding blanks removed. Hidden files and folders are left out.

    Args:
      folder: path of the folder.
      images: whether images are wanted; else they are skipped, with the reason.
    Returns:
      (sources, skipped): the sources by rising place, which is a hash (blake2b) of the name without
      its suffix, so that neighbours are unrelated and a video stays in its split when others come
      or go; and name -> reason for the videos and images without a usable caption.
    Raises:
      ValueError: there is no such folder, nothing to pack in it, or no usable caption.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give --input the folder of your videos.")
    wanted = (*video_io.SUFFIXES, *image_io.SUFFIXES)
    sources, skipped = [], {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            path = pathlib.Path(parent, file)
            if file.startswith(".") or path.suffix.lower() not in wanted:
                continue
            name = path.relative_to(folder).as_posix()
            shown = name.encode("utf-8", "backslashreplace").decode()
            caption, reason = _read_caption(path.with_suffix(".txt"))
            if shown != name:
                reason = "the file's name is not UTF-8 text: rename it"
            if not path.exists():
                reason = "it is a link to a file that is not there"
            if not images and image_io.is_image(name):
                reason = UNWANTED_IMAGE
            if reason:
                skipped[shown] = reason
            else:
                num_bytes = path.stat().st_size
                sources.append(Source(name, caption, _place(name, path.suffix), num_bytes))
    if not sources:
        raise ValueError(_nothing_usable(folder, images, skipped))
    return sorted(sources, key=lambda source: (source.place, source.name)), skipped


def _nothing_usable(folder, images, skipped):
    """Returns what to say of a folder without a single source."""
    unusable = {name: why for name, why in skipped.items() if why != UNWANTED_IMAGE}
    what = "videos or images" if images else "videos"
    if unusable:
        name, reason = min(unusable.items())
        return (
            f"none of the {len(unusable)} {what} in {folder} has a caption that can be used (for "
            f"{name}: {reason}): write what name.mp4 shows into name.txt beside it, as UTF-8 text."
        )
    if skipped:
        return (
            f"{folder} holds no video, only {len(skipped)} images: pack images with --frames=1, or "
            "with --buckets of one frame."
        )
    suffixes = (*video_io.SUFFIXES, *(image_io.SUFFIXES if images else ()))
    return (
        f"{folder} holds no video{' or image' if images else ''}: put files with one of the "
        f"suffixes {', '.join(suffixes)} there."
    )


def _place(name, suffix):
    """Returns a hash in [0, 1) of a name without its suffix."""
    digest = hashlib.blake2b(name.removesuffix(suffix).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits, or 1 - 2**-60 rounds to 1


def _read_caption(path):
    """Returns (caption, None), or (None, the reason why it cannot be used)."""
    try:
        caption = path.read_bytes().decode("utf-8-sig").strip()
    except FileNotFoundError:
        return None, f"no caption: {path.name} is missing"
    except UnicodeDecodeError as error:
        return None, f"the caption {path.name} is not UTF-8 text (byte {error.start})"
    except OSError as error:
        return None, f"the caption {path.name} cannot be read ({error.strerror})"
    return (caption, None) if caption else (None, f"the caption {path.name} is empty")


def fingerprint(sources: Sequence[Source], skipped: Mapping[str, str]) -> dict:
    """Returns {"count", "digest"}, which tell one set of videos from another.

    The digest covers names, file sizes and captions, not the pixels. Images that are not wanted
    do not count: they may come and go.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(json.dumps([source.name, source.num_bytes, source.caption]).encode())
    names = sorted(name for name, reason in skipped.items() if reason != UNWANTED_IMAGE)
    digest.update(json.dumps(names).encode())
    return {"count": len(sources) + len(names), "digest": digest.hexdigest()}


def sum_fingerprint(pieces: Iterable[Source]) -> dict:
    """Returns {"count", "digest"} of pieces in any order: those of two lists add up to those of both."""
    parts = []
    for piece in pieces:
        known = dataclasses.asdict(piece)
        del known["place"]  # follows from the name
        digest = hashlib.blake2b(json.dumps(known).encode(), digest_size=16)
        parts.append({"count": 1, "digest": digest.hexdigest()})
    return add_fingerprints(parts)


def add_fingerprints(parts: Iterable[Mapping]) -> dict:
    """Returns the sum of what `sum_fingerprint` returned for parts of a whole."""
    count = total = 0
    for part in parts:
        count += part["count"]
        total = (total + int(part["digest"], 16)) % 2**128
    return {"count": count, "digest": f"{total:032x}"}


def fix_splits(sources: Sequence[Source], fraction: float) -> list[Source]:
    """Decides the split of each source before any is read, so that parts of a whole agree.

    Args:
      sources: of `list_sources`, the whole folder's.
      fraction: share of the validation split.
    Returns:
      The sources with their splits: validation below `fraction`; the first name where that is
      none, and never the last name. What has the same name but for its suffix stays together.
    """
    held_out = [source.place < fraction for source in sources]
    if fraction and not any(held_out):
        held_out = [source.place == sources[0].place for source in sources]
    if all(held_out):
        held_out = [source.place != sources[-1].place for source in sources]
    return [
        dataclasses.replace(source, split="validation" if out else "train")
        for source, out in zip(sources, held_out, strict=True)
    ]
