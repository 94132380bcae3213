"""One rule for the text files that users write: captions, prompts, schedules of prompts, tables.

The text is UTF-8, with or without a byte order mark. UTF-16, Latin-1 and files with NUL bytes are refused instead of
being read as wrong letters. Only LF and CR LF end a line; str.splitlines would also break at U+0085 and others.
"""

import codecs
import os
import pathlib
import stat
from collections.abc import Iterator

MAX_BYTES = 64 * 2**20  # of a file of prompts; captions have a lower bound
MAX_LINE_BYTES = 2**24  # of a file that is read line by line, whatever its size


class TextError(ValueError):
    """A text file cannot be used; the message begins with its path."""


def read_text(path, max_bytes: int = MAX_BYTES) -> str:
    """Reads a UTF-8 file without its byte order mark.

    Args:
      path: path of a regular file, or of a link to one.
      max_bytes: size above which the file is refused; no more than that is read.
    Returns:
      The text, with its line ends unchanged.
    Raises:
      TextError: the file is not a regular one, is too large, or is not UTF-8 text.
      OSError: it cannot be opened or read.
    """
    return decode(path, _read_bytes(path, max_bytes))


def read_lines(path, max_bytes: int = MAX_BYTES) -> list[str]:
    """Reads the lines of a UTF-8 file, without their ends (LF or CR LF); arguments and errors as `read_text`."""
    return split_lines(read_text(path, max_bytes))


def split_lines(text: str) -> list[str]:
    """Splits a text at LF and CR LF only; the end of the last line may be missing."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def iterate_lines(path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[str]:
    """Reads a UTF-8 file of any size line by line.

    Args:
      path: path of a regular file, or of a link to one.
      max_bytes: of a line; a longer one is refused, and no more than that is read.
    Yields:
      The lines, with their ends unchanged and without the byte order mark.
    Raises:
      TextError, OSError: as `read_text`; the message names the line, from 1.
    """
    _check_regular(path)
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(max_bytes + 1):
            number += 1
            where = f"{path}, line {number},"
            if len(line) > max_bytes:
                raise TextError(f"{where} is longer than {max_bytes} bytes: is it a text file?")
            yield decode(where, line)


def _check_regular(path):
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for a writer
        raise TextError(f"{path} is not a regular file: save the text in one.")


def _read_bytes(path, max_bytes):
    _check_regular(path)
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TextError(f"{path} is larger than {max_bytes} bytes: is it a text file?")
    return content


def decode(path, content: bytes) -> str:
    """Decodes what was read from a file; result and errors as `read_text`."""
    path = pathlib.Path(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TextError(f"{path} is UTF-16 text: save it as UTF-8.")
    if (
        b"\0" in content
    ):  # the letters of UTF-16 without a byte order mark are valid UTF-8 with NULs between
        position = content.index(b"\0")
        raise TextError(f"{path} has NUL bytes (byte {position}), as UTF-16 has: save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position, byte = error.start, content[error.start]
        raise TextError(
            f"{path} is not UTF-8 text (byte {position} is 0x{byte:02x}; Latin-1?): save it as UTF-8."
        ) from None
