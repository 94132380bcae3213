"""Settings of a packed data set, saved with it so that a call with other settings is refused.

A plain data set is finished when it has dataset_info.json, a bucketed one when it has buckets.json; each is written
last. A part of a data set may be empty, which TFDS does not support; it has no_clips.json instead of dataset_info.json.
The settings are in OUTPUT/unfinished/settings.json until the set is finished, then in OUTPUT/pack_report.json.
"""

import dataclasses
import json
import pathlib
import shutil

from videogen_jax.data import atomic_files, read_limits

PLAIN_MARK, EMPTY_MARK = "dataset_info.json", "no_clips.json"
BUCKETS_MARK = "buckets.json"
REPORT = "pack_report.json"

_DEFAULT_LIMITS = dataclasses.asdict(read_limits.DEFAULTS)


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


def settings_to_json(settings: Settings, origin: dict | None) -> dict:
    """Returns the settings as JSON values, keyed by flag."""
    values = dataclasses.asdict(settings) | {"synthetic": origin}
    del values["limits"]
    values |= {"size": "{}x{}".format(*settings.size)} | limits_to_json(settings.limits)
    return json.loads(json.dumps(values))


def limits_to_json(limits: read_limits.Limits) -> dict:
    """Returns the limits that are not the defaults, keyed by flag: sets from before there were any stay usable."""
    values = dataclasses.asdict(limits)
    return {name: value for name, value in values.items() if value != _DEFAULT_LIMITS[name]}


def finished_report(output, saved: dict) -> dict | None:
    """Returns the report of a finished data set, or None if it is not finished.

    Args:
      output: folder of the data set.
      saved: settings from `settings_to_json`; only their keys are compared.
    Raises:
      ValueError: the data set has other settings.
    """
    output = pathlib.Path(output)
    if not any((output / mark).exists() for mark in (PLAIN_MARK, EMPTY_MARK, BUCKETS_MARK)):
        return None
    if not (output / REPORT).exists():
        raise ValueError(
            f"{output} holds a data set that pack did not write: choose another --output."
        )
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    check_same_settings(output, report["settings"], saved)
    shutil.rmtree(output / "unfinished", ignore_errors=True)
    return report | {"finished_before": True}


def check_same_settings(output, found: dict, wanted: dict) -> None:
    """Compares the settings saved in OUTPUT with those of this call.

    Raises:
      ValueError: names the differences.
    """
    found, wanted = _DEFAULT_LIMITS | found, _DEFAULT_LIMITS | wanted
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
            f"--output, or delete {output} to pack it again."
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
    work = pathlib.Path(output) / "unfinished"
    path = work / "settings.json"
    if path.exists():
        check_same_settings(output, json.loads(path.read_text(encoding="utf-8")), saved)
    else:
        work.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(path, json.dumps(saved, indent=1))
    return work
