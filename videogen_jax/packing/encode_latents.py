"""Encodes a packed data set to latents; the work behind `encode`.

Each shard is encoded to a shard of the same clips in the same order, so that training draws the same batches from both.
Several processes can encode different shards of one output; the last one finishes the data set.

    OUTPUT/clips-train.tfrecord-00003-of-00010    finished shards, under their final names
    OUTPUT/unfinished/settings.json               settings of the latents; a call with other settings is refused
    OUTPUT/unfinished/clips-train....json         sizes and statistics of each finished shard

dataset_info.json is written last and marks the data set as finished.
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
from absl import logging

from videogen_jax.data import (
    atomic_files,
    augment,
    json_files,
    latent_records,
    latent_statistics,
    packed_data,
    pipeline,
    records,
)
from videogen_jax.data.annotations import Annotations
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.latent_records import Embeddings, TextInfo
from videogen_jax.data.latent_statistics import LatentStatistics
from videogen_jax.data.locking import lock_folder
from videogen_jax.data.progress import show_progress
from videogen_jax.packing import metadata

REPORT = "encode_report.json"
REPORT_FIELDS = {
    "settings": {str: object},
    "clips": {str: int},
    "seconds": float,
    "cut_captions": json_files.Optional(int),
}
SHARD = {
    "clips": int,
    "bytes": int,
    "checksum": json_files.Optional(str),  # absent in shards of earlier versions, as the next
    "cut_captions": json_files.Optional(int),
    "count": int,
    "mean": [float],
    "squares": [float],
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An autoencoder with an optional text encoder and augmentation, and how latents are stored."""

    run: Callable[[np.ndarray], np.ndarray]  # (T, H, W, 3) uint8 to (t, h, w, C) float32
    name: str  # of the autoencoder
    weights: str  # hash of its parameters
    shape: tuple[int, int, int]  # (h, w, C) of a latent frame
    precision: str  # dtype of its computation
    dtype: str  # dtype of stored latents, one of latent_records.DTYPES
    mirrored: bool  # whether to encode the mirrored clips as well
    time_stride: int = 1  # video frames per latent frame, except the first, which encodes one frame
    texts: TextInfo | None = None  # metadata of caption embeddings; None: no text encoder
    embed: Callable[[Sequence[str]], Embeddings] | None = None  # embeds N captions
    augmentation: Augmentation | None = None  # of training clips before they are encoded
    frames: int = 1  # frames of a training clip, the minimum after augmentation
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
    """Encodes a packed data set, or resumes an interrupted call with the same settings.

    Args:
      source: packed data set, an output folder of `videogen_jax.pack`.
      output: folder of the latents.
      encoder: autoencoder and storage settings.
      share: (i, n): encode the i-th of n equal parts of the shards.
      label: in front of lines of progress.
      progress: whether a bar is drawn, as for `show_progress`.
    Returns:
      The report: settings, clips per split, "new" (clips encoded by this call), "finished" (all shards are encoded),
      "seconds"; with a text encoder also "cut_captions", the number of clips with truncated captions (in the whole data
      set if it is finished, else in this call).
    Raises:
      ValueError: the output has other settings, which are named, or the source is unsuitable.
      OSError: the disk is full; finished shards are kept.
    """
    started = time.monotonic()
    source, output = Path(source), Path(output)
    data = pipeline.open_data(source)
    if data.latents is not None:
        raise ValueError(f"{source} holds latents already: set --input to a data set of pack.")
    _check_augmentation(encoder, data)
    _check_frames(encoder, data)
    saved = settings_to_json(source, encoder)
    if augments(encoder, data):
        saved["augment"] = augmentation_to_json(encoder)
    if finished := _read_report(output, saved):
        return finished | {"new": 0, "finished": True, "seconds": 0.0}
    work = output / "unfinished"
    _claim(output, work, saved)
    shards = [
        (split, path, length)
        for split, paths in data.files.items()
        for path, length in zip(paths, data.lengths[split], strict=True)
    ]
    to_encode = [
        shard
        for shard in shards[share[0] :: share[1]]
        if not _is_done(output, work, shard[1], verify=True)
    ]
    new = sum(length for *_, length in to_encode)
    cut = 0
    # Without the lock, two equal calls, such as a restart while the first one hangs, would write the same files.
    with (
        lock_folder(work / "calls" / f"{share[0]}-of-{share[1]}"),
        show_progress(label or "Encoding", new, "clip", progress) as advance,
    ):
        for split, path, _ in to_encode:
            cut += _encode_shard(Path(path), split, data, output, work, encoder, advance)
    report = {
        "settings": saved,
        "clips": {split: sum(lengths) for split, lengths in data.lengths.items()},
        "new": new,
        "finished": all(_is_done(output, work, path, verify=False) for _, path, _ in shards),
        "seconds": round(time.monotonic() - started, 1),
    }
    report["source"] = str(source.resolve())  # where evaluate finds the clips in pixels
    if encoder.texts is not None:
        report["cut_captions"] = cut
    if report["finished"]:
        _finish(source, output, work, shards, encoder, report)
    return report


