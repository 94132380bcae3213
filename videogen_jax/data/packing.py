"""Packs a folder of captioned videos into a data set that TFDS opens; the work behind `pack`.

Workers decode videos and encode their clips as JPEG; the parent, the only process that imports
TensorFlow, puts them in order and writes shards. Everything happens in OUTPUT/unfinished:

    settings.json    what the data set is made of, to refuse a call with other settings
    journal.jsonl    one line for each finished shard: its clips, and where the next one begins
    train-00003      finished shards; a killed run continues behind the last of the journal
    17.clips         clips of video 17 on their way from a worker to the parent

When the last shard is done, the shards move to OUTPUT under their final names, and
dataset_info.json comes last: a set that has it is whole.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import pickle
import shutil
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from videogen_jax.data import captions, records, video_io
from videogen_jax.data.sources import fingerprint, list_sources
from videogen_jax.data.workers import WorkerDied, make_pool

SPLITS = ("train", "validation")
MAX_SHARD_BYTES = 256 * 2**20  # large clips: shards end here, so that a restart loses little
NUM_MOTION_BUCKETS = 256
VIDEOS_AHEAD = 16  # per worker, decoded before it is their turn


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a data set is made of; two calls with equal settings make equal shards."""

    size: tuple[int, int]  # (height, width) in pixels
    fps: float  # frames per second
    frames: int  # frames of a clip, at most
    min_frames: int  # frames of a clip, at least
    validation_fraction: float  # share of the videos
    clips_per_shard: int  # at most


def pack(
    folder,
    output,
    settings: Settings,
    *,
    workers: int,
    strict: bool = False,
    origin: dict | None = None,
    progress: bool | None = None,
) -> dict:
    """Packs a folder into a data set; continues one that was begun with the same settings.

    Args:
      folder: of the videos.
      output: folder of the data set.
      settings: what it is made of.
      workers: processes that decode.
      strict: stop at the first video that would be skipped.
      origin: settings that made the videos, noted with the data set's own.
      progress: show a progress bar on stderr; None: only on a terminal.
    Returns:
      The report, as written to OUTPUT/pack_report.json; with "finished_before" true where there was
      nothing left to do.
    Raises:
      ValueError: nothing to pack, `strict` found something, or OUTPUT belongs to other settings.
      OSError: the disk is full; the finished shards are kept.
      WorkerDied: a worker process died; the finished shards are kept.
    """
    started = time.monotonic()
    folder, output = pathlib.Path(folder), pathlib.Path(output)
    sources, skipped = list_sources(folder)
    noted = note_settings(settings, origin) | {"videos": fingerprint(sources, skipped)}
    if report := finished_report(output, noted):
        return report
    work = output / "unfinished"
    _claim_output(output, work, noted)
    journal = _read_journal(output, work)
    cut_off = {}
    found = skipped | {name: why for shard in journal for name, why in shard["skipped"].items()}
    if strict and found:
        _refuse(*min(found.items()))
    with tqdm(
        total=len(sources), unit="video", disable=None if progress is None else not progress
    ) as bar:
        try:
            with make_pool(min(workers, len(sources))) as pool:
                videos = _extract_all(pool, workers, folder, work, sources, settings, journal)
                last = _write_shards(videos, work, sources, settings, journal, strict, bar)
        finally:
            for leftover in work.glob("*.clips"):
                leftover.unlink(missing_ok=True)
    for part in [*journal, last]:
        skipped |= part["skipped"]
        cut_off |= part["cut_off"]
    counts = {split: sum(s["clips"] for s in journal if s["split"] == split) for split in SPLITS}
    if not counts["train"]:
        shutil.rmtree(work)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(skipped.items())[:3])
        raise ValueError(
            f"no clip for training came out of the {len(sources)} captioned videos in {folder} "
            f"({reasons}): add videos, or lower --min_frames or --validation_fraction."
        )
    report = {
        "settings": noted,
        "input": os.fspath(folder),
        "clips": counts,
        "skipped": [{"file": name, "reason": skipped[name]} for name in sorted(skipped)],
        "frames_cut_off": dict(sorted(cut_off.items())),
        "seconds": round(time.monotonic() - started, 1),
    }
    _finish(output, work, journal, sources, settings, report)
    return report | {"finished_before": False}


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
    if not (output / "dataset_info.json").exists():
        return None
    if not (output / "pack_report.json").exists():
        raise ValueError(
            f"{output} holds a data set that pack did not write: choose another --output."
        )
    report = json.loads((output / "pack_report.json").read_text(encoding="utf-8"))
    _compare(output, report["settings"], noted)
    shutil.rmtree(output / "unfinished", ignore_errors=True)
    return report | {"finished_before": True}


