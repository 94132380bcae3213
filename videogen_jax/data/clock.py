"""The times of a video's frames: from 0 on, never backwards, without jumps of minutes."""

from collections.abc import Iterable, Iterator

from videogen_jax.data.read_limits import Limits

TIME_TOLERANCE = 0.002  # seconds; containers round times to milliseconds
RESTART = 0.5  # seconds; times that go back further start anew, smaller steps are disorder


class Clock:
    """Turns the timestamps of a file into seconds since its first frame.

    Timestamps that start anew, as where files were joined, continue one frame after the last one. A frame without a
    timestamp follows one frame after the last one. Small steps back are taken for the same time.

    Attributes:
      count: frames so far.
      seconds: time of the last frame.
      start: timestamp of the first frame in seconds.
      last: timestamp of the last frame in seconds.
      largest_gap: seconds from one frame to the next, at most.
      jump: seconds from the last frame to that before which the video ended; 0 while it has not.
      ended: why the video ended before that frame, as the rest of a sentence; None while it has not.
    """

    def __init__(self, gap: float, limits: Limits, start: float | None = None):
        """Starts at the first frame.

        Args:
          gap: seconds from one frame to the next, as far as the file says it.
          limits: bounds for its times.
          start: timestamp of the first frame in seconds, where the frames that follow it are skipped; None: that of the
            first frame given.
        """
        self._gap, self._limits, self._first = gap, limits, start
        self._offset = self._segment = 0.0  # of the timestamps since they last started anew
        self.count, self.seconds, self.largest_gap = 0, 0.0, 0.0
        self.start = self.last = self.jump = 0.0
        self.ended: str | None = None

    def advance(self, timestamp: float | None) -> float | None:
        """Takes the next frame.

        Args:
          timestamp: of the file, in seconds; None where it has none.
        Returns:
          Seconds since the first frame; None if the video ended before this frame, see `ended`.
        """
        if timestamp is None:
            timestamp = self.last + self._gap if self.count else 0.0
        if not self.count:
            self.start = timestamp if self._first is None else self._first
            self._segment, self._offset = timestamp, -self.start
            self.seconds = timestamp - self.start
        elif self._starts_anew(timestamp):
            self._segment = timestamp
            self._offset = self.seconds + self._gap - timestamp
        seconds = max(self.seconds, timestamp + self._offset)
        gap = seconds - self.seconds
        if gap > self._limits.max_gap:
            self.jump = gap
            self.ended = (
                f"ends after {self.count} frames ({self.seconds:.2f} s), because its timestamps jump by {gap:.0f} s "
                f"there, more than --max_gap={self._limits.max_gap:g}"
            )
            return None
        if gap > 0:
            self._gap = gap
        self.count, self.seconds, self.last = self.count + 1, seconds, timestamp
        self.largest_gap = max(self.largest_gap, gap)
        return seconds

    def _starts_anew(self, timestamp):
        back = self.last - timestamp
        return back > RESTART or (timestamp <= self._segment and back > 1.5 * self._gap)


def order_packets(packets: Iterable[tuple[float | None, bool]]) -> Iterator[float | None]:
    """Brings the timestamps of packets from the order of decoding into that of showing.

    A keyframe is shown after all frames that were decoded before it, unless the timestamps start anew with it.

    Args:
      packets: (timestamp in seconds, whether it is a keyframe).
    Yields:
      The timestamps, each stretch between two new starts in rising order; those of unknown time are last in it.
    """
    stretch: list[float] = []
    unknown = 0
    for timestamp, is_keyframe in packets:
        if timestamp is None:
            unknown += 1
        else:
            if is_keyframe and stretch and timestamp < max(stretch[-64:]):
                yield from sorted(stretch)
                stretch = []
            stretch.append(timestamp)
    yield from sorted(stretch)
    yield from [None] * unknown
