"""Packs a folder of captioned videos into a data set that TFDS opens; the work behind `pack`.

Workers decode videos and encode their clips as JPEG (`extraction`); the parent, the only process that imports
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
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from videogen_jax.data import atomic_files, records
from videogen_jax.data import vocabulary as vocabularies
from videogen_jax.data.workers import WorkerDied, make_pool
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing import sources
from videogen_jax.packing.extraction import extract_clips, read_clips
from videogen_jax.packing.locking import hold_folder
from videogen_jax.packing.settings import Settings, finished_report, note_settings
from videogen_jax.packing.sources import Source

SPLITS = ("train", "validation")
MAX_SHARD_BYTES = 256 * 2**20  # large clips: shards end here, so that a restart loses little
VIDEOS_AHEAD = 16  # per worker, decoded before it is their turn
LONG_CAPTION = 75  # words; a text encoder of 77 tokens, CLIP's, cannot read on behind them
SOURCES_FILE = "packed_sources.json"  # in parts of a set: source -> number of its clips


def pack(
    folder,
    output,
    settings: Settings,
    *,
    workers: int,
    strict: bool = False,
    origin: dict | None = None,
    share: tuple[int, int] | None = None,
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
      share: (i, n): pack every n-th source from the i-th on, into OUTPUT/parts, for `merging`.
      progress: show a progress bar on stderr; None: only on a terminal.
    Returns:
      The report, as written to OUTPUT/pack_report.json; with "finished_before" true where there was
      nothing left to do.
    Raises:
      ValueError: nothing to pack, `strict` found something, OUTPUT belongs to other settings, or
        another process is at work on it.
      OSError: the disk is full; the finished shards are kept.
      WorkerDied: a worker process died; the finished shards are kept.
    """
    output = pathlib.Path(output)
    found, skipped = sources.list_sources(folder, images=settings.frames == 1)
    noted = note_settings(settings, origin) | {"videos": sources.fingerprint(found, skipped)}
    if report := finished_report(output, noted):
        return report
    refuse_mixture(output, share)
    if share:
        found = sources.fix_splits(found, settings.validation_fraction)[share[0] :: share[1]]
        noted |= {"shard": f"{share[0]}/{share[1]}"}
        output = part_folder(output, share)
    with hold_folder(output):
        return finished_report(output, noted) or pack_sources(
            folder,
            output,
            found,
            skipped,
            settings,
            noted,
            workers=workers,
            strict=strict,
            whole=share is None,
            progress=progress,
        )


def part_folder(output, share: tuple[int, int]) -> pathlib.Path:
    """Returns where the i-th of n parts of a data set lies."""
    return pathlib.Path(output) / "parts" / "{:05d}-of-{:05d}".format(*share)


def refuse_mixture(output, share: tuple[int, int] | None) -> None:
    """Raises ValueError where parts are begun beside a whole set, or the other way round."""
    output = pathlib.Path(output)
    if share and (output / "unfinished").exists():
        raise ValueError(
            f"{output} was begun without --shard: call that command again, or delete "
            f"{output / 'unfinished'} to pack in parts."
        )
    if not share and (output / "parts").exists():
        raise ValueError(
            f"{output} was begun in parts: call the same command with --shard, or "
            f"python -m videogen_jax.merge --output={output} where all are done; or delete {output / 'parts'}."
        )


