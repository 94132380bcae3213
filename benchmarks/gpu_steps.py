"""The programs of configs/dit_512.py and configs/dit_xl_512.py on the card of benchmarks/gpu.py, on random latents.

A batch of one clip, without accumulation, on one device; else the config's own options. Block inputs stay on the card
where its memory allows: the compiled program says so, as in `plan`, and the next smaller form is tried where it does
not. Peak memory is JAX's own count beside that of the compiled program.
"""

import collections
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gpu_environment import attention_kernel
from gpu_page import GIB
from jax.profiler import ProfileData
from jax.sharding import NamedSharding

from videogen_jax import config as configs
from videogen_jax.generate import run_sampler
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.parallel import device_specs, hlo, kernel_times, kernels
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.memory import host_bytes, peak_bytes
from videogen_jax.run.model import Model, abstract_condition, make_model
from videogen_jax.train import diffusion_run, training_run
from videogen_jax.train.training_run import Run

STEPS = 10
MOST_SECONDS = 25  # of timed steps
LISTED = 12  # kernels

ONE_CARD = {
    "batch_size": 1,
    "sample.batch_size": 1,
    "train.accumulation": 1,
    **{f"mesh.{axis}": 1 for axis in ("data", "fsdp", "seq", "tensor")},
}
KEPT, MOVED = {"memory.offload_activations": False}, {"memory.offload_activations": True}
# GiB of the card from which a form is tried, largest first; the program's own peak decides.
FORMS = {
    "dit_512": (
        (34, KEPT),
        (18, MOVED),
        (11, MOVED | {"data.frames": 240}),
        (0, MOVED | {"data.frames": 120}),
    ),
    "dit_xl_512": (
        (84, KEPT),
        (38, MOVED),
        (22, MOVED | {"data.frames": 240}),
        (15, MOVED | {"data.frames": 120}),
        (0, MOVED | {"data.frames": 64}),
    ),
}
TINY = {
    "data.frames": 8,
    "data.height": 64,
    "data.width": 64,
    "model.width": 64,
    "model.depth": 2,
    "model.num_heads": 2,
    "memory.pieces": 1,
}


def measure(part: str, record: Callable[..., None], folder: Path, tiny: bool) -> None:
    """Measures a part; arguments as of gpu_environment."""
    usual = {"memory.attention_kernel": attention_kernel(folder)} | (TINY if tiny else {})
    if part in FORMS:
        run, compiled = fit(part, usual, record)
        measure_step(run, compiled, record, folder)
    elif part == "offload":
        run = make_run("dit_512", MOVED | usual)
        compiled = compile_program(lambda: training_run.trace_step(run), record)
        measure_step(run, compiled, record, folder)
    elif part == "profile":
        run, compiled = fit("dit_512", usual, record)
        record(kernels=profile_step(run, compiled, folder))
    else:
        measure_sampling(make_run("dit_512", KEPT | usual).model, record)


def make_run(name: str, changes: dict[str, Any]) -> Run:
    """The run of a config with changes on the first device, for one clip a step."""
    lines = dict(configs.flatten(configs.load_config(name).to_dict()))
    config = configs.validate(configs.nest(lines | ONE_CARD | changes))
    mesh = meshes.make_mesh(**config.mesh, devices=jax.devices()[:1])
    return diffusion_run.make_run(make_model(config, mesh))


def fit(name: str, usual: dict[str, Any], record: Callable[..., None]) -> tuple[Run, Any]:
    """The largest form of a config whose compiled step fits the card.

    Args:
      name: of the config.
      usual: changes of every form.
      record: takes results by name.
    Returns:
      (the run, its compiled step).
    Raises:
      RuntimeError: not even the smallest does.
    """
    stats = jax.devices()[0].memory_stats()
    limit = stats["bytes_limit"] if stats else np.inf
    tried = []
    for least, changes in FORMS[name]:
        if limit < least * GIB:
            continue
        run = make_run(name, changes | usual)
        compiled = compile_program(lambda run=run: training_run.trace_step(run), record)
        peak = peak_bytes(compiled)
        if peak <= limit:
            record(changes=changes)
            return run, compiled
        tried.append(f"{run.config.data.frames} frames: {peak / GIB:.1f} GiB")
    raise RuntimeError(
        f"{name} does not fit the {limit / GIB:.1f} GiB of this card ({'; '.join(tried)}): take a larger one."
    )