def _check_frames(encoder: Encoder, data: pipeline.PackedData) -> None:
    """Checks that the number of frames of all clips is 1 plus a multiple of the time stride.

    Raises:
      ValueError: names the nearest valid numbers of frames.
    """
    stride = encoder.time_stride
    if stride > 1 and encoder.augmentation and encoder.augmentation.changes_rate(encoder.frames):
        raise ValueError(
            f"Clips at random frame rates have arbitrary numbers of frames, but {encoder.name!r} encodes 1 plus a "
            f"multiple of {stride} frames: set augment.fps_min and fps_max to 0."
        )
    for frames in (data.frames, data.min_frames):
        if (frames - 1) % stride:
            below = (frames - 1) // stride * stride + 1
            raise ValueError(
                f"The clips in {data.folder} have {frames} frames, but {encoder.name!r} encodes 1 plus a multiple of "
                f"{stride} frames: pack again with --frames={below} or {below + stride}."
            )


def settings_to_json(source: Path, encoder: Encoder) -> dict[str, Any]:
    """Returns the settings that determine the latents, except augmentation, as JSON values."""
    fields = {"settings": {str: object}, "clips": object}
    packed = json_files.read(source / "pack_report.json", fields, packed_data.WAY_OUT)
    names = ("name", "weights", "precision", "dtype", "mirrored")
    saved = {
        "autoencoder": {name: getattr(encoder, name) for name in names},
        "packed": packed["settings"] | {"clips": packed["clips"]},
    }
    if encoder.texts is not None:
        saved["text"] = _text_settings(encoder.texts)
    return saved


def _text_settings(texts: TextInfo) -> dict[str, Any]:
    """The settings that determine caption embeddings; of options that came later only those that are set."""
    names = ["encoder", "weights", "precision", "length"]
    defaults = TextInfo._field_defaults
    names += [n for n in defaults if n != "pooled_path" and getattr(texts, n) != defaults[n]]
    return {name: getattr(texts, name) for name in names}


def augments(encoder: Encoder, data: pipeline.PackedData) -> bool:
    """Whether training clips are augmented before they are encoded."""
    augmentation, packed = encoder.augmentation, (data.height, data.width)
    return augmentation is not None and augmentation.changes(packed, encoder.frames)


def augmentation_to_json(encoder: Encoder) -> dict[str, Any]:
    """Returns the settings that determine augmented clips, as JSON values keyed by config option."""
    augmentation = encoder.augmentation
    saved = augmentation.to_json() | {"seed": encoder.seed}
    saved |= dict(zip(("height", "width"), augmentation.size, strict=True))
    return saved | ({"frames": encoder.frames} if augmentation.changes_rate(encoder.frames) else {})


def _check_augmentation(encoder: Encoder, data: pipeline.PackedData) -> None:
    augmentation = encoder.augmentation
    if augmentation is None:
        return
    augment.check_augmentation(augmentation, data, encoder.frames)
    if augmentation.variants > 1 and not augments(encoder, data):
        raise ValueError(
            f"augment.variants is {augmentation.variants}, but no augmentation is enabled: set it to 1, or set a "
            "smaller data.height and width, augment.fps_min and fps_max, or augment.jitter."
        )