def pack_sources(
    folder,
    output,
    found: Sequence[Source],
    skipped: dict[str, str],
    settings: Settings,
    noted: dict,
    *,
    workers: int,
    strict: bool = False,
    whole: bool = True,
    progress: bool | None = None,
    label: str | None = None,
    pool: ProcessPoolExecutor | None = None,
) -> dict:
    """Packs sources into a plain data set; continues one that was begun with the same settings.

    Args:
      folder: of the videos.
      output: folder of the data set.
      found: what to pack, in this order.
      skipped: name -> reason of what is left out already.
      settings: what the set is made of.
      noted: its settings as noted with it.
      workers: processes that decode.
      strict: stop at the first video that would be skipped.
      whole: it is an error if there is no clip for training; else a set without any may result.
      progress: as of `pack`.
      label: in front of the progress bar.
      pool: the workers, of `make_pool`; None: start some.
    Returns:
      The report, as of `pack`.
    Raises:
      ValueError, OSError, WorkerDied: as `pack`.
    """
    started = time.monotonic()
    output = pathlib.Path(output)
    work = pack_settings.claim_output(output, noted)
    journal = _read_journal(output, work)
    skipped, cut_off = dict(skipped), {}
    known = skipped | {name: why for shard in journal for name, why in shard["skipped"].items()}
    known = {name: why for name, why in known.items() if why != sources.UNWANTED_IMAGE}
    if strict and known:
        refuse(*min(known.items()))
    hidden = None if progress is None else not progress
    with tqdm(total=len(found), unit="video", desc=label, disable=hidden) as bar:
        try:
            own = contextlib.nullcontext(pool) if pool else make_pool(min(workers, len(found) or 1))
            with own as pool:
                videos = _extract_all(pool, workers, folder, work, found, settings, journal)
                last = _write_shards(videos, work, found, settings, journal, strict, bar)
        finally:
            for leftover in work.glob("*.clips"):
                leftover.unlink(missing_ok=True)
    for part in [*journal, last]:
        skipped |= part["skipped"]
        cut_off |= part["cut_off"]
    counts = {split: sum(s["clips"] for s in journal if s["split"] == split) for split in SPLITS}
    if whole and not counts["train"]:
        shutil.rmtree(work)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(skipped.items())[:3])
        raise ValueError(
            f"no clip for training came out of the {len(found)} captioned videos in {folder} "
            f"({reasons}): add videos, or lower --min_frames or --validation_fraction."
        )
    report = {
        "settings": noted,
        "input": os.fspath(folder),
        "clips": counts,
        "skipped": [{"file": name, "reason": skipped[name]} for name in sorted(skipped)],
        "frames_cut_off": dict(sorted(cut_off.items())),
        "long_captions": long_captions(found),
        "seconds": round(time.monotonic() - started, 1),
    }
    _finish(output, work, journal, found, settings, report)
    return report | {"finished_before": False}


def long_captions(found: Sequence[Source]) -> list[str]:
    """Names the sources whose captions are longer than text encoders commonly read."""
    names = {s.name for s in found if len(vocabularies.split_words(s.caption)) > LONG_CAPTION}
    return sorted(names)


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
    atomic_files.write_text(path, "".join(json.dumps(shard) + "\n" for shard in shards))
    return shards


def _work_name(shard):
    return f"{shard['split']}-{shard['shard']:05d}"


def _final_names(shards):
    totals = collections.Counter(shard["split"] for shard in shards)
    return [records.shard_name(s["split"], s["shard"], totals[s["split"]]) for s in shards]


def _extract_all(pool, workers, folder, work, found, settings, journal):
    """Yields (index of the source, path of its clips, reason to skip it, frames cut off) in order.

    Starts with the source in which the journal ends.
    """
    waiting = collections.deque()
    upcoming = iter(range(journal[-1]["next"][0] if journal else 0, len(found)))
    try:
        while True:
            ahead = VIDEOS_AHEAD * workers - len(waiting)
            for index in itertools.islice(upcoming, ahead):
                source, spill = found[index], work / f"{index}.clips"
                video = os.path.join(folder, source.name)
                span = (source.first, source.count)
                task = pool.submit(extract_clips, video, os.fspath(spill), settings, *span)
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
        names = [found[index].name for index, _, _ in itertools.islice(waiting, workers)]
        raise WorkerDied(
            f"a worker process died while {' or '.join(names)} was read (out of memory, killed, or "
            "a crash of the decoder): call the same command again to continue, with fewer "
            "--workers or without that file."
        ) from None


def _assign_shards(videos, found, settings, journal, skipped, cut_off, strict, bar):
    """Yields the clips of all videos in order as ((split, shard), (source, next clip), record).

    Fills `skipped` and `cut_off`, name -> reason and name -> frames, as it goes.
    """
    shards = collections.Counter(shard["split"] for shard in journal)  # begun ones of each split
    begin = tuple(journal[-1]["next"]) if journal else (0, 0)
    bar.update(begin[0])
    split, clips, num_bytes = None, 0, 0
    for index, spill, reason, frames in videos:
        name = found[index].name
        if frames:
            cut_off[name] = frames
        if reason:
            skipped[name] = reason
            if strict:
                refuse(name, reason)
        inside = index == begin[0] and begin[1]  # continues a video that is in a split already
        wanted = journal[-1]["split"] if inside else _choose_split(index, found, settings, shards)
        for clip, record in enumerate(() if reason else read_clips(spill)):
            if (index, clip) < begin:
                continue
            full = clips == settings.clips_per_shard or num_bytes >= MAX_SHARD_BYTES
            if wanted != split or full:
                split, clips, num_bytes = wanted, 0, 0
                shards[split] += 1
            clips, num_bytes = clips + 1, num_bytes + sum(map(len, record["strips"]))
            record |= {"caption": found[index].caption, "source": name}
            yield (split, shards[split] - 1), (index, clip + 1), record
        bar.update()


