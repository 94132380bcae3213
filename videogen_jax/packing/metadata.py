"""Writes the files that describe a finished plain data set; dataset_info.json comes last and marks it as finished."""

import collections
import itertools
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from videogen_jax.data import atomic_files, records
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.settings import Settings
from videogen_jax.packing.sources import Source

MAX_LISTED = 10_000  # entries of a list in the report
LISTS = ("skipped", "frames_cut_off", "long_captions", "captions_without_words")

SOURCES_FILE = "packed_sources.json"  # in parts of a data set: source -> number of its clips


def write_descriptions(
    output,
    settings: Settings,
    words: dict[str, int],
    scores: np.ndarray,
    report: dict,
    checksums: dict[str, str],
    numbers: Sequence[str] = (),
) -> None:
    """Writes motion_scores.npy, checksums.json, statistics.json and pack_report.json.

    Args:
      output: folder of the data set.
      settings: settings of the data set.
      words: word counts of the captions of all training clips.
      scores: (N,) float32, motion scores of the training clips, in order.
      report: content of pack_report.json.
      checksums: name -> `records.checksum` of the shards.
      numbers: names of the numbers per frame that all clips have.
    """
    output = pathlib.Path(output)
    unfinished = output / f"{records.MOTION_SCORES}.unfinished"
    with open(unfinished, "wb") as file:
        np.save(file, scores)
    atomic_files.publish(unfinished, output / records.MOTION_SCORES)
    statistics = make_statistics(settings, words, scores)
    statistics |= {"numbers": sorted(numbers)} if numbers else {}
    write_json(output / "statistics.json", statistics)
    write_checksums(output, checksums)
    write_json(output / pack_settings.REPORT, report)


def write_json(path, content) -> None:
    """Writes a JSON file of a data set atomically."""
    atomic_files.write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def write_checksums(output, checksums: dict[str, str]) -> None:
    """Writes checksums.json: those of the shards as given, and those of statistics.json and motion_scores.npy."""
    present = [name for name in records.SMALL_FILES if (pathlib.Path(output) / name).exists()]
    small = {name: records.checksum(pathlib.Path(output) / name) for name in present}
    write_json(pathlib.Path(output) / records.CHECKSUMS, checksums | small)


def make_statistics(settings: Settings, words: dict[str, int], scores: np.ndarray) -> dict:
    """Returns the content of statistics.json, which training reads.

    "words" are the word counts, most frequent first; "motion_score_buckets" are the edges of `records.motion_edges`,
    empty without training clips.
    """
    edges = records.motion_edges([scores]) if len(scores) else []
    return {
        "frames": settings.frames,
        "min_frames": settings.min_frames,
        "height": settings.size[0],
        "width": settings.size[1],
        "fps": settings.fps,
        "words": dict(sorted(words.items(), key=lambda item: (-item[1], item[0]))),
        "motion_score_buckets": edges,
    }


def count_annotations(found: Sequence[Source], part: bool) -> dict:
    """Counts what name.json files say of sources; empty if all have one text and nothing else.

    Args:
      found: the sources.
      part: whether they are a part of a data set, whose episodes may be in other parts too.
    Returns:
      {"annotations": {"captions_per_file": number of captions -> files, "numbers": name -> files, "episodes": how many,
      or their names in a part}}.
    """
    captions = collections.Counter(str(len(source.captions)) for source in found)
    numbers = collections.Counter(name for source in found for name in source.numbers)
    episodes = sorted({source.episode for source in found if source.episode})
    if not (numbers or episodes or any(len(source.texts) > 1 for source in found)):
        return {}
    counts = {"captions_per_file": dict(sorted(captions.items(), key=lambda item: int(item[0])))}
    counts |= {"numbers": dict(sorted(numbers.items()))}
    return {"annotations": counts | {"episodes": episodes if part else len(episodes)}}


def bound_lists(report: dict, parts: Sequence[Mapping] = ()) -> dict:
    """Shortens the lists of a report, which may be as long as the data set.

    Args:
      report: content of pack_report.json.
      parts: reports of parts that its lists were joined from, some of which may have been shortened.
    Returns:
      The report with at most MAX_LISTED entries in each list, and the numbers of the others in "not_listed".
    """
    left_out = {}
    for name in LISTS:
        entries = report[name]
        known = sum((part.get("not_listed") or {}).get(name, 0) for part in parts)
        if len(entries) > MAX_LISTED:
            first = itertools.islice(
                entries.items() if isinstance(entries, dict) else entries, MAX_LISTED
            )
            report = report | {name: type(entries)(first)}
        if number := known + len(entries) - len(report[name]):
            left_out[name] = number
    return report | ({"not_listed": left_out} if left_out else {})


def join_annotations(reports: Sequence[Mapping]) -> dict:
    """Adds up the results of `count_annotations` of the parts of a data set."""
    found = [report["annotations"] for report in reports if "annotations" in report]
    if not found:
        return {}
    joined = {}
    for field in ("captions_per_file", "numbers"):
        total = collections.Counter()
        for counts in found:
            total.update(counts[field])
        joined[field] = dict(sorted(total.items()))
    episodes = {name for counts in found for name in counts["episodes"]}
    return {"annotations": joined | {"episodes": len(episodes)}}


def finish_plain(
    output, work, sizes: dict[str, list[tuple[int, int]]], annotated: bool = True
) -> None:
    """Marks a plain data set as finished: writes features.json and dataset_info.json, or no_clips.json if it is empty.

    Args:
      output: folder of the data set.
      work: folder for temporary files.
      sizes: split -> (clips, bytes of their records) of each shard.
      annotated: as of `records.make_features`, of the records.
    """
    if not sizes:
        atomic_files.write_text(pathlib.Path(output) / pack_settings.EMPTY_MARK, "{}")
        return
    metadata = pathlib.Path(work) / "metadata"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir()
    records.write_dataset_info(output, sizes, metadata, records.make_features(annotated))
