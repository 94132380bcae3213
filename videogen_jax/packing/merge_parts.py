"""Merges the parts that several machines packed into one data set; the work behind `merge`.

    OUTPUT/parts/00003-of-00064/                 a part: a plain or bucketed data set, as `pack --shard` writes it
    OUTPUT/clips-train.tfrecord-00120-of-02000   shards move here, part after part, under their final numbers

All parts are checked before the first shard moves, and their JSON files are kept until the end, so an interrupted call
can be repeated. As in packing, dataset_info.json (or buckets.json) is written last; then the parts are removed.
"""

import collections
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videogen_jax.data import bucketed_data, json_files, packed_data, records
from videogen_jax.data.locking import lock_folder
from videogen_jax.data.progress import show_progress
from videogen_jax.packing import bucket_assignment, filters, metadata, pack_buckets
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing import sources as source_lists
from videogen_jax.packing.shards import SPLITS


class Shard(NamedTuple):
    """A TFRecord file of a part."""

    split: str
    path: Path  # in the part
    clips: int


class PartSet(NamedTuple):
    """A part of a plain data set, or of one bucket."""

    folder: Path
    report: dict[str, Any]
    shards: list[Shard]
    num_bytes: dict[str, int]  # split -> bytes of its records


def merge(output: str | Path) -> dict[str, Any]:
    """Merges the parts in OUTPUT/parts, or checks the data set if it is already merged.

    Args:
      output: folder of the data set.
    Returns:
      The report, as `pack_folder.pack` returns it.
    Raises:
      ValueError: a part is missing (names the command that packs it), is damaged, or does not match the others.
    """
    output = Path(output)
    if not output.is_dir():
        raise ValueError(f"there is no folder {output}: use the same --output as for pack.")
    with lock_folder(output):
        if _is_set_finished(output):
            check(output)
            _remove_parts(output)
            report = pack_settings.read_report(output)
            return report | {"finished_before": True}
        folders = _find_parts(output)
        reports = [pack_settings.read_report(folder) for folder in folders]
        saved = _compare_parts(folders, reports)
        report = _merge_reports(reports, saved)
        if "buckets" in saved:
            _merge_buckets(output, folders, report)
        else:
            part_sets = [_read_part_set(folder) for folder in folders]
            _check_training_clips(output, part_sets, report)
            _merge_plain(output, part_sets, report, work=output / "parts")
        shutil.rmtree(output / "parts")
    return report | {"finished_before": False}


def check(output: str | Path, progress: bool | None = False) -> dict[str, dict[str, int]]:
    """Checks that all files of a finished data set are there and have the bytes that were written.

    The bytes are compared with checksums.json. Data sets of earlier versions have none; the checksums that TFRecord
    keeps of each record are verified instead.

    Args:
      output: folder of a data set of pixels or latents, plain or bucketed.
      progress: whether a bar is drawn, as for `show_progress`.
    Returns:
      Bucket ("" for a plain set) -> split -> number of clips.
    Raises:
      ValueError: names the file that is missing or damaged.
    """
    output = Path(output)
    is_bucketed = (output / pack_settings.BUCKETS_MARK).exists()
    names = bucketed_data.read_index(output) if is_bucketed else [""]
    sets = {name: packed_data.open_data(output / name) for name in names}
    total = sum(sum(map(len, data.files.values())) for data in sets.values())
    counts = {}
    with show_progress("Checking", total, "shard", progress) as advance:
        for name, data in sets.items():
            _check_bytes(output / name, data, advance)
            counts[name] = {split: sum(lengths) for split, lengths in data.lengths.items()}
            # Latents may have several variants of each clip, with one motion score.
            variants = ((data.latents and data.latents.augment) or {}).get("variants", 1)
            scores = output / name / records.MOTION_SCORES
            train = counts[name].get("train", 0)
            if scores.exists() and len(packed_data.read_scores(scores.parent)) * variants != train:
                raise ValueError(f"{scores} does not belong to its data set: {packed_data.WAY_OUT}")
    return counts