def _compare(output, found, wanted):
    """Raises ValueError naming what differs between the settings noted in OUTPUT and this call."""
    differences = []
    for key, value in wanted.items():
        if found[key] == value:
            continue
        if key == "videos":
            then, now = found[key]["count"], value["count"]
            differences.append(f"the videos or their captions changed ({then} then, {now} now)")
        else:
            differences.append(f"{key} was {found[key]} and is now {value}")
    if differences:
        raise ValueError(
            f"{output} was packed with other settings: {'; '.join(differences)}; choose another "
            f"--output, or delete {output} to pack it anew."
        )


def _claim_output(output, work, noted):
    """Notes the settings in OUTPUT/unfinished, or raises where others are noted there."""
    path = work / "settings.json"
    if path.exists():
        _compare(output, json.loads(path.read_text(encoding="utf-8")), noted)
        return
    work.mkdir(parents=True, exist_ok=True)
    records.write_text(path, json.dumps(noted, indent=1))


def _read_journal(output, work):
    """Returns the lines of the journal up to the first whose shard is not whole; drops the rest."""
    path = work / "journal.jsonl"
    shards = []
    if path.exists():
        with contextlib.suppress(json.JSONDecodeError):  # a run was killed while it wrote a line
            for line in path.read_text(encoding="utf-8").splitlines():
                shards.append(json.loads(line))
    for index, (shard, final_name) in enumerate(zip(shards, _final_names(shards), strict=True)):
        places = (work / _work_name(shard), output / final_name)
        if not any(p.exists() and p.stat().st_size == shard["file_bytes"] for p in places):
            shards = shards[:index]
            break
    records.write_text(path, "".join(json.dumps(shard) + "\n" for shard in shards))
    return shards


def _work_name(shard):
    return f"{shard['split']}-{shard['shard']:05d}"


def _final_names(shards):
    totals = collections.Counter(shard["split"] for shard in shards)
    return [records.shard_name(s["split"], s["shard"], totals[s["split"]]) for s in shards]


def _extract_all(pool, workers, folder, work, sources, settings, journal):
    """Yields (index of the source, path of its clips, reason to skip it, frames cut off) in order.

    Starts with the source in which the journal ends.
    """
    waiting = collections.deque()
    upcoming = iter(range(journal[-1]["next"][0] if journal else 0, len(sources)))
    try:
        while True:
            ahead = VIDEOS_AHEAD * workers - len(waiting)
            for index in itertools.islice(upcoming, ahead):
                video, spill = folder / sources[index].name, work / f"{index}.clips"
                task = pool.submit(extract_clips, os.fspath(video), os.fspath(spill), settings)
                waiting.append((index, spill, task))
            if not waiting:
                return
            index, spill, task = waiting[0]
            reason, cut_off = task.result()
            waiting.popleft()
            yield index, spill, reason, cut_off
            spill.unlink()
    except BrokenProcessPool:
        # Which one it was is not known; those that were being read are the first ones unfinished.
        names = [sources[index].name for index, _, _ in itertools.islice(waiting, workers)]
        raise WorkerDied(
            f"a worker process died while {' or '.join(names)} was read (out of memory, killed, or "
            "a crash of the decoder): call the same command again to continue, with fewer "
            "--workers or without that file."
        ) from None


