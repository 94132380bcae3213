"""Writes the files that describe a finished plain data set; dataset_info.json comes last and marks it as finished."""

import json
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from videogen_jax.data import atomic_files, records
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.settings import Settings

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


def finish_plain(output, work, sizes: dict[str, list[tuple[int, int]]]) -> None:
    """Marks a plain data set as finished: writes features.json and dataset_info.json, or no_clips.json if it is empty.

    Args:
      output: folder of the data set.
      work: folder for temporary files.
      sizes: split -> (clips, bytes of their records) of each shard.
    """
    if not sizes:
        atomic_files.write_text(pathlib.Path(output) / pack_settings.EMPTY_MARK, "{}")
        return
    metadata = pathlib.Path(work) / "metadata"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir()
    records.write_dataset_info(output, sizes, metadata)
