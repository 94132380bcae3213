"""Clips listed in tables: a row is a video or a part of one, with its captions.

The path of a row is that of a file within a folder. Rows of one clip, equal in path and seconds, are one clip of
several captions. All clips of a video are in one split, that of the video's name; a clip's own name, such as
"a/film.mp4[12.5-20]", determines its place, so that neighbours are of different videos.
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from videogen_jax.data import image_io, table_files, video_io
from videogen_jax.data.video_spans import WHOLE, Span
from videogen_jax.packing import media_files, sidecars, sources, table_cells
from videogen_jax.packing.sidecars import SidecarError
from videogen_jax.packing.sources import Source
from videogen_jax.paths import local_path

# Columns that are taken where no flag names any, the first that is there.
PATH_COLUMNS = ("file_name", "video_file_name", "video", "path")
CAPTION_COLUMNS = ("text", "caption")

MISSING = "there is no such file"
NO_VIDEO = f"its suffix is none of {', '.join(media_files.MEDIA)}"
LEADS_OUT = "its path leads out of the folder of the videos: pack with --follow_links to read it"
UNNAMED = "no usable row of metadata names it"
MAX_PATH_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the clips; empty: the first there of those above, or none."""

    path: str = ""
    captions: tuple[str, ...] = ()
    start: str = ""  # seconds, or [hours:]minutes:seconds
    end: str = ""
    times: str = ""  # a list of [start, end]; the captions are lists of as many

    def by_flag(self) -> dict[str, tuple[str, ...]]:
        """Those that are named, by their flags."""
        named = {
            "path_column": (self.path,),
            "caption_column": self.captions,
            "start_column": (self.start,),
            "end_column": (self.end,),
            "times_column": (self.times,),
        }
        return {flag: names for flag, names in named.items() if any(names)}

    def to_json(self) -> dict[str, str]:
        """The values of their flags, as far as they are named."""
        return {flag: ",".join(names) for flag, names in self.by_flag().items()}


USUAL = Columns()


class Table(NamedTuple):
    """A table file."""

    path: pathlib.Path
    name: str  # in messages and the report
    prefix: str = ""  # folder that its paths begin in, within the folder of the videos


class _Row(NamedTuple):
    """What a row of a table says; cells as the table has them."""

    file: Any
    captions: list[Any]
    start: Any
    end: Any
    times: Any


def list_tables(
    tables: Sequence[Table],
    folder: pathlib.Path,
    columns: Columns,
    *,
    images: bool,
    follow_links: bool,
    max_caption_bytes: int,
) -> tuple[list[Source], dict[str, str]]:
    """Finds the clips that tables list.

    Args:
      tables: the tables.
      folder: folder that their paths begin in.
      columns: names of their columns.
      images: as for `sources.list_sources`.
      follow_links: as for `sources.list_sources`.
      max_caption_bytes: as for `sources.list_sources`.
    Returns:
      (sources, skipped): in packing order, and name -> reason: of files that are missing or cannot be used, and of
      rows, as "clips.csv line 3".
    Raises:
      ValueError: a table cannot be read, has no such columns, or names addresses instead of files.
    """
    files = _Files(folder, images, follow_links)
    found: dict[str, Source] = {}
    skipped: dict[str, str] = {}
    for table in tables:
        for place, row in _read_rows(table, columns):
            where = f"{table.name} {place}"
            try:
                if isinstance(row, str):
                    raise SidecarError(row)
                if (file := files.find(row.file, table, where)) is None:
                    continue
                for span, texts in _read_clips(row):
                    source = _make_source(file, span, texts, max_caption_bytes)
                    found[source.name] = _merge(found.get(source.name), source, max_caption_bytes)
            except SidecarError as error:
                skipped[where] = str(error)
    skipped |= files.unusable()
    return sources.in_order(found.values(), {}), skipped


def choose_columns(table: Table, columns: Columns) -> Columns:
    """Fills in the columns that are not named, of those that the table has.

    Raises:
      ValueError: a column is missing; the message lists those there.
    """
    present = table_files.read_columns(table.path)
    listed = ", ".join(present[:40]) + (", ..." if len(present) > 40 else "")
    for flag, names in columns.by_flag().items():
        for name in names:
            if name not in present:
                raise ValueError(f"{table.path} has no column {name!r} (--{flag}), only {listed}.")
    path = columns.path or _first(PATH_COLUMNS, present)
    captions = columns.captions or (_first(CAPTION_COLUMNS, present),)
    for name, usual, flag in (
        (path, PATH_COLUMNS, "path_column"),
        (captions[0], CAPTION_COLUMNS, "caption_column"),
    ):
        if not name:
            raise ValueError(
                f"{table.path} has no column {' or '.join(usual)}, only {listed}: name one with --{flag}."
            )
    return dataclasses.replace(columns, path=path, captions=captions)


def _first(names, present):
    return next((name for name in names if name in present), "")


def _read_rows(table, columns) -> Iterator[tuple[str, _Row | str]]:
    """Yields (place, what the row says, or the reason why it cannot be used)."""
    chosen = choose_columns(table, columns)
    extra = [name for name in (chosen.start, chosen.end, chosen.times) if name]
    for place, values in table_files.read_rows(table.path, [chosen.path, *chosen.captions, *extra]):
        if isinstance(values, str):
            yield place, values
            continue
        file, *rest = values
        captions, cells = rest[: len(chosen.captions)], iter(rest[len(chosen.captions) :])
        start, end, times = (
            next(cells) if name else None for name in (chosen.start, chosen.end, chosen.times)
        )
        if chosen.times and times is None:
            yield place, "its list of times is empty"
            continue
        yield place, _Row(file, captions, start, end, times)


