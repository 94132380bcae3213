"""Days that the stages of docs/recipe.md take on a machine, by plan, beside 400,000 clips straight at 480 frames.

    python benchmarks/stages.py --target=rtx3090x2
    python benchmarks/stages.py --target=h100x8 --xl --arithmetic

Compiles the train step of each stage for the target (needs the wheels of jax[cuda12], but no GPU) and prints its peak
memory and its roofline, which no program beats; days are steps times that. With --arithmetic nothing is compiled: the
seconds are those of the operations at the card's peak, a lower bound of the roofline.
"""

import argparse
import math

import jax

from videogen_jax import config as configs
from videogen_jax.parallel import device_specs, gpu_pools
from videogen_jax.parallel import mesh as meshes
from videogen_jax.planning import programs, tables
from videogen_jax.train import diffusion_run

STAGES = ("stages_1_pictures", "stages_2_short", "stages_3_120", "stages_4_480")
STRAIGHT = 400_000  # clips of 480 frames: configs/dit_512.py
DAY = 86_400  # seconds
# What dit_xl_512 changes of dit_512.
XL = {
    "model.width": 1152,
    "model.depth": 28,
    "model.num_heads": 16,
    "model.modulation": "adaln_single",
    "model.residual_dtype": "compute",
}


def stage_config(name: str, count: int, xl: bool, roomy: bool):
    """The config of a stage on `count` devices, with as few micro-batches as they leave."""
    config = configs.load_config(name)
    lines = dict(configs.flatten(config.to_dict())) | (XL if xl else {})
    if xl and lines["data.frames"] % 8 == 0 and lines["data.height"] == 512:
        lines["memory.pieces"] = 8
    parts = {axis: lines[f"mesh.{axis}"] for axis in ("fsdp", "seq")}
    data = max(1, count // math.prod(parts.values()))
    if count == 1:
        parts = dict.fromkeys(parts, 1)
    lines |= {"mesh.data": data} | {f"mesh.{axis}": size for axis, size in parts.items()}
    clips = data * parts["fsdp"]
    micro = max(1, lines["batch_size"] // lines["train.accumulation"] // config.mesh.fsdp)
    lines["train.accumulation"] = max(1, lines["batch_size"] // (clips * micro))
    if roomy:  # 80 GB: nothing has to wait in the host's memory
        lines |= {"memory.offload_activations": False}
    return configs.validate(configs.nest(lines))


def count_seconds(run, card: device_specs.Card) -> float:
    """Seconds of a step's operations at the card's peak, rematerialization included."""
    flops = diffusion_run.count_step_flops(run) / run.mesh.size
    return flops * (1 if run.config.memory.remat == "none" else 4 / 3) / card.flops


def main() -> None:
    """Prints a row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="as of plan: rtx3090x2, h100, h100x8, ...")
    parser.add_argument("--xl", action="store_true", help="with the model of configs/dit_xl_512.py")
    text = "count operations instead of compiling"
    parser.add_argument("--arithmetic", action="store_true", help=text)
    options = parser.parse_args()
    card, count = device_specs.parse_target(options.target)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    devices = (
        jax.devices()[:count] if options.arithmetic else device_specs.find_devices(card, count)
    )
    roomy = card.memory is not None and card.memory > 40 * gpu_pools.GIB
    total = 0.0
    print("| stage | clips | steps | mesh | micro-batches | peak, GiB | s a step | days |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in STAGES:
        config = stage_config(name, count, options.xl, roomy)
        mesh = meshes.make_mesh(**config.mesh, devices=devices)
        run = programs.make_run(config, mesh)
        if options.arithmetic:
            seconds, peak = count_seconds(run, card), "-"
        else:
            program = programs.plan_train(run, card, programs.count_resident(run, card).observers)
            fits = card.memory is None or program.total <= gpu_pools.device_pool(card.memory)
            seconds = program.roofline.total if program.roofline else math.nan
            peak = tables.gib(program.peak) + ("" if fits else ", does not fit")
        days = seconds * config.train.steps / DAY
        total += days
        data = config.data
        sizes = " ".join(f"{axis}={size}" for axis, size in config.mesh.items() if size > 1)
        print(
            f"| {name} | {config.batch_size} x {data.frames} x {data.height}x{data.width} | {config.train.steps:,} "
            f"| {sizes or 'one device'} | {config.train.accumulation} | {peak} | {seconds:.2f} | {days:.2f} |",
            flush=True,
        )
    straight = seconds / config.batch_size * STRAIGHT / DAY
    print(f"all stages {total:.1f} days, straight {straight:.1f} days: {total / straight:.0%}")


if __name__ == "__main__":
    main()
