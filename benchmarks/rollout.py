"""Long videos: memory and time of rollouts of 48 and 480 frames, and the speedup by the KV cache.

    python benchmarks/rollout.py --workdir=runs/rollout_benchmark

A causal model of 33 frames with 64 tokens each generates chunks of 8 frames after at most 25 cached ones, on all
devices. Memory is the peak of the process `python -m videogen_jax.sample --num_frames=...`, which also writes the file.
Time is that of a jitted call, with the same model and number of sampling steps for all:

- rollout: a chunk with a full KV cache, including the pass that fills it;
- at once: 48 frames with causal attention to all earlier ones;
- recomputed: 25 frames and a chunk at every step, as without a KV cache.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from videogen_jax import config as configs
from videogen_jax.generate import run_rollout, run_sampler
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.parallel.mesh import BATCH
from videogen_jax.run import model as run_model

STEPS = 10  # of the sampler
WINDOW, CHUNK = 33, 8
OVERRIDES = {
    "data.frames": WINDOW,
    "data.height": 32,
    "data.width": 32,
    "model.patch_size": (1, 4, 4),
    "model.width": 256,
    "model.depth": 8,
    "model.num_heads": 4,
    "model.time_cycle": WINDOW,
    "prefix.lengths": (1, 9, 17, 25),
    "prefix.chunk": CHUNK,
    "sample.num_inference_steps": STEPS,
    "sample.guidance_scale": 1.0,
    "sample.batch_size": 1,
    "mesh.data": 1,
}


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", default="48,480", help="lengths whose memory is measured")
    args = parser.parse_args()
    lengths = [int(frames) for frames in args.frames.split(",")]
    compare_memory(args.workdir, lengths, args.repeats)
    compare_time(args.repeats)


def compare_memory(workdir: Path, lengths: list[int], repeats: int) -> None:
    """Trains one step, then samples each length in processes, and prints their peak memory."""
    data = workdir / "data"
    pack = ["--synthetic=bouncing_shapes", "--clips=64", "--size=32", f"--frames={WINDOW}"]
    run("-m", "videogen_jax.pack", *pack, f"--output={data}")
    options = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    options += ["--config.train.steps=1", "--config.learning_rate.warmup_steps=0"]
    options += ["--config.batch_size=2", "--config.sample.prompts=()"]
    options += [f"--config.data.path={data}", f"--workdir={workdir}"]
    run("launch.py", "--config=configs/long_bouncing.py", *options)
    print("| frames | peak of the process, MiB | median |\n| --- | --- | --- |")
    command = ["-m", "videogen_jax.sample", f"--workdir={workdir}"]
    command.append("--prompts=a red circle moving left")
    peaks = {frames: [] for frames in lengths}
    for _ in range(repeats):
        for frames in lengths:
            peaks[frames].append(run(*command, f"--num_frames={frames}") / 2**20)
    for frames, found in peaks.items():
        each = ", ".join(f"{peak:.1f}" for peak in found)
        print(f"| {frames} | {each} | {np.median(found):.1f} |", flush=True)


def run(*command: str) -> int:
    """Runs Python with its output on stderr; returns its peak memory in bytes."""
    code = "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)\n"
    code += "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    child = [sys.executable, "-c", code, sys.executable, *command]
    # One malloc arena for all threads: with one per thread, peaks vary randomly.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    output = subprocess.run(
        child, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    unit = 1 if sys.platform == "darwin" else 1024
    return int(re.search(r"peak (\d+)", output)[1]) * unit


def compare_time(repeats: int) -> None:
    """Prints the time per frame of the three methods, and of a rollout as it gets longer."""
    config = configs.load_config("long_bouncing").unlock()
    config.update_from_flattened_dict(OVERRIDES)
    once = run_model.with_shape(config, (48, 32, 32))
    once.unlock().model.time_cycle = 48
    mesh = run_model.make_sampling_mesh(once, 1, jax.devices())
    windowed, whole = (run_model.make_model(one, mesh) for one in (config, once))
    params = jax.jit(whole.init_params, out_shardings=whole.param_shardings)()
    seeds = jax.device_put(np.zeros(1, np.uint32), NamedSharding(mesh, BATCH))
    text = jax.tree.map(lambda leaf: np.asarray(leaf)[None], whole.null_text)

    def at_once(model: run_model.Model) -> float:
        programs = run_sampler.make_run_programs(model, SamplerSettings(**model.sampling))
        condition = jax.device_put(run_sampler.make_condition(model, text, 0.0), programs.rows)

        def call() -> jax.Array:
            x_t, keys = programs.init(seeds)
            return programs.denoise(x_t, params, keys, condition)

        return median_seconds(call, repeats)

    plan = run_rollout.plan_rollout(windowed)
    settings = SamplerSettings(**windowed.sampling)
    rollout = run_rollout.make_run_rollout(windowed, plan, settings)
    shape = run_rollout.chunk_shape(windowed, plan)
    condition = run_sampler.make_condition(windowed, text, 0.0, shape)
    condition = jax.device_put(condition, rollout.rows)
    state, times = rollout.start(), []
    for chunk in range(61):
        started = time.perf_counter()
        state, video = rollout.extend(state, params, seeds, condition)
        jax.block_until_ready((state, video))
        if chunk:  # the first call compiles
            times.append(time.perf_counter() - started)
    cached = np.median(times) / CHUNK
    once_through, again = at_once(whole) / 48, at_once(windowed) / CHUNK
    print(
        f"\n{STEPS} steps, {mesh.size} devices; a rollout's programs compiled: {rollout.extend._cache_size()}\n"
    )
    print("| way | ms a frame | against the rollout |\n| --- | --- | --- |")
    for name, value in {"rollout": cached, "at once": once_through, "recomputed": again}.items():
        print(f"| {name} | {1000 * value:.1f} | {value / cached:.2f} |")
    total = np.cumsum(times)
    print("\n| frames | s | s a frame |\n| --- | --- | --- |")
    for chunks in (6, 12, 30, 60):
        print(
            f"| {8 * chunks} | {total[chunks - 1]:.2f} | {total[chunks - 1] / chunks / CHUNK:.4f} |"
        )


def median_seconds(call, repeats: int) -> float:
    """Median seconds of a call after compilation."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
