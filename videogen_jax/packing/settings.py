"""Settings of a packed data set, saved with it so that a call with other settings is refused.

A plain data set is finished when it has dataset_info.json, a bucketed one when it has buckets.json; each is written
last. A part of a data set may be empty, which TFDS does not support; it has no_clips.json instead of dataset_info.json.
The settings are in OUTPUT/unfinished/settings.json until the set is finished, then in OUTPUT/pack_report.json.
"""

import dataclasses
import json
import pathlib
import shutil

from videogen_jax.data import atomic_files, json_files, read_limits
from videogen_jax.packing import duplicates, filters, scenes
from videogen_jax.packing.filters import Filters

PLAIN_MARK, EMPTY_MARK = "dataset_info.json", "no_clips.json"
BUCKETS_MARK = "buckets.json"
REPORT = "pack_report.json"

_DEFAULT_LIMITS = dataclasses.asdict(read_limits.DEFAULTS)
# What is saved only where it differs; data sets from before there was the option lack it too.
_DEFAULTS = (
    _DEFAULT_LIMITS
    | dict.fromkeys(filters.NAMES)
    | {"split_scenes": False, "scene_threshold": scenes.THRESHOLD}
    | {"drop_duplicates": False, "duplicate_distance": duplicates.DISTANCE}
)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What of the sources is packed; the defaults pack all of it."""

    scene_threshold: float | None = None  # of `scenes.CutDetector`; None: scenes are not split
    filters: Filters = Filters()
    duplicate_distance: int | None = None  # of `duplicates`; None: duplicates are packed

    def to_json(self) -> dict:
        """Returns what is not the default, keyed by flag: sets from before there was any stay usable."""
        values = filters.to_json(self.filters)
        if self.scene_threshold is not None:
            values |= {"split_scenes": True, "scene_threshold": self.scene_threshold}
        if self.duplicate_distance is not None:
            values |= {"drop_duplicates": True, "duplicate_distance": self.duplicate_distance}
        return {name: value for name, value in values.items() if value != _DEFAULTS[name]}

    def of_clips(self) -> "Selection":
        """Returns what applies to clips alone, for sources of which the rest is done."""
        return Selection(filters=self.filters.of_clips())


EVERYTHING = Selection()


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a plain data set; the shards are a function of the settings and the videos."""

    size: tuple[int, int]  # (height, width) in pixels
    fps: float  # frames per second
    frames: int  # maximum frames of a clip
    min_frames: int  # minimum frames of a clip
    validation_fraction: float  # of the videos
    clips_per_shard: int  # maximum
    limits: read_limits.Limits = read_limits.DEFAULTS  # of what is read from one file
    selection: Selection = EVERYTHING


def settings_to_json(settings: Settings, origin: dict | None) -> dict:
    """Returns the settings as JSON values, keyed by flag."""
    values = dataclasses.asdict(settings) | {"synthetic": origin}
    del values["limits"], values["selection"]
    values |= {"size": "{}x{}".format(*settings.size)} | limits_to_json(settings.limits)
    values |= settings.selection.to_json()
    return json.loads(json.dumps(values))


def limits_to_json(limits: read_limits.Limits) -> dict:
    """Returns the limits that are not the defaults, keyed by flag: sets from before there were any stay usable."""
    values = dataclasses.asdict(limits)
    return {name: value for name, value in values.items() if value != _DEFAULT_LIMITS[name]}