def _assign_shards(videos, sources, settings, journal, skipped, cut_off, strict, bar):
    """Yields the clips of all videos in order as ((split, shard), (source, next clip), record).

    Fills `skipped` and `cut_off`, name -> reason and name -> frames, as it goes.
    """
    shards = collections.Counter(shard["split"] for shard in journal)  # begun ones of each split
    begin = tuple(journal[-1]["next"]) if journal else (0, 0)
    bar.update(begin[0])
    split, clips, num_bytes = None, 0, 0
    for index, spill, reason, frames in videos:
        name = sources[index].name
        if frames:
            cut_off[name] = frames
        if reason:
            skipped[name] = reason
            if strict:
                _refuse(name, reason)
        inside = index == begin[0] and begin[1]  # continues a video that is in a split already
        wanted = journal[-1]["split"] if inside else _choose_split(index, sources, settings, shards)
        for clip, record in enumerate(() if reason else _read_clips(spill)):
            if (index, clip) < begin:
                continue
            full = clips == settings.clips_per_shard or num_bytes >= MAX_SHARD_BYTES
            if wanted != split or full:
                split, clips, num_bytes = wanted, 0, 0
                shards[split] += 1
            clips, num_bytes = clips + 1, num_bytes + sum(map(len, record["strips"]))
            record |= {"caption": sources[index].caption, "source": name}
            yield (split, shards[split] - 1), (index, clip + 1), record
        bar.update()


def _choose_split(index, sources, settings, shards):
    """Says which split a video goes to: by its place, but neither stays empty if avoidable.

    The sources are sorted by place, so the validation split comes first. It gets one video at
    least, however few there are, and leaves one at least for training.
    """
    fraction = settings.validation_fraction
    if not fraction or (index == len(sources) - 1 and not shards["train"]):
        return "train"
    missing = not shards["validation"] and not shards["train"]
    return "validation" if sources[index].place < fraction or missing else "train"


