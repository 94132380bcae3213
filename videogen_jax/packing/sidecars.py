"""Reads the captions of a video or image from the file beside it: `name.txt`, or `name.json` with more than one text.

    {"captions": ["pong", [[0, "the paddle moves up"], [12, "the paddle stands still"]]],
     "episode": "pong/17",
     "numbers": {"action": [2, 2, 2, 0, ...]}}

A caption is a text, or a list of [first frame, text]; "episode" and "numbers" may be left out. Frames are those of the
file at its own rate, from 0.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from videogen_jax.data import json_files, text_files
from videogen_jax.data.annotations import Annotations, Timeline

OUTSIDE_LINK = "is a link that leads out of the folder: use --follow_links to read it"
MAX_CAPTION_BYTES = 2**16  # of all texts together
MAX_JSON_BYTES = 2**24


class SidecarError(ValueError):
    """The captions of a file cannot be used; the message is the reason why."""


class Fields(NamedTuple):
    """Content of name.json."""

    captions: list[Any]
    episode: str = ""
    numbers: dict[str, list[float]] | None = None


def read_annotations(
    video: pathlib.Path,
    folder: pathlib.Path,
    follow_links: bool = False,
    max_caption_bytes: int = MAX_CAPTION_BYTES,
) -> Annotations:
    """Reads what is said of a video or an image beside it.

    Where there are both name.txt and name.json, and the latter has no "captions", it belongs to another program.

    Args:
      video: path of the file.
      folder: folder that is packed.
      follow_links: whether to read files outside the folder.
      max_caption_bytes: size above which captions are refused.
    Returns:
      Its captions, episode and numbers; frames are those of the file.
    Raises:
      SidecarError: there is no caption, or it cannot be used.
    """
    text, listing = video.with_suffix(".txt"), video.with_suffix(".json")
    try:
        for path in (text, listing):
            if not follow_links and leads_out(path, folder):
                raise SidecarError(f"the caption {path.name} {OUTSIDE_LINK}")
        has_text = os.path.lexists(text)
        if os.path.lexists(listing):
            content = text_files.read_text(listing, MAX_JSON_BYTES)
            if not has_text:
                return parse(listing, content, max_caption_bytes)
            if "captions" in json_files.parse(listing, content, {}):
                raise SidecarError(
                    f"both {text.name} and {listing.name} hold its captions: remove one of them"
                )
        caption = text_files.read_text(text, max_caption_bytes).strip()
    except FileNotFoundError:
        raise SidecarError(f"no caption: {text.name} is missing") from None
    except OSError as error:
        path = pathlib.Path(error.filename or text)
        raise SidecarError(f"the caption {path.name} cannot be read ({error.strerror})") from error
    except (text_files.TextError, json_files.FieldError) as error:
        reason = str(error).removeprefix(f"{video.parent}{os.sep}").rstrip(".")
        raise SidecarError(f"the caption {reason}") from error
    if not caption:
        raise SidecarError(f"the caption {text.name} is empty")
    return Annotations.of_text(caption)


def has_captions(video: pathlib.Path, folder: pathlib.Path, follow_links: bool = False) -> bool:
    """Whether a file beside a video or image holds its captions; arguments as for `read_annotations`.

    Returns:
      False where name.txt is missing, and name.json is missing too or belongs to another program.
    Raises:
      SidecarError: there is such a file, but it cannot be used, such as a name.json of an episode without captions.
    """
    text, listing = video.with_suffix(".txt"), video.with_suffix(".json")
    if not os.path.lexists(text):
        if not os.path.lexists(listing):
            return False
        with contextlib.suppress(OSError, text_files.TextError, json_files.FieldError):
            content = text_files.read_text(listing, MAX_JSON_BYTES)
            if not set(Fields._fields) & set(json_files.parse(listing, content, {})):
                return False
    read_annotations(video, folder, follow_links)
    return True


def parse(path: pathlib.Path, content: str, max_caption_bytes: int) -> Annotations:
    """Parses the content of name.json.

    Raises:
      SidecarError: the captions or numbers are not as they should be; the message names the field.
      FieldError: it is no JSON, or a field is unknown or has the wrong type.
    """
    fields = json_files.parse(path, content, Fields)
    if not fields.captions:
        raise SidecarError(f"{_of(path, 'captions')} is empty: list at least one")
    captions = [
        _parse_caption(caption, _of(path, f"captions[{number}]"))
        for number, caption in enumerate(fields.captions)
    ]
    texts = [text for timeline in captions for _, text in timeline]
    size = sum(len(_encode(text, _of(path, "captions"))) for text in texts)
    if size > max_caption_bytes:
        raise SidecarError(
            f"{_of(path, 'captions')} has texts of {size} bytes, more than --max_caption_bytes={max_caption_bytes}"
        )
    numbers = fields.numbers or {}
    _encode(fields.episode, _of(path, "episode"))
    for name in numbers:
        if not _encode(name, _of(path, "numbers")):
            raise SidecarError(f"{_of(path, 'numbers')} has an empty name")
    arrays = {name: _parse_numbers(numbers[name], name, path) for name in sorted(numbers)}
    if len({len(values) for values in arrays.values()}) > 1:
        found = ", ".join(f"{len(values)} of {name!r}" for name, values in arrays.items())
        raise SidecarError(f"{_of(path, 'numbers')} has lists of several lengths ({found})")
    return Annotations(tuple(captions), fields.episode.strip(), arrays)


def clean_texts(texts: Iterable[Any], max_caption_bytes: int) -> list[str]:
    """Checks captions that hold for all frames, from a table or a file of another program.

    Args:
      texts: captions; None and blank ones are left out.
      max_caption_bytes: of all of them together.
    Returns:
      The captions, stripped, each once.
    Raises:
      SidecarError: there is none, one is no text, or they are too long.
    """
    found: dict[str, None] = {}
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise SidecarError(f"its caption is no text: {json.dumps(text, default=str)[:40]}")
        if text and (text := text.strip()):
            found[text] = None
    if not found:
        raise SidecarError("its caption is empty")
    size = sum(len(_encode(text, "its caption")) for text in found)
    if size > max_caption_bytes:
        raise SidecarError(
            f"its captions have {size} bytes, more than --max_caption_bytes={max_caption_bytes}"
        )
    return list(found)


def check_length(video: str, annotations: Annotations, frames: int, cut: bool) -> None:
    """Checks captions and numbers against the number of frames of the file.

    Args:
      video: path of the file.
      annotations: of its frames.
      frames: that could be read of it.
      cut: whether the file has more, which are left out.
    Raises:
      SidecarError: there are not as many numbers as frames, or a caption begins behind the last one.
    """
    path = pathlib.Path(video).with_suffix(".json")
    for name, values in annotations.numbers.items():
        if len(values) < frames or (len(values) > frames and not cut):
            raise SidecarError(
                f"{_of(path, f'numbers.{name}')} has {len(values)} numbers for {frames} frames: give one for each "
                "frame of the file"
            )
    last = max((timeline[-1][0] for timeline in annotations.captions), default=0)
    if last >= frames and not cut:
        raise SidecarError(
            f"{_of(path, 'captions')} has a text from frame {last} on, but the file has {frames} frames, from 0"
        )


def hash_numbers(numbers: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns a hash (blake2b, 128 bits, hexadecimal) of the numbers of each name."""
    return {
        name: hashlib.blake2b(values.astype("<f4").tobytes(), digest_size=16).hexdigest()
        for name, values in sorted(numbers.items())
    }


