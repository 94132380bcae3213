"""Finds the near-duplicates of a folder before it is packed; the work behind `pack --drop_duplicates`.

    OUTPUT/unfinished/signatures.jsonl             a line per file, from which an interrupted call resumes
    OUTPUT/unfinished/duplicates.json              the decision, which a resumed call keeps to
    OUTPUT/parts/signatures-00064-DIGEST/00003.jsonl   of a share of the files, from whichever part was first

Every part of a data set needs the signatures of all files to come to the same decision. It begins with its own share of
them, and reads those of the others, as far as they are finished by then, where the parts have OUTPUT in common; the
rest it computes itself. DIGEST is that of the list of files.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from videogen_jax.data import atomic_files, image_io, json_files, read_limits, video_io
from videogen_jax.data.video_spans import WHOLE, Span
from videogen_jax.packing import duplicates, extraction, per_file
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.duplicates import Duplicate, Signature
from videogen_jax.packing.sources import Source, fix_splits

DECISION = "duplicates.json"


class Dropped(NamedTuple):
    """A source that is left out."""

    source: Source
    duplicate: Duplicate


def drop_duplicates(
    folder,
    output,
    found: Sequence[Source],
    listed: Sequence[Source],
    settings,
    saved: dict,
    **options,
) -> tuple[list[Source], list[Dropped]]:
    """Leaves out near-duplicates, if the settings ask for that.

    Args:
      folder: folder of the sources.
      output: folder of the data set, or of the part.
      found: sources to pack.
      listed: all sources of the folder, which are `found` or of which these are a share.
      settings: settings of the data set, plain or bucketed.
      saved: the settings as JSON values.
      options: workers, pool and progress, as for `per_file.run_all`.
    Returns:
      (sources to pack, with the splits that all the others without near-duplicates give them; those left out).
    Raises:
      WorkerDied: a worker process died.
    """
    if settings.selection.duplicate_distance is None:
        return list(found), []
    decision = pack_settings.work_folder(output) / DECISION
    if decision.exists():
        pairs = json_files.read(decision, [Duplicate], "choose another --output.")
    else:
        pairs = _decide(folder, pathlib.Path(output), listed, settings, saved, options)
        text = json.dumps([pair._asdict() for pair in pairs])
        atomic_files.write_text(decision, text)
    by_name = {pair.dropped: pair for pair in pairs}
    kept = [source for source in found if source.name not in by_name]
    if kept and kept[0].split:  # which may have had a near-duplicate as its only validation video
        rest = [source for source in listed if source.name not in by_name]
        splits = {s.name: s.split for s in fix_splits(rest, settings.validation_fraction)}
        kept = [dataclasses.replace(s, split=splits.get(s.name, s.split)) for s in kept]
        kept.sort(key=lambda source: source.split == "train")
    dropped = [Dropped(s, by_name[s.name]) for s in found if s.name in by_name]
    return kept, dropped


def report(settings, dropped: Sequence[Dropped]) -> dict:
    """Returns the field of pack_report.json that lists the near-duplicates."""
    if settings.selection.duplicate_distance is None:
        return {}
    pairs = sorted((one.duplicate for one in dropped), key=lambda pair: pair.dropped)
    return {"duplicates": [pair._asdict() for pair in pairs]}


def _decide(folder, output, listed, settings, saved, options) -> list[Duplicate]:
    """Returns the near-duplicates among all files that can be read and that the filters let pass."""
    task = per_file.FileTask("Comparing", sign_file, (settings.limits,), Signature)
    if "shard" in saved:
        signatures = _sign_shares(folder, output, listed, saved, task, options)
    else:
        cache = pack_settings.work_folder(output) / "signatures.jsonl"
        signatures = per_file.run_all(cache, folder, listed, task, **options)
    compared = {
        name: signature
        for name, signature in signatures.items()
        if isinstance(signature, Signature) and not _is_rejected(signature, settings.selection)
    }
    distance = settings.selection.duplicate_distance
    return duplicates.find_duplicates(list(compared), list(compared.values()), distance)


def _is_rejected(signature, selection) -> bool:
    """Whether the filters leave out a file whatever it resembles, so that another must not be dropped for it."""
    bounds = selection.filters
    whole = signature.seconds and selection.scene_threshold is None
    return bool(
        bounds.reject_picture(signature.height, signature.width)
        or (whole and bounds.reject_length(signature.seconds))
    )


def _sign_shares(folder, output, listed, saved, task, options):
    """Returns the signatures of all files, beginning with the share of this part."""
    number, total = map(int, saved["shard"].split("/"))
    digest = saved["videos"]["digest"]
    shared = output.parent / f"signatures-{total:05d}-{digest}"
    shared.mkdir(exist_ok=True)
    signatures = {}
    for share in ((number + k) % total for k in range(total)):
        part = listed[share::total]
        finished = shared / f"{share:05d}.jsonl"
        cache = pack_settings.work_folder(output) / f"signatures-{share:05d}.jsonl"
        if not finished.exists():
            results = per_file.run_all(cache, folder, part, task, stop=finished.exists, **options)
            if len(results) == len(part):
                atomic_files.write_text(finished, cache.read_text("utf-8"))
        signatures |= per_file.read_results(finished, Signature)
    return signatures


def sign_file(
    path: str, limits: read_limits.Limits = read_limits.DEFAULTS, span: Span = WHOLE
) -> Signature | str:
    """Describes a video or an image; runs in a worker, and decodes all frames but converts only three.

    Args:
      path: video or image file.
      limits: bounds for what is read from one file.
      span: part of the video.
    Returns:
      Its signature, or the reason why it cannot be read.
    """
    try:
        if image_io.is_image(path):
            frames, seconds = image_io.read_image(path, limits)[None], 0.0
        else:
            options = {"limits": limits, "on_cut": lambda sentence: None, "span": span}
            sample = video_io.sample_frames(path, duplicates.FRAMES, **options)
            frames, seconds = sample.frames, sample.num_frames / sample.fps
    except Exception as error:  # whatever a decoder raises is the fault of this file alone
        return extraction.describe_failure(path, error)
    # Of a shorter video, some frames count more than once.
    return duplicates.sign_frames(frames[[0, len(frames) // 2, -1]], seconds)
