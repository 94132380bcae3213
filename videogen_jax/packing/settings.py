"""What a packed data set is made of, noted with it, so that a call with other settings is refused.

A plain set is whole when it has dataset_info.json, a set of buckets when it has buckets.json; each is written last.
A part of a set may have no clip at all; TFDS knows no such set, and no_clips.json stands for dataset_info.json. Until
then the settings lie in OUTPUT/unfinished/settings.json, afterwards in OUTPUT/pack_report.json.
"""

import dataclasses
import json
import pathlib
import shutil

from videogen_jax.data import atomic_files

PLAIN_MARK, EMPTY_MARK = "dataset_info.json", "no_clips.json"
BUCKETS_MARK = "buckets.json"
REPORT = "pack_report.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a data set is made of; two calls with equal settings make equal shards."""

    size: tuple[int, int]  # (height, width) in pixels
    fps: float  # frames per second
    frames: int  # frames of a clip, at most
    min_frames: int  # frames of a clip, at least
    validation_fraction: float  # share of the videos
    clips_per_shard: int  # at most


def note_settings(settings: Settings, origin: dict | None) -> dict:
    """Returns the settings as noted with a data set: JSON values by the names of their flags."""
    noted = dataclasses.asdict(settings) | {"synthetic": origin}
    return json.loads(json.dumps(noted | {"size": "{}x{}".format(*settings.size)}))


def finished_report(output, noted: dict) -> dict | None:
    """Returns the report of a finished data set, or None where it is not finished.

    Args:
      output: folder of the data set.
      noted: settings as of `note_settings`; only the keys in it are compared.
    Raises:
      ValueError: the data set there is another one.
    """
    output = pathlib.Path(output)
    if not any((output / mark).exists() for mark in (PLAIN_MARK, EMPTY_MARK, BUCKETS_MARK)):
        return None
    if not (output / REPORT).exists():
        raise ValueError(
            f"{output} holds a data set that pack did not write: choose another --output."
        )
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    compare(output, report["settings"], noted)
    shutil.rmtree(output / "unfinished", ignore_errors=True)
    return report | {"finished_before": True}


def compare(output, found: dict, wanted: dict) -> None:
    """Compares the settings noted in OUTPUT with those of this call.

    Raises:
      ValueError: names what differs.
    """
    differences = []
    if ("buckets" in found) != ("buckets" in wanted):
        kinds = ("in one size", "in buckets")
        then, now = kinds["buckets" in found], kinds["buckets" in wanted]
        differences.append(f"it was packed {then} and is now to be {now}")
        wanted = {key: value for key, value in wanted.items() if key in found}
    for key, value in wanted.items():
        if found.get(key) == value:
            continue
        if key == "videos":
            then, now = found[key]["count"], value["count"]
            differences.append(f"the videos or their captions changed ({then} then, {now} now)")
        else:
            differences.append(f"{key} was {found.get(key)} and is now {value}")
    if differences:
        raise ValueError(
            f"{output} was packed with other settings: {'; '.join(differences)}; choose another "
            f"--output, or delete {output} to pack it anew."
        )


def claim_output(output, noted: dict) -> pathlib.Path:
    """Notes the settings in OUTPUT/unfinished.

    Args:
      output: folder of the data set.
      noted: its settings.
    Returns:
      OUTPUT/unfinished, which is there now.
    Raises:
      ValueError: other settings are noted there.
    """
    work = pathlib.Path(output) / "unfinished"
    path = work / "settings.json"
    if path.exists():
        compare(output, json.loads(path.read_text(encoding="utf-8")), noted)
    else:
        work.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(path, json.dumps(noted, indent=1))
    return work