def _check_bytes(folder, data, advance):
    """Checks the number of records and the bytes of the shards of a plain data set, and of its small files."""
    known = packed_data.read_checksums(folder)
    for name in known:
        if not (folder / name).is_file():
            where = folder / records.CHECKSUMS
            raise ValueError(
                f"{folder / name} is missing, or {where} is damaged: {packed_data.WAY_OUT}"
            )
        if name in records.SMALL_FILES:
            packed_data.verify(folder / name, known)
    for split, paths in data.files.items():
        for path, length in zip(paths, data.lengths[split], strict=True):
            _check_count(Path(path), length, packed_data.WAY_OUT.rstrip("."))
            expected = known.get(Path(path).name)
            if expected is None:
                whole = packed_data.find_damaged([path]) is None
            else:
                whole = records.checksum(path) == expected
            if not whole:
                raise ValueError(packed_data.damaged_message(path))
            advance()


def _is_set_finished(output):
    marks = (pack_settings.PLAIN_MARK, pack_settings.BUCKETS_MARK)
    return any((output / mark).exists() for mark in marks)


def _remove_parts(output):
    """Removes the parts left by a call that was interrupted between its last two steps."""
    parts = output / "parts"
    if any(parts.glob("*-of-*/**/*.tfrecord-*")):
        raise ValueError(
            f"{output} is a finished data set, but {parts} has shards that are not in it: choose another --output for "
            "pack."
        )
    shutil.rmtree(parts, ignore_errors=True)


def _find_parts(output) -> list[Path]:
    """Returns the folders of all n parts in order, after checking that each is finished."""
    found = {}
    for folder in sorted((output / "parts").glob("*-of-*")):
        if match := re.fullmatch(r"(\d{5,})-of-(\d{5,})", folder.name):
            found[int(match[1]), int(match[2])] = folder
    totals = sorted({total for _, total in found})
    if not totals:
        raise ValueError(
            f"there are no parts in {output}: call videogen_jax.pack with --shard=0/n to --shard=n-1/n first."
        )
    if len(totals) > 1:
        raise ValueError(
            f"{output / 'parts'} has parts of {' and of '.join(map(str, totals))}: move those of the wrong number "
            "elsewhere."
        )
    (total,) = totals
    done = {index for (index, _), folder in found.items() if _is_part_finished(folder)}
    missing = [index for index in range(total) if index not in done]
    if missing:
        raise ValueError(_missing_message(output, missing, total, found, done))
    return [found[index, total] for index in range(total)]


def _is_part_finished(folder):
    return _is_set_finished(folder) or (folder / pack_settings.EMPTY_MARK).exists()


def _missing_message(output, missing, total, found, done):
    """Returns an error message with the missing parts and the command that packs the first of them."""
    flags = {"output": output, "shard": f"{missing[0]}/{total}"}
    if done:
        report = pack_settings.read_report(found[min(done), total])
        inputs = {name: report[name] for name in ("input", "video_folder") if name in report}
        flags |= inputs | report["settings"] | flags
        flags |= {"buckets": ",".join(flags["buckets"])} if "buckets" in flags else {}
    skipped = ("videos", "synthetic")
    words = [f"--{name}={value}" for name, value in flags.items() if name not in skipped]
    command = shlex.join(["python", "-m", "videogen_jax.pack", *words])
    command += "" if done else " and the flags of the other parts"
    begun = [index for index in missing if (index, total) in found]
    state = "begun but not finished" if missing[0] in begun else "missing"
    more = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
    return f"part {missing[0]} of {total} is {state}{more}: call {command}"


def _compare_parts(folders, reports) -> dict[str, Any]:
    """Returns the common settings of all parts without "shard"; raises ValueError if they differ."""
    first = {name: value for name, value in reports[0]["settings"].items() if name != "shard"}
    for index, (folder, report) in enumerate(zip(folders, reports, strict=True)):
        saved = dict(report["settings"])
        if saved.pop("shard", None) != f"{index}/{len(folders)}":
            raise ValueError(
                f"{folder} was packed as another part: move it elsewhere and pack that part again."
            )
        for name in sorted(first.keys() | saved.keys()):
            then, now = first.get(name), saved.get(name)
            if then != now:
                what = f"its {name} is {now}, but {then} in the first part"
                if name == "videos":
                    what = "its videos or their captions differ from those of the first part"
                raise ValueError(
                    f"{folder} does not match the other parts ({what}): move it elsewhere and pack that part again "
                    "from the same folder with the same flags."
                )
    return first


