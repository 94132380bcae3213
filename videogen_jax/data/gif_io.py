"""GIFs in: the blocks of the file, which tell its size and its end, and its frames by Pillow."""

import functools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from videogen_jax.data import image_io

SIGNATURES = (b"GIF87a", b"GIF89a")


def scan(path: pathlib.Path) -> tuple[int, int, bool]:
    """Walks through the blocks of a GIF without decoding them.

    Args:
      path: the file.
    Returns:
      (height, width, whole): of the canvas with all frames on it, and whether the mark of the end was found; what
      stands behind that does not matter.
    """
    with open(path, "rb") as file:
        start = file.read(13)
        if len(start) < 13:
            return 0, 0, False
        width, height = (int.from_bytes(start[i : i + 2], "little") for i in (6, 8))
        _skip_palette(file, start[10])
        while kind := file.read(1):
            if kind == b";":
                return height, width, True
            if kind == b",":
                place = file.read(9)
                if len(place) < 9:
                    break
                left, top, columns, rows = (
                    int.from_bytes(place[i : i + 2], "little") for i in range(0, 8, 2)
                )
                width, height = max(width, left + columns), max(height, top + rows)
                _skip_palette(file, place[8])
                file.read(1)  # size of the codes
            elif kind == b"!":
                file.read(1)  # kind of the extension
            elif kind != b"\0":  # empty blocks are passed over
                break
            else:
                continue
            while (length := file.read(1)) not in (b"", b"\0"):
                file.seek(length[0], 1)
    return height, width, False


def _skip_palette(file, flags):
    if flags & 0x80:
        file.seek(3 * 2 ** ((flags & 7) + 1), 1)


def decode(path: pathlib.Path) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Yields (seconds, function that makes (H, W, 3) uint8 RGB) of the frames, by their durations.

    Raises:
      Exception: of any kind, where the file is damaged; Pillow has no common one.
    """
    seconds = 0.0
    with image_io.open_pictures(path, SIGNATURES) as (_, file):
        for index, rgba in enumerate(file.iter(mode="RGBA", writeable_output=False)):
            yield seconds, functools.partial(image_io.over_white, rgba)
            # Browsers show frames of 0 and 1/100 s for 1/10 s.
            duration = file.metadata(index=index).get("duration", 0)
            seconds += duration / 1000 if duration > 10 else 0.1
