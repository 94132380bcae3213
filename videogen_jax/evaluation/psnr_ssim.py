"""PSNR and SSIM of reconstructions.

    PSNR = 10 log10(L^2 / mean (x - y)^2)                     over all pixels and channels of a video
    SSIM = mean of  (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2))
           C1 = (0.01 L)^2, C2 = (0.03 L)^2

L is the range of values, 255 for bytes. SSIM is computed on luma (ITU-R BT.601, not rounded), with moments under a
normalised Gaussian window of 11 x 11 pixels and standard deviation 1.5, at the positions where the window is inside the
frame, and averaged over positions and frames.

Source: Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 13(4), 2004.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from videogen_jax.data.records import LUMA
from videogen_jax.evaluation.videos import check_video

MIN_ERROR = 1e-12  # mean squared error over L^2: equal videos have a PSNR of 120 dB
WINDOW = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
WINDOW /= WINDOW.sum()
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class ReconstructionScores(NamedTuple):
    """Scores of N reconstructions."""

    psnr: np.ndarray  # (N,) float64, dB
    ssim: np.ndarray  # (N,) float64, 1 for equal videos


def score_reconstructions(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
) -> ReconstructionScores:
    """Computes PSNR and SSIM of pairs of videos.

    Args:
      pairs: iterable of (video, reconstruction), both (T, H, W, 3) uint8 with H and W at least 11.
    Raises:
      ValueError: the shapes of a pair differ, or its frames are smaller than SSIM's window.
    """
    scores = []
    for index, (video, reconstruction) in enumerate(pairs):
        if check_video(video).shape != check_video(reconstruction).shape:
            raise ValueError(
                f"Pair {index} has shapes {video.shape} and {reconstruction.shape}: PSNR and SSIM need equal shapes."
            )
        if min(video.shape[1:3]) < len(WINDOW):
            raise ValueError(
                f"Pair {index} has frames of {video.shape[1]}x{video.shape[2]} pixels: SSIM needs sides of "
                f"{len(WINDOW)} or more."
            )
        similarity = np.mean([ssim(*frames) for frames in zip(video, reconstruction, strict=True)])
        scores.append(
            (psnr(video[None].astype(np.float64), reconstruction[None], 255)[0], similarity)
        )
    columns = np.array(scores, np.float64).reshape(-1, 2).T
    return ReconstructionScores(*columns)


def psnr(video: Any, reconstruction: Any, span: float) -> Any:
    """Computes the peak signal-to-noise ratio of each video.

    Args:
      video: (B, ...) float, NumPy or JAX.
      reconstruction: the same shape.
      span: L, the largest possible value minus the smallest.
    Returns:
      (B,) dB, NumPy or JAX like the input; at most 120.
    """
    xp = video.__array_namespace__()  # numpy, or jax.numpy inside a jitted function
    error = xp.mean(xp.square(video - reconstruction), axis=tuple(range(1, video.ndim)))
    return to_decibels(error, span)


def to_decibels(error: Any, span: float) -> Any:
    """The PSNR of mean squared errors.

    Args:
      error: (B,) float, NumPy or JAX.
      span: L, the largest possible value minus the smallest.
    Returns:
      (B,) dB, NumPy or JAX like the input; at most 120.
    """
    xp = error.__array_namespace__()
    return -10 * xp.log10(xp.maximum(error / span**2, MIN_ERROR))


def ssim(frame: np.ndarray, reconstruction: np.ndarray) -> float:
    """Computes the structural similarity of two frames, (H, W, 3) uint8 with H and W at least 11."""
    x, y = (picture.astype(np.float64) @ LUMA for picture in (frame, reconstruction))  # (H, W)
    mx, my, xx, yy, xy = _average(np.stack([x, y, x * x, y * y, x * y]))  # (H - 10, W - 10)
    sx2, sy2, sxy = xx - mx * mx, yy - my * my, xy - mx * my
    similarity = (2 * mx * my + C1) * (2 * sxy + C2)
    similarity /= (mx * mx + my * my + C1) * (sx2 + sy2 + C2)
    return float(similarity.mean())


def _average(maps: np.ndarray) -> np.ndarray:
    """Filters (N, H, W) with the separable Gaussian window, to (N, H - 10, W - 10)."""
    for axis in (1, 2):
        maps = sliding_window_view(maps, len(WINDOW), axis) @ WINDOW
    return maps