def _merge_reports(reports, saved) -> dict[str, Any]:
    """Merges the reports of all parts; "clips" and "buckets" are filled in later."""
    cut_off: dict[str, int] = {}
    for report in reports:
        cut_off |= report["frames_cut_off"]
    merged = {
        "settings": saved,
        "input": reports[0]["input"],
        "clips": {},
        "skipped": pack_buckets.list_skipped({}, reports),
        "frames_cut_off": dict(sorted(cut_off.items())),
        "long_captions": _join_lists(reports, "long_captions"),
        "captions_without_words": _join_lists(reports, "captions_without_words"),
        "seconds": round(sum(report["seconds"] for report in reports), 1),
        "parts": len(reports),
    }
    merged = metadata.bound_lists(merged, reports) | metadata.join_annotations(reports)
    return merged | filters.join_reports(reports) | _join_duplicates(reports)


def _join_duplicates(reports) -> dict[str, Any]:
    """Returns the near-duplicates of all parts, each of which lists its own; none where they were not looked for."""
    found = [report["duplicates"] for report in reports if report.get("duplicates") is not None]
    pairs = sorted(sum(found, []), key=lambda pair: pair["dropped"])
    return {"duplicates": pairs} if found else {}


def _join_lists(reports, name) -> list[str]:
    """Joins a list of names of all reports; those of earlier versions may lack it."""
    return sorted(entry for report in reports for entry in report.get(name, []))


