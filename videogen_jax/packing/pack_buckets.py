"""Packs a folder of videos and images of mixed shapes into buckets; the work behind `pack --buckets`.

    OUTPUT/unfinished/settings.json   settings of the data set
    OUTPUT/unfinished/sources.jsonl   the list of sources
    OUTPUT/unfinished/probes.jsonl    one line per file: size and length according to its index
    OUTPUT/120x384x640/               each bucket is a plain data set, packed by `pack_folder`
    OUTPUT/pack_report.json
    OUTPUT/buckets.json               written last; marks the data set as finished

An interrupted call resumes after the probed files and the finished shards. The bucket of a source follows from its
probe (`bucket_assignment`), its split from its name alone, for all its clips in all buckets.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from videogen_jax.data import atomic_files, image_io, json_files, read_limits, video_io
from videogen_jax.data.locking import lock_folder
from videogen_jax.data.progress import show_progress
from videogen_jax.data.video_spans import WHOLE, Span
from videogen_jax.data.workers import WorkerDied, end_unguarded_child, make_pool
from videogen_jax.packing import (
    bucket_assignment,
    extraction,
    input_forms,
    metadata,
    pack_folder,
    saved_sources,
    shards,
    sources,
    tar_shards,
)
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.bucket_assignment import Bucket, Shape
from videogen_jax.packing.settings import Settings
from videogen_jax.packing.sources import Source
from videogen_jax.packing.tables import USUAL, Columns

PROBES_AHEAD = 64  # queued per worker


@dataclasses.dataclass(frozen=True)
class BucketSettings:
    """Settings of a bucketed data set; the shards are a function of the settings and the files."""

    buckets: tuple[Bucket, ...]
    fps: float  # frames per second
    validation_fraction: float  # of the sources
    clips_per_shard: int  # maximum
    limits: read_limits.Limits = read_limits.DEFAULTS  # of what is read from one file

    def for_bucket(self, bucket: Bucket) -> Settings:
        """Returns the settings of a bucket, which is a plain data set."""
        return Settings(
            size=(bucket.height, bucket.width),
            fps=self.fps,
            frames=bucket.frames,
            min_frames=bucket.frames,
            validation_fraction=self.validation_fraction,
            clips_per_shard=self.clips_per_shard,
            limits=self.limits,
        )


def settings_to_json(settings: BucketSettings) -> dict:
    """Returns the settings as JSON values, keyed by flag."""
    values = dataclasses.asdict(settings) | {"synthetic": None}
    del values["limits"]
    values |= pack_settings.limits_to_json(settings.limits)
    return values | {"buckets": [bucket.name for bucket in settings.buckets]}


def pack_buckets(
    folder,
    output,
    settings: BucketSettings,
    *,
    workers: int,
    strict: bool = False,
    share: tuple[int, int] | None = None,
    follow_links: bool = False,
    max_caption_bytes: int = sources.MAX_CAPTION_BYTES,
    columns: Columns = USUAL,
    video_folder: str | None = None,
    progress: bool | None = None,
) -> dict:
    """Packs a folder into buckets, or resumes an interrupted call with the same settings.

    Args:
      folder: folder of the videos and images, or another form of input as `input_forms` lists them.
      output: folder of the data set.
      settings: settings of the data set.
      workers: number of processes that read files.
      strict: stop at the first source that would be skipped.
      share: (i, n): pack every n-th source, starting with the i-th, into OUTPUT/parts, for `merge_parts`.
      follow_links: as for `list_sources`.
      max_caption_bytes: as for `list_sources`.
      columns: as for `list_input`.
      video_folder: as for `list_input`.
      progress: whether a bar is drawn, as for `show_progress`.
    Returns:
      The content of OUTPUT/pack_report.json: that of `pack_folder.pack`, with "buckets" (clips per bucket and split)
      and "left_out" (bucket -> why it is omitted).
    Raises:
      ValueError: no source fits a bucket, or as `pack_folder.pack`.
      OSError, WorkerDied: as `pack_folder.pack`.
    """
    end_unguarded_child()
    output = pathlib.Path(output)
    listing = {"follow_links": follow_links, "max_caption_bytes": max_caption_bytes}
    inputs = input_forms.list_input(
        folder, columns=columns, video_folder=video_folder, images=True, **listing
    )
    listed, skipped = inputs.sources, inputs.skipped
    saved = settings_to_json(settings) | pack_folder.listing_to_json(**listing, columns=columns)
    saved |= {"videos": sources.fingerprint(listed, skipped)}
    if report := pack_settings.finished_report(output, saved):
        return report
    pack_folder.check_sharding(output, share)
    found = sources.fix_splits(listed, settings.validation_fraction)
    if share:
        found = found[share[0] :: share[1]]
        saved |= {"shard": f"{share[0]}/{share[1]}"}
        output = pack_folder.part_folder(output, share)
    options = {"workers": workers, "strict": strict, "progress": progress}
    with lock_folder(output), make_pool(workers) as pool:
        if report := pack_settings.finished_report(output, saved):
            return report
        found, skipped, saved = saved_sources.resume(output, saved, found, listed, skipped)
        return _pack_all(inputs, output, found, skipped, settings, saved, pool=pool, **options)


def _pack_all(inputs, output, found, skipped, settings, saved, **options):
    """Probes the sources, packs them bucket by bucket and finishes the set; returns the report."""
    started = time.monotonic()
    work = pack_settings.claim_output(output, saved)
    if options["strict"] and skipped:
        sources.refuse_skipped(*min(skipped.items()))
    probes = _probe_all(inputs.folder, found, work, settings, **options)
    pieces, unmatched, cut_off = _plan(found, probes, settings.buckets)
    if options["strict"] and unmatched:
        sources.refuse_skipped(*min(unmatched.items()))
    whole = "shard" not in saved
    if whole and not pieces:
        shutil.rmtree(work)
        shapes = [probe for probe in probes if not isinstance(probe, str)]
        text = bucket_assignment.describe_unmatched(shapes, list(unmatched.values()), settings.fps)
        raise ValueError(
            f"none of the {len(found)} sources in {inputs.given} fits --buckets: {text}."
        )
    reports = {}
    for bucket in settings.buckets:
        if bucket_pieces := pieces[bucket]:
            reports[bucket] = _pack_bucket(
                inputs, output, settings, bucket, bucket_pieces, saved, **options
            )
    reasons = list_skipped(skipped | unmatched, reports.values())
    all_skipped = {item["file"]: item["reason"] for item in reasons}
    if whole:
        present = inputs.without_vanished(found, all_skipped)
        saved = saved | {"videos": sources.fingerprint(*present)}
    report = pack_folder.make_report(inputs, found, saved, all_skipped, cut_off, started)
    report |= {
        "buckets": {bucket.name: report["clips"] for bucket, report in reports.items()},
        "skipped": reasons,  # a file may be skipped for several
    }
    hidden = [(report.get("not_listed") or {}).get("skipped", 0) for report in reports.values()]
    report = metadata.bound_lists(report, [{"not_listed": {"skipped": sum(hidden)}}])
    finish(output, report, settings.buckets, whole=whole)
    return report | {"finished_before": False}


def _pack_bucket(inputs, output, settings, bucket, pieces, saved, **options):
    """Packs the pieces of a bucket into a plain data set OUTPUT/BUCKET; returns the report."""
    target = output / bucket.name
    bucket_settings = settings.for_bucket(bucket)
    bucket_saved = pack_settings.settings_to_json(bucket_settings, None)
    bucket_saved |= {"videos": sources.sum_fingerprint(pieces)}
    if "shard" in saved:
        bucket_saved |= {"shard": saved["shard"]}
    report = pack_settings.finished_report(target, bucket_saved)
    return report or pack_folder.pack_sources(
        inputs,
        target,
        pieces,
        {},
        bucket_settings,
        bucket_saved,
        whole=False,
        label=bucket.name,
        **options,
    )


def list_skipped(skipped: dict[str, str], reports) -> list[dict[str, str]]:
    """Returns the files skipped before packing and in the buckets with their reasons, without duplicates."""
    pairs = set(skipped.items())
    for report in reports:
        pairs |= {(item["file"], item["reason"]) for item in report["skipped"]}
    return [{"file": name, "reason": reason} for name, reason in sorted(pairs)]


def finish(output: pathlib.Path, report: dict, table: Sequence[Bucket], whole: bool) -> None:
    """Writes pack_report.json and, last, buckets.json.

    Args:
      output: folder of the data set.
      report: its report; "clips" and "left_out" are filled in.
      table: all buckets.
      whole: the data set is not a part: buckets without training clips are removed, and at least one must remain.
    Raises:
      ValueError: no bucket has a training clip.
    """
    counts = report["buckets"]
    report["clips"] = {
        split: sum(clips[split] for clips in counts.values()) for split in shards.SPLITS
    }
    names = [b.name for b in table if b.name in counts and (not whole or counts[b.name]["train"])]
    if not names and whole:
        for folder in (*counts, "unfinished"):
            shutil.rmtree(output / folder, ignore_errors=True)
        first = "; ".join(f"{i['file']}: {i['reason']}" for i in report["skipped"][:3])
        raise ValueError(
            f"no training clip came out of {report['input']} ({first}): add videos, or lower --validation_fraction."
        )
    report["left_out"] = {
        bucket.name: "it got validation clips only"
        if counts.get(bucket.name, {}).get("validation")
        else "it got no training clip"
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
    """Returns (bucket -> its pieces of sources, name -> why no bucket accepts it, name -> frames cut off)."""
    pieces, unmatched, cut_off = collections.defaultdict(list), {}, {}
    for source, probe in zip(found, probes, strict=True):
        if isinstance(probe, str):
            unmatched[source.name] = probe
            continue
        segments, reason = bucket_assignment.plan_segments(probe, table)
        if reason:
            unmatched[source.name] = reason
            continue
        for segment in segments:
            piece = dataclasses.replace(source, first=segment.first, count=segment.count)
            pieces[segment.bucket].append(piece)
        if left := probe.frames - sum(segment.count for segment in segments):
            cut_off[source.name] = left
    return pieces, unmatched, cut_off


def _probe_all(folder, found, work, settings, workers, strict, progress, pool) -> list[Shape | str]:
    """Returns the shape of each source, or the reason why it cannot be read; appends new ones to probes.jsonl."""
    path = work / "probes.jsonl"
    known = _read_probes(path)
    left = [source for source in found if source.name not in known]
    with (
        show_progress("Probing", len(found), "file", progress, len(found) - len(left)) as advance,
        open(path, "a", encoding="utf-8") as file,
    ):  # fmt: skip
        for name, probe in _probe(folder, left, work, settings, workers, pool):
            known[name] = probe
            file.write(json.dumps([name, probe]) + "\n")
            file.flush()
            advance()
            if strict and isinstance(probe, str):
                sources.refuse_skipped(name, probe)
    return [p if isinstance(p, str) else Shape(*p) for p in (known[s.name] for s in found)]


def _read_probes(path) -> dict[str, list | str]:
    """Reads probes.jsonl up to the first line that is incomplete or damaged, and truncates it there."""
    known = {}
    if path.exists():
        complete = 0
        content = path.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                name, probe = _check_probe(json_files.parse(path, line, [object]))
            except ValueError:
                break
            known[name] = probe
            complete += len(line)
        if complete != len(content):
            atomic_files.write_text(path, content[:complete].decode("utf-8"))
    return known


def _check_probe(entry) -> tuple[str, list | str]:
    """Checks a line of probes.jsonl: [name, the reason to skip it or the fields of its `Shape`]."""
    name, probe = entry
    if isinstance(probe, list):
        kinds = Shape.__annotations__.values()
        probe = [json_files.check(value, kind) for value, kind in zip(probe, kinds, strict=True)]
        return json_files.check(name, str), probe
    return json_files.check(name, str), json_files.check(probe, str)


def _probe(
    folder, found: Sequence[Source], work, settings, workers, pool
) -> Iterator[tuple[str, list | str]]:
    """Yields the name of each source with its shape, or the reason why it cannot be read."""
    waiting = collections.deque()
    upcoming = enumerate(found)
    try:
        while True:
            for index, source in itertools.islice(upcoming, PROBES_AHEAD * workers - len(waiting)):
                video = sources.locate(folder, source.file)
                copies = str(work / f"{index}.probe{tar_shards.COPIES}")
                part = (source.span, source.members, copies)
                task = pool.submit(probe_source, video, settings.fps, settings.limits, *part)
                waiting.append((source, task))
            if not waiting:
                return
            source, task = waiting[0]
            try:
                shape = task.result()
            except FileNotFoundError as error:
                shape = str(error)
                if not pack_folder.find_vanished(folder, source.file):
                    raise
            if isinstance(shape, str):
                shape = pack_folder.find_vanished(folder, source.file) or shape
            waiting.popleft()
            yield source.name, shape
    except BrokenProcessPool:
        near = [source.name for source, _ in itertools.islice(waiting, workers)]
        raise WorkerDied(
            f"a worker process died while probing {' or '.join(near)} (out of memory, killed, or a crash of the "
            "decoder): call the same command again to resume, with fewer --workers or without that file."
        ) from None


def probe_source(
    path: str,
    fps: float,
    limits: read_limits.Limits = read_limits.DEFAULTS,
    span: Span = WHOLE,
    members: Sequence[tuple[str, int, int]] = (),
    copies: str = "",
) -> Shape | str:
    """Reads the shape of a video or an image without decoding all of it; runs in a worker.

    Args:
      path: video or image file, or the archive that has it.
      fps: frame rate of the data set.
      limits: bounds for what is read from one file.
      span: part of the video.
      members: of the archive, as in `Source`; empty: the file is none.
      copies: folder for copies of them.
    Returns:
      Its shape, or the reason why it cannot be read.
    """
    if members:
        try:
            with tar_shards.copy_members(path, members[:1], copies) as copy:
                return probe_source(copy, fps, limits, span)
        except tar_shards.ArchiveError as error:
            return str(error)
    try:
        if image_io.is_image(path):
            return Shape(*image_io.probe_image(path, limits), frames=1, image=True)
        return Shape(*video_io.probe_video(path, fps, limits, span), image=False)
    except Exception as error:  # whatever a decoder raises is the fault of this file alone
        return extraction.describe_failure(path, error)
