"""Filters of `pack`: which videos, scenes and clips are left out on purpose, and how many of each.

A bound is an option of `pack` and a field of `Filters` of the same name, and the reason under which it counts what it
leaves out. What is left out so is no failure: it is counted in pack_report.json and not listed under "skipped", and
--strict does not stop at it.

    options                      compare                                                      leave out
    min_size                     shorter side of the source in pixels, before it is resized   videos and images
    min_aspect, max_aspect       width / height of the source                                 videos and images
    min_seconds, max_seconds     length of the video; with --split_scenes, of the scene       videos, scenes
    min_motion, max_motion       motion score of the clip as packed (`records.motion_score`)  clips

Images, and clips of one frame, have neither length nor motion: only the first two lines apply to them.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping

SHORT_SCENES = "short_scenes"  # scenes too short for a clip; videos too short are skipped instead
SCENE_CUTS = "scene_cuts"  # cuts that were found; counted, but they leave out nothing
UNITS = {  # reason -> what it leaves out
    "min_size": "videos or images",
    "min_aspect": "videos or images",
    "max_aspect": "videos or images",
    "min_seconds": "videos or scenes",
    "max_seconds": "videos or scenes",
    SHORT_SCENES: "scenes",
    "min_motion": "clips",
    "max_motion": "clips",
}


@dataclasses.dataclass(frozen=True)
class Filters:
    """Bounds of what is packed, both ends included; None: no bound."""

    min_size: int | None = None  # pixels
    min_aspect: float | None = None  # width / height
    max_aspect: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    min_motion: float | None = None  # luma (0 to 1) per second
    max_motion: float | None = None

    def reject_picture(self, height: int, width: int) -> str | None:
        """Returns the bound that a picture of this size in pixels exceeds, or None."""
        if self.min_size is not None and min(height, width) < self.min_size:
            return "min_size"
        return self._outside("aspect", width / height)

    def reject_length(self, seconds: float) -> str | None:
        """Returns the bound that the length of a video or scene exceeds, or None."""
        return self._outside("seconds", seconds)

    def reject_motion(self, score: float) -> str | None:
        """Returns the bound that the motion score of a clip exceeds, or None."""
        return self._outside("motion", score)

    def _outside(self, name, value):
        low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
        if low is not None and value < low:
            return f"min_{name}"
        return f"max_{name}" if high is not None and value > high else None

    def of_clips(self) -> "Filters":
        """Returns the bounds of clips alone, for sources of which the rest has been compared."""
        return Filters(min_motion=self.min_motion, max_motion=self.max_motion)

    def check(self) -> None:
        """Raises ValueError if a bound is negative or no number, or if a minimum exceeds its maximum."""
        for name, value in to_json(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"invalid --{name}={value:g}: set it to 0 or above.")
        for name in ("aspect", "seconds", "motion"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"--min_{name}={low:g} exceeds --max_{name}={high:g}, so that nothing would be packed: lower it."
                )


NAMES = tuple(field.name for field in dataclasses.fields(Filters))


def to_json(filters: Filters) -> dict[str, float]:
    """Returns the bounds that are set, keyed by flag: sets from before there were any stay usable."""
    return {n: value for n, value in dataclasses.asdict(filters).items() if value is not None}


def add_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Adds counts by reason."""
    total: collections.Counter[str] = collections.Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def report_counts(counts: Mapping[str, int]) -> dict:
    """Returns the fields of pack_report.json for counts by reason, without those that would be empty."""
    left_out = {name: counts[name] for name in UNITS if counts.get(name)}
    cuts = {SCENE_CUTS: counts[SCENE_CUTS]} if SCENE_CUTS in counts else {}
    return ({"filtered": left_out} if left_out else {}) | cuts


def join_reports(reports: Iterable[Mapping]) -> dict:
    """Returns the fields of `report_counts` for several reports together."""
    parts = [
        dict(report.get("filtered") or {})
        | ({SCENE_CUTS: report[SCENE_CUTS]} if report.get(SCENE_CUTS) is not None else {})
        for report in reports
    ]
    return report_counts(add_counts(parts))


def describe(filtered: Mapping[str, int]) -> str:
    """Returns what the filters left out, such as "left out: clips by --min_motion (3)"."""
    parts = [
        f"{UNITS[name]} {'too short for a clip' if name == SHORT_SCENES else f'by --{name}'} ({count})"
        for name, count in filtered.items()
    ]
    return f"left out: {', '.join(parts)}"