SAVED = {
    "synthetic": json_files.Optional(object),
    "videos": json_files.Optional({"count": int, "digest": str}),
    "shard": json_files.Optional(str),
    "fps": json_files.Optional(float),
}
REPORT_FIELDS = {
    "settings": SAVED,
    "clips": {str: int},
    "skipped": [{"file": str, "reason": str}],
    "frames_cut_off": {str: int},
    "long_captions": json_files.Optional(
        [str]
    ),  # absent in data sets of earlier versions, as the last
    "seconds": float,
    "input": str,
    "buckets": json_files.Optional({str: {str: int}}),
    "left_out": json_files.Optional({str: str}),
    "not_listed": json_files.Optional({str: int}),
    "captions_without_words": json_files.Optional([str]),
    "annotations": json_files.Optional(
        {"captions_per_file": {str: int}, "numbers": {str: int}, "episodes": object}
    ),
    "filtered": json_files.Optional({str: int}),  # reason -> what it left out
    filters.SCENE_CUTS: json_files.Optional(int),
    "duplicates": json_files.Optional([{"kept": str, "dropped": str, "distance": int}]),
}


def work_folder(output) -> pathlib.Path:
    """Returns the folder of temporary files of an unfinished data set."""
    return pathlib.Path(output) / "unfinished"


def read_unfinished(output) -> dict | None:
    """Returns the settings with which a data set was begun, or None if it was not.

    Raises:
      ValueError: the file is damaged; the message names the field.
    """
    path = work_folder(output) / "settings.json"
    if not path.exists():
        return None
    return json_files.read(path, SAVED, "choose another --output.")


def read_report(output) -> dict:
    """Reads pack_report.json of a finished data set.

    Raises:
      ValueError: the file is damaged; the message names the field.
      OSError: it is missing, or may not be read.
    """
    way_out = "copy it from a backup, or pack into another --output."
    return json_files.read(pathlib.Path(output) / REPORT, REPORT_FIELDS, way_out)


def is_finished(output) -> bool:
    """Whether a folder holds a finished data set, or a finished part of one."""
    marks = (PLAIN_MARK, EMPTY_MARK, BUCKETS_MARK)
    return any((pathlib.Path(output) / mark).exists() for mark in marks)


def finished_report(output, saved: dict) -> dict | None:
    """Returns the report of a finished data set, or None if it is not finished.

    Args:
      output: folder of the data set.
      saved: settings from `settings_to_json`; only their keys are compared.
    Raises:
      ValueError: the data set has other settings.
    """
    output = pathlib.Path(output)
    if not is_finished(output):
        return None
    if not (output / REPORT).exists():
        raise ValueError(
            f"{output} holds a data set that pack did not write: choose another --output."
        )
    report = read_report(output)
    check_same_settings(output, report["settings"], saved)
    shutil.rmtree(output / "unfinished", ignore_errors=True)
    return report | {"finished_before": True}


def check_same_settings(output, found: dict, wanted: dict) -> None:
    """Compares the settings saved in OUTPUT with those of this call.

    Raises:
      ValueError: names the differences.
    """
    found, wanted = _DEFAULTS | found, _DEFAULTS | wanted
    differences = []
    if ("buckets" in found) != ("buckets" in wanted):
        kinds = ("plain", "bucketed")
        then, now = kinds["buckets" in found], kinds["buckets" in wanted]
        differences.append(f"it was {then} and is now {now}")
        wanted = {key: value for key, value in wanted.items() if key in found}
    for key, value in wanted.items():
        if found.get(key) == value:
            continue
        if key == "videos":
            then, now = found[key]["count"], value["count"]
            differences.append(f"the videos or their captions changed (from {then} to {now})")
        else:
            differences.append(f"{key} was {found.get(key)} and is now {value}")
    if differences:
        raise ValueError(
            f"{output} was packed with other settings: {'; '.join(differences)}; choose another "
            "--output."
        )


def claim_output(output, saved: dict) -> pathlib.Path:
    """Saves the settings in OUTPUT/unfinished/settings.json.

    Args:
      output: folder of the data set.
      saved: its settings as JSON values.
    Returns:
      The folder OUTPUT/unfinished.
    Raises:
      ValueError: it was begun with other settings.
    """
    work = work_folder(output)
    begun = read_unfinished(output)
    if begun is not None:
        check_same_settings(output, begun, saved)
    else:
        work.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(work / "settings.json", json.dumps(saved, indent=1))
    return work