def compile_program(trace: Callable[[], Any], record: Callable[..., None]) -> Any:
    """Traces and compiles for the devices that are here, and records seconds and memory."""
    started = time.perf_counter()
    compiled = trace().lower().compile()
    record(
        compile_seconds=time.perf_counter() - started,
        planned=peak_bytes(compiled),
        host_bytes=host_bytes(compiled),
    )
    return compiled


def measured_peak() -> int | None:
    """The most bytes that JAX had in use; None on the CPU, which does not count them."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def draw_batch(run: Run) -> Any:
    """Random latents and text on the device; integers are 1."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.floating):
            return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        return np.ones(leaf.shape, leaf.dtype)

    batch = jax.tree.map(draw, run.abstract_batch(run.config.batch_size))
    return jax.device_put(batch, NamedSharding(run.mesh, meshes.BATCH))


def measure_step(run: Run, compiled: Any, record: Callable[..., None], folder: Path) -> None:
    """Records seconds of a step, its FLOPs, peak memory, and what a cost model expects."""
    card = device_specs.find_card(jax.devices()[0].device_kind)
    record(flops=diffusion_run.count_step_flops(run), peak_flops=card and card.flops)
    record(parameters=sum(leaf.size for leaf in jax.tree.leaves(run.abstract.params)))
    record(frames=run.config.data.frames, tokens=int(np.prod(run.model.token_grid)))
    state = jax.jit(run.init, out_shardings=run.shardings)()
    batch = draw_batch(run)
    state, metrics = compiled(state, batch)  # loads kernels
    jax.block_until_ready(metrics)
    times: list[float] = []
    while len(times) < STEPS and sum(times) < MOST_SECONDS:
        started = time.perf_counter()
        state, metrics = compiled(state, batch)
        loss = float(metrics["loss"])
        times.append(time.perf_counter() - started)
        record(seconds=statistics.median(times), fastest=min(times), slowest=max(times))
    record(steps=len(times), loss=loss, measured=measured_peak())
    if not np.isfinite(loss):
        raise RuntimeError(f"The loss is {loss} after {len(times)} steps.")
    if card:  # last: the cost model has never read a program that was tuned on a card
        record(estimates=estimate_seconds(compiled.as_text(), card, folder))


def estimate_seconds(text: str, card: device_specs.Card, folder: Path) -> dict[str, float]:
    """Seconds by the cost model of `plan`: as a roofline, with its own efficiencies, and with those measured here.

    Args:
      text: the compiled program.
      card: the device.
      folder: of the results of the other parts.
    """
    found = kernels.list_kernels(hlo.parse(text), 1)
    chosen = {
        "roofline": kernel_times.ROOFLINE,
        "expected": kernel_times.expected_efficiencies(card),
    }
    file = folder / "environment.json"
    environment = json.loads(file.read_text()) if file.is_file() else {}
    if "rates" in environment and chosen["expected"]:
        chosen["with the rates measured here"] = chosen["expected"]._replace(
            **measured_efficiencies(environment)
        )
    estimates = {
        name: kernel_times.estimate(found, card, one) for name, one in chosen.items() if one
    }
    return {name: one.total for name, one in estimates.items() if one}


