"""Image to video on moving shapes: prompt accuracy of videos from first frames and prompts of held-out clips.

    python benchmarks/image_to_video.py --workdir=runs/i2v_moving_shapes

The workdir is a run of configs/i2v_moving_shapes.py. Writes 64 first frames, calls `python -m videogen_jax.sample
--image=...` and `python -m videogen_jax.evaluate --generated=...`, which counts the videos with the shape and colour of
the image and the direction of the prompt. Prints the same counts for the held-out clips themselves.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from videogen_jax.data import pipeline
from videogen_jax.evaluation.moving_shapes import caption_rates

COUNT = 64


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("sample_flags", nargs="*", help="flags of videogen_jax.sample, after --")
    args = parser.parse_args()
    config = json.loads((args.workdir / "config.json").read_text(encoding="utf-8"))
    data = pipeline.open_data(config["data"]["path"])
    files = sorted(str(path) for path in Path(data.folder).glob("*validation.tfrecord*"))
    clips = itertools.chain.from_iterable(pipeline.read_clips(file, data) for file in files)
    clips = list(itertools.islice(clips, COUNT))
    folder = args.workdir / "first_frames"
    folder.mkdir(exist_ok=True)
    prompts = [clip["caption"].decode() for clip in clips]
    images = [folder / f"{i:02d}.png" for i in range(len(clips))]
    for clip, image in zip(clips, images, strict=True):
        Image.fromarray(clip["video"][0]).save(image)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    output = args.workdir / "from_first_frames"
    options = [f"--workdir={args.workdir}", f"--output_dir={output}", "--batch_size=32"]
    options += [f"--image={image}" for image in images]
    run(
        "videogen_jax.sample",
        *options,
        f"--prompts_file={folder / 'prompts.txt'}",
        *args.sample_flags,
    )
    report = output / "report.json"
    run("videogen_jax.evaluate", f"--generated={output}", f"--output={report}")
    print_rates("held-out clips", caption_rates((clip["video"] for clip in clips), prompts))
    print_rates("from their first frames", json.loads(report.read_text(encoding="utf-8")))


def print_rates(name: str, rates: dict) -> None:
    """Prints one row of the table."""
    cells = [f"{rates[kind]['right']} of {rates['num_videos']}" for kind in ("shape", "colour")]
    cells += [f"{rates[kind]['right']} of {rates['num_videos']}" for kind in ("direction", "all")]
    print(f"| {name} | {' | '.join(cells)} |")


def run(module: str, *flags: str) -> None:
    """Runs a command with its output on stderr."""
    subprocess.run([sys.executable, "-m", module, *flags], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print("| videos | shape | colour | direction | all three |\n| --- | --- | --- | --- | --- |")
    main()
