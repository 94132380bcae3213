"""Packs a folder of videos and images of mixed shapes into buckets; the work behind `pack --buckets`.

    OUTPUT/unfinished/settings.json   what the data set is made of
    OUTPUT/unfinished/probes.jsonl    size and length of each file, as its index tells, one a line
    OUTPUT/120x384x640/               each bucket is a plain data set, packed by `packing`
    OUTPUT/pack_report.json
    OUTPUT/buckets.json               comes last: a set that has it is whole

A call that was ended goes on behind the files that are probed and the shards that are finished. Which source goes to
which bucket follows from the probes (`bucketing`); which split, from its name alone, for all its clips in all buckets.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from videogen_jax.data import atomic_files, image_io, video_io
from videogen_jax.data.workers import WorkerDied, make_pool
from videogen_jax.packing import bucket_assignment, pack_folder, sources
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.bucket_assignment import Bucket, Shape
from videogen_jax.packing.locking import hold_folder
from videogen_jax.packing.settings import Settings

PROBES_AHEAD = 64  # per worker


@dataclasses.dataclass(frozen=True)
class BucketSettings:
    """What a data set in buckets is made of; two calls with equal settings make equal shards."""

    buckets: tuple[Bucket, ...]
    fps: float  # frames per second
    validation_fraction: float  # share of the sources
    clips_per_shard: int  # at most

    def of(self, bucket: Bucket) -> Settings:
        """Returns the settings of the plain data set that a bucket is."""
        return Settings(
            size=(bucket.height, bucket.width),
            fps=self.fps,
            frames=bucket.frames,
            min_frames=bucket.frames,
            validation_fraction=self.validation_fraction,
            clips_per_shard=self.clips_per_shard,
        )


def note_settings(settings: BucketSettings) -> dict:
    """Returns the settings as noted with a data set: JSON values by the names of their flags."""
    noted = dataclasses.asdict(settings) | {"synthetic": None}
    return noted | {"buckets": [bucket.name for bucket in settings.buckets]}


def pack_buckets(
    folder,
    output,
    settings: BucketSettings,
    *,
    workers: int,
    strict: bool = False,
    share: tuple[int, int] | None = None,
    progress: bool | None = None,
) -> dict:
    """Packs a folder into buckets; continues what was begun with the same settings.

    Args:
      folder: of the videos and images.
      output: folder of the data set.
      settings: what it is made of.
      workers: processes that read files.
      strict: stop at the first source that would be skipped.
      share: (i, n): pack every n-th source from the i-th on, into OUTPUT/parts, for `merging`.
      progress: show a progress bar on stderr; None: only on a terminal.
    Returns:
      The report, as written to OUTPUT/pack_report.json: that of `pack_folder.pack` with "buckets" (clips of each bucket
      in each split) and "left_out" (bucket -> why it has no data set).
    Raises:
      ValueError: no bucket takes any source, or as `pack_folder.pack`.
      OSError, WorkerDied: as `pack_folder.pack`.
    """
    output = pathlib.Path(output)
    found, skipped = sources.list_sources(folder)
    noted = note_settings(settings) | {"videos": sources.fingerprint(found, skipped)}
    if report := pack_settings.finished_report(output, noted):
        return report
    pack_folder.refuse_mixture(output, share)
    found = sources.fix_splits(found, settings.validation_fraction)
    if share:
        found = found[share[0] :: share[1]]
        noted |= {"shard": f"{share[0]}/{share[1]}"}
        output = pack_folder.part_folder(output, share)
    options = {"workers": workers, "strict": strict, "progress": progress}
    with hold_folder(output), make_pool(workers) as pool:
        return pack_settings.finished_report(output, noted) or _pack_all(
            folder, output, found, skipped, settings, noted, pool=pool, **options
        )


def _pack_all(folder, output, found, skipped, settings, noted, **options):
    """Probes the sources, packs them bucket by bucket and finishes the set; returns the report."""
    started = time.monotonic()
    work = pack_settings.claim_output(output, noted)
    if options["strict"] and skipped:
        pack_folder.refuse(*min(skipped.items()))
    probes = _probe_all(folder, found, work, settings.fps, **options)
    pieces, misfits, cut_off = _plan(found, probes, settings.buckets)
    if options["strict"] and misfits:
        pack_folder.refuse(*min(misfits.items()))
    whole = "shard" not in noted
    if whole and not pieces:
        shutil.rmtree(work)
        shapes = [probe for probe in probes if not isinstance(probe, str)]
        text = bucket_assignment.describe_misfit(shapes, list(misfits.values()), settings.fps)
        raise ValueError(f"--buckets covers none of the {len(found)} sources in {folder}: {text}.")
    reports = {}
    for bucket in settings.buckets:
        if own := pieces[bucket]:
            reports[bucket] = _pack_bucket(folder, output, settings, bucket, own, noted, **options)
    report = {
        "settings": noted,
        "input": os.fspath(folder),
        "clips": {},
        "buckets": {bucket.name: report["clips"] for bucket, report in reports.items()},
        "skipped": list_skipped(skipped | misfits, reports.values()),
        "frames_cut_off": dict(sorted(cut_off.items())),
        "long_captions": pack_folder.long_captions(found),
        "seconds": round(time.monotonic() - started, 1),
    }
    finish(output, report, settings.buckets, whole=whole)
    return report | {"finished_before": False}


def _pack_bucket(folder, output, settings, bucket, pieces, noted, **options):
    """Packs the pieces of a bucket into OUTPUT/its name; returns the report."""
    target = output / bucket.name
    own = settings.of(bucket)
    bucket_noted = pack_settings.note_settings(own, None)
    bucket_noted |= {"videos": sources.sum_fingerprint(pieces)}
    if "shard" in noted:
        bucket_noted |= {"shard": noted["shard"]}
    report = pack_settings.finished_report(target, bucket_noted)
    return report or pack_folder.pack_sources(
        folder,
        target,
        pieces,
        {},
        own,
        bucket_noted,
        whole=False,
        label=bucket.name,
        **options,
    )


def list_skipped(skipped: dict[str, str], reports) -> list[dict[str, str]]:
    """Returns what was skipped and why, once for each: before packing, and in the buckets."""
    pairs = set(skipped.items())
    for report in reports:
        pairs |= {(item["file"], item["reason"]) for item in report["skipped"]}
    return [{"file": name, "reason": reason} for name, reason in sorted(pairs)]


def finish(output: pathlib.Path, report: dict, table: Sequence[Bucket], whole: bool) -> None:
    """Writes pack_report.json and, last, buckets.json; says in the report which buckets are left out.

    Args:
      output: folder of the data set.
      report: of it; "clips" and "left_out" are filled in.
      table: all buckets.
      whole: no part of a set: buckets without clips for training are removed, and one with them is wanted.
    Raises:
      ValueError: no bucket has a clip for training.
    """
    counts = report["buckets"]
    report["clips"] = {
        split: sum(clips[split] for clips in counts.values()) for split in pack_folder.SPLITS
    }
    names = [b.name for b in table if b.name in counts and (not whole or counts[b.name]["train"])]
    if not names and whole:
        for folder in (*counts, "unfinished"):
            shutil.rmtree(output / folder, ignore_errors=True)
        first = "; ".join(f"{i['file']}: {i['reason']}" for i in report["skipped"][:3])
        raise ValueError(
            f"no clip for training came out of {report['input']} ({first}): add videos, or lower --validation_fraction."
        )
    report["left_out"] = {
        bucket.name: "it got clips for validation only"
        if counts.get(bucket.name, {}).get("validation")
        else "it got no clip for training"
        for bucket in table
        if whole and bucket.name not in names
    }
    for name in report["left_out"]:
        counts.pop(name, None)
    atomic_files.write_text(
        output / pack_settings.REPORT, json.dumps(report, indent=1, ensure_ascii=False)
    )
    atomic_files.write_text(output / pack_settings.BUCKETS_MARK, json.dumps({"buckets": names}))
    for name in report["left_out"]:
        shutil.rmtree(output / name, ignore_errors=True)
    shutil.rmtree(output / "unfinished", ignore_errors=True)


def _plan(found, probes, table):
    """Returns (bucket -> its sources, name -> why no bucket takes it, name -> frames cut off)."""
    pieces, misfits, cut_off = collections.defaultdict(list), {}, {}
    for source, probe in zip(found, probes, strict=True):
        if isinstance(probe, str):
            misfits[source.name] = probe
            continue
        runs, reason = bucket_assignment.plan_runs(probe, table)
        if reason:
            misfits[source.name] = reason
            continue
        for run in runs:
            piece = dataclasses.replace(source, first=run.first, count=run.count)
            pieces[run.bucket].append(piece)
        if left := probe.frames - sum(run.count for run in runs):
            cut_off[source.name] = left
    return pieces, misfits, cut_off


def _probe_all(folder, found, work, fps, workers, strict, progress, pool) -> list[Shape | str]:
    """Returns the shape of each source, or the reason why it cannot be read; keeps a note of each."""
    path = work / "probes.jsonl"
    known = _read_probes(path)
    left = [source.name for source in found if source.name not in known]
    hidden = None if progress is None else not progress
    with (
        tqdm(total=len(found), initial=len(found) - len(left), unit="file", desc="probing", disable=hidden) as bar,
        open(path, "a", encoding="utf-8") as file,
    ):  # fmt: skip
        for name, probe in _probe(folder, left, fps, workers, pool):
            known[name] = probe
            file.write(json.dumps([name, probe]) + "\n")
            file.flush()
            bar.update()
            if strict and isinstance(probe, str):
                pack_folder.refuse(name, probe)
    return [p if isinstance(p, str) else Shape(*p) for p in (known[s.name] for s in found)]


def _read_probes(path) -> dict[str, list | str]:
    """Returns the noted probes; drops a line that was cut off."""
    known = {}
    if path.exists():
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        known = dict(json.loads(line) for line in whole.splitlines())
        if whole != text:
            atomic_files.write_text(path, whole)
    return known


def _probe(folder, names, fps, workers, pool) -> Iterator[tuple[str, list | str]]:
    """Yields each name with its shape, or the reason why it cannot be read."""
    waiting = collections.deque()
    upcoming = iter(names)
    try:
        while True:
            for name in itertools.islice(upcoming, PROBES_AHEAD * workers - len(waiting)):
                task = pool.submit(probe_source, os.path.join(folder, name), fps)
                waiting.append((name, task))
            if not waiting:
                return
            name, task = waiting[0]
            shape = task.result()
            waiting.popleft()
            yield name, shape
    except BrokenProcessPool:
        near = [name for name, _ in itertools.islice(waiting, workers)]
        raise WorkerDied(
            f"a worker process died while {' or '.join(near)} was looked at (out of memory, killed, or a crash of the "
            "decoder): call the same command again to continue, with fewer --workers or without that file."
        ) from None


def probe_source(path: str, fps: float) -> Shape | str:
    """Tells the shape of a video or an image without decoding it whole; runs in a worker.

    Args:
      path: of the file.
      fps: frame rate of the data set.
    Returns:
      Its shape, or the reason why it cannot be read.
    """
    try:
        if image_io.is_image(path):
            return Shape(*image_io.probe_image(path), frames=1, image=True)
        return Shape(*video_io.probe_video(path, fps), image=False)
    except (video_io.VideoError, image_io.ImageError) as error:
        return str(error).removeprefix(f"{path} ")
    except PermissionError as error:
        return f"cannot be opened ({error.strerror})"