def _read_part_set(folder) -> PartSet:
    """Reads the description of a part, or of one bucket of a part."""
    shards, num_bytes = [], {}
    if not (folder / pack_settings.EMPTY_MARK).exists():
        info = _read_json(folder / pack_settings.PLAIN_MARK, packed_data.DATASET_INFO)
        for split in info["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            num_bytes[split["name"]] = int(split["numBytes"])
            for shard, clips in enumerate(lengths):
                name = records.shard_name(split["name"], shard, len(lengths))
                shards.append(Shard(split["name"], folder / name, clips))
    return PartSet(folder, pack_settings.read_report(folder), shards, num_bytes)


def _merge_buckets(output, folders, report):
    """Merges the parts bucket by bucket, and writes buckets.json."""
    table = [bucket_assignment.parse_buckets(name)[0] for name in report["settings"]["buckets"]]
    part_sets = {}
    for bucket in table:
        names = [folder / bucket.name for folder in folders]
        part_sets[bucket] = [_read_part_set(folder) for folder in names if folder.is_dir()]
    _check_training_clips(
        output, [part_set for bucket_sets in part_sets.values() for part_set in bucket_sets], report
    )
    for bucket, bucket_sets in part_sets.items():  # before any shard moves
        _check_part_sets(output / bucket.name, bucket_sets)
    report["buckets"] = {}
    for bucket, bucket_sets in part_sets.items():
        if bucket_sets:
            saved = {k: v for k, v in bucket_sets[0].report["settings"].items() if k != "shard"}
            prints = [part_set.report["settings"]["videos"] for part_set in bucket_sets]
            saved["videos"] = source_lists.add_fingerprints(prints)
            merged = _merge_reports([part_set.report for part_set in bucket_sets], saved)
            _merge_plain(output / bucket.name, bucket_sets, merged, work=output / "parts")
            report["buckets"][bucket.name] = merged["clips"]
    pack_buckets.finish(output, report, table, whole=True)


def _check_training_clips(output, part_sets, report):
    """Raises ValueError if no part has a training clip."""
    if not any(shard.split == "train" for part_set in part_sets for shard in part_set.shards):
        reasons = "; ".join(f"{i['file']}: {i['reason']}" for i in report["skipped"][:3])
        raise ValueError(
            f"none of the parts has a training clip ({reasons}): pack into another --output with more "
            "videos, or other settings."
        )


def _merge_plain(
    output: Path,
    part_sets: Sequence[PartSet],
    report: dict[str, Any],
    work: Path,
) -> None:
    """Moves the shards of all parts to one folder and writes its description; fills in the report."""
    moves = _check_part_sets(output, part_sets)
    clips = collections.Counter()
    for part_set in part_sets:
        for shard in part_set.shards:
            clips[shard.split] += shard.clips
    report["clips"] = {split: clips[split] for split in SPLITS}
    output.mkdir(exist_ok=True)
    sizes: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    checksums = {}
    for part_set in part_sets:
        checksums |= {
            part_set.folder / n: h for n, h in packed_data.read_checksums(part_set.folder).items()
        }
    for shard, target in moves:
        if not target.exists():
            os.replace(shard.path, target)
        size = target.stat().st_size - packed_data.FRAMING * shard.clips
        sizes[shard.split].append((shard.clips, size))
    moved = {t.name: checksums[s.path] for s, t in moves if s.path in checksums}
    words, scores, numbers = collections.Counter(), [], []
    for part_set in part_sets:
        statistics = _read_json(part_set.folder / "statistics.json", packed_data.STATISTICS)
        words.update(statistics["words"])
        if part_set.shards:
            numbers.append(set(statistics.get("numbers") or ()))
        scores.append(packed_data.read_scores(part_set.folder))
    settings = _read_settings(report["settings"])
    shared = sorted(set.intersection(*numbers)) if numbers else []
    scores = np.concatenate(scores)
    metadata.write_descriptions(output, settings, words, scores, report, moved, shared)
    annotated = all(_is_annotated(part_set) for part_set in part_sets if part_set.shards)
    metadata.finish_plain(output, work, sizes, annotated)


def _read_settings(saved) -> pack_settings.Settings:
    """Inverts `pack_settings.settings_to_json`."""
    height, width = map(int, saved["size"].split("x"))
    names = ("fps", "frames", "min_frames", "validation_fraction", "clips_per_shard")
    return pack_settings.Settings((height, width), **{name: saved[name] for name in names})


def _check_part_sets(output, part_sets) -> list[tuple[Shard, Path]]:
    """Checks shards, counts and sources of all parts.

    Returns:
      (shard, final path) for each shard, which may have moved already.
    Raises:
      ValueError: names the file that is missing or damaged, or a source that is in two parts.
    """
    _check_fields(part_sets)
    moves = list(_number_shards(output, part_sets))
    current = {shard.path: shard.path if shard.path.exists() else target for shard, target in moves}
    owners: dict[str, Path] = {}
    for part_set in part_sets:
        advice = (
            f"bring back a copy of it, or move {part_set.folder} elsewhere and pack that part again"
        )
        sizes = collections.Counter()
        for shard in part_set.shards:
            path = current[shard.path]
            if not path.exists():
                raise ValueError(f"the TFRecord file {shard.path} is missing: {advice}.")
            _check_count(path, shard.clips, advice)
            sizes[shard.split] += path.stat().st_size - packed_data.FRAMING * shard.clips
        if any(sizes[split] != size for split, size in part_set.num_bytes.items()):
            raise ValueError(
                f"the TFRecord files of {part_set.folder} have the wrong size: {advice}."
            )
        clips = _read_json(part_set.folder / metadata.SOURCES_FILE, {str: int})
        for name in clips:
            if name in owners:
                raise ValueError(f"{name} is in {owners[name]} and in {part_set.folder}: {advice}.")
            owners[name] = part_set.folder
        train = sum(shard.clips for shard in part_set.shards if shard.split == "train")
        scores = packed_data.read_scores(part_set.folder)
        if sum(clips.values()) != sum(s.clips for s in part_set.shards) or len(scores) != train:
            raise ValueError(
                f"the clip counts of {part_set.folder} do not match its shards: {advice}."
            )
    return moves


def _check_fields(part_sets) -> None:
    """Raises ValueError unless the records of all parts have the same fields."""
    found = {_is_annotated(part_set): part_set.folder for part_set in part_sets if part_set.shards}
    if len(found) > 1:
        raise ValueError(
            f"the records of {found[False]} have one caption, as earlier versions wrote them, and those of "
            f"{found[True]} may have several: move {found[False]} elsewhere and pack that part again."
        )


def _is_annotated(part_set) -> bool:
    """Whether the records of a part have captions over time, an episode and numbers; else one text."""
    content = _read_json(part_set.folder / "features.json", {str: object})
    return '"captions"' in json.dumps(content)


def _number_shards(output, part_sets) -> Iterator[tuple[Shard, Path]]:
    """Yields each shard of the parts with its final path, split by split."""
    for split in SPLITS:
        shards = [s for part_set in part_sets for s in part_set.shards if s.split == split]
        for number, shard in enumerate(shards):
            yield shard, output / records.shard_name(split, number, len(shards))


def _check_count(path: Path, clips: int, advice: str) -> None:
    found = packed_data.count_records(path)
    if found != clips:
        what = "is truncated" if found is None else f"has {found} clips instead of {clips}"
        raise ValueError(f"the TFRecord file {path} {what}: {advice}.")


def _read_json(path: Path, fields: Any) -> Any:
    """Reads a JSON file of a part."""
    try:
        way_out = f"bring back a copy of it, or move {path.parent} elsewhere and pack it again."
        return json_files.read(path, fields, way_out)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: {way_out}") from error
