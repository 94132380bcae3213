"""The captioned videos of a folder, in the order in which they are packed."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from videogen_jax.data import video_io


@dataclasses.dataclass(frozen=True)
class Source:
    """A video file with its caption."""

    name: str  # path within the folder, with "/"
    caption: str
    place: float  # in [0, 1): order and split follow from it
    num_bytes: int


def list_sources(folder) -> tuple[list[Source], dict[str, str]]:
    """Finds the captioned videos of a folder and its subfolders.

    `name.mp4` takes its caption from `name.txt` beside it: UTF-8, with or without a byte order
    mark, surrounding blanks removed. Hidden files and folders are left out.

    Args:
      folder: path of the folder.
    Returns:
      (sources, skipped): the sources by rising place, which is a hash (blake2b) of the name without
      its suffix, so that neighbours are unrelated and a video stays in its split when others come
      or go; and name -> reason for the videos without a usable caption.
    Raises:
      ValueError: there is no such folder, no video in it, or no usable caption.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give --input the folder of your videos.")
    sources, skipped = [], {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            path = pathlib.Path(parent, file)
            if file.startswith(".") or path.suffix.lower() not in video_io.SUFFIXES:
                continue
            name = path.relative_to(folder).as_posix()
            shown = name.encode("utf-8", "backslashreplace").decode()
            caption, reason = _read_caption(path.with_suffix(".txt"))
            if shown != name:
                reason = "the file's name is not UTF-8 text: rename it"
            if not path.exists():
                reason = "it is a link to a file that is not there"
            if reason:
                skipped[shown] = reason
            else:
                num_bytes = path.stat().st_size
                sources.append(Source(name, caption, _place(name, path.suffix), num_bytes))
    if not sources and not skipped:
        raise ValueError(
            f"{folder} holds no video: put files with one of the suffixes "
            f"{', '.join(video_io.SUFFIXES)} there."
        )
    if not sources:
        name, reason = min(skipped.items())
        raise ValueError(
            f"none of the {len(skipped)} videos in {folder} has a caption that can be used (for "
            f"{name}: {reason}): write what name.mp4 shows into name.txt beside it, as UTF-8 text."
        )
    return sorted(sources, key=lambda source: (source.place, source.name)), skipped


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


def fingerprint(sources: Sequence[Source], skipped: Iterable[str]) -> dict:
    """Returns {"count", "digest"}, which tell one set of videos from another.

    The digest covers names, file sizes and captions, not the pixels.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(json.dumps([source.name, source.num_bytes, source.caption]).encode())
    skipped = sorted(skipped)
    digest.update(json.dumps(skipped).encode())
    return {"count": len(sources) + len(skipped), "digest": digest.hexdigest()}
