"""How near reconstructions come to their videos: PSNR and SSIM.

    PSNR = 10 log10(L^2 / mean (x - y)^2)                     over all pixels and colours of a video
    SSIM = mean of  (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2))
           C1 = (0.01 L)^2, C2 = (0.03 L)^2

L is the range, 255 of bytes. The moments of SSIM are those under a Gaussian window of 11 x 11 pixels, deviation 1.5, of
weights that sum to 1; it is taken of luma (ITU-R BT.601, not rounded) where the whole window lies in the frame, and its
mean is over places and frames.

Source: Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 13(4), 2004.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from videogen_jax.data.records import LUMA
from videogen_jax.evaluation.videos import check_video

LEAST_ERROR = 1e-12  # mean squared, of L^2: equal videos have a PSNR of 120 dB
WINDOW = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
WINDOW /= WINDOW.sum()
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Nearness(NamedTuple):
    """How near each of N reconstructions comes to its video."""

    psnr: np.ndarray  # (N,) float64, dB
    ssim: np.ndarray  # (N,) float64, 1 of equal videos


def score_reconstructions(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Nearness:
    """Computes PSNR and SSIM of videos in pairs.

    Args:
      pairs: (video, reconstruction), both (T, H, W, 3) uint8 with sides of 11 pixels or more, taken one by one.
    Returns:
      The scores.
    Raises:
      ValueError: the two of a pair are of different shapes, or smaller than SSIM's window.
    """
    scores = []
    for index, (video, made) in enumerate(pairs):
        if check_video(video).shape != check_video(made).shape:
            raise ValueError(
                f"Pair {index} is of {video.shape} and {made.shape}: PSNR and SSIM compare videos of one shape."
            )
        if min(video.shape[1:3]) < len(WINDOW):
            raise ValueError(
                f"Pair {index} has frames of {video.shape[1]}x{video.shape[2]} pixels: SSIM wants sides of "
                f"{len(WINDOW)} or more."
            )
        similarity = np.mean([ssim(*frames) for frames in zip(video, made, strict=True)])
        scores.append((psnr(video[None].astype(np.float64), made[None], 255)[0], similarity))
    columns = np.array(scores, np.float64).reshape(-1, 2).T
    return Nearness(*columns)


def psnr(video: Any, made: Any, span: float) -> Any:
    """Computes the peak signal-to-noise ratio of each video.

    Args:
      video: (B, ...) of a float type, NumPy or JAX.
      made: the same shape.
      span: L, the largest value that there may be less the smallest.
    Returns:
      (B,) dB, of the same kind; at most 120.
    """
    space = video.__array_namespace__()  # numpy, or jax.numpy inside a jitted function
    error = space.mean(space.square(video - made), axis=tuple(range(1, video.ndim)))
    return -10 * space.log10(space.maximum(error / span**2, LEAST_ERROR))


def ssim(frame: np.ndarray, made: np.ndarray) -> float:
    """Computes the structural similarity of two frames.

    Args:
      frame: (H, W, 3) uint8, H and W at least 11.
      made: the same shape.
    Returns:
      The mean over places.
    """
    x, y = (picture.astype(np.float64) @ LUMA for picture in (frame, made))  # (H, W)
    mx, my, xx, yy, xy = _average(np.stack([x, y, x * x, y * y, x * y]))  # (H - 10, W - 10)
    sx2, sy2, sxy = xx - mx * mx, yy - my * my, xy - mx * my
    places = (2 * mx * my + C1) * (2 * sxy + C2)
    places /= (mx * mx + my * my + C1) * (sx2 + sy2 + C2)
    return float(places.mean())


def _average(maps: np.ndarray) -> np.ndarray:
    """(N, H, W) under the window, (N, H - 10, W - 10): it is the product of two lines."""
    for axis in (1, 2):
        maps = sliding_window_view(maps, len(WINDOW), axis) @ WINDOW
    return maps
