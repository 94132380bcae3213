"""The eight orientations of a picture, by the EXIF orientation of an image or the display matrix of a video."""

from collections.abc import Sequence

import numpy as np


def from_exif(orientation: int | None) -> tuple[bool, bool, bool]:
    """Returns (transpose, flip rows, flip columns), to be applied in this order, of an EXIF orientation (tag 274)."""
    return orientation in (5, 6, 7, 8), orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def from_display_matrix(matrix: Sequence[int] | None) -> tuple[bool, bool, bool]:
    """Returns (transpose, flip rows, flip columns), to be applied in this order, of a display matrix.

    Args:
      matrix: the nine numbers (a, b, u, c, d, v, x, y, w) of ISO/IEC 14496-12, which show the pixel (p, q), column and
        row, at (a p + c q + x, b p + d q + y). Others than turns by 90 degrees and mirrorings are taken for the nearest
        of these.
    """
    if matrix is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def apply(image: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """Turns and mirrors an image.

    Args:
      image: (H, W, C).
      orientation: (transpose, flip rows, flip columns).
    Returns:
      A view of shape (H, W, C), or (W, H, C) if it is transposed.
    """
    transpose, flip_rows, flip_columns = orientation
    if transpose:
        image = image.swapaxes(0, 1)
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
