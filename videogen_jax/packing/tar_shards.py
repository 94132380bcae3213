"""Clips in tar archives, as WebDataset has them: `name.mp4` with `name.txt` or `name.json` of the same archive.

An archive is never unpacked: its headers are listed once, and a worker copies the bytes of one video at a time to the
folder of temporary files, by position. A name that several archives have gets that of its archive in front.
Source of the convention: https://github.com/webdataset/webdataset.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from videogen_jax.data import image_io, json_files, text_files
from videogen_jax.data.annotations import Annotations
from videogen_jax.packing import media_files, sidecars, sources
from videogen_jax.packing.sidecars import SidecarError
from videogen_jax.packing.sources import Source
from videogen_jax.packing.tables import CAPTION_COLUMNS

SUFFIX = ".tar"
COPIES = ".members"  # suffix of the folders that workers copy files of archives to
CAPTION_SUFFIXES = (".txt", ".json")
MAX_NAME_BYTES = 255  # of a file
MAX_HEADER_BYTES = 2**24  # of a long name or of attributes
CHUNK = 2**22
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class ArchiveError(ValueError):
    """A member of an archive cannot be read; the message is the reason why."""


class _Member(NamedTuple):
    """A file in an archive."""

    path: str
    offset: int  # of its first byte
    num_bytes: int

    @property
    def name(self) -> str:
        """The name without the folder."""
        return self.path.rpartition("/")[2]


class _Sample(NamedTuple):
    """Files whose paths differ in their suffixes alone."""

    media: list[_Member]  # videos and images
    captions: dict[str, _Member]  # suffix -> text


def list_archives(
    archives: Sequence[str],
    folder: pathlib.Path,
    *,
    keys: Sequence[str] = (),
    images: bool,
    follow_links: bool,
    max_caption_bytes: int,
) -> tuple[list[Source], dict[str, str]]:
    """Finds the captioned videos and images in tar archives.

    Args:
      archives: their paths within the folder.
      folder: folder that they are in.
      keys: of `name.json`, whose values are captions; none: "captions" as `sidecars` reads them, else that of
        CAPTION_COLUMNS that is there.
      images: as for `sources.list_sources`.
      follow_links: as for `sources.list_sources`.
      max_caption_bytes: as for `sources.list_sources`.
    Returns:
      (sources, skipped): in packing order, and name -> reason: of archives that are no archives, or damaged, of which
      the files up to there are sources; and of files in them, as "shard-000.tar/name.mp4".
    """
    skipped: dict[str, str] = {}
    found: list[tuple[str, Source]] = []
    for archive in archives:
        path = pathlib.Path(media_files.locate(folder, archive))
        size, reason = media_files.check_file(path, folder, follow_links)
        if reason:
            skipped[archive] = reason
            continue
        with open(path, "rb") as file:
            samples: dict[str, _Sample] = collections.defaultdict(lambda: _Sample([], {}))
            if reason := _read_headers(file, size, archive, samples, skipped):
                skipped[archive] = reason
            for sample in samples.values():
                for member in sample.media:
                    place = f"{archive}/{member.path}"
                    if not images and image_io.is_image(member.path):
                        skipped[place] = media_files.UNWANTED_IMAGE
                        continue
                    try:
                        said = _read_captions(file, member, sample, keys, max_caption_bytes)
                    except SidecarError as error:
                        skipped[place] = str(error)
                        continue
                    found.append((place, _make_source(archive, member, sample, said)))
    return sources.in_order(_with_unique_names(found), skipped), skipped


def _read_headers(file, size, archive, samples, skipped) -> str | None:
    """Adds the files of an archive to `samples`, and those that are not packed to `skipped`.

    Returns:
      Why the archive is not read, or not to its end.
    """
    head = file.read(8)
    for signature, kind in _COMPRESSED.items():
        if head.startswith(signature):
            return f"it is compressed ({kind}), so its files have no positions: decompress it"
    count = 0
    try:
        for info in _iterate(file, size):
            count += 1
            if reason := _add_member(info, samples):
                skipped[f"{archive}/{info.name[:MAX_NAME_BYTES]}"] = reason
    except ArchiveError:
        if not count:
            return "it is no tar archive, or damaged: copy it again"
        return f"it is damaged or breaks off after {count} files, which are packed: copy it again"
    return None


def _iterate(file, size) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of an archive.

    Raises:
      ArchiveError: it is damaged or breaks off; also where `tarfile` takes that for the end.
    """
    bounded = _BoundedFile(file)
    place = -1
    try:
        bounded.seek(0)
        options = {"encoding": "utf-8", "errors": "backslashreplace"}
        with tarfile.open(fileobj=bounded, mode="r:", **options) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # else it would keep them all
                end = info.offset_data + (0 if info.issparse() else info.size)
                if info.size < 0 or tar.offset <= place or (info.isreg() and end > size):
                    raise ArchiveError("a file lies outside the archive")
                place = tar.offset
                yield info
            place = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ArchiveError(str(error)) from None
    file.seek(place)
    end = file.read(tarfile.BLOCKSIZE)
    if end.strip(b"\0") or len(end) % tarfile.BLOCKSIZE:
        raise ArchiveError("a header is damaged")


