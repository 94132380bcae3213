"""Packed data sets: plain and bucketed ones written directly, without lossy video files; and moving shapes."""

import collections
import json

import numpy as np

from videogen_jax.data import bucketed_data, records, synthetic
from videogen_jax.data.annotations import Annotations
from videogen_jax.packing import pack_folder
from videogen_jax.packing.settings import Settings


def write_records(folder, train, frames, per_shard=1, captions=None, held_out=1):
    """Writes a plain data set of clips (T, H, W, 3) uint8; the first `held_out` are also its validation split.

    Captions are texts or `Annotations`.
    """
    (folder / "work").mkdir(parents=True)
    captions = captions or [str(i) for i in range(len(train))]
    said = [Annotations.of_text(c) if isinstance(c, str) else c for c in captions]
    scores = [records.motion_score(video, 8.0) for video in train]
    words = collections.Counter(word for one in said for text in one.texts for word in text.split())
    statistics = {
        "height": train[0].shape[1],
        "width": train[0].shape[2],
        "frames": frames,
        "min_frames": min(map(len, train)),
        "fps": 8.0,
        "words": dict(words),
        "motion_score_buckets": records.motion_edges([np.asarray(scores)]),
    }
    if names := set.intersection(*(set(one.numbers) for one in said)):
        statistics["numbers"] = sorted(names)
    (folder / "statistics.json").write_text(json.dumps(statistics))
    np.save(folder / records.MOTION_SCORES, np.float32(scores))
    sizes = {}
    for split, clips in {"train": train, "validation": train[:held_out]}.items():
        examples = [
            records.encode_clip(video, caption, 8.0, f"{i}.mp4")
            for i, (video, caption) in enumerate(zip(clips, captions, strict=False))
        ]
        shards = [examples[i : i + per_shard] for i in range(0, len(examples), per_shard)]
        sizes[split] = [
            records.write_shard(folder / records.shard_name(split, i, len(shards)), shard)
            for i, shard in enumerate(shards)
        ]
    records.write_dataset_info(folder, sizes, folder / "work")
    report = {"settings": {"size": "x".join(map(str, train[0].shape[1:3]))}, "clips": len(train)}
    (folder / "pack_report.json").write_text(json.dumps(report))
    return folder


def write_buckets(folder, clips, per_shard=4):
    """Writes a bucketed data set from {"4x16x16": clips, ...}; every caption is "shape NAME"."""
    for name, train in clips.items():
        captions = [f"shape {name}"] * len(train)
        write_records(folder / name, train, len(train[0]), per_shard, captions)
    bucketed_data.write_index(folder, list(clips))
    return folder


def random_clips(shape, count, seed=0):
    """Makes clips of blockwise noise, which survives JPEG compression."""
    rng = np.random.default_rng(seed)
    frames, height, width = shape
    small = rng.integers(20, 230, (count, frames, height // 8, width // 8, 3), np.uint8)
    return list(small.repeat(8, axis=2).repeat(8, axis=3))


def pack_moving_shapes(folder, clips, size, frames, fps=8.0, validation_fraction=0.2):
    """What `videogen_jax.pack --synthetic=moving_shapes` makes, in this process; returns the data set's folder."""
    videos = {"size": size, "frames": frames, "fps": fps}
    synthetic.write_shapes(folder / "videos", "moving_shapes", clips=clips, seed=0, **videos)
    settings = Settings(
        size=(size, size),
        fps=fps,
        frames=frames,
        min_frames=frames,
        validation_fraction=validation_fraction,
        clips_per_shard=256,
    )
    pack_folder.pack(folder / "videos", folder / "data", settings, workers=1, progress=False)
    return folder / "data"
