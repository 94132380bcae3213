"""How fast the input pipeline serves clips.

    python benchmarks/pipeline.py --size=64 --frames=16

Packs clips of moving shapes into a temporary folder, then counts what a train loop would get, and the time to the first
batch of a run that goes on at a late step.
"""

import argparse
import tempfile
import time
from pathlib import Path

from videogen_jax.data import packing, pipeline, synthetic


def main() -> None:
    """Prints two lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("size", 64), ("frames", 16), ("clips", 1024), ("batch_size", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos, data = Path(folder) / "videos", Path(folder) / "data"
        synthetic.write_moving_shapes(
            videos, clips=options.clips, seed=0, size=options.size, frames=options.frames, workers=2
        )
        settings = packing.Settings(
            size=(options.size, options.size),
            fps=8.0,
            frames=options.frames,
            min_frames=options.frames,
            validation_fraction=0.05,
            clips_per_shard=256,
        )
        packing.pack(videos, data, settings, workers=2)

        def open_at(step: int):
            started = time.perf_counter()
            clips = pipeline.make_clips(
                data,
                "train",
                batch_size=options.batch_size,
                frames=options.frames,
                seed=0,
                start_step=step,
                threads=options.threads,
            )
            next(clips)
            return clips, time.perf_counter() - started

        clips, _ = open_at(0)
        count = max(100, 20_000 // options.batch_size)
        started = time.perf_counter()
        for _ in range(count):
            next(clips)
        rate = count * options.batch_size / (time.perf_counter() - started)
        size = f"{options.frames}x{options.size}x{options.size}"
        print(f"{rate:.0f} clips/s of {size}, {options.threads} threads")
        print(f"first batch at step 1,000,000 after {open_at(1_000_000)[1]:.2f} s")


if __name__ == "__main__":
    main()