def _choose_split(index, found, settings, shards):
    """Says which split a video goes to: by its place, but neither stays empty if avoidable.

    The sources are sorted by place, so the validation split comes first. It gets one video at
    least, however few there are, and leaves one at least for training.
    """
    if found[index].split:
        return found[index].split
    fraction = settings.validation_fraction
    if not fraction or (index == len(found) - 1 and not shards["train"]):
        return "train"
    missing = not shards["validation"] and not shards["train"]
    return "validation" if found[index].place < fraction or missing else "train"


def _write_shards(videos, work, found, settings, journal, strict, bar):
    """Writes shard by shard, and a line of the journal behind each.

    Returns:
      {"skipped", "cut_off"} of the videos behind the last line.
    """
    skipped, cut_off = {}, {}
    clips = _assign_shards(videos, found, settings, journal, skipped, cut_off, strict, bar)
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


def refuse(name: str, reason: str) -> None:
    """Raises the ValueError that --strict asks for."""
    raise ValueError(
        f"{name} would be skipped ({reason}), and --strict stops there: mend or remove it, or call "
        "again without --strict."
    )


def _finish(output, work, journal, found, settings, report):
    """Moves the shards to OUTPUT and writes the JSON files, dataset_info.json last."""
    for shard, name in zip(journal, _final_names(journal), strict=True):
        if (work / _work_name(shard)).exists():  # else a killed run has moved it already
            os.replace(work / _work_name(shard), output / name)
    words, scores = _count_words(journal, found), _scores(journal)
    if "shard" in report["settings"]:  # `merging` wants to know
        atomic_files.write_text(output / SOURCES_FILE, json.dumps(_count_clips(journal, found)))
    write_descriptions(output, settings, words, scores, report)
    sizes = collections.defaultdict(list)
    for shard in journal:
        sizes[shard["split"]].append((shard["clips"], shard["bytes"]))
    finish_plain(output, work, sizes)
    shutil.rmtree(work)


def finish_plain(output, work, sizes: dict[str, list[tuple[int, int]]]) -> None:
    """Writes features.json and dataset_info.json, or no_clips.json: the set is whole.

    Args:
      output: folder of the data set.
      work: folder for what is not finished.
      sizes: split -> (clips, bytes of their records) of each shard.
    """
    if not sizes:
        atomic_files.write_text(pathlib.Path(output) / pack_settings.EMPTY_MARK, "{}")
        return
    metadata = pathlib.Path(work) / "metadata"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir()
    records.write_dataset_info(output, sizes, metadata)


def _count_words(journal, found):
    """Returns word -> how often it occurs in the captions of the clips for training."""
    words = collections.Counter()
    for shard in journal:
        if shard["split"] == "train":
            for index, clips in shard["packed"]:
                for word in vocabularies.split_words(found[index].caption):
                    words[word] += clips
    return words


def _count_clips(journal, found):
    """Returns source -> number of its clips."""
    clips = collections.Counter()
    for shard in journal:
        for index, count in shard["packed"]:
            clips[found[index].name] += count
    return clips


def _scores(journal):
    """Returns the motion scores of the clips for training, in order."""
    scores = [score for s in journal if s["split"] == "train" for score in s["motion_scores"]]
    return np.asarray(scores, np.float32)


def write_descriptions(
    output, settings: Settings, words: dict[str, int], scores: np.ndarray, report: dict
) -> None:
    """Writes motion_scores.npy, statistics.json and pack_report.json.

    Args:
      output: folder of the data set.
      settings: what it is made of.
      words: word -> how often it occurs in the captions of the clips for training.
      scores: (N,) float32 motion scores of the clips for training, in order.
      report: content of pack_report.json.
    """
    output = pathlib.Path(output)
    unfinished = output / f"{records.MOTION_SCORES}.unfinished"
    with open(unfinished, "wb") as file:
        np.save(file, scores)
    atomic_files.publish(unfinished, output / records.MOTION_SCORES)
    statistics = make_statistics(settings, words, scores)
    for name, content in {"statistics.json": statistics, pack_settings.REPORT: report}.items():
        atomic_files.write_text(output / name, json.dumps(content, indent=1, ensure_ascii=False))


def make_statistics(settings: Settings, words: dict[str, int], scores: np.ndarray) -> dict:
    """Returns the content of statistics.json: what training reads about the train split.

    "words" is word -> number of clips' captions' words; "motion_score_buckets" are the edges of
    `records.motion_edges`, of which there are none without scores.
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
