"""What `pack --input` may be, told apart by what is there:

| `--input` | form |
| --- | --- |
| a folder of videos or images | each with its caption in `name.txt` or `name.json` (`sources`) |
| one with `metadata.csv`, `.jsonl` or `.parquet`, also in folders within it | Hugging Face's VideoFolder: `file_name` and `text`, paths from the folder of the metadata (`tables`) |
| a folder without videos, with `.tar` files | WebDataset (`tar_shards`) |
| a `.csv`, `.tsv`, `.jsonl` or `.parquet` file | a table of clips (`tables`) |
| a `.tar` file, or a pattern such as `shard-{000..002}.tar` or `train-*.tar` | WebDataset |

A folder that has both metadata and caption files is refused, because either could be meant.
"""  # noqa: D415, E501

import functools
import glob
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from videogen_jax.data import table_files
from videogen_jax.packing import media_files, sources, tables, tar_shards
from videogen_jax.packing.sources import Listing, Source
from videogen_jax.packing.tables import Columns, Table

METADATA = tuple(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))
MAX_EXPANDED = 100_000  # names that a pattern may stand for
_PATTERN = re.compile(r"[*?{]")


class _Found(NamedTuple):
    """What a folder holds, as paths within it."""

    metadata: list[pathlib.Path]
    archives: list[pathlib.Path]


def list_input(
    given,
    *,
    columns: Columns,
    video_folder: str | None,
    images: bool,
    follow_links: bool,
    max_caption_bytes: int,
) -> Listing:
    """Finds what is to be packed.

    Args:
      given: value of --input.
      columns: names of the columns of a table, or of the keys of captions in archives.
      video_folder: folder that the paths of a table begin in; None: that of the table.
      images: as for `sources.list_sources`.
      follow_links: as for `sources.list_sources`.
      max_caption_bytes: as for `sources.list_sources`.
    Raises:
      ValueError: there is no such input, it has nothing to pack, a table is damaged or lacks a column, or an option
        does not go with the form.
      OSError: it cannot be read.
    """
    options = {
        "images": images,
        "follow_links": follow_links,
        "max_caption_bytes": max_caption_bytes,
    }
    path = pathlib.Path(given)
    if path.is_dir():
        return _list_folder(path, columns, video_folder, options)
    if table_files.is_table(path):
        if not path.exists():
            raise ValueError(f"there is no table {path}: set --input to a table or a folder.")
        return _list_table(path, columns, video_folder, options)
    archives = _expand(os.fspath(given))
    if not archives and (path.suffix.lower() == tar_shards.SUFFIX or _PATTERN.search(str(given))):
        raise ValueError(f"there is no archive {given}: set --input to tar files or a folder.")
    if not archives and path.exists():
        raise ValueError(
            f"{path} is neither a folder, a table ({', '.join(table_files.SUFFIXES)}) nor a .tar archive: set --input "
            "to one of these."
        )
    if not archives:
        raise ValueError(f"there is no folder {path}: set --input to the folder of your videos.")
    folder = pathlib.Path(os.path.commonpath([os.path.dirname(one) or "." for one in archives]))
    names = [os.path.relpath(one, folder) for one in archives]
    return _list_archives(given, folder, names, columns, video_folder, options)


def _list_folder(folder, columns, video_folder, options) -> Listing:
    found = _survey(folder, options["follow_links"])
    if found.metadata or found.archives:
        media, captioned, skipped = _list_media(folder, options["follow_links"])
        if found.archives and not media:
            names = [media_files.shown(path) for path in found.archives]
            return _list_archives(folder, folder, names, columns, video_folder, options)
        if found.metadata:
            return _list_metadata(
                folder, found.metadata, media, captioned, skipped, columns, video_folder, options
            )
    _refuse(columns.by_flag(), video_folder, f"{folder}, whose captions are in files beside videos")
    listed, skipped = sources.list_sources(folder, **options)
    without_vanished = functools.partial(sources.without_vanished, folder)
    return Listing(os.fspath(folder), None, folder, listed, skipped, without_vanished)


def _survey(folder, follow_links) -> _Found:
    """Finds the metadata and the archives of a folder and those within it."""
    suffixes = (*table_files.SUFFIXES, tar_shards.SUFFIX)
    found = [p.relative_to(folder) for p in media_files.walk(folder, follow_links, {}, suffixes)]
    return _Found(
        [path for path in found if path.name in METADATA],
        sorted(path for path in found if path.suffix.lower() == tar_shards.SUFFIX),
    )


def find_metadata(folder: pathlib.Path, follow_links: bool) -> pathlib.Path | None:
    """Returns the path of metadata within a folder, or None; arguments as for `list_input`."""
    return next(iter(_survey(folder, follow_links).metadata), None)