def _read_report(output: Path, saved: dict[str, Any]) -> dict[str, Any] | None:
    if not (output / "dataset_info.json").exists():
        return None
    if not (output / REPORT).exists():
        raise ValueError(
            f"{output} holds a data set that was not written by encode: choose another --output."
        )
    report = json_files.read(output / REPORT, REPORT_FIELDS, packed_data.WAY_OUT)
    _check_same_settings(output, report["settings"], saved)
    return report


def _check_same_settings(output: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises a ValueError that names the differences between the settings saved in OUTPUT and those of this call."""
    then, now = dict(_flatten(found)), dict(_flatten(wanted))
    differences = [
        f"{name} was {then.get(name)} and is now {now.get(name)}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(
            f"The latents in {output} have other settings: {'; '.join(differences)}; set the options to what they were "
            "(autoencoder.precision is vae.encode_precision), or choose another --output."
        )


def _flatten(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from _flatten(value, f"{name}.{key}" if name else key)


def _claim(output: Path, work: Path, saved: dict[str, Any]) -> None:
    path = work / "settings.json"
    if path.exists():
        begun = json_files.read(path, {str: object}, "choose another --output.")
        _check_same_settings(output, begun, saved)
        return
    work.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(path, json.dumps(saved, indent=1))


def _is_done(output: Path, work: Path, path: str, verify: bool) -> bool:
    """Whether a shard is finished; with `verify`, one whose bytes are damaged is not."""
    shard, entry = output / Path(path).name, work / f"{Path(path).name}.json"
    if not (shard.exists() and entry.exists()):
        return False
    if not verify:
        return True
    try:
        expected = json_files.read(entry, SHARD).get("checksum")
    except json_files.FieldError as error:
        logging.warning("%s Its shard is encoded again.", error)
        return False
    if expected is None or records.checksum(shard) == expected:
        return True
    logging.warning("The TFRecord file %s is damaged: it is encoded again.", shard)
    return False


def _encode_shard(
    path: Path,
    split: str,
    data: pipeline.PackedData,
    output: Path,
    work: Path,
    encoder: Encoder,
    advance: Callable[[], None],
) -> int:
    """Writes a shard and its JSON file; returns the number of its truncated captions."""
    features = _make_features(encoder, data)
    embeddings, cut = _embed_captions(path, data, encoder)
    statistics = latent_statistics.empty_statistics(encoder.shape[-1])

    def serialize() -> Iterator[bytes]:
        nonlocal statistics
        shard = [Path(name).name for name in data.files[split]].index(path.name)
        first = sum(data.lengths[split][:shard])
        for number, clip in enumerate(pipeline.read_clips(str(path), data), first):
            for video, fps, said in _variants(clip, number, split, data, encoder):
                latents = encoder.run(video)
                mirrored = encoder.run(video[:, :, ::-1]) if encoder.mirrored else None
                for part in (latents, mirrored):
                    if part is not None:
                        statistics = latent_statistics.add_latents(statistics, part)
                scalars = {"fps": fps, "motion_score": clip["motion_score"]}
                scalars["source"] = clip["source"]
                yield latent_records.serialize_latents(
                    features, latents, mirrored, said, embeddings, **scalars
                )
            advance()

    clips, size = records.write_shard(output / path.name, serialize())
    entry = {"clips": clips, "bytes": size, "cut_captions": cut, "count": statistics.count}
    entry |= {"checksum": records.checksum(output / path.name)}
    entry |= {"mean": statistics.mean.tolist(), "squares": statistics.squares.tolist()}
    atomic_files.write_text(work / f"{path.name}.json", json_files.dump_checked(entry))
    return cut


def _make_features(encoder: Encoder, data: pipeline.PackedData):
    """Latents have the fields of the records that they are made of: all shards of a set have the same."""
    shape, dtype, texts = encoder.shape, encoder.dtype, encoder.texts
    return latent_records.make_features(shape, dtype, texts, data.annotated)


def _embed_captions(
    path: Path, data: pipeline.PackedData, encoder: Encoder
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]] | None, int]:
    """Embeds each distinct text of the captions of a shard once.

    Returns:
      (text -> its tokens (n, E) and pooled embedding (P,), or None without a text encoder; number of clips of which a
      text is truncated).
    """
    if encoder.texts is None:
        return None, 0
    clips = [said.texts for said in pipeline.read_annotations(str(path), data)]
    distinct = list(dict.fromkeys(text for texts in clips for text in texts))
    tokens, pooled, counts = encoder.embed(distinct)
    embeddings = dict(zip(distinct, zip(tokens, pooled, strict=True), strict=True))
    long = {text for text, n in zip(distinct, counts, strict=True) if n > encoder.texts.length}
    return embeddings, sum(not long.isdisjoint(texts) for texts in clips)


def _variants(
    clip: dict[str, Any], number: int, split: str, data: pipeline.PackedData, encoder: Encoder
) -> Iterator[tuple[np.ndarray, np.float32, Annotations]]:
    """Yields (video, frames per second, annotations) of each augmented variant; validation clips are centre-cropped."""
    video, fps, said = clip["video"], clip["fps"], clip["annotations"]
    augmentation = encoder.augmentation
    if not augments(encoder, data):
        yield video, fps, said
    elif split != "train":
        offset = augment.centre_crop_offset(video.shape[1:3], augmentation.size)
        yield np.asarray(augment.crop_frames(video, offset, augmentation.size)), fps, said
    else:
        for variant in range(augmentation.variants):
            key = augment.make_variant_key(encoder.seed, clip["source"], number, variant)
            varied, rate, chosen = augment.augment_clip(
                key, video, fps, encoder.frames, augmentation
            )
            yield varied.numpy(), rate.numpy(), said.select(chosen.numpy())


def _finish(
    source: Path, output: Path, work: Path, shards: list, encoder: Encoder, report: dict[str, Any]
) -> None:
    """Writes the JSON files, dataset_info.json last; another process may do so at the same time."""
    sizes: dict[str, list[tuple[int, int]]] = {}
    cut, checksums = 0, {}
    moments = latent_statistics.empty_statistics(encoder.shape[-1])
    try:
        for split, path, _ in shards:
            name = Path(path).name
            entry = json_files.read(work / f"{name}.json", SHARD)
            if "checksum" in entry:
                checksums[name] = entry["checksum"]
            sizes.setdefault(split, []).append((entry["clips"], entry["bytes"]))
            cut += entry.get("cut_captions", 0)  # absent in shards of earlier versions
            if split == "train":
                part = (entry["count"], np.asarray(entry["mean"]), np.asarray(entry["squares"]))
                moments = latent_statistics.merge_statistics(moments, LatentStatistics(*part))
    except FileNotFoundError:
        if (output / "dataset_info.json").exists():
            return  # another process has finished the data set
        raise
    latent_statistics.check_deviation(moments)
    info = latent_records.LatentInfo(
        autoencoder=encoder.name,
        weights=encoder.weights,
        dtype=encoder.dtype,
        shape=list(encoder.shape),
        mirrored=encoder.mirrored,
        mean=moments.mean.tolist(),
        deviation=moments.deviation.tolist(),
        places=moments.count,
        time_stride=encoder.time_stride,
    )
    statistics = json_files.read(source / "statistics.json", packed_data.STATISTICS)
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
    if (source / records.MOTION_SCORES).exists():  # absent in data sets of earlier versions
        shutil.copyfile(source / records.MOTION_SCORES, output / records.MOTION_SCORES)
    metadata.write_json(output / "statistics.json", statistics)
    metadata.write_checksums(output, checksums)
    metadata.write_json(output / REPORT, report)
    features = _make_features(encoder, packed_data.open_data(source))
    with tempfile.TemporaryDirectory(dir=output) as folder:
        records.write_dataset_info(output, sizes, folder, features)
    shutil.rmtree(work, ignore_errors=True)