def measured_efficiencies(environment: dict[str, Any]) -> dict[str, float]:
    """The medians of what was reached of the card's peaks, under the names of `kernel_times.Efficiencies`."""
    peaks, shares = environment["peaks"], collections.defaultdict(list)
    for row in environment["rates"]:
        name = row["kind"].replace(" ", "_")
        if name in ("memory", "host_link"):
            peak = peaks["bandwidth" if name == "memory" else name]
            shares[name].append(row["bytes"] / row["seconds"] / peak)
        elif row["flops"] / peaks["flops"] > row["bytes"] / peaks["bandwidth"]:  # not by memory
            shares[name].append(row["flops"] / row["seconds"] / peaks["flops"])
    measured = {name: statistics.median(values) for name, values in shares.items()}
    if "small_kernel_seconds" in environment:
        measured["launch"] = environment["small_kernel_seconds"]
    return measured


def measure_sampling(model: Model, record: Callable[..., None]) -> None:
    """Records seconds and peak memory of all steps of the config's sampler, guidance included, for one video."""
    settings = SamplerSettings(**model.sampling)
    programs = run_sampler.make_run_programs(model, settings)
    condition = abstract_condition(model, programs.batch_size, model.video_shape)
    arguments = programs.abstract_args(model.abstract_params, condition)["denoise"]
    compiled = compile_program(lambda: programs.denoise.trace(*arguments), record)
    params = jax.jit(model.init_params, out_shardings=model.param_shardings)()
    zeros = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), condition)
    zeros = jax.device_put(zeros, programs.rows)
    seeds = jax.device_put(np.arange(programs.batch_size, dtype=np.uint32), programs.rows)
    x_t, keys = programs.init(seeds)
    jax.block_until_ready(x_t)
    started = time.perf_counter()
    video = jax.block_until_ready(compiled(x_t, params, keys, zeros))
    seconds = time.perf_counter() - started
    card = device_specs.find_card(jax.devices()[0].device_kind)
    record(
        seconds=seconds,
        frames=model.config.data.frames,
        steps=settings.num_inference_steps,
        calls=programs.calls,
        flops=programs.calls * diffusion_run.forward_flops(model),
        peak_flops=card and card.flops,
        measured=measured_peak(),
    )
    if not np.isfinite(np.asarray(video)).all():
        raise RuntimeError("The sampled latents are not finite.")


def profile_step(run: Run, compiled: Any, folder: Path) -> list[dict[str, Any]]:
    """The kernels of a step by their time, those of one name together, from JAX's profiler."""
    state = jax.jit(run.init, out_shardings=run.shardings)()
    batch = draw_batch(run)
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    with jax.profiler.trace(str(folder / "trace")):
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
    (file,) = (folder / "trace").glob("**/*.xplane.pb")
    return sum_kernels(ProfileData.from_file(str(file)))


def sum_kernels(data: ProfileData) -> list[dict[str, Any]]:
    """Name, seconds and number of the kernels of a trace, the longest first; numbers in names are dropped.

    Args:
      data: of a trace; kernels are events of a GPU's streams, or on the CPU those that name their operation.
    """
    totals: dict[str, list[float]] = collections.defaultdict(list)
    planes = list(data.planes)
    cards = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in cards or planes:
        for line in plane.lines:
            if cards and not line.name.startswith("Stream"):
                continue  # summaries of the same kernels
            for event in line.events:
                if cards or any(name == "hlo_op" for name, _ in event.stats):
                    name = re.sub(r"[._]?\d+", "", event.name)[:60]
                    totals[name].append(event.duration_ns / 1e9)
    rows = [{"name": name, "seconds": sum(all_), "count": len(all_)} for name, all_ in totals.items()]  # fmt: skip
    rows.sort(key=lambda row: -row["seconds"])
    rest = rows[LISTED:]
    if rest:
        rest = [
            {
                "name": f"{len(rest)} others",
                "seconds": sum(row["seconds"] for row in rest),
                "count": sum(row["count"] for row in rest),
            }
        ]
    return rows[:LISTED] + rest