def read_numbers(video: str, hashes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Reads the numbers of a video again when it is packed, since those of a whole folder may not fit into memory.

    Args:
      video: path of the file.
      hashes: from `hash_numbers`, of the numbers when the folder was listed.
    Returns:
      Name -> (frames of the file,) float32.
    Raises:
      SidecarError: they have changed or vanished since.
    """
    if not hashes:
        return {}
    path = pathlib.Path(video).with_suffix(".json")
    changed = f"its numbers in {path.name} changed while the folder was packed"
    try:
        content = text_files.read_text(path, MAX_JSON_BYTES)
        numbers = dict(parse(path, content, MAX_JSON_BYTES).numbers)
    except (OSError, ValueError) as error:
        raise SidecarError(changed) from error
    if hash_numbers(numbers) != hashes:
        raise SidecarError(changed)
    return numbers


def leads_out(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a path is a link to a file outside the folder."""
    if not path.is_symlink():
        return False
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(path)]) != root


def _of(path: pathlib.Path, field: str) -> str:
    return f"the caption {path.name}: {field}"


def _parse_caption(caption: Any, what: str) -> Timeline:
    """Parses a text, or a list of [first frame, text]."""
    entries = [[0, caption]] if isinstance(caption, str) else caption
    right = isinstance(entries, list) and all(_is_entry(entry) for entry in entries)
    if not right or not entries:
        raise SidecarError(f"{what} should be a text, or a list of [first frame, text]")
    starts = [first for first, _ in entries]
    if starts[0] != 0:
        raise SidecarError(f"{what} begins at frame {starts[0]}: begin at 0")
    for earlier, later in zip(starts, starts[1:], strict=False):
        if later <= earlier:
            raise SidecarError(f"{what} has frame {later} after {earlier}: give rising frames")
    timeline = tuple((first, text.strip()) for first, text in entries)
    for first, text in timeline:
        if not text:
            raise SidecarError(f"{what} is empty" + (f" from frame {first} on" if first else ""))
    return timeline


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    first, text = entry
    return isinstance(first, int) and not isinstance(first, bool) and isinstance(text, str)


def _encode(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a pair that "\ud83d\ude00" in JSON stands for
        raise SidecarError(f"{what} has a letter that is no Unicode text") from None


def _parse_numbers(values: list[float], name: str, path: pathlib.Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.asarray(values, np.float32)
    if not np.isfinite(array).all():
        raise SidecarError(f"{_of(path, f'numbers.{name}')} has a number too large for float32")
    return array
