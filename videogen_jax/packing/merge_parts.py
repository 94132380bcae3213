"""Makes one data set of the parts that several machines packed; the work behind `merge`.

    OUTPUT/parts/00003-of-00064/                 a part: a data set, plain or of buckets, as `packing` writes it
    OUTPUT/clips-train.tfrecord-00120-of-02000   shards move here, part after part, under their final numbers

Everything is checked before the first shard moves, and the parts' JSON files stay until all else is done: a call that
was ended is continued by the same call. dataset_info.json (or buckets.json) comes last, as in packing; then the parts
are removed.
"""

import collections
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videogen_jax.data import packed_data, records
from videogen_jax.packing import bucket_assignment, pack_buckets, pack_folder
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing import sources as source_lists
from videogen_jax.packing.locking import hold_folder

SPLITS = pack_folder.SPLITS


class Shard(NamedTuple):
    """A record file of a part."""

    split: str
    path: Path  # in the part
    clips: int


class Piece(NamedTuple):
    """A plain data set of a part."""

    folder: Path
    report: dict[str, Any]
    shards: list[Shard]
    num_bytes: dict[str, int]  # split -> bytes of its records


def merge(output: str | Path) -> dict[str, Any]:
    """Merges the parts in OUTPUT/parts, or checks the data set there if that is done.

    Args:
      output: folder of the data set.
    Returns:
      The report, as `pack_folder.pack` would return it for the whole.
    Raises:
      ValueError: a part is missing (names the command that makes it) or damaged, or they do not belong together.
    """
    output = Path(output)
    if not output.is_dir():
        raise ValueError(f"there is no folder {output}: give --output as you gave it to pack.")
    with hold_folder(output):
        if _is_whole(output):
            check(output)
            _remove_parts(output)
            report = json.loads((output / pack_settings.REPORT).read_text(encoding="utf-8"))
            return report | {"finished_before": True}
        folders = _find_parts(output)
        reports = [_read_json(folder / pack_settings.REPORT) for folder in folders]
        noted = _compare_parts(folders, reports)
        report = _merge_reports(reports, noted)
        if "buckets" in noted:
            _merge_buckets(output, folders, report)
        else:
            pieces = [_read_piece(folder) for folder in folders]
            _want_training(output, pieces, report)
            _merge_plain(output, pieces, report, work=output / "parts")
        shutil.rmtree(output / "parts")
    return report | {"finished_before": False}


def check(output: str | Path) -> dict[str, dict[str, int]]:
    """Checks a finished data set: every shard is there, has its size and as many records as it should.

    Args:
      output: folder of a data set of clips or latents, plain or of buckets.
    Returns:
      Bucket ("" for a plain set) -> split -> clips.
    Raises:
      ValueError: something is missing or damaged, which is named.
    """
    output = Path(output)
    names = [""]
    if (output / pack_settings.BUCKETS_MARK).exists():
        names = _read_json(output / pack_settings.BUCKETS_MARK)["buckets"]
    counts = {}
    for name in names:
        data = packed_data.open_data(output / name)
        for split, paths in data.files.items():
            for path, length in zip(paths, data.lengths[split], strict=True):
                _check_count(Path(path), length, f"delete {output} and pack again")
        counts[name] = {split: sum(lengths) for split, lengths in data.lengths.items()}
        scores = output / name / records.MOTION_SCORES
        # Latents may be of several variants of each clip, which have its score.
        variants = ((data.latents and data.latents.augment) or {}).get("variants", 1)
        if scores.exists() and len(np.load(scores)) * variants != counts[name].get("train", 0):
            raise ValueError(f"{scores} does not belong to its data set: pack again.")
    return counts


def _is_whole(output):
    marks = (pack_settings.PLAIN_MARK, pack_settings.BUCKETS_MARK)
    return any((output / mark).exists() for mark in marks)


def _remove_parts(output):
    """Removes what a call left that was ended between its last two steps."""
    parts = output / "parts"
    if any(parts.glob("*-of-*/**/*.tfrecord-*")):
        raise ValueError(
            f"{output} is a finished data set, and {parts} has shards that are not in it: pack into another --output, "
            f"or delete {parts}."
        )
    shutil.rmtree(parts, ignore_errors=True)