class _BoundedFile:
    """A file of which headers are read: `tarfile` would read one of any length that an archive claims."""

    def __init__(self, file: BinaryIO):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ArchiveError(f"a header has {size} bytes")
        return self._file.read(size)


def _add_member(info, samples) -> str | None:
    """Adds a file to `samples`; returns why it cannot be packed, None also of a file that is no part of a clip."""
    path = info.name.removeprefix("./")
    parts = path.split("/")
    if info.isdir():
        return None
    if info.name.startswith("/") or ".." in parts:
        return "its path leads out of the archive"
    if not info.isreg() or info.issparse():
        return "it is no regular file, but a link, a device or sparse"
    suffix = pathlib.PurePosixPath(path).suffix.lower()
    if any(part.startswith(".") for part in parts):
        return None
    if suffix not in (*media_files.MEDIA, *CAPTION_SUFFIXES):
        return None
    if len(parts[-1].encode()) > MAX_NAME_BYTES:
        return f"its name is longer than {MAX_NAME_BYTES} bytes"
    member = _Member(path, info.offset_data, info.size)
    sample = samples[media_files.stem(path)]
    known = [*sample.media, *sample.captions.values()]
    if any(other.path == path for other in known) or suffix in sample.captions:
        return "the archive has it twice: the first is packed"
    if suffix in CAPTION_SUFFIXES:
        sample.captions[suffix] = member
    else:
        sample.media.append(member)
    return None


def _read_captions(file, video, sample, keys, max_caption_bytes) -> Annotations:
    """Reads what is said of a video or an image; as `sidecars.read_annotations`, and captions of other programs' JSON.

    Raises:
      SidecarError: there is no caption, or it cannot be used.
    """
    text, listing = (sample.captions.get(suffix) for suffix in CAPTION_SUFFIXES)
    try:
        if listing and (keys or not text):
            content = _read_text(file, listing, sidecars.MAX_JSON_BYTES)
            fields = json_files.parse(listing.name, content, {})
            if "captions" in fields and not keys:
                return sidecars.parse(pathlib.Path(listing.name), content, max_caption_bytes)
            return _choose_captions(listing, fields, keys, max_caption_bytes)
        if listing and "captions" in json_files.parse(
            listing.name, _read_text(file, listing, sidecars.MAX_JSON_BYTES), {}
        ):
            raise SidecarError(
                f"both {text.name} and {listing.name} hold its captions: remove one of them"
            )
        if not text:
            name = media_files.stem(video.name)
            raise SidecarError(f"no caption: {name}.txt is missing in the archive")
        content = _read_text(file, text, max_caption_bytes)
    except (text_files.TextError, json_files.FieldError) as error:
        raise SidecarError(f"the caption {str(error).rstrip('.')}") from error
    return _annotate(sidecars.clean_texts([content], max_caption_bytes))


