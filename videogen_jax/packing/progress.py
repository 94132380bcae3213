"""Progress of long work: a bar on a terminal, a line every half minute in a log."""

import contextlib
import sys

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class _Lines:
    """A stream of lines on stderr; a stderr that is closed or full does not end the work."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        line = " ".join(text.split())
        with contextlib.suppress(OSError, ValueError):
            if line:
                sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def make_bar(
    total: int,
    unit: str,
    label: str | None = None,
    progress: bool | None = None,
    initial: int = 0,
) -> tqdm:
    """Makes a progress bar on stderr.

    Args:
      total: number of units.
      unit: name of a unit, such as "clip".
      label: in front of the bar.
      progress: show a bar; None: a bar on a terminal, else a line every 30 s, the first after 30 s; False: nothing.
      initial: units that were done before.
    """
    options = {"total": total, "unit": f" {unit}", "desc": label, "initial": initial}
    if progress is False:
        return tqdm(disable=True, **options)
    if progress or (sys.stderr is not None and sys.stderr.isatty()):
        return tqdm(**options)
    return tqdm(
        file=_Lines(),
        delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=SECONDS_BETWEEN_LINES,
        miniters=1,
        bar_format=f"{label}: " * bool(label)
        + "{n_fmt} of {total_fmt}{unit}s, {rate_noinv_fmt}, {remaining} left",
        **options,
    )
