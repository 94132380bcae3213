"""Near-duplicates among videos and images, by perceptual hashes of three frames.

A video is described by its frames at 1/6, 1/2 and 5/6 of its length, the middles of three equal parts, and an image by
itself three times. Each frame gives 64 bits, the usual pHash (luma at 32x32 pixels, its two-dimensional DCT, the 8x8
lowest frequencies, each compared with their median), and its mean colour. The distance of two videos is the largest of
the three Hamming distances. They are near-duplicates if

- their distance is at most --duplicate_distance,
- each mean colour channel differs by at most COLOUR_TOLERANCE, because the hash sees luma alone, and
- their lengths differ by at most LENGTH_TOLERANCE, because frames of videos that hardly move are alike at any time.

In the order of their names, each is compared with those that were kept before it, and left out if it is a
near-duplicate of one. So the decision depends on the set of files alone.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

DISTANCE = 8  # bits of 64; half of the bits are set, so two hashes differ in an even number
FRAMES = 3  # of a video, in the middles of equal parts: away from titles and fades at its ends
COLOUR_TOLERANCE = 16  # of 255
LENGTH_TOLERANCE = 0.1  # in log(seconds): 10 %
_SIDE, _LOW = 32, 8  # pixels; frequencies
_ROWS, _COLUMNS = 1024, 8192  # pairs that are compared at once


class Signature(NamedTuple):
    """What is compared of a video or an image."""

    height: int  # pixels
    width: int  # pixels
    seconds: float  # length; 0 for an image
    hashes: list[str]  # hexadecimal, of each of the three frames
    colours: list[list[int]]  # mean (red, green, blue), 0 to 255, of each of the three frames


class Duplicate(NamedTuple):
    """A file that is left out."""

    kept: str  # name of the file that it resembles
    dropped: str  # its name
    distance: int  # bits


def sign_frames(frames: Sequence[np.ndarray], seconds: float) -> Signature:
    """Describes a video of some seconds by its frames (H, W, 3) uint8 RGB in the middles of equal parts."""
    height, width = frames[0].shape[:2]
    hashes = [f"{hash_picture(frame):016x}" for frame in frames]
    return Signature(height, width, seconds, hashes, [_mean_colour(frame) for frame in frames])


def hash_picture(frame: np.ndarray) -> int:
    """Computes the pHash of a picture, as the package ImageHash does.

    Args:
      frame: (H, W, 3) uint8 RGB.
    Returns:
      64 bits, the first row's first frequency the highest: whether the coefficient exceeds the median of all 64.
    """
    luma = Image.fromarray(frame).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    waves = _cosines()
    low = waves @ np.asarray(luma, np.float64) @ waves.T  # (8, 8)
    bits = (low > np.median(low)).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _cosines() -> np.ndarray:
    """Returns the (8, 32) lowest waves of the DCT-II."""
    places = np.arange(_SIDE) + 0.5
    return np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW), places))


def _mean_colour(frame) -> list[int]:
    small = Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64).mean(axis=(0, 1)).round().astype(int).tolist()


def find_duplicates(
    names: Sequence[str], signatures: Sequence[Signature], distance: int = DISTANCE
) -> list[Duplicate]:
    """Finds the files to leave out, by the rule in this module's docstring.

    All pairs are compared in NumPy, which takes about 20 s of processor time for 100,000 videos and four times as long
    for twice as many.

    Args:
      names: of the files, in any order.
      signatures: of each.
      distance: of near-duplicates, at most.
    Returns:
      The files to leave out, by name.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    table = _Table([signatures[index] for index in order], distance)
    kept = np.zeros(0, np.int64)
    found = []
    for begin in range(0, len(order), _ROWS):
        block = np.arange(begin, min(begin + _ROWS, len(order)))
        match: dict[int, tuple[int, int]] = {}  # row -> (first row that it resembles, distance)
        for start in range(0, len(kept), _COLUMNS):
            rows = block[[row not in match for row in block.tolist()]]
            for row, other, bits in table.compare(rows, kept[start : start + _COLUMNS]):
                match.setdefault(row, (other, bits))
        rows = block[[row not in match for row in block.tolist()]]
        for row, other, bits in table.compare(rows, rows):
            if other < row and row not in match and other not in match:
                match[row] = (other, bits)
        found += [(other, row, bits) for row, (other, bits) in sorted(match.items())]
        kept = np.append(kept, block[[row not in match for row in block.tolist()]])
    named = [names[index] for index in order]
    return [Duplicate(named[other], named[row], bits) for other, row, bits in found]


class _Table:
    """The signatures as arrays."""

    def __init__(self, signatures, distance):
        self._distance = distance
        hashes = [[int(text, 16) for text in s.hashes] for s in signatures]
        self._hashes = np.asarray(hashes, np.uint64).reshape(-1, FRAMES)
        self._colours = np.asarray([s.colours for s in signatures], np.int16)
        self._lengths = np.asarray([math.log(s.seconds) if s.seconds else -1e3 for s in signatures])

    def compare(self, rows: np.ndarray, columns: np.ndarray) -> list[tuple[int, int, int]]:
        """Returns (row, column, distance) of all near-duplicates, by row, then by column."""
        middle = FRAMES // 2
        first = self._hashes[rows, middle][:, None] ^ self._hashes[columns, middle]
        places = np.nonzero(np.bitwise_count(first) <= self._distance)
        rows, columns = rows[places[0]], columns[places[1]]
        bits = np.bitwise_count(self._hashes[rows] ^ self._hashes[columns]).max(axis=1, initial=0)
        colours = np.abs(self._colours[rows] - self._colours[columns]).max(axis=(1, 2), initial=0)
        lengths = np.abs(self._lengths[rows] - self._lengths[columns])
        near = (bits <= self._distance) & (colours <= COLOUR_TOLERANCE)
        near &= lengths <= LENGTH_TOLERANCE
        return list(
            zip(rows[near].tolist(), columns[near].tolist(), bits[near].tolist(), strict=True)
        )
