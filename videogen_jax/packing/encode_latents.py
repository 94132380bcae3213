"""Turns a packed data set into one of latents; the work behind `encode`.

Shard by shard: each becomes a shard of the same clips in the same order, so that training draws the same batches from
both. Several processes take different shards of one output; whoever finds all of them done finishes it.

    OUTPUT/clips-train.tfrecord-00003-of-00010    finished shards, under their final names
    OUTPUT/unfinished/settings.json               what the latents are made of, to refuse a call with others
    OUTPUT/unfinished/clips-train....json         one for each finished shard: sizes and statistics

dataset_info.json comes last: a set that has it is whole.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from videogen_jax.data import (
    atomic_files,
    augment,
    latent_records,
    latent_statistics,
    pipeline,
    records,
)
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.latent_records import Embeddings, TextInfo
from videogen_jax.data.latent_statistics import LatentStatistics
from videogen_jax.packing.locking import hold_folder

REPORT = "encode_report.json"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What makes latents, and how they are stored."""

    run: Callable[[np.ndarray], np.ndarray]  # (T, H, W, 3) uint8 to (t, h, w, C) float32
    name: str  # of the autoencoder
    weights: str  # hash of its parameters
    shape: tuple[int, int, int]  # (h, w, C) of a latent frame
    precision: str  # in which it computes
    dtype: str  # in which latents are stored, one of latent_records.DTYPES
    mirrored: bool  # also of the mirrored clips
    time_stride: int = 1  # frames of each latent but the first, which is of the first frame alone
    texts: TextInfo | None = None  # of the caption embeddings, where there is a text encoder
    embed: Callable[[Sequence[str]], Embeddings] | None = None  # N captions to their embeddings
    augmentation: Augmentation | None = None  # of training clips before they are encoded
    frames: int = 1  # that training cuts out of a clip: augmentation leaves so many at least
    seed: int = 0  # of augmentation


