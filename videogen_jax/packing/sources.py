"""Lists the captioned videos and images of a folder in packing order."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from videogen_jax.data import image_io, video_io

UNWANTED_IMAGE = (
    "it is an image, and the clips have several frames: pack images with --frames=1, or with --buckets "
    "of one frame"
)


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


def list_sources(folder, images: bool = True) -> tuple[list[Source], dict[str, str]]:
    """Finds the captioned videos and images of a folder and its subfolders.

    The caption of `name.mp4` is `name.txt` next to it: UTF-8 with or without a byte order mark, stripped. Hidden files
    and folders are ignored.

    Args:
      folder: path of the folder.
      images: whether to pack images; otherwise they are skipped with a reason.
    Returns:
      (sources, skipped): the sources sorted by order key, a hash (blake2b) of the name without its suffix, so that
      neighbours are unrelated and a video stays in its split when others are added or removed; and name -> reason for
      the videos and images without a usable caption.
    Raises:
      ValueError: the folder does not exist, or has nothing to pack or no usable caption.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: set --input to the folder of your videos.")
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
                reason = "it is a link to a missing file"
            if not images and image_io.is_image(name):
                reason = UNWANTED_IMAGE
            if reason:
                skipped[shown] = reason
            else:
                num_bytes = path.stat().st_size
                sources.append(Source(name, caption, _order_key(name, path.suffix), num_bytes))
    if not sources:
        raise ValueError(_no_sources_message(folder, images, skipped))
    return sorted(sources, key=lambda source: (source.order_key, source.name)), skipped


def _no_sources_message(folder, images, skipped):
    """Returns the error message for a folder without a usable source."""
    unusable = {name: why for name, why in skipped.items() if why != UNWANTED_IMAGE}
    what = "videos or images" if images else "videos"
    if unusable:
        name, reason = min(unusable.items())
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


def _read_caption(path):
    """Returns (caption, None), or (None, the reason why it is unusable)."""
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
    """Returns {"count", "digest"} of a set of videos.

    The digest covers names, file sizes and captions, but not pixels. Skipped images are ignored, so that they may be
    added or removed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(json.dumps([source.name, source.num_bytes, source.caption]).encode())
    names = sorted(name for name, reason in skipped.items() if reason != UNWANTED_IMAGE)
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


def refuse_skipped(name: str, reason: str) -> None:
    """Raises the ValueError of --strict for a source that would be skipped."""
    raise ValueError(
        f"{name} would be skipped ({reason}), and --strict stops there: repair or remove it, or call "
        "again without --strict."
    )
