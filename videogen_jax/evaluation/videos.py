"""What a video to score is."""

import numpy as np


def check_video(video: np.ndarray) -> np.ndarray:
    """Refuses what is no video.

    Args:
      video: (T, H, W, 3) uint8, T >= 1.
    Returns:
      The same.
    Raises:
      ValueError: says what it is instead.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
        raise ValueError(
            f"A video to score has shape (T, H, W, 3) and dtype uint8, not {video.shape} {video.dtype}: convert it "
            "first."
        )
    return video
