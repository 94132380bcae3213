"""How far a training is: a bar on a terminal, a line at intervals in a log.

    [50] of 4,200 steps: loss 0.4686, 253 clips/s, 16 min left

All other values are on the dashboard alone.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import tqdm
from absl import logging

INTERVAL = 30.0  # seconds after which a log hears of a run between two readings


class Progress:
    """Shows the steps of a run as they end; only process 0 makes one that speaks."""

    def __init__(
        self,
        first: int,
        last: int,
        *,
        speaks: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts at the step before the first.

        Args:
          first: step that comes next, from 1.
          last: step at which the run ends.
          speaks: whether anything is shown.
          stream: that a bar is drawn on if it is a terminal; stderr by default.
          clock: seconds.
        """
        stream = sys.stderr if stream is None else stream
        self._last, self._speaks, self._clock = last, speaks, clock
        self._bar: Any = None
        if speaks and stream.isatty():
            self._bar = tqdm.tqdm(
                total=last, initial=first - 1, unit="step", file=stream, dynamic_ncols=True
            )
            logging.get_absl_handler().addFilter(self._make_room)
        self._loss = ""
        self._shown_at = clock()
        # The first step compiles: the rate counts from its end.
        self._start: tuple[int, float] | None = None

    def step(self, step: int) -> None:
        """Takes a step that was dispatched."""
        if self._start is None:
            self._start = (step, self._clock())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        elif self._speaks and self._clock() - self._shown_at >= INTERVAL:
            self._write(step, self._loss)

    def read(self, step: int, summary: Mapping[str, float]) -> None:
        """Shows a reading.

        Args:
          step: of the run.
          summary: of `metrics.Window.summary`.
        """
        self._loss = f"loss {summary['loss/train']:.4g}"
        values = self._loss
        if "speed/clips_per_second" in summary:
            values += f", {format_rate(summary['speed/clips_per_second'])}"
        if self._bar is not None:
            self._bar.set_postfix_str(values)
        elif self._speaks:
            self._write(step, values)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            logging.get_absl_handler().removeFilter(self._make_room)
            self._bar.close()

    def _make_room(self, record: Any) -> bool:
        """Wipes the bar for a message; the next step draws it again below."""
        self._bar.clear()
        return True

    def _write(self, step: int, values: str) -> None:
        self._shown_at = self._clock()
        parts = [values] if values else []
        if (seconds := self._seconds_left(step)) is not None:
            parts.append(f"{format_seconds(seconds)} left")
        end = f": {', '.join(parts)}" if parts else ""
        logging.info("[%d] of %s steps%s", step, f"{self._last:,}", end)

    def _seconds_left(self, step: int) -> float | None:
        """At the mean speed since the first step, with validation, samples and checkpoints."""
        if self._start is None or step <= self._start[0]:
            return None
        rate = (self._clock() - self._start[1]) / (step - self._start[0])
        return rate * (self._last - step)


def format_rate(clips: float) -> str:
    """Clips per second, or per minute where they are few: "253 clips/s", "7.2 clips/min"."""
    if clips < 1:
        return f"{60 * clips:.2g} clips/min"
    return f"{clips:.1f} clips/s" if clips < 100 else f"{clips:.0f} clips/s"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units: "45 s", "16 min", "3 h 20 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
