"""The sources of a data set in packing order; those of a folder whose captions are in files beside the videos.

`input_forms` chooses between this form and tables of clips (`tables`) and archives (`tar_shards`).
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from videogen_jax.data import image_io
from videogen_jax.data.annotations import Timeline
from videogen_jax.data.video_spans import WHOLE, Span
from videogen_jax.packing import media_files, sidecars
from videogen_jax.packing.sidecars import MAX_CAPTION_BYTES, SidecarError

NO_EPISODE = (
    'it names no episode, but other clips of the folder do: write "episode" into the caption file '
    "name.json, or its episode may come into both splits"
)


NO_NUMBERS: Mapping[str, str] = MappingProxyType({})


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A captioned video or image, or a part of a video: of a file of its own, or of one that holds several."""

    name: str  # of the file: its path within the folder, with "/"; unique
    captions: tuple[Timeline, ...]  # in frames of the file
    order_key: float  # hash of the name in [0, 1) that determines the order
    num_bytes: int
    first: int = 0  # first frame, at the frame rate of the data set
    count: int | None = None  # number of frames; None: to the end
    split: str | None = None  # "train" or "validation"; None: chosen while packing
    episode: str = ""  # all clips of an episode are in one split; empty: the video is its own
    # name -> hash of the numbers per frame, which are read again when the video is
    numbers: Mapping[str, str] = dataclasses.field(default_factory=lambda: NO_NUMBERS)
    container: str = (
        ""  # path within the folder of the file that holds it; empty: the file is its own
    )
    start: float = 0.0  # seconds of the video in which it lies
    end: float | None = None
    # (file name, first byte, bytes) of its files in the archive `container`, the video or image first
    members: tuple[tuple[str, int, int], ...] = ()
    # (first frame, number of frames) of each of several ranges, instead of `first` and `count`
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def split_key(self) -> float:
        """Hash in [0, 1) that determines the split: of the episode, else of the name of the video."""
        if self.episode:
            return hash_name(self.episode)
        return self.order_key if self.span == WHOLE else hash_name(media_files.stem(self.file))

    @property
    def shares_split(self) -> bool:
        """Whether it may be in the split of other sources: of its episode, or of its video."""
        return bool(self.episode) or self.span != WHOLE

    @property
    def file(self) -> str:
        """Path within the folder of the file that is read."""
        return self.container or self.name

    @property
    def span(self) -> Span:
        """The part of the video in seconds, of which `first` and `count` are frames."""
        return Span(self.start, self.end)

    @property
    def texts(self) -> list[str]:
        """The texts of all captions, in order."""
        return [text for timeline in self.captions for _, text in timeline]

    def to_json(self) -> dict:
        """The fields as JSON values but for `order_key`, which follows from the name.

        Those of a video with a single text are as in earlier versions, so that their fingerprints stay the same.
        """
        said = {"captions": self.captions, "episode": self.episode, "numbers": dict(self.numbers)}
        if self.captions == (((0, self.texts[0]),),) and not (self.episode or self.numbers):
            said = {"caption": self.texts[0]}
        rest = {name: getattr(self, name) for name in ("num_bytes", "first", "count", "split")}
        if self.container:
            rest |= {name: getattr(self, name) for name in ("container", "start", "end", "members")}
        ranges = {"ranges": self.ranges} if self.ranges else {}
        return {"name": self.name} | said | rest | ranges


class Listing(NamedTuple):
    """What is to be packed."""

    given: str  # value of --input
    video_folder: str | None  # value of --video_folder
    folder: pathlib.Path  # that the files of the sources are in
    sources: list[Source]  # in packing order
    skipped: dict[str, str]  # name -> reason
    # (sources, skipped), each at the end of packing -> what a listing would give then, without new files
    without_vanished: Callable[[Sequence[Source], Mapping[str, str]], tuple[list, dict]]


