"""Throughput of the input pipeline.

    python benchmarks/pipeline.py --size=64 --frames=16
    python benchmarks/pipeline.py --size=64 --frames=16 --latents

Packs clips of moving shapes into a temporary folder, then measures clips per second as a train loop reads them, and the
time to the first batch of a run resumed at a late step. With --latents it reads random latents of an eighth of that
size instead, with 4 channels in float16. Reports the fastest of --rounds, and the processor time, which depends less on
other load of the machine.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from videogen_jax.data import atomic_files, latent_records, pipeline, records, synthetic
from videogen_jax.data.annotations import Annotations
from videogen_jax.packing import pack_folder

CLIPS_PER_SHARD = 256


def main() -> None:
    """Prints two lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("size", 64), ("frames", 16), ("clips", 1024), ("batch_size", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crop", type=int, help="frames cropped from each clip [all]")
    parser.add_argument("--latents", action="store_true", help="read latents instead of pixels")
    parser.add_argument("--flip", action="store_true", help="mirror half of the clips")
    options = parser.parse_args()
    crop = options.crop or options.frames
    with tempfile.TemporaryDirectory() as folder:
        (write_latents if options.latents else write_pixels)(Path(folder), options)

        def open_at(step: int):
            started = time.perf_counter()
            clips = pipeline.make_clips(
                Path(folder) / "data",
                "train",
                batch_size=options.batch_size,
                frames=crop,
                seed=0,
                start_step=step,
                flip=options.flip,
                threads=options.threads,
            )
            shape = next(clips)["video"].shape[1:]
            return clips, shape, time.perf_counter() - started

        clips, shape, _ = open_at(0)
        count = max(100, 20_000 // options.batch_size)
        rounds = []
        for _ in range(options.rounds):
            started = time.perf_counter(), time.process_time()
            for _ in range(count):
                next(clips)
            rounds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        wall, processors = (
            min(times) / count / options.batch_size for times in zip(*rounds, strict=True)
        )
        size = "x".join(map(str, shape if options.latents else shape[:-1]))
        print(
            f"{1 / wall:.0f} clips/s of {size}, {options.threads} threads; "
            f"{1e6 * processors:.0f} us of processor time a clip"
        )
        print(f"first batch at step 1,000,000 after {open_at(1_000_000)[2]:.2f} s")


def write_pixels(folder: Path, options: argparse.Namespace) -> None:
    """Packs clips of moving shapes into folder/data."""
    videos, size = folder / "videos", options.size
    synthetic.write_shapes(
        videos,
        "moving_shapes",
        clips=options.clips,
        seed=0,
        size=size,
        frames=options.frames,
        workers=2,
    )
    settings = pack_folder.Settings(
        size=(size, size),
        fps=8.0,
        frames=options.frames,
        min_frames=options.frames,
        validation_fraction=0.05,
        clips_per_shard=CLIPS_PER_SHARD,
    )
    pack_folder.pack(videos, folder / "data", settings, workers=2)


def write_latents(folder: Path, options: argparse.Namespace) -> None:
    """Writes random latents into folder/data, in the format of `videogen_jax.encode`."""
    data = folder / "data"
    data.mkdir()
    shape = (options.size // 8, options.size // 8, 4)
    features = latent_records.make_features(shape, "float16")
    rng = np.random.default_rng(0)

    def make_record(number: int) -> bytes:
        clips = rng.standard_normal((2, options.frames, *shape), np.float32)
        mirrored = clips[1] if options.flip else None
        fields = {"fps": 8.0, "motion_score": 1.0, "source": f"{number}.mp4"}
        return latent_records.serialize_latents(
            features, clips[0], mirrored, Annotations.of_text("a red circle moves up"), **fields
        )

    count = max(options.clips // CLIPS_PER_SHARD, 1)
    sizes = [
        records.write_shard(
            data / records.shard_name("train", shard, count),
            map(make_record, range(min(options.clips, CLIPS_PER_SHARD))),
        )
        for shard in range(count)
    ]
    info = latent_records.LatentInfo(
        autoencoder="sd",
        weights="none",
        dtype="float16",
        shape=list(shape),
        mirrored=options.flip,
        mean=[0.1] * 4,
        deviation=[1.1] * 4,
    )
    described = {"words": {"circle": options.clips}, "motion_score_buckets": [1.0] * 255}
    described |= {"frames": options.frames, "min_frames": options.frames, "fps": 8.0}
    described |= {"height": options.size, "width": options.size, "latents": info._asdict()}
    atomic_files.write_text(data / "statistics.json", json.dumps(described))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        records.write_dataset_info(data, {"train": sizes}, work, features)


if __name__ == "__main__":
    main()