def _find_parts(output) -> list[Path]:
    """Returns the folders of all n parts in order; each is finished."""
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
            f"{output / 'parts'} has parts of {' and of '.join(map(str, totals))}: delete those that you do not want."
        )
    (total,) = totals
    done = {index for (index, _), folder in found.items() if _is_finished(folder)}
    missing = [index for index in range(total) if index not in done]
    if missing:
        raise ValueError(_say_missing(output, missing, total, found, done))
    return [found[index, total] for index in range(total)]


def _is_finished(folder):
    return _is_whole(folder) or (folder / pack_settings.EMPTY_MARK).exists()


def _say_missing(output, missing, total, found, done):
    """Says which parts are missing, and the command that makes the first of them."""
    flags = {"output": output, "shard": f"{missing[0]}/{total}"}
    if done:
        report = _read_json(found[min(done), total] / pack_settings.REPORT)
        flags |= {"input": report["input"]} | report["settings"] | flags
        flags |= {"buckets": ",".join(flags["buckets"])} if "buckets" in flags else {}
    skipped = ("videos", "synthetic")
    words = [f"--{name}={value}" for name, value in flags.items() if name not in skipped]
    command = shlex.join(["python", "-m", "videogen_jax.pack", *words])
    command += "" if done else " and the flags of the others"
    begun = [index for index in missing if (index, total) in found]
    state = "begun but not finished" if missing[0] in begun else "missing"
    more = f" (and {len(missing) - 1} others are not there)" if len(missing) > 1 else ""
    return f"part {missing[0]} of {total} is {state}{more}: call {command}"


def _compare_parts(folders, reports) -> dict[str, Any]:
    """Returns the settings that all parts share, "shard" left out; raises ValueError where they do not."""
    first = {name: value for name, value in reports[0]["settings"].items() if name != "shard"}
    for index, (folder, report) in enumerate(zip(folders, reports, strict=True)):
        noted = dict(report["settings"])
        if noted.pop("shard", None) != f"{index}/{len(folders)}":
            raise ValueError(f"{folder} is no such part: delete it and pack it again.")
        for name in sorted(first.keys() | noted.keys()):
            then, now = first.get(name), noted.get(name)
            if then != now:
                what = f"{name} is {now} there and {then} in the first part"
                if name == "videos":
                    what = "the videos or their captions were others than for the first part"
                raise ValueError(
                    f"{folder} does not belong to the other parts ({what}): delete it and pack it again from the same "
                    "folder with the same flags."
                )
    return first


def _merge_reports(reports, noted) -> dict[str, Any]:
    """Returns the report of the whole; "clips" and "buckets" are filled in later."""
    cut_off: dict[str, int] = {}
    for report in reports:
        cut_off |= report["frames_cut_off"]
    return {
        "settings": noted,
        "input": reports[0]["input"],
        "clips": {},
        "skipped": pack_buckets.list_skipped({}, reports),
        "frames_cut_off": dict(sorted(cut_off.items())),
        "long_captions": sorted(name for report in reports for name in report["long_captions"]),
        "seconds": round(sum(report["seconds"] for report in reports), 1),
        "parts": len(reports),
    }


