"""What this project does on a GPU, in at most nine minutes: one page of markdown and one JSON file.

    python benchmarks/gpu.py --output=gpu_results
    python benchmarks/gpu.py --dry_run          # every part at a tiny size on the CPU

| part        | what it measures                                                                                   |
| ----------- | -------------------------------------------------------------------------------------------------- |
| environment | card, driver and versions; the rates that products, attention, memory and host link reach          |
| checks      | attention against float32, offloading against none, a step against the CPU; each with a tolerance  |
| dit_512     | the train step of configs/dit_512.py on random latents: seconds, utilisation, peak against `plan`  |
| dit_xl_512  | the same of configs/dit_xl_512.py                                                                  |
| train       | DiT-XL's train step beside PyTorch, eager and compiled, in turns (train_step.py)                   |
| sampler     | 50 steps of DDIM with guidance beside PyTorch, in turns (sampler.py)                               |
| sample_512  | 50 steps of the sampler of configs/dit_512.py: 480 frames of 512x512                               |
| profile     | the kernels that take the time of a step of dit_512                                                |
| offload     | the step of dit_512 with block inputs in the host's memory: what the copies cost                   |

Each part is a process of its own, so that one that fails loses no other, and this process leaves the GPU alone. A part
ends at its own limit or at that of all; page and JSON are written after each. Needs jax, flax, optax, orbax, einops,
NumPy, absl and ml_collections, and torch for the two comparisons; no data, no weights and no network. A card with less
memory gets smaller work, which the page says. Exit code 0: all that was measured passed its checks; 1: a part failed
or a check did not pass; 2: there is no GPU.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import gpu_page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # where this project is not installed

from videogen_jax.parallel import gpu_pools  # noqa: E402

NEEDED = ("jax", "flax", "optax", "orbax", "einops", "numpy", "absl", "ml_collections")
NO_GPU = 3  # exit code of a part that finds none
SHOWN = 11_000  # characters of the page that are printed
SHORTEST = 20  # seconds under which no part is begun

# Most of a dry run is compiling what runs once.
QUICK_COMPILING = "--xla_backend_optimization_level=0"

# Preset and batch of the train step beside PyTorch by the card's GiB, the first that fits: all three sides hold their
# memory at a time. The sampler takes one clip, in two branches.
COMPARED = ((125, "xl", 4), (75, "xl", 1), (38, "s", 16), (0, "s", 4))
ROUNDS = {"train": 20, "sampler": 3}


class Part(NamedTuple):
    """A part of the benchmark."""

    seconds: float  # its limit
    module: str  # of which `measure` is called, or the script of a comparison


PARTS = {
    "environment": Part(60, "gpu_environment"),
    "checks": Part(110, "gpu_checks"),
    "dit_512": Part(100, "gpu_steps"),
    "dit_xl_512": Part(130, "gpu_steps"),
    "train": Part(170, "train_step.py"),
    "sampler": Part(120, "sampler.py"),
    "sample_512": Part(110, "gpu_steps"),
    "profile": Part(60, "gpu_steps"),
    "offload": Part(60, "gpu_steps"),
}


def main() -> int:
    """Runs the parts, or one of them in a process of its own; returns the exit code."""
    options = read_options()
    if options.part:
        return run_part(options)
    try:
        gpu_pools.set_defaults()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"This Python has no {', '.join(missing)}: install what is missing.", file=sys.stderr)
        return 1
    output = options.output or Path(os.environ.get("OUT", "."))
    output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {"dry_run": options.dry_run, "parts": {}}
    if options.parts and (output / "gpu.json").is_file():
        earlier = json.loads((output / "gpu.json").read_text())
        if earlier["dry_run"] != options.dry_run:
            text = (
                f"{output / 'gpu.json'} is of a dry run, or this is one: choose another --output."
            )
            print(text, file=sys.stderr)
            return 1
        results["parts"] = earlier["parts"]
    names = options.parts or list(PARTS)
    if not {"environment"} & {*names, *results["parts"]}:
        names = ["environment", *names]  # which the others read
    with tempfile.TemporaryDirectory() as folder:
        for name, outcome in results["parts"].items():
            (Path(folder) / f"{name}.json").write_text(json.dumps(outcome.get("results", {})))
        for name in names:
            outcome = start_part(name, options, Path(folder), deadline)
            results["parts"] |= {name: outcome}
            if outcome.get("exit_code") == NO_GPU:
                print(outcome["failed"], file=sys.stderr)
                return 2
            print(f"{name}: {gpu_page.describe_outcome(outcome)}", file=sys.stderr, flush=True)
            page = write_results(output, results)
    print(page if len(page) < SHOWN else f"{page[:SHOWN]}\n... the rest is in {output / 'gpu.md'}")
    return 0 if gpu_page.passed(results) else 1


def read_options() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "folder for gpu.md and gpu.json; by default $OUT, or the current one"
    parser.add_argument("--output", type=Path, help=text)
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of all parts together")
    parser.add_argument("--dry_run", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--skip_compile", action="store_true", help="no torch.compile")
    text = "separated by commas, by default all; results of the others in --output stay"
    parser.add_argument("--parts", type=read_parts, help=text)
    parser.add_argument("--part", help=argparse.SUPPRESS)  # set in the process of a part
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the results of all
    return parser.parse_args()


def read_parts(text: str) -> list[str]:
    """Names of parts; an error names the one that does not exist."""
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(
                f"there is no part {name!r}: choose among {', '.join(PARTS)}"
            )
    return names


def start_part(
    name: str, options: argparse.Namespace, folder: Path, deadline: float
) -> dict[str, Any]:
    """Runs a part in a process group of its own until its limit.

    Args:
      name: of PARTS.
      options: the flags.
      folder: of the results of all parts.
      deadline: of `time.monotonic`.
    Returns:
      The part's seconds and results, and why it is not complete: "cut" or "failed" with a sentence.
    """
    part = PARTS[name]
    left = deadline - time.monotonic()
    if left < min(SHORTEST, part.seconds):
        return {"cut": f"not begun, {max(left, 0):.0f} s before the end", "seconds": 0.0}
    compares = part.module.endswith(".py")
    if compares and importlib.util.find_spec("torch") is None:
        return {"cut": "torch is not installed: pip install torch", "seconds": 0.0}
    limit = left if options.dry_run else min(part.seconds, left)  # a dry run measures nothing
    file = folder / f"{name}.json"
    file.unlink(missing_ok=True)  # of an earlier run
    command = [sys.executable, str(Path(__file__).with_name("gpu.py")), f"--part={name}"]
    command += [f"--folder={folder}"] + ["--dry_run"] * options.dry_run
    if compares:
        command = comparison(name, options, folder, limit)
    started = time.monotonic()
    with (folder / f"{name}.log").open("w+") as log:
        process = subprocess.Popen(
            command,
            env=part_environment(options, folder),
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    outcome: dict[str, Any] = {"seconds": time.monotonic() - started}
    outcome["results"] = json.loads(file.read_text()) if file.is_file() else {}
    if code is None:
        outcome["cut"] = f"stopped at its limit of {limit:.0f} s"
    elif code:
        last = lines[-1][:300] if lines else "no message"
        outcome |= {"failed": last, "exit_code": code, "log": lines[-40:]}
    return outcome


def end_group(process: subprocess.Popen) -> None:
    """Ends a part and the processes that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def comparison(name: str, options: argparse.Namespace, folder: Path, limit: float) -> list[str]:
    """The command of a comparison with PyTorch, for a card of this memory."""
    environment = folder / "environment.json"
    content = json.loads(environment.read_text()) if environment.is_file() else {}
    memory = content.get("memory_gib", 0)
    _, preset, batch = next(row for row in COMPARED if memory >= row[0])
    rounds = ROUNDS[name]
    if options.dry_run:
        preset, batch, rounds = "tiny", 1, 1
    batch = 1 if name == "sampler" else batch
    script = str(Path(__file__).with_name(PARTS[name].module))
    command = [sys.executable, script, f"--preset={preset}", f"--batch={batch}"]
    command += [f"--rounds={rounds}", f"--seconds={limit - 5:.0f}"]
    command += [f"--json={folder / f'{name}.json'}"] + ["--skip_compile"] * options.skip_compile
    return command + ["--guidance=4"] * (name == "sampler")