def _choose_captions(listing, fields: Mapping[str, Any], keys, max_caption_bytes) -> Annotations:
    chosen = keys or [key for key in CAPTION_COLUMNS if key in fields][:1]
    if not chosen or not all(key in fields for key in chosen):
        wanted = " and ".join(keys) or " or ".join(("captions", *CAPTION_COLUMNS))
        raise SidecarError(f"the caption {listing.name} has no field {wanted}")
    cells = [fields[key] for key in chosen]
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    return _annotate(sidecars.clean_texts(texts, max_caption_bytes))


def _annotate(texts) -> Annotations:
    return Annotations(tuple(((0, text),) for text in texts))


def _read_text(file, member, max_bytes) -> str:
    if member.num_bytes > max_bytes:
        raise text_files.TextError(
            f"{member.name} is larger than {max_bytes} bytes: is it a text file?"
        )
    file.seek(member.offset)
    return text_files.decode(member.name, file.read(member.num_bytes))


def _make_source(archive, video, sample, said) -> Source:
    members = [(video.name, video.offset, video.num_bytes)]
    if said.numbers:  # read again by the worker
        listing = sample.captions[".json"]
        name = f"{media_files.stem(video.name)}.json"
        members.append((name, listing.offset, listing.num_bytes))
    return Source(
        video.path,
        said.captions,
        sources.hash_name(media_files.stem(video.path)),
        video.num_bytes,
        episode=said.episode,
        numbers=sidecars.hash_numbers(said.numbers),
        container=archive,
        members=tuple(members),
    )


def _with_unique_names(found: Sequence[tuple[str, Source]]) -> Iterator[Source]:
    """Yields the sources; those whose name several archives have are named after their places."""
    names = collections.Counter(source.name for _, source in found)
    for place, source in found:
        if names[source.name] > 1:
            key = sources.hash_name(media_files.stem(place))
            source = dataclasses.replace(source, name=place, order_key=key)
        yield source


def without_vanished(
    folder, found: Sequence[Source], skipped: Mapping[str, str]
) -> tuple[list[Source], dict[str, str]]:
    """Leaves out the archives that have vanished, as `sources.without_vanished`.

    Returns:
      (sources, skipped) as `list_archives` would return them now.
    """
    kept, rest, exists = sources.split_vanished(folder, found, skipped)

    def archive_of(name):
        place = pathlib.PurePosixPath(name)
        places = [place, *place.parents]
        return next((str(one) for one in places if one.suffix.lower() == SUFFIX), name)

    return kept, {name: reason for name, reason in rest.items() if exists(archive_of(name))}


def copies_folder(work: str | os.PathLike, name: str) -> str:
    """Returns the folder that a worker copies the files of a source to.

    It is hidden, so that a listing ignores it where the folder of the data set is in the input folder.

    Args:
      work: folder of temporary files.
      name: of the source, different for all that are read at the same time.
    """
    return os.path.join(work, f".{name}{COPIES}")


@contextlib.contextmanager
def copy_members(
    archive: str, members: Sequence[tuple[str, int, int]], folder: str
) -> Iterator[str]:
    """Copies the files of a source out of an archive, for as long as the block lasts.

    Args:
      archive: path of the archive.
      members: (name, first byte, bytes) of each file, as in `Source`.
      folder: folder for them, which is made and removed.
    Yields:
      The path of the first one.
    Raises:
      ArchiveError: the archive has become shorter.
      OSError: it cannot be read, or the disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with open(archive, "rb") as file:
            os.makedirs(folder)
            for name, offset, size in members:
                file.seek(offset)
                with open(os.path.join(folder, name), "wb") as copy:
                    while size and (part := file.read(min(size, CHUNK))):
                        copy.write(part)
                        size -= len(part)
                if size:
                    raise ArchiveError("its archive has become shorter since it was listed")
        yield os.path.join(folder, members[0][0])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
