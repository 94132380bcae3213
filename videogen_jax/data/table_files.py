"""Tables row by row, whatever their size: CSV, TSV, JSON Lines and Parquet.

CSV follows RFC 4180: a header, commas (TSV: tabs), fields in double quotes where they hold a comma, a quote (written
twice) or an end of line. A line of JSON Lines is one mapping; those of the first line are its columns. All text is
UTF-8, as `text_files` reads it.
"""

import csv
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from videogen_jax.data import json_files, text_files

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_FIELD_BYTES = text_files.MAX_LINE_BYTES
PARQUET_ROWS = 4096  # read at once

Rows = Iterator[tuple[str, list[Any] | str]]


class TableError(ValueError):
    """A table cannot be read; the message names it, and the line where there is one."""


def is_table(path) -> bool:
    """Says by its suffix whether a file is taken for a table."""
    return pathlib.PurePath(path).suffix.lower() in SUFFIXES


def read_columns(path) -> list[str]:
    """Reads the names of the columns.

    Args:
      path: a file with one of SUFFIXES.
    Raises:
      TableError: it is empty, damaged, not of its suffix's format, or names a column twice.
      OSError: it cannot be opened or read.
    """
    suffix = pathlib.PurePath(path).suffix.lower()
    if suffix == ".parquet":
        names = list(_open_parquet(path).schema_arrow.names)
    elif suffix == ".jsonl":
        _, content = next(_read_json_lines(path), (None, {}))
        names = list(content)
    else:
        _, names = next(_read_csv(path), (None, []))
    if not names:
        raise TableError(f"{path} has no column: is it a table?")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TableError(f"{path} has the column {twice[0]!r} twice: rename one.")
    return names


def read_rows(path, columns: Sequence[str]) -> Rows:
    """Reads some columns of a table.

    Args:
      path: a file with one of SUFFIXES.
      columns: names from `read_columns`.
    Yields:
      (place, values): where the row is, such as "line 3", and the values of the columns: text in CSV; text, numbers,
      lists, mappings and None elsewhere. Instead of the values, the reason why the row cannot be used.
    Raises:
      TableError, OSError: as `read_columns`.
    """
    suffix = pathlib.PurePath(path).suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    elif suffix == ".jsonl":
        for place, content in _read_json_lines(path):
            yield place, [content.get(name) for name in columns]
    else:
        yield from _csv_rows(path, columns)


def _csv_rows(path, columns) -> Rows:
    rows = _read_csv(path)
    _, header = next(rows)
    chosen = [header.index(name) for name in columns]
    for place, fields in rows:
        if len(fields) == len(header):
            yield place, [fields[index] for index in chosen]
        else:
            yield place, f"it has {len(fields)} fields, but the header has {len(header)}"


def _read_csv(path) -> Iterator[tuple[str, list[str]]]:
    """Yields (place, fields) of the header and of each row that is not blank."""
    delimiter = "\t" if pathlib.PurePath(path).suffix.lower() == ".tsv" else ","
    lines = _convert_errors(text_files.iterate_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    limit, first = csv.field_size_limit(MAX_FIELD_BYTES), 1
    try:
        for fields in reader:
            if fields:
                yield f"line {first}", fields
            first = reader.line_num + 1
    except csv.Error as error:
        unclosed = any(word in str(error) for word in ("limit", "unexpected end"))
        raise TableError(
            f"{path} is damaged from line {first} on ("
            f"{'a quote opens there that none closes' if unclosed else error}): write fields with quotes or line ends "
            "in double quotes, and quotes in them twice."
        ) from None
    finally:
        csv.field_size_limit(limit)


def _read_json_lines(path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_convert_errors(text_files.iterate_lines(path)), 1):
        if not line.isspace():
            try:
                content = json_files.parse(f"{path}, line {number},", line, {})
            except json_files.FieldError as error:
                raise TableError(str(error)) from None
            yield f"line {number}", content


def _convert_errors(lines):
    try:
        yield from lines
    except text_files.TextError as error:
        raise TableError(str(error)) from None


def _open_parquet(path):
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise TableError(
            f"reading {path} needs pyarrow, which is not installed: pip install 'pyarrow>=15' (the extra 'parquet' of "
            "this package)."
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _parquet_rows(path, columns) -> Rows:
    file = _open_parquet(path)
    import pyarrow as arrow

    number = 0
    try:
        for batch in file.iter_batches(PARQUET_ROWS, columns=list(columns), use_threads=False):
            for values in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                number += 1
                yield f"row {number}", list(values)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _damaged(path, error):
    if isinstance(error, OSError) and error.errno:  # else it is Arrow's
        return error
    text = " ".join(str(error).split())[:200]
    return TableError(f"{path} is damaged or no Parquet file ({text}): copy it again.")
