"""The array format of videos to score."""

import numpy as np


def check_video(video: np.ndarray) -> np.ndarray:
    """Checks that an array is a video, (T, H, W, 3) uint8 with T >= 1, and returns it.

    Raises:
      ValueError: it has another shape or dtype.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
        raise ValueError(
            f"A video to score has shape (T, H, W, 3) and dtype uint8, not {video.shape} {video.dtype}: convert it "
            "first."
        )
    return video