def _read_piece(folder) -> Piece:
    """Reads what a part, or a bucket of one, says about itself."""
    shards, num_bytes = [], {}
    if not (folder / pack_settings.EMPTY_MARK).exists():
        info = _read_json(folder / pack_settings.PLAIN_MARK)
        for split in info["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            num_bytes[split["name"]] = int(split["numBytes"])
            for shard, clips in enumerate(lengths):
                name = records.shard_name(split["name"], shard, len(lengths))
                shards.append(Shard(split["name"], folder / name, clips))
    return Piece(folder, _read_json(folder / pack_settings.REPORT), shards, num_bytes)


def _merge_buckets(output, folders, report):
    """Merges bucket by bucket, and writes buckets.json."""
    table = [bucket_assignment.parse_buckets(name)[0] for name in report["settings"]["buckets"]]
    pieces = {}
    for bucket in table:
        names = [folder / bucket.name for folder in folders]
        pieces[bucket] = [_read_piece(folder) for folder in names if folder.is_dir()]
    _want_training(output, [piece for own in pieces.values() for piece in own], report)
    for bucket, own in pieces.items():  # before anything moves
        _check_pieces(output / bucket.name, own)
    report["buckets"] = {}
    for bucket, own in pieces.items():
        if own:
            noted = {k: v for k, v in own[0].report["settings"].items() if k != "shard"}
            prints = [piece.report["settings"]["videos"] for piece in own]
            noted["videos"] = source_lists.add_fingerprints(prints)
            merged = _merge_reports([piece.report for piece in own], noted)
            _merge_plain(output / bucket.name, own, merged, work=output / "parts")
            report["buckets"][bucket.name] = merged["clips"]
    pack_buckets.finish(output, report, table, whole=True)


def _want_training(output, pieces, report):
    """Raises ValueError where no piece has a clip for training."""
    if not any(shard.split == "train" for piece in pieces for shard in piece.shards):
        reasons = "; ".join(f"{i['file']}: {i['reason']}" for i in report["skipped"][:3])
        raise ValueError(
            f"none of the parts has a clip for training ({reasons}): delete {output / 'parts'} and pack again with "
            "more videos, or other settings."
        )


def _merge_plain(
    output: Path,
    pieces: Sequence[Piece],
    report: dict[str, Any],
    work: Path,
) -> None:
    """Moves the shards of all pieces to a folder and describes them as one data set; fills in the report."""
    moves = _check_pieces(output, pieces)
    clips = collections.Counter()
    for piece in pieces:
        for shard in piece.shards:
            clips[shard.split] += shard.clips
    report["clips"] = {split: clips[split] for split in SPLITS}
    output.mkdir(exist_ok=True)
    sizes: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for shard, target in moves:
        if not target.exists():
            os.replace(shard.path, target)
        size = target.stat().st_size - packed_data.FRAMING * shard.clips
        sizes[shard.split].append((shard.clips, size))
    words, scores = collections.Counter(), []
    for piece in pieces:
        words.update(_read_json(piece.folder / "statistics.json")["words"])
        scores.append(np.load(piece.folder / records.MOTION_SCORES))
    settings = _read_settings(report["settings"])
    pack_folder.write_descriptions(output, settings, words, np.concatenate(scores), report)
    pack_folder.finish_plain(output, work, sizes)


def _read_settings(noted) -> pack_settings.Settings:
    """Makes settings of what `pack_settings.note_settings` made of them."""
    height, width = map(int, noted["size"].split("x"))
    names = ("fps", "frames", "min_frames", "validation_fraction", "clips_per_shard")
    return pack_settings.Settings((height, width), **{name: noted[name] for name in names})


def _check_pieces(output, pieces) -> list[tuple[Shard, Path]]:
    """Checks shards, counts and sources of all pieces.

    Returns:
      (shard, where it goes) for each; it may be there already.
    Raises:
      ValueError: names what is missing, damaged or there twice.
    """
    moves = list(_number_shards(output, pieces))
    places = {shard.path: shard.path if shard.path.exists() else target for shard, target in moves}
    owners: dict[str, Path] = {}
    for piece in pieces:
        advice = f"delete {piece.folder} and pack that part again"
        sizes = collections.Counter()
        for shard in piece.shards:
            path = places[shard.path]
            if not path.exists():
                raise ValueError(f"the record file {shard.path} is missing: {advice}.")
            _check_count(path, shard.clips, advice)
            sizes[shard.split] += path.stat().st_size - packed_data.FRAMING * shard.clips
        if any(sizes[split] != size for split, size in piece.num_bytes.items()):
            raise ValueError(f"the record files of {piece.folder} have not their sizes: {advice}.")
        clips = _read_json(piece.folder / pack_folder.SOURCES_FILE)
        for name in clips:
            if name in owners:
                raise ValueError(f"{name} is in {owners[name]} and in {piece.folder}: {advice}.")
            owners[name] = piece.folder
        train = sum(shard.clips for shard in piece.shards if shard.split == "train")
        scores = np.load(piece.folder / records.MOTION_SCORES)
        if sum(clips.values()) != sum(s.clips for s in piece.shards) or len(scores) != train:
            raise ValueError(
                f"the files of {piece.folder} count other clips than its shards: {advice}."
            )
    return moves


def _number_shards(output, pieces) -> Iterator[tuple[Shard, Path]]:
    """Yields each shard of the pieces with its final path, split by split."""
    for split in SPLITS:
        shards = [s for piece in pieces for s in piece.shards if s.split == split]
        for number, shard in enumerate(shards):
            yield shard, output / records.shard_name(split, number, len(shards))


def _check_count(path: Path, clips: int, advice: str) -> None:
    found = packed_data.count_records(path)
    if found != clips:
        what = "breaks off" if found is None else f"has {found} clips instead of {clips}"
        raise ValueError(f"the record file {path} {what}: {advice}.")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is missing or damaged: delete {path.parent} and pack it again."
        ) from error
