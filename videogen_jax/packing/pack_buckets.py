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
import json
import pathlib
import shutil
import time
from collections.abc import Sequence

from videogen_jax.data import atomic_files, image_io, read_limits, video_io
from videogen_jax.data.locking import lock_folder
from videogen_jax.data.video_spans import WHOLE, Span
from videogen_jax.data.workers import end_unguarded_child
from videogen_jax.packing import (
    bucket_assignment,
    duplicate_pass,
    extraction,
    filters,
    input_forms,
    metadata,
    pack_folder,
    per_file,
    saved_sources,
    shards,
    sources,
)
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.bucket_assignment import Bucket, Shape
from videogen_jax.packing.ray_pool import RayPool
from videogen_jax.packing.settings import Settings
from videogen_jax.packing.tables import USUAL, Columns


@dataclasses.dataclass(frozen=True)
class BucketSettings:
    """Settings of a bucketed data set; the shards are a function of the settings and the files."""

    buckets: tuple[Bucket, ...]
    fps: float  # frames per second
    validation_fraction: float  # of the sources
    clips_per_shard: int  # maximum
    limits: read_limits.Limits = read_limits.DEFAULTS  # of what is read from one file
    selection: pack_settings.Selection = pack_settings.EVERYTHING

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
            selection=self.selection.of_clips(),
        )


def settings_to_json(settings: BucketSettings) -> dict:
    """Returns the settings as JSON values, keyed by flag."""
    values = dataclasses.asdict(settings) | {"synthetic": None}
    del values["limits"], values["selection"]
    values |= pack_settings.limits_to_json(settings.limits) | settings.selection.to_json()
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
    pool: RayPool | None = None,
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
      pool: workers to use; None: start processes.
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
    with lock_folder(output), pack_folder.open_pool(output, pool, workers) as pool:
        if report := pack_settings.finished_report(output, saved):
            return report
        found, skipped, saved = saved_sources.resume(output, saved, found, listed, skipped)
        options |= {"pool": pool}
        everything = listed if share else found
        return _pack_all(inputs, output, found, everything, skipped, settings, saved, **options)


def _pack_all(inputs, output, found, listed, skipped, settings, saved, **options):
    """Probes the sources, packs them bucket by bucket and finishes the set; returns the report."""
    started = time.monotonic()
    work = pack_settings.claim_output(output, saved)
    if options["strict"] and skipped:
        sources.refuse_skipped(*min(skipped.items()))
    others = {name: value for name, value in options.items() if name != "strict"}
    found, dropped = duplicate_pass.drop_duplicates(
        inputs.folder, output, found, listed, settings, saved, **others
    )
    arguments = (settings.fps, settings.limits, settings.selection.scene_threshold)
    task = per_file.FileTask("Probing", probe_source, arguments, Shape)
    known = per_file.run_all(work / "probes.jsonl", inputs.folder, found, task, **options)
    probes = [known[source.name] for source in found]
    pieces, unmatched, cut_off, counts = _plan(found, probes, settings)
    if options["strict"] and unmatched:
        sources.refuse_skipped(*min(unmatched.items()))
    whole = "shard" not in saved
    if whole and not pieces:
        shutil.rmtree(work)
        shapes = [probe for probe in probes if not isinstance(probe, str)]
        if left_out := filters.report_counts(counts).get("filtered"):
            raise ValueError(
                f"none of the {len(found)} sources in {inputs.given} is packed ({filters.describe(left_out)}): "
                "widen the filters, or add sources."
            )
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
        everything = [*found, *(one.source for one in dropped)]
        present = inputs.without_vanished(everything, all_skipped)
        saved = saved | {"videos": sources.fingerprint(*present)}
    report = pack_folder.make_report(inputs, found, saved, all_skipped, cut_off, started, counts)
    report |= filters.join_reports([report, *reports.values()])
    report |= duplicate_pass.report(settings, dropped)
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