def _read_clips(row: _Row) -> list[tuple[Span, list[Any]]]:
    """Returns the clips of a row: the seconds and the captions of each."""
    if row.times is not None:
        return table_cells.parse_clips(row.times, row.captions)
    texts = [text for cell in row.captions for text in (cell if isinstance(cell, list) else [cell])]
    return [(table_cells.parse_span(row.start, row.end), texts)]


def _make_source(file, span, texts, max_caption_bytes) -> Source:
    name, num_bytes = file
    texts = sidecars.clean_texts(texts, max_caption_bytes)
    captions = tuple(((0, text),) for text in texts)
    if span == WHOLE:
        key = sources.hash_name(media_files.stem(name))  # as of the same file in a folder
        return Source(name, captions, key, num_bytes)
    if image_io.is_image(name):
        raise SidecarError("it names seconds of an image")
    part = f"{name}[{_show_seconds(span.start)}-{_show_seconds(span.end)}]"
    key = sources.hash_name(part)
    return Source(part, captions, key, num_bytes, container=name, start=span.start, end=span.end)


def _show_seconds(seconds):
    return "" if seconds is None else f"{seconds:.6f}".rstrip("0").rstrip(".")


def _merge(before: Source | None, source: Source, max_caption_bytes) -> Source:
    """Adds the captions of a row to those of earlier rows of the same clip."""
    if before is None:
        return source
    texts = sidecars.clean_texts(before.texts + source.texts, max_caption_bytes)
    if texts == before.texts:
        raise SidecarError("it repeats an earlier row")
    return dataclasses.replace(before, captions=tuple(((0, text),) for text in texts))


class _Files:
    """The video files that rows name; each is looked at once, whatever its rows."""

    def __init__(self, folder, images, follow_links):
        self._folder = pathlib.Path(os.path.abspath(folder))
        self._root = os.path.realpath(folder)
        self._images, self._follow_links = images, follow_links
        self._known: dict[tuple[str, str], tuple[str, int, str | None]] = {}
        self._rows: collections.Counter[tuple[str, str]] = collections.Counter()
        self._is_outside = functools.cache(self._leads_out)

    def find(self, cell: Any, table: Table, where: str) -> tuple[str, int] | None:
        """Returns (name within the folder, bytes) of a file, or None if it cannot be used, which `unusable` tells.

        Raises:
          SidecarError: the cell is no path.
          ValueError: it is an address.
        """
        if not isinstance(cell, str) or not cell.strip():
            raise SidecarError("it names no file")
        key = table.prefix, cell
        if key not in self._known:
            if "://" in cell:
                local_path(cell, f"the file of {where}")
            self._known[key] = self._look(cell.strip(), table.prefix)
        name, num_bytes, reason = self._known[key]
        if reason is None:
            return name, num_bytes
        self._rows[name, reason] += 1
        return None

    def unusable(self) -> dict[str, str]:
        """Name -> reason, with the number of rows, of the files that rows name in vain."""
        return {
            name: reason
            if rows == 1 or reason == media_files.UNWANTED_IMAGE
            else f"{reason} ({rows} rows)"
            for (name, reason), rows in self._rows.items()
        }

    def _look(self, text, prefix) -> tuple[str, int, str | None]:
        """Returns (name, bytes, None), or (name, 0, the reason why the file cannot be used)."""
        try:
            os.fsencode(text.encode().decode())
        except UnicodeEncodeError:  # half of a pair that "\ud83d\ude00" in JSON stands for
            return ascii(text), 0, "its path is no Unicode text"
        name = os.path.normpath(os.path.join(prefix, text))
        name = name.removeprefix(f"{self._folder}{os.sep}").replace(os.sep, "/")
        if "\0" in name or len(name.encode()) > MAX_PATH_BYTES:
            return name[:100], 0, "its path is none"
        if not self._follow_links and (os.path.isabs(name) or name.split("/")[0] == ".."):
            return name, 0, LEADS_OUT
        if pathlib.PurePosixPath(name).suffix.lower() not in media_files.MEDIA:  # an identifier
            found = (name + suffix for suffix in video_io.SUFFIXES)
            found = (one for one in found if os.path.lexists(media_files.locate(self._folder, one)))
            if not (video := next(found, "")):
                other = os.path.isfile(media_files.locate(self._folder, name))
                return text, 0, NO_VIDEO if other else f"{MISSING}, nor one with a suffix of videos"
            name = video
        if not self._images and image_io.is_image(name):
            return name, 0, media_files.UNWANTED_IMAGE
        path = pathlib.Path(media_files.locate(self._folder, name))
        if not self._follow_links and self._is_outside(path.parent):
            return name, 0, LEADS_OUT
        num_bytes, reason = media_files.check_status(path, self._folder, self._follow_links)
        return name, num_bytes, MISSING if reason == media_files.VANISHED else reason

    def _leads_out(self, parent) -> bool:
        """Whether links lead from a folder within the folder of the videos to one outside."""
        return os.path.commonpath([self._root, os.path.realpath(parent)]) != self._root


def without_vanished(
    folder, found: Sequence[Source], skipped: Mapping[str, str]
) -> tuple[list[Source], dict[str, str]]:
    """Leaves out the files that have vanished, as `sources.without_vanished`, which rows then name in vain.

    Returns:
      (sources, skipped) as `list_tables` would return them now.
    """
    kept, rest, exists = sources.split_vanished(folder, found, skipped)
    rest = {name: why for name, why in rest.items() if why != UNNAMED or exists(name)}
    files = {source.file for source in found} - {source.file for source in kept}
    return kept, rest | {file: MISSING for file in files}
