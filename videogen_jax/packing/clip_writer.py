"""Divides the frames of a video into clips and writes those that the filters let pass; runs in a worker."""

import collections
from typing import BinaryIO

import msgpack
import numpy as np

from videogen_jax.data import records, video_io
from videogen_jax.data.annotations import Annotations
from videogen_jax.packing import filters
from videogen_jax.packing.settings import Settings


class ClipWriter:
    """Writes the clips of one video or image, scene by scene, as records of msgpack."""

    def __init__(self, file: BinaryIO, settings: Settings, said: Annotations, image: bool):
        """Starts with the first scene.

        Args:
          file: an empty file to write to.
          settings: settings of the data set.
          said: annotations, in frames of the file.
          image: it is an image, which has no length.
        """
        self._file, self._settings, self._said, self._image = file, settings, said, image
        self._clip: list[np.ndarray] = []
        self._shown: list[int] = []  # which frame of the file each frame of the clip is
        self._length = 0  # frames of the scene
        self.seen = 0  # frames
        self.scenes = 0  # that have ended
        self.longest = 0  # frames of the longest scene
        self.clips = 0  # written
        self.cut_off = 0  # frames behind the last clip of each scene
        self.counts: dict[str, int] = {}  # what the filters left out, by reason
        self._mark()

    def _mark(self):
        """Notes what to return to if the scene that begins is left out."""
        self._start = self._file.tell(), self.clips, self.cut_off, dict(self.counts)

    def add(self, index: int, frame: np.ndarray) -> None:
        """Takes the next frame of the scene, (H, W, 3) uint8 RGB, which has that index in the file."""
        self._clip.append(video_io.fit_frame(frame, self._settings.size))
        self._shown.append(index)
        self._length, self.seen = self._length + 1, self.seen + 1
        if len(self._clip) == self._settings.frames:
            self._end_clip()

    def end_scene(self) -> None:
        """Ends a scene: the next frame begins a clip."""
        if not self._length:
            return
        if len(self._clip) >= self._settings.min_frames:
            self._end_clip()
        self.cut_off += len(self._clip)
        seconds = self._length / self._settings.fps
        bounds = self._settings.selection.filters
        if not self._image and (reason := bounds.reject_length(seconds)):
            place, self.clips, self.cut_off, self.counts = self._start
            self._file.seek(place)
            self._file.truncate()
            self._count(reason)
        elif self._length < self._settings.min_frames:
            self._count(filters.SHORT_SCENES)
        self.scenes, self.longest = self.scenes + 1, max(self.longest, self._length)
        self._clip, self._shown, self._length = [], [], 0
        self._mark()

    def _count(self, reason):
        self.counts = dict(collections.Counter(self.counts) + collections.Counter([reason]))

    def _end_clip(self):
        """Writes the clip, unless its motion is out of bounds."""
        video, settings = np.stack(self._clip), self._settings  # (T, H, W, 3)
        annotations = self._said.select(self._shown)
        self._clip, self._shown = [], []
        score = records.motion_score(video, settings.fps)
        reason = settings.selection.filters.reject_motion(score)
        if reason and len(video) > 1:
            self._count(reason)
            return
        msgpack.pack(make_record(video, settings.fps, annotations, score), self._file)
        self.clips += 1


def make_record(video: np.ndarray, fps: float, annotations: Annotations, score: float) -> dict:
    """Returns the fields of a record as msgpack takes them, except for its source and episode."""
    return {
        "captions": annotations.captions,
        "numbers": {name: values.tobytes() for name, values in annotations.numbers.items()},
        "strips": records.encode_strips(video),
        "fps": fps,
        "num_frames": video.shape[0],
        "height": video.shape[1],
        "width": video.shape[2],
        "motion_score": score,
    }