def list_sources(
    folder,
    images: bool = True,
    follow_links: bool = False,
    max_caption_bytes: int = MAX_CAPTION_BYTES,
) -> tuple[list[Source], dict[str, str]]:
    """Finds the captioned videos and images of a folder and its subfolders.

    The captions of `name.mp4` are in `name.txt` or `name.json` next to it, as `sidecars` reads them: UTF-8 with or
    without a byte order mark, stripped. Hidden files and folders are ignored. Where a clip names its episode, those
    that do not are skipped.

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
    skipped: dict[str, str] = {}
    sources = []
    for path, name, num_bytes, reason in media_files.find_media(folder, follow_links, skipped):
        if not images and image_io.is_image(path):
            reason = media_files.UNWANTED_IMAGE
        if not reason:
            try:
                found = sidecars.read_annotations(
                    path, pathlib.Path(folder), follow_links, max_caption_bytes
                )
            except SidecarError as error:
                reason = str(error)
        if reason:
            skipped[name] = reason
            continue
        key = hash_name(media_files.stem(name))
        hashes = sidecars.hash_numbers(found.numbers)
        source = Source(name, found.captions, key, num_bytes, episode=found.episode, numbers=hashes)
        sources.append(source)
    sources = in_order(sources, skipped)
    if not sources:
        raise ValueError(media_files.no_media_message(folder, images, skipped))
    return sources, skipped


def in_order(sources: Iterable[Source], skipped: dict[str, str]) -> list[Source]:
    """Sorts sources by order key; where some name their episode, moves those that do not to `skipped`."""
    sources = list(sources)
    if any(source.episode for source in sources):
        skipped |= {source.name: NO_EPISODE for source in sources if not source.episode}
        sources = [source for source in sources if source.episode]
    return sorted(sources, key=_place)


def _place(source):
    return source.order_key, source.name


def hash_name(name: str) -> float:
    """Hashes a name to [0, 1)."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits, or 1 - 2**-60 rounds to 1


def fingerprint(sources: Sequence[Source], skipped: Mapping[str, str]) -> dict:
    """Returns {"count", "digest"} of a set of videos.

    The digest covers names, file sizes, captions, episodes and numbers, but not pixels. Skipped images and folders are
    ignored, so that they may be added or removed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sorted(sources, key=_place):
        fields = source.to_json()
        names = ("name", "num_bytes", "caption", "captions", "episode", "numbers")
        digest.update(json.dumps([fields[name] for name in names if name in fields]).encode())
    names = sorted(
        name
        for name, reason in skipped.items()
        if reason != media_files.UNWANTED_IMAGE and not name.endswith("/")
    )
    digest.update(json.dumps(names).encode())
    return {"count": len(sources) + len(names), "digest": digest.hexdigest()}


def sum_fingerprint(pieces: Iterable[Source]) -> dict:
    """Returns {"count", "digest"} of pieces, independent of their order and additive over disjoint lists."""
    parts = []
    for piece in pieces:
        digest = hashlib.blake2b(json.dumps(piece.to_json()).encode(), digest_size=16)
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
      The sources with their splits, those of validation first: it has those whose split key is below `fraction`; at
      least the lowest key, and never the highest. Clips of one episode stay together, as do files whose names differ
      only in their suffix.
    """
    keys = [source.split_key for source in sources]
    held_out = [key < fraction for key in keys]
    if fraction and not any(held_out):
        held_out = [key == min(keys) for key in keys]
    if all(held_out):
        held_out = [key != max(keys) for key in keys]
    fixed = [
        dataclasses.replace(source, split="validation" if out else "train")
        for source, out in zip(sources, held_out, strict=True)
    ]
    return sorted(fixed, key=lambda source: source.split == "train")


def without_vanished(
    folder, sources: Sequence[Source], skipped: Mapping[str, str]
) -> tuple[list[Source], dict[str, str]]:
    """Leaves out the files that have vanished since they were listed, whether they were packed before or not.

    Args:
      folder: folder of the sources, as of `list_sources`.
      sources: as listed when packing began.
      skipped: name -> reason, now that it is finished.
    Returns:
      (sources, skipped) as `list_sources` would return them now, without new files.
    """
    kept, rest, exists = split_vanished(folder, sources, skipped)
    rest = {
        name: reason
        for name, reason in rest.items()
        if reason == media_files.NOT_UTF8 or (reason != media_files.VANISHED and exists(name))
    }
    return kept, rest


def split_vanished(
    folder, sources: Sequence[Source], skipped: Mapping[str, str]
) -> tuple[list[Source], dict[str, str], Callable[[str], bool]]:
    """Separates the sources whose files are there at the end of packing from what was skipped when they were listed.

    Returns:
      (sources whose files are there, name -> reason of what is no source, a function that tells whether a file of the
      folder is there).
    """
    exists = functools.cache(lambda name: os.path.lexists(media_files.locate(folder, name)))
    listed = {source.name for source in sources}
    kept = [s for s in sources if skipped.get(s.name) != media_files.VANISHED and exists(s.file)]
    rest = {name: reason for name, reason in skipped.items() if name not in listed}
    return kept, rest, exists


def refuse_skipped(name: str, reason: str) -> None:
    """Raises the ValueError of --strict for a source that would be skipped."""
    raise ValueError(
        f"{name} would be skipped ({reason}), and --strict stops there: repair or remove it, or call "
        "again without --strict."
    )