def _plan(found, probes, settings):
    """Divides the sources among the buckets.

    Returns:
      (bucket -> its pieces of sources, name -> why no bucket accepts it, name -> frames cut off, reason -> number of
      sources and scenes that the filters left out).
    """
    pieces, unmatched, cut_off = collections.defaultdict(list), {}, {}
    counts: collections.Counter[str] = collections.Counter()
    for source, probe in zip(found, probes, strict=True):
        if isinstance(probe, str):
            unmatched[source.name] = probe
            continue
        bounds = settings.selection.filters
        if reason := bounds.reject_picture(probe.height, probe.width):
            counts[reason] += 1
            continue
        segments, left_out, left, unfit = _plan_scenes(probe, settings)
        if unfit:
            unmatched[source.name] = unfit
            continue
        for bucket, ranges in segments.items():
            pieces[bucket].append(_cut_piece(source, ranges, split=bool(probe.scenes)))
        counts.update(left_out)
        if left:
            cut_off[source.name] = left
    return pieces, unmatched, cut_off, counts


def _plan_scenes(probe, settings):
    """Divides the scenes of a source among the buckets.

    Returns:
      (bucket -> ranges of frames, reason -> number of scenes, frames in no bucket, None), or as the last why no bucket
      accepts the source.
    """
    segments, counts, left, start = collections.defaultdict(list), collections.Counter(), 0, 0
    unfit = {}  # frames of a scene -> why no bucket accepts it
    for frames in probe.scenes or [probe.frames]:
        bounds = settings.selection.filters
        if not probe.image and (reason := bounds.reject_length(frames / settings.fps)):
            counts[reason] += 1
        else:
            scene = probe._replace(frames=frames)
            found, why = bucket_assignment.plan_segments(scene, settings.buckets)
            for segment in found:
                segments[segment.bucket].append((start + segment.first, segment.count))
            left += frames - sum(segment.count for segment in found)
            if why:
                unfit[frames] = why
                counts[filters.SHORT_SCENES] += 1
        start += frames
    if not segments and counts.keys() == {filters.SHORT_SCENES}:
        return {}, {}, 0, unfit[max(unfit)]
    if probe.scenes:
        counts[filters.SCENE_CUTS] = len(probe.scenes) - 1
    return segments, counts, left, None


def _cut_piece(source, ranges, split):
    """Returns the ranges of frames of a source that one bucket gets."""
    if not split:
        ((first, count),) = ranges
        return dataclasses.replace(source, first=first, count=count)
    return dataclasses.replace(source, ranges=tuple(ranges))


def probe_source(
    path: str,
    fps: float,
    limits: read_limits.Limits = read_limits.DEFAULTS,
    scene_threshold: float | None = None,
    span: Span = WHOLE,
) -> Shape | str:
    """Reads the shape of a video or an image; runs in a worker.

    Args:
      path: video or image file.
      fps: frame rate of the data set.
      limits: bounds for what is read from one file.
      scene_threshold: of the scene cuts; None: a video is not decoded but for its first frame, unless it is a span.
      span: part of the video.
    Returns:
      Its shape, or the reason why it cannot be read.
    """
    try:
        if image_io.is_image(path):
            return Shape(*image_io.probe_image(path, limits), frames=1, image=True)
        if scene_threshold is None:
            return Shape(*video_io.probe_video(path, fps, limits, span), image=False)
        return _probe_scenes(path, fps, limits, scene_threshold, span)
    except Exception as error:  # whatever a decoder raises is the fault of this file alone
        return extraction.describe_failure(path, error)


def _probe_scenes(path, fps, limits, threshold, span) -> Shape:
    """Reads the shape of a video and the lengths of its scenes."""
    scenes: list[int] = []
    size = (0, 0)
    options = {"fps": fps, "limits": limits, "span": span, "on_cut": lambda sentence: None}
    for _, frame, cut in extraction.read_scenes(path, threshold, **options):
        size = size if scenes else frame.shape[:2]
        if cut or not scenes:
            scenes.append(0)
        scenes[-1] += 1
    return Shape(*size, frames=sum(scenes), image=False, scenes=scenes)