def _write_shards(videos, work, sources, settings, journal, strict, bar):
    """Writes shard by shard, and a line of the journal behind each.

    Returns:
      {"skipped", "cut_off"} of the videos behind the last line.
    """
    skipped, cut_off = {}, {}
    clips = _assign_shards(videos, sources, settings, journal, skipped, cut_off, strict, bar)
    first = next(clips, None)  # the workers are busy before TensorFlow is imported, ten seconds
    if first is None:
        return {"skipped": skipped, "cut_off": cut_off}
    features = records.make_features()
    groups = itertools.groupby(itertools.chain([first], clips), key=lambda clip: clip[0])
    for (split, number), group in groups:
        shard = {"split": split, "shard": number, "packed": collections.Counter()}
        shard |= {"next": None, "motion_scores": []}

        def serialize(group=group, shard=shard):
            for _, position, record in group:
                shard["packed"][position[0]] += 1
                shard["next"] = position  # video and clip that the next shard begins with
                shard["motion_scores"].append(record["motion_score"])
                yield records.serialize_clip(features, **record)

        path = work / _work_name(shard)
        shard["clips"], shard["bytes"] = records.write_shard(path, serialize())
        shard["file_bytes"] = path.stat().st_size
        shard["packed"] = list(shard["packed"].items())  # [video, number of its clips]
        shard |= {"skipped": dict(skipped), "cut_off": dict(cut_off)}
        with open(work / "journal.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(shard) + "\n")
            file.flush()
            os.fsync(file.fileno())
        journal.append(shard)
        skipped.clear()
        cut_off.clear()
    return {"skipped": skipped, "cut_off": cut_off}


def _refuse(name, reason):
    """Raises what --strict asks for."""
    raise ValueError(
        f"{name} would be skipped ({reason}), and --strict stops there: mend or remove it, or call "
        "again without --strict."
    )


def extract_clips(path: str, spill: str, settings: Settings) -> tuple[str | None, int]:
    """Decodes a video and writes its clips, as pickled records, to a file; runs in a worker.

    Args:
      path: of the video.
      spill: file to write; a file and not a return value, because an hour of video is many GB.
      settings: of the data set.
    Returns:
      (None or the reason why the video is skipped, frames left over behind the last clip).
    Raises:
      OSError: the disk is full or fails.
    """
    count, clip = 0, []
    with open(spill, "wb") as file:
        try:
            for _, frame in video_io.read_frames(path, fps=settings.fps):
                clip.append(video_io.fit_frame(frame, settings.size))
                if len(clip) == settings.frames:
                    pickle.dump(_make_record(clip, settings.fps), file)
                    count, clip = count + 1, []
        except video_io.VideoError as error:
            return str(error).removeprefix(f"{path} "), 0
        except PermissionError as error:
            return f"cannot be opened ({error.strerror})", 0
        if len(clip) >= settings.min_frames:
            pickle.dump(_make_record(clip, settings.fps), file)
            count, clip = count + 1, []
    if count:
        return None, len(clip)
    reason = (
        f"too short: {len(clip)} frames at {settings.fps:g} frames per second, and --min_frames is "
        f"{settings.min_frames}"
    )
    return reason, 0


def _make_record(clip, fps):
    """Returns the fields of a record that follow from the pixels, for `records.serialize_clip`."""
    video = np.stack(clip)  # (T, H, W, 3)
    return {
        "strips": records.encode_strips(video),
        "fps": fps,
        "num_frames": video.shape[0],
        "height": video.shape[1],
        "width": video.shape[2],
        "motion_score": records.motion_score(video, fps),
    }


def _read_clips(spill) -> Iterator[dict]:
    """Yields the records that `extract_clips` wrote, one at a time."""
    with open(spill, "rb") as file, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(file)


def _finish(output, work, journal, sources, settings, report):
    """Moves the shards to OUTPUT and writes the JSON files, dataset_info.json last."""
    for shard, name in zip(journal, _final_names(journal), strict=True):
        if (work / _work_name(shard)).exists():  # else a killed run has moved it already
            os.replace(work / _work_name(shard), output / name)
    statistics = _make_statistics(journal, sources, settings)
    for name, content in {"statistics.json": statistics, "pack_report.json": report}.items():
        records.write_text(output / name, json.dumps(content, indent=1, ensure_ascii=False))
    sizes = collections.defaultdict(list)
    for shard in journal:
        sizes[shard["split"]].append((shard["clips"], shard["bytes"]))
    metadata = work / "metadata"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir()
    records.write_dataset_info(output, sizes, metadata)
    shutil.rmtree(work)


def _make_statistics(journal, sources, settings):
    """Returns the content of statistics.json: what training reads about the train split.

    "words" is word -> number of clips' captions' words; "motion_score_buckets" are the 255 inner
    edges of 256 quantile buckets: `np.searchsorted(edges, score, side="right")` is in 0 ... 255.
    """
    words, scores = collections.Counter(), []
    for shard in journal:
        if shard["split"] == "train":
            scores += shard["motion_scores"]
            for index, clips in shard["packed"]:
                for word in captions.split_words(sources[index].caption):
                    words[word] += clips
    edges = np.quantile(scores, np.arange(1, NUM_MOTION_BUCKETS) / NUM_MOTION_BUCKETS)
    return {
        "frames": settings.frames,
        "min_frames": settings.min_frames,
        "height": settings.size[0],
        "width": settings.size[1],
        "fps": settings.fps,
        "words": dict(sorted(words.items(), key=lambda item: (-item[1], item[0]))),
        "motion_score_buckets": edges.tolist(),
    }