def _list_media(folder, follow_links) -> tuple[set[str], set[str], dict[str, str]]:
    """Returns (names of the videos and images, names without suffix of caption files, skipped folders)."""
    skipped: dict[str, str] = {}
    suffixes = (*media_files.MEDIA, *tar_shards.CAPTION_SUFFIXES)
    media, captioned = set(), set()
    for path in media_files.walk(folder, follow_links, skipped, suffixes):
        name = media_files.shown(path.relative_to(folder))
        if path.suffix.lower() in media_files.MEDIA:
            media.add(name)
        else:
            captioned.add(media_files.stem(name))
    return media, captioned, skipped


def _list_metadata(
    folder, metadata, media, captioned, skipped, columns, video_folder, options
) -> Listing:
    if video_folder:
        raise ValueError(
            f"--video_folder is for a table, but {folder} is a folder with metadata: set --input to "
            f"{folder / metadata[0]}, or leave out --video_folder."
        )
    for path in metadata:
        if others := [one.name for one in metadata if one.parent == path.parent and one != path]:
            raise ValueError(
                f"{folder / path.parent} has {path.name} and {others[0]}: keep one of them."
            )
    if both := min((name for name in media if media_files.stem(name) in captioned), default=None):
        raise ValueError(
            f"{folder} has {metadata[0]} and a caption file beside {both}: move the metadata away to pack the caption "
            f"files, or set --input to {folder / metadata[0]} to pack what it lists."
        )
    listed = [
        Table(folder / path, media_files.shown(path), os.path.dirname(media_files.shown(path)))
        for path in metadata
    ]
    found, reasons = tables.list_tables(listed, folder, columns, **options)
    named = {source.file for source in found} | reasons.keys()
    skipped |= {name: tables.UNNAMED for name in media - named} | reasons
    return _make_listing(folder, folder, found, skipped, tables)


def _list_table(path, columns, video_folder, options) -> Listing:
    folder = pathlib.Path(video_folder or path.parent)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: set --video_folder to that of the videos.")
    found, skipped = tables.list_tables([Table(path, path.name)], folder, columns, **options)
    return _make_listing(path, folder, found, skipped, tables, video_folder)


def _list_archives(given, folder, names, columns, video_folder, options) -> Listing:
    others = {flag: names for flag, names in columns.by_flag().items() if flag != "caption_column"}
    _refuse(others, video_folder, f"{folder}, which holds archives")
    found, skipped = tar_shards.list_archives(names, folder, keys=columns.captions, **options)
    return _make_listing(given, folder, found, skipped, tar_shards)


def _make_listing(
    given, folder, found: Sequence[Source], skipped, form, video_folder=None
) -> Listing:
    """Makes the listing of a table or of archives."""
    if not found:
        name, reason = min(skipped.items(), default=("", ""))
        why = f" ({name}: {reason})" if name else ""
        raise ValueError(
            f"no clip of {given} can be packed{why}: see the forms of --input in docs/data.md."
        )
    without_vanished = functools.partial(form.without_vanished, folder)
    return Listing(os.fspath(given), video_folder, folder, found, skipped, without_vanished)


def _refuse(flags, video_folder, what) -> None:
    """Raises ValueError for options of tables where there is none."""
    names = [*flags, *(["video_folder"] if video_folder else [])]
    if names:
        raise ValueError(f"--{names[0]} is for tables, but --input is {what}: leave it out.")


def _expand(text: str) -> list[str]:
    """Returns the archives that a name or a pattern stands for, in order, each once.

    Raises:
      ValueError: a name that braces stand for does not exist, or they stand for too many.
    """
    found: dict[str, None] = {}
    for number, name in enumerate([text] if os.path.exists(text) else _expand_braces(text)):
        if number >= MAX_EXPANDED:
            raise ValueError(f"--input={text} stands for more than {MAX_EXPANDED} files.")
        wild = re.search(r"[*?]", name) and not os.path.exists(name)
        names = sorted(glob.glob(name.replace("[", "[[]"))) if wild else [name]
        names = [one for one in names if one.lower().endswith(tar_shards.SUFFIX)]
        if name != text and not all(map(os.path.exists, names)):
            raise ValueError(f"there is no archive {name}, which --input={text} stands for.")
        found |= dict.fromkeys(one for one in names if os.path.exists(one))
    return list(found)


def _expand_braces(text: str) -> Iterator[str]:
    """Yields what {000..012} and {a,b} stand for, as a shell expands them."""
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        yield text
        return
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        first, last = map(int, numbers.groups())
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        parts = (f"{number:0{width}d}" for number in range(first, last + 1))
    else:
        parts = iter(match[1].split(","))
    for part in parts:
        yield from _expand_braces(f"{text[: match.start()]}{part}{text[match.end() :]}")
