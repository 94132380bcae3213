"""Packs a folder of captioned videos into a TFDS data set; the work behind `pack`.

Workers decode videos and encode their clips as JPEG (`extraction`); the parent, the only process that imports
TensorFlow, orders the clips and writes shards (`shards`). Temporary files are in OUTPUT/unfinished:

    settings.json    settings of the data set; a call with other settings is refused
    sources.jsonl    the list of sources, which the journal refers to
    journal.jsonl    one line per finished shard: its clips, and the position of the next clip
    train-00003      finished shards; an interrupted call resumes after the last one in the journal
    17.clips         clips of video 17, passed from a worker to the parent

After the last shard, the shards move to OUTPUT under their final names. dataset_info.json is written last and marks the
data set as finished.
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from videogen_jax.data import atomic_files
from videogen_jax.data import vocabulary as vocabularies
from videogen_jax.data.locking import lock_folder
from videogen_jax.data.progress import show_progress
from videogen_jax.data.workers import end_unguarded_child, explain_death, make_pool
from videogen_jax.packing import (
    duplicate_pass,
    filters,
    input_forms,
    media_files,
    metadata,
    saved_sources,
    shards,
    sources,
    tar_shards,
)
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.extraction import Extracted, extract_clips
from videogen_jax.packing.ray_pool import RayPool
from videogen_jax.packing.settings import Settings, finished_report, settings_to_json
from videogen_jax.packing.sources import Listing, Source
from videogen_jax.packing.tables import USUAL, Columns

VIDEOS_AHEAD = 16  # decoded in advance per worker
LONG_CAPTION = (
    75  # words; longer captions may be truncated by a text encoder of 77 tokens, such as CLIP's
)


def pack(
    folder,
    output,
    settings: Settings,
    *,
    workers: int,
    strict: bool = False,
    origin: dict | None = None,
    share: tuple[int, int] | None = None,
    follow_links: bool = False,
    max_caption_bytes: int = sources.MAX_CAPTION_BYTES,
    columns: Columns = USUAL,
    video_folder: str | None = None,
    progress: bool | None = None,
    pool: RayPool | None = None,
) -> dict:
    """Packs a folder into a data set, or resumes an interrupted call with the same settings.

    Args:
      folder: folder of the videos, or another form of input as `input_forms` lists them.
      output: folder of the data set.
      settings: settings of the data set.
      workers: number of decoding processes.
      strict: stop at the first video that would be skipped.
      origin: how synthetic videos were generated, saved with the settings.
      share: (i, n): pack every n-th source, starting with the i-th, into OUTPUT/parts, for `merge_parts`.
      follow_links: as for `list_sources`.
      max_caption_bytes: as for `list_sources`.
      columns: as for `list_input`.
      video_folder: as for `list_input`.
      progress: whether a bar is drawn, as for `show_progress`.
      pool: workers to use; None: start processes.
    Returns:
      The content of OUTPUT/pack_report.json; "finished_before" is true if the data set was already finished.
    Raises:
      ValueError: there is nothing to pack, `strict` found a video to skip, OUTPUT has other settings, or another
        process is writing to it.
      OSError: the disk is full; finished shards are kept.
      WorkerDied: a worker process died; finished shards are kept.
    """
    end_unguarded_child()
    output = pathlib.Path(output)
    listing = {"follow_links": follow_links, "max_caption_bytes": max_caption_bytes}
    inputs = input_forms.list_input(
        folder, columns=columns, video_folder=video_folder, images=settings.frames == 1, **listing
    )
    listed, skipped = inputs.sources, inputs.skipped
    saved = settings_to_json(settings, origin) | listing_to_json(**listing, columns=columns)
    saved |= {"videos": sources.fingerprint(listed, skipped)}
    if report := finished_report(output, saved):
        return report
    check_sharding(output, share)
    found = listed
    if share or any(source.shares_split for source in found):
        found = sources.fix_splits(found, settings.validation_fraction)
    if share:
        found = found[share[0] :: share[1]]
        saved |= {"shard": f"{share[0]}/{share[1]}"}
        output = part_folder(output, share)
    with lock_folder(output):
        if report := finished_report(output, saved):
            return report
        found, skipped, saved = saved_sources.resume(output, saved, found, listed, skipped)
        with open_pool(output, pool, min(workers, len(found) or 1)) as pool:
            options = {"workers": workers, "progress": progress, "pool": pool}
            everything = listed if share else found
            found, dropped = duplicate_pass.drop_duplicates(
                inputs.folder, output, found, everything, settings, saved, **options
            )
            options |= {"strict": strict, "whole": share is None, "dropped": dropped}
            return pack_sources(inputs, output, found, skipped, settings, saved, **options)


@contextlib.contextmanager
def open_pool(output, pool: RayPool | None, workers: int):
    """Starts worker processes, unless there is a pool; at the end, removes clips that nobody has taken."""
    try:
        with contextlib.nullcontext(pool) if pool else make_pool(workers) as pool:
            yield pool
    finally:
        remove_leftovers(output)


def remove_leftovers(output) -> None:
    """Removes the clips and the copies from archives that workers left in OUTPUT/unfinished and in those of buckets."""
    for folder in ("unfinished", "*/unfinished"):
        for leftover in pathlib.Path(output).glob(f"{folder}/*.clips"):
            leftover.unlink(missing_ok=True)
        for leftover in pathlib.Path(output).glob(f"{folder}/*{tar_shards.COPIES}"):
            shutil.rmtree(leftover, ignore_errors=True)


def listing_to_json(follow_links: bool, max_caption_bytes: int, columns: Columns) -> dict:
    """Returns the settings of `list_input` that are not the defaults, as JSON values keyed by flag."""
    saved = {"follow_links": True} if follow_links else {}
    if max_caption_bytes != sources.MAX_CAPTION_BYTES:
        saved["max_caption_bytes"] = max_caption_bytes
    return saved | columns.to_json()


def part_folder(output, share: tuple[int, int]) -> pathlib.Path:
    """Returns the folder of part i of n of a data set, share = (i, n)."""
    return pathlib.Path(output) / "parts" / "{:05d}-of-{:05d}".format(*share)


def check_sharding(output, share: tuple[int, int] | None) -> None:
    """Raises ValueError if OUTPUT was begun with --shard and this call has none, or the reverse."""
    output = pathlib.Path(output)
    if share and (output / "unfinished").exists():
        raise ValueError(
            f"{output} was begun without --shard: call that command again, or choose another --output to pack in "
            "parts."
        )
    if not share and (output / "parts").exists():
        raise ValueError(
            f"{output} was begun in parts: call the same command with --shard, or "
            f"python -m videogen_jax.merge --output={output} if all are finished; or choose another --output."
        )


def pack_sources(
    inputs: Listing,
    output,
    found: Sequence[Source],
    skipped: dict[str, str],
    settings: Settings,
    saved: dict,
    *,
    workers: int,
    pool: ProcessPoolExecutor | RayPool,
    strict: bool = False,
    whole: bool = True,
    progress: bool | None = None,
    label: str | None = None,
    dropped: Sequence[duplicate_pass.Dropped] = (),
) -> dict:
    """Packs sources into a plain data set, or resumes an interrupted call with the same settings.

    Args:
      inputs: where the sources are.
      output: folder of the data set.
      found: sources to pack, in this order.
      skipped: name -> reason for the files already skipped.
      settings: settings of the data set.
      saved: the settings as JSON values, saved with the data set.
      workers: number of decoding processes.
      pool: the processes.
      strict: stop at the first video that would be skipped.
      whole: the data set is no part or bucket: an error if it gets no training clip.
      progress: as for `pack`.
      label: in front of lines of progress.
      dropped: sources that were left out as near-duplicates.
    Returns:
      The report, as `pack`.
    Raises:
      ValueError, OSError, WorkerDied: as `pack`.
    """
    started = time.monotonic()
    output = pathlib.Path(output)
    work = pack_settings.claim_output(output, saved)
    journal = shards.read_journal(output, work)
    skipped, cut_off, counts = dict(skipped), {}, {}
    known = skipped | {name: why for shard in journal for name, why in shard["skipped"].items()}
    known = {name: why for name, why in known.items() if why != media_files.UNWANTED_IMAGE}
    if strict and known:
        sources.refuse_skipped(*min(known.items()))
    with show_progress(label or "Packing", len(found), "video", progress) as advance:
        videos = _extract_all(pool, workers, inputs.folder, work, found, settings, journal)
        last = shards.write_shards(videos, work, found, settings, journal, strict, advance)
    for part in [*journal, last]:
        skipped |= part["skipped"]
        cut_off |= part["cut_off"]
        counts |= part.get("counts") or {}
    counts = filters.add_counts(counts.values())
    clips = {
        split: sum(s["clips"] for s in journal if s["split"] == split) for split in shards.SPLITS
    }
    if whole and not clips["train"]:
        shutil.rmtree(work)
        reasons = describe_left_out(skipped, counts)
        advice = "widen the filters, " if filters.report_counts(counts).get("filtered") else ""
        raise ValueError(
            f"no training clip came out of the {len(found)} captioned videos in {inputs.given} "
            f"({reasons}): add videos, or {advice}lower --min_frames or --validation_fraction."
        )
    if whole:
        everything = [*found, *(one.source for one in dropped)]
        present = inputs.without_vanished(everything, skipped)
        saved = saved | {"videos": sources.fingerprint(*present)}
    report = make_report(inputs, found, saved, skipped, cut_off, started, counts)
    report = metadata.bound_lists(report | {"clips": clips})
    report |= duplicate_pass.report(settings, dropped)
    _finish(output, work, journal, found, settings, report)
    return report | {"finished_before": False}


def make_report(
    inputs: Listing,
    found: Sequence[Source],
    saved: dict,
    skipped: Mapping[str, str],
    cut_off: Mapping[str, int],
    started: float,
    counts: Mapping[str, int],
) -> dict:
    """Makes the content of pack_report.json, except for the numbers of clips.

    Args:
      inputs: where the sources are.
      found: sources that were packed or skipped.
      saved: the settings as JSON values.
      skipped: name -> reason.
      cut_off: name -> frames cut off after the last clip.
      started: when packing began, by time.monotonic.
      counts: what the filters left out, by reason, and scene cuts.
    """
    report = {
        "settings": saved,
        "input": os.fsencode(inputs.given).decode("utf-8", "backslashreplace"),
        "clips": {},
        "skipped": [{"file": name, "reason": skipped[name]} for name in sorted(skipped)],
        "frames_cut_off": dict(sorted(cut_off.items())),
        "long_captions": long_captions(found),
        "captions_without_words": captions_without_words(found),
        "seconds": round(time.monotonic() - started, 1),
    }
    report |= {"video_folder": inputs.video_folder} if inputs.video_folder else {}
    report |= metadata.count_annotations(found, part="shard" in saved)
    return report | filters.report_counts(counts)


def describe_left_out(skipped: Mapping[str, str], counts: Mapping[str, int]) -> str:
    """Returns why files were skipped, at most three of them, and what the filters left out."""
    reasons = [f"{name}: {reason}" for name, reason in sorted(skipped.items())[:3]]
    if left_out := filters.report_counts(counts).get("filtered"):
        reasons.append(filters.describe(left_out))
    return "; ".join(reasons)


def long_captions(found: Sequence[Source]) -> list[str]:
    """Returns the names of the sources of which a caption exceeds LONG_CAPTION words."""

    def longest_text(source: Source) -> int:
        return max(len(vocabularies.split_words(text)) for text in source.texts)

    names = {s.name for s in found if longest_text(s) > LONG_CAPTION}
    return sorted(names)


def captions_without_words(found: Sequence[Source]) -> list[str]:
    """Returns the names of the sources of which a caption has only punctuation or symbols, which no model reads."""
    return sorted(
        {s.name for s in found if not all(vocabularies.split_words(text) for text in s.texts)}
    )


def _extract_all(pool, workers, folder, work, found, settings, journal):
    """Yields (index of the source, path of its clips, what `extract_clips` returned) in order.

    Starts with the source at which the journal ends.
    """
    waiting = collections.deque()
    upcoming = iter(range(journal[-1]["next"][0] if journal else 0, len(found)))
    try:
        while True:
            ahead = VIDEOS_AHEAD * workers - len(waiting)
            for index in itertools.islice(upcoming, ahead):
                source, spill = found[index], work / f"{index}.clips"
                video = media_files.locate(folder, source.file)
                said = (source.first, source.count, source.captions, dict(source.numbers))
                said += (source.span, source.members, source.ranges)
                task = pool.submit(extract_clips, video, os.fspath(spill), settings, *said)
                waiting.append((index, spill, task))
            if not waiting:
                return
            index, spill, task = waiting[0]
            try:
                result = task.result()
            except FileNotFoundError as error:
                result = Extracted(str(error), 0)
                if not media_files.find_vanished(folder, found[index].file):
                    raise
            if result.reason:
                reason = media_files.find_vanished(folder, found[index].file) or result.reason
                result = result._replace(reason=reason)
            waiting.popleft()
            yield index, spill, result
            spill.unlink(missing_ok=True)
    except BrokenProcessPool as error:
        names = [found[index].name for index, _, _ in itertools.islice(waiting, workers)]
        raise explain_death(error, "reading", names) from None
    finally:
        for _, _, task in waiting:
            task.cancel()


def _finish(output, work, journal, found, settings, report):
    """Moves the shards to OUTPUT and writes the JSON files, dataset_info.json last."""
    shards.move_shards(output, work, journal)
    words, scores = shards.count_words(journal), shards.training_scores(journal)
    if "shard" in report["settings"]:  # read by `merge_parts`
        counts = shards.count_clips(journal, found)
        atomic_files.write_text(output / metadata.SOURCES_FILE, json.dumps(counts))
    checksums = shards.read_checksums(journal)
    names = shards.shared_numbers(journal, found)
    metadata.write_descriptions(output, settings, words, scores, report, checksums, names)
    sizes = collections.defaultdict(list)
    for shard in journal:
        sizes[shard["split"]].append((shard["clips"], shard["bytes"]))
    metadata.finish_plain(output, work, sizes)
    shutil.rmtree(work)