def encode(
    source: str | Path,
    output: str | Path,
    encoder: Encoder,
    *,
    share: tuple[int, int] = (0, 1),
    label: str | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Encodes a packed data set; continues what was begun with the same settings.

    Args:
      source: folder of `videogen_jax.pack`.
      output: folder of the latents.
      encoder: what makes them.
      share: (i, n): the i-th of n equal parts of the shards.
      label: in front of the progress bar.
      progress: show a progress bar on stderr; None: only on a terminal.
    Returns:
      The report: settings, clips of each split, "new" (clips encoded by this call), "finished" (all shards are done),
      "seconds"; with a text encoder also "cut_captions", clips whose caption is longer than it reads (of the whole set
      where all is done, else of this call).
    Raises:
      ValueError: the output was encoded from something else, which is named, or the source does not do.
      OSError: the disk is full; finished shards are kept.
    """
    started = time.monotonic()
    source, output = Path(source), Path(output)
    data = pipeline.open_data(source)
    if data.latents is not None:
        raise ValueError(f"{source} holds latents already: name the --input that pack made.")
    _check_augmentation(encoder, data)
    _check_groups(encoder, data)
    noted = note_settings(source, encoder)
    if augments(encoder, data):
        noted["augment"] = note_augmentation(encoder)
    if finished := _read_report(output, noted):
        return finished | {"new": 0, "finished": True, "seconds": 0.0}
    work = output / "unfinished"
    _claim(output, work, noted)
    shards = [
        (split, path, length)
        for split, paths in data.files.items()
        for path, length in zip(paths, data.lengths[split], strict=True)
    ]
    own = [shard for shard in shards[share[0] :: share[1]] if not _is_done(output, work, shard[1])]
    new = sum(length for *_, length in own)
    disable = None if progress is None else not progress
    cut = 0
    bar = tqdm(total=new, unit="clip", desc=label, disable=disable)
    # Two equal calls, such as a restart beside one that hangs, would write the same files.
    with hold_folder(work / "calls" / f"{share[0]}-of-{share[1]}"), bar:
        for split, path, _ in own:
            cut += _encode_shard(Path(path), split, data, output, work, encoder, bar)
    report = {
        "settings": noted,
        "clips": {split: sum(lengths) for split, lengths in data.lengths.items()},
        "new": new,
        "finished": all(_is_done(output, work, path) for _, path, _ in shards),
        "seconds": round(time.monotonic() - started, 1),
    }
    if encoder.texts is not None:
        report["cut_captions"] = cut
    if report["finished"]:
        _finish(source, output, work, shards, encoder, report)
    return report


def _check_groups(encoder: Encoder, data: pipeline.PackedData) -> None:
    """Refuses clips that are not one frame and whole groups, where the autoencoder wants these.

    Raises:
      ValueError: names the numbers of frames that do.
    """
    stride = encoder.time_stride
    if stride > 1 and encoder.augmentation and encoder.augmentation.changes_rate(encoder.frames):
        raise ValueError(
            f"Clips at other speeds have any number of frames, but {encoder.name!r} encodes 1 frame and whole groups "
            f"of {stride}: set augment.fps_min and fps_max to 0."
        )
    for frames in (data.frames, data.min_frames):
        if (frames - 1) % stride:
            below = (frames - 1) // stride * stride + 1
            raise ValueError(
                f"The clips in {data.folder} have {frames} frames, but {encoder.name!r} encodes 1 frame and whole "
                f"groups of {stride}: pack again with --frames={below} or {below + stride}."
            )


def note_settings(source: Path, encoder: Encoder) -> dict[str, Any]:
    """What a set of latents is made of: JSON values, equal where the latents are."""
    packed = json.loads((source / "pack_report.json").read_text(encoding="utf-8"))
    names = ("name", "weights", "precision", "dtype", "mirrored")
    noted = {
        "autoencoder": {name: getattr(encoder, name) for name in names},
        "packed": packed["settings"] | {"clips": packed["clips"]},
    }
    if encoder.texts is not None:
        names = ("encoder", "weights", "precision", "length")
        noted["text"] = {name: getattr(encoder.texts, name) for name in names}
    return noted


def augments(encoder: Encoder, data: pipeline.PackedData) -> bool:
    """Whether training clips are changed before they are encoded."""
    augmentation, packed = encoder.augmentation, (data.height, data.width)
    return augmentation is not None and augmentation.changes(packed, encoder.frames)


def note_augmentation(encoder: Encoder) -> dict[str, Any]:
    """What the augmented clips of an encoder depend on: JSON values by the names of the config's lines."""
    augmentation = encoder.augmentation
    noted = augmentation.to_json() | {"seed": encoder.seed}
    noted |= dict(zip(("height", "width"), augmentation.size, strict=True))
    return noted | ({"frames": encoder.frames} if augmentation.changes_rate(encoder.frames) else {})


def _check_augmentation(encoder: Encoder, data: pipeline.PackedData) -> None:
    augmentation = encoder.augmentation
    if augmentation is None:
        return
    augment.check_augmentation(augmentation, data, encoder.frames)
    if augmentation.variants > 1 and not augments(encoder, data):
        raise ValueError(
            f"augment.variants is {augmentation.variants}, but nothing is on in which variants could differ: set it to "
            "1, or give a smaller data.height and width, augment.fps_min and fps_max, or augment.jitter."
        )


def _read_report(output: Path, noted: dict[str, Any]) -> dict[str, Any] | None:
    if not (output / "dataset_info.json").exists():
        return None
    if not (output / REPORT).exists():
        raise ValueError(
            f"{output} holds a data set that encode did not write: choose another --output."
        )
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    _compare(output, report["settings"], noted)
    return report


def _compare(output: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ValueError naming what differs between the settings noted in OUTPUT and this call."""
    then, now = dict(_flatten(found)), dict(_flatten(wanted))
    differences = [
        f"{name} was {then.get(name)} and is now {now.get(name)}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(
            f"The latents in {output} are of something else: {'; '.join(differences)}; choose another --output, or "
            f"delete {output} to encode anew."
        )


def _flatten(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from _flatten(value, f"{name}.{key}" if name else key)


def _claim(output: Path, work: Path, noted: dict[str, Any]) -> None:
    path = work / "settings.json"
    if path.exists():
        _compare(output, json.loads(path.read_text(encoding="utf-8")), noted)
        return
    work.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(path, json.dumps(noted, indent=1))


def _is_done(output: Path, work: Path, path: str) -> bool:
    name = Path(path).name
    return (output / name).exists() and (work / f"{name}.json").exists()


def _encode_shard(
    path: Path,
    split: str,
    data: pipeline.PackedData,
    output: Path,
    work: Path,
    encoder: Encoder,
    bar: tqdm,
) -> int:
    """Writes a shard and its note; returns how many of its captions were cut."""
    features = latent_records.make_features(encoder.shape, encoder.dtype, encoder.texts)
    embeddings, cut = _embed_captions(path, encoder)
    seen = latent_statistics.empty_statistics(encoder.shape[-1])

    def serialize() -> Iterator[bytes]:
        nonlocal seen
        place = [Path(name).name for name in data.files[split]].index(path.name)
        first = sum(data.lengths[split][:place])
        for number, clip in enumerate(pipeline.read_clips(str(path), data), first):
            for video, fps in _vary(clip, number, split, data, encoder):
                latents = encoder.run(video)
                mirrored = encoder.run(video[:, :, ::-1]) if encoder.mirrored else None
                for part in (latents, mirrored):
                    seen = seen if part is None else latent_statistics.add_latents(seen, part)
                fields = {name: clip[name] for name in ("caption", "motion_score", "source")}
                fields |= embeddings.get(clip["caption"], {})
                yield latent_records.serialize_latents(
                    features, latents, mirrored, fps=fps, **fields
                )
            bar.update()

    clips, size = records.write_shard(output / path.name, serialize())
    note = {"clips": clips, "bytes": size, "count": seen.count}
    note |= {"mean": seen.mean.tolist(), "squares": seen.squares.tolist(), "cut_captions": cut}
    atomic_files.write_text(work / f"{path.name}.json", json.dumps(note))
    return cut


def _embed_captions(path: Path, encoder: Encoder) -> tuple[dict[bytes, dict[str, np.ndarray]], int]:
    """The fields of each distinct caption of a shard, and for how many clips they were cut."""
    if encoder.texts is None:
        return {}, 0
    captions = pipeline.read_captions(str(path))
    distinct = list(dict.fromkeys(captions))
    tokens, pooled, counts = encoder.embed([caption.decode() for caption in distinct])
    fields = {
        caption: {"text_tokens": tokens[i], "text_pooled": pooled[i]}
        for i, caption in enumerate(distinct)
    }
    long = {
        caption for caption, n in zip(distinct, counts, strict=True) if n > encoder.texts.length
    }
    return fields, sum(caption in long for caption in captions)


def _vary(
    clip: dict[str, Any], number: int, split: str, data: pipeline.PackedData, encoder: Encoder
) -> Iterator[tuple[np.ndarray, np.float32]]:
    """What of a clip is encoded: (video, frames per second) of its variants; of validation clips the middle."""
    video, fps, augmentation = clip["video"], clip["fps"], encoder.augmentation
    if not augments(encoder, data):
        yield video, fps
    elif split != "train":
        corner = augment.centre_crop_offset(video.shape[1:3], augmentation.size)
        yield np.asarray(augment.crop_frames(video, corner, augmentation.size)), fps
    else:
        for variant in range(augmentation.variants):
            key = augment.make_variant_key(encoder.seed, clip["source"], number, variant)
            varied, rate = augment.augment_clip(key, video, fps, encoder.frames, augmentation)
            yield varied.numpy(), rate.numpy()


def _finish(
    source: Path, output: Path, work: Path, shards: list, encoder: Encoder, report: dict[str, Any]
) -> None:
    """Writes the JSON files, dataset_info.json last; another process may be doing the same."""
    sizes: dict[str, list[tuple[int, int]]] = {}
    cut = 0
    seen = latent_statistics.empty_statistics(encoder.shape[-1])
    try:
        for split, path, _ in shards:
            text = (work / f"{Path(path).name}.json").read_text(encoding="utf-8")
            note = json.loads(text)
            sizes.setdefault(split, []).append((note["clips"], note["bytes"]))
            cut += note.get("cut_captions", 0)  # shards of earlier versions have none
            if split == "train":
                part = (note["count"], np.asarray(note["mean"]), np.asarray(note["squares"]))
                seen = latent_statistics.merge_statistics(seen, LatentStatistics(*part))
    except FileNotFoundError:
        if (output / "dataset_info.json").exists():
            return  # the other one was faster
        raise
    latent_statistics.check_deviation(seen)
    info = latent_records.LatentInfo(
        autoencoder=encoder.name,
        weights=encoder.weights,
        dtype=encoder.dtype,
        shape=list(encoder.shape),
        mirrored=encoder.mirrored,
        mean=seen.mean.tolist(),
        deviation=seen.deviation.tolist(),
        places=seen.count,
        time_stride=encoder.time_stride,
    )
    statistics = json.loads((source / "statistics.json").read_text(encoding="utf-8"))
    if "augment" in report["settings"]:
        info = info._replace(augment=encoder.augmentation.to_json() | {"seed": encoder.seed})
        size = dict(zip(("height", "width"), encoder.augmentation.size, strict=True))
        statistics |= size
        if encoder.augmentation.changes_rate(encoder.frames):
            statistics["min_frames"] = encoder.frames
    statistics["latents"] = info._asdict()
    if encoder.texts is not None:
        statistics["texts"] = encoder.texts._asdict()
        report["cut_captions"] = cut
    if (source / records.MOTION_SCORES).exists():  # sets packed by earlier versions have none
        shutil.copyfile(source / records.MOTION_SCORES, output / records.MOTION_SCORES)
    for name, content in {"statistics.json": statistics, REPORT: report}.items():
        atomic_files.write_text(output / name, json.dumps(content, indent=1, ensure_ascii=False))
    features = latent_records.make_features(encoder.shape, encoder.dtype, encoder.texts)
    with tempfile.TemporaryDirectory(dir=output) as metadata:
        records.write_dataset_info(output, sizes, metadata, features)
    shutil.rmtree(work, ignore_errors=True)