def part_environment(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Variables of a part: where this project is, and one cache of compiled programs."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    )
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
    environment["JAX_TRACEBACK_FILTERING"] = (
        "off"  # its notice would end a log, in place of the error
    )
    if options.dry_run:
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {QUICK_COMPILING}"
    return environment


def write_results(output: Path, results: dict[str, Any]) -> str:
    """Writes gpu.json and gpu.md; returns the page."""
    page = gpu_page.make_page(results)
    (output / "gpu.json").write_text(json.dumps(results, indent=1))
    (output / "gpu.md").write_text(page + "\n")
    return page


def run_part(options: argparse.Namespace) -> int:
    """In the process of a part: measures, and writes what is known after each result."""
    content: dict[str, Any] = {}
    file = options.folder / f"{options.part}.json"

    def record(**values: Any) -> None:
        content.update(values)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(content))
        draft.replace(file)

    import jax

    from videogen_jax.command import keep_freed_memory

    keep_freed_memory()
    platform = jax.devices()[0].platform
    if platform not in ("gpu", "cuda") and not options.dry_run:
        print(
            f"JAX finds no GPU here, only {platform}: install jax[cuda12] or jax[cuda13] on a machine with one, or try "
            "the benchmark with --dry_run.",
            file=sys.stderr,
        )
        return NO_GPU
    module = __import__(PARTS[options.part].module)
    module.measure(options.part, record, options.folder, tiny=options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
