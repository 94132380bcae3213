"""Scene cuts, found by PySceneDetect (the extra "scenes") while a video is decoded.

Its AdaptiveDetector compares each frame of the file, at the file's own rate, with the frame before: the mean absolute
difference in hue, saturation and value (0 to 255), at 256 columns. A cut is where this score is at least the threshold
times its mean over the two frames before and the two after, and at least 15. So a fast motion, which scores high in
every frame, is no cut, nor is a fade, which scores low in each. Dissolves are not found.

The first and the last frame are given to the detector two more times, because it finds no cut within two frames of the
ends of what it sees. There a steady motion is twice the mean around it, so that the threshold must be higher than 2.
"""

import bisect
import collections
from collections.abc import Iterable, Iterator

import numpy as np

MIN_THRESHOLD = 2.0  # which it must exceed
THRESHOLD = 3.0  # the default of PySceneDetect, which Open-Sora cuts with too
COLUMNS = 256  # PySceneDetect reduces wider frames to about as many
_WINDOW = 2  # frames on each side that a score is compared with
_PADDING = [None] * _WINDOW


def check_installed() -> None:
    """Raises ValueError if PySceneDetect cannot be imported."""
    try:
        import scenedetect.detectors  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--split_scenes needs PySceneDetect ({error}): pip install 'scenedetect-headless>=0.7', or pack without "
            "the option."
        ) from None


class CutDetector:
    """Finds the cuts of one video, whose frames it takes one after the other."""

    def __init__(self, threshold: float):
        """Starts at the first frame of a video.

        Args:
          threshold: how many times the mean of its neighbours the score of a cut is, at least.
        """
        import cv2
        from scenedetect.detectors import AdaptiveDetector

        cv2.setNumThreads(1)  # there is a worker per CPU already
        self._detector = AdaptiveDetector(threshold, min_scene_len=0, window_width=_WINDOW)
        self._size: tuple[int, int] | None = None  # (width, height), as OpenCV has it
        self._shown = 0  # frames that the detector has seen, repetitions included
        self._last: np.ndarray | None = None
        self.cuts: list[int] = []  # the first frame of each scene but the first
        self.decided = 0  # frames of which it is known whether they begin a scene

    def add(self, frame: np.ndarray) -> None:
        """Takes the next frame of the file, (H, W, 3) uint8 RGB."""
        if self._size is None:
            height, width = frame.shape[:2]
            scale = max(1.0, width / COLUMNS)
            self._size = (max(1, round(width / scale)), max(1, round(height / scale)))
            self._last = self._reduce(frame)
            for _ in _PADDING:
                self._show()
        self._last = self._reduce(frame)
        self._show()

    def _reduce(self, frame):
        import cv2

        small = cv2.resize(frame, self._size, interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(small[..., ::-1])  # BGR

    def finish(self) -> None:
        """Ends the video: all cuts are known."""
        if self._last is not None:
            for _ in _PADDING:
                self._show()

    def _show(self):
        from scenedetect import FrameTimecode

        found = self._detector.process_frame(FrameTimecode(self._shown, fps=25.0), self._last)
        self.cuts += [timecode.frame_num - _WINDOW for timecode in found]
        self._shown += 1
        self.decided = max(0, self._shown - 2 * _WINDOW)


def mark_scenes(
    frames: Iterable[tuple[int, np.ndarray]], detector: CutDetector
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Marks the frames that begin a scene, holding them back until the detector knows.

    Args:
      frames: (index in the file, frame), chosen from those that the detector takes while this is iterated.
      detector: has taken the frames of the file up to the current one, at least.
    Yields:
      (index in the file, frame, whether a cut lies between it and the frame before).
    """
    held: collections.deque[tuple[int, np.ndarray]] = collections.deque()
    scene = 0  # number of cuts at or before the last frame

    def release(index, frame):
        nonlocal scene
        before, scene = scene, bisect.bisect_right(detector.cuts, index)
        return index, frame, scene > before

    for index, frame in frames:
        held.append((index, frame))
        while held and held[0][0] < detector.decided:
            yield release(*held.popleft())
    detector.finish()
    while held:
        yield release(*held.popleft())
