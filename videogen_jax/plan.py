"""Says whether a config fits a machine that need not be here, and what a step of it costs.

    python -m videogen_jax.plan --config=configs/dit_512.py --target=rtx3090x2
    python -m videogen_jax.plan --config=configs/dit_512.py --target=rtx4090

The very programs that training and sampling run are compiled for the target, and their memory is read off. Exit code 0:
it fits; 1: it does not, and the overrides that would help are printed. Bytes and operations are counted; times are a
roofline, which no program beats. GPUs as targets want the wheels of jax[cuda12], but no GPU.
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from videogen_jax import command
from videogen_jax import config as configs
from videogen_jax.generate import run_rollout, run_sampler
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.parallel import device_specs, memory, offload
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run.merged_lora import without_lora
from videogen_jax.run.model import (
    Model,
    abstract_batch,
    choose_mesh,
    describe_large_patch,
    make_model,
    make_sampling_mesh,
    token_grid,
)
from videogen_jax.train import diffusion_run, training_run
from videogen_jax.train.run_kinds import find_kind
from videogen_jax.train.training_run import Run

GIB = 2**30
PIECES = (8, 4, 2)


class Program(NamedTuple):
    """What a program takes and costs, on each device and for one run; bytes and seconds."""

    memory: dict[str, int]  # by what it is for; adds up to the peak
    peak: int
    host: int  # pinned memory of the host
    collectives: int  # the buffers of the largest one, within the peak
    flops: int | None  # of the model; what is computed again does not count
    wire: dict[str, int]  # sent to other devices, by kind of collective
    least_wire: int | None  # that any program would have to send
    traffic: int  # read from and written to the device's memory
    times: dict[str, float]  # by what sets them, where the card's speed is known


Plan = dict[str, Program]  # train, sample, decode


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command's flags; not done on import, so that verbs can import one another."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File of a run, or a name in configs/.",
        lock_config=True,
        flag_values=flag_values,
    )
    text = "Card and number: rtx4090, rtx3090x2, a40x2, a100x8, h100x8, h200, cpux2, or FILEx2."
    flags.DEFINE_string("target", None, text, flag_values=flag_values)
    flags.DEFINE_bool("json", False, "Print one JSON object.", flag_values=flag_values)
    text = "Print a row of the README's table."
    flags.DEFINE_bool("markdown", False, text, flag_values=flag_values)
    text = "Where it does not fit, look for overrides that do."
    flags.DEFINE_bool("levers", True, text, flag_values=flag_values)


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    command.refuse(arguments)
    values = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    card, count = device_specs.parse_target(values.target)
    config = configs.validate(values.config)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    try:
        devices = device_specs.find_devices(card, count)
    except ImportError as error:
        print(f"plan: error: {error}", file=sys.stderr)
        return 2
    if sentence := describe_large_patch(config):
        print(f"plan: warning: {sentence}", file=sys.stderr)
    config, plan = plan_on_target(config, card, devices)
    overrides: dict[str, Any] = {}
    better = plan
    if not fits(plan, card) and values.levers and not configs.is_autoencoder(config):
        overrides, better = try_levers(config, card, devices)
    moved = describe_mesh(values.config.mesh, config.mesh, count)
    if values.json:
        content = to_json(plan, card, overrides, better) | {"mesh": config.mesh.to_dict()}
        print(json.dumps(content, indent=2))
    elif values.markdown:
        print(to_row(config, card, count, plan))
    else:
        if moved:
            print(moved)
        print(to_table(card, count, plan))
        print(to_verdict(card, plan, overrides, better))
    return 0 if fits(plan, card) else 1


def plan_on_target(
    config: ml_collections.ConfigDict, card: device_specs.Card, devices: Any
) -> tuple[ml_collections.ConfigDict, Plan]:
    """Compiles the programs of a config on a mesh of all devices of the target.

    Where the config's own mesh has another number of devices, they all go to one axis: first to the largest of the
    config's, then to fsdp, seq and data, the first on which batch and tokens divide.

    Args:
      config: complete and valid.
      card: of `device_specs.parse_target`.
      devices: of `device_specs.find_devices`.
    Returns:
      (the config with that mesh, name to program).
    Raises:
      ValueError: no mesh of so many devices suits the config; the sentence is that of the first mesh tried.
    """
    sizes = config.mesh.to_dict()
    count = len(devices)
    if math.prod(sizes.values()) == count:
        return config, make_plan(config, card, devices)
    largest = max(sizes, key=sizes.get)
    axes = [largest] * (sizes[largest] > 1) + ["fsdp", "seq", "data"]
    errors = []
    for axis in dict.fromkeys(axes) if count > 1 else axes[:1]:
        mesh = {f"mesh.{name}": count if name == axis else 1 for name in sizes}
        try:
            moved = configs.validate(configs.nest(dict(configs.flatten(config.to_dict())) | mesh))
            return moved, make_plan(moved, card, devices)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def describe_mesh(given: Mapping[str, int], used: Mapping[str, int], count: int) -> str:
    """A sentence where the mesh of a plan is not the config's; empty where it is."""
    changed = {name: size for name, size in used.items() if size != given[name]}
    if not changed:
        return ""
    before = ", ".join(f"{name}={given[name]}" for name in changed)
    after = ", ".join(f"{name}={size}" for name, size in changed.items())
    options = " ".join(f"--config.mesh.{name}={size}" for name, size in changed.items())
    devices = "one device" if count == 1 else f"{count} devices"
    return f"The mesh follows the target: {after} for {devices}, instead of {before}; train with {options}."


def make_plan(config: ml_collections.ConfigDict, card: device_specs.Card, devices: Any) -> Plan:
    """Compiles every program of a config for devices.

    Args:
      config: complete and valid, as of `config.validate`.
      card: of `device_specs.parse_target`.
      devices: of `device_specs.find_devices`.
    Returns:
      Name to program.
    Raises:
      ValueError: the config, its mesh and the devices do not fit together.
    """
    mesh = meshes.make_mesh(**config.mesh, devices=devices)
    run = find_kind(config).make_run(config, mesh)
    plan = {"train": plan_train(run, card)}
    if configs.is_autoencoder(config):
        return plan
    plan["sample"] = plan_sample(run.model, card, devices)
    if config.tasks.prefix:
        plan["rollout"] = plan_rollout(run.model, card, devices)
    if not run.model.latent_space.pixels:  # pixels are not decoded
        plan["decode"] = plan_decode(run.model, card)
    return plan


def plan_train(run: Run, card: device_specs.Card) -> Program:
    """The train step."""
    config, state = run.config, run.abstract
    # The CPU's devices are in the host's memory themselves.
    away = run.offloaded if card.description else ()
    batch = training_run.place_batch(run)
    on_host = jax.tree.map(lambda _: False, (state, batch))
    for field in away:
        waits = jax.tree.map(offload.is_offloaded, getattr(state, field))
        on_host = (on_host[0].replace(**{field: waits}), on_host[1])
    traced = training_run.trace_step(run)
    footprint = memory.measure(
        traced, run.mesh.size, bool(card.description), jax.tree.leaves(on_host)
    )

    def stays(field: str) -> int:
        return memory.count_shard_bytes(
            getattr(state, field), lambda leaf: field not in away or not offload.is_offloaded(leaf)
        )

    parts = {
        "parameters": stays("params") + memory.count_shard_bytes(state.frozen),
        "optimizer": stays("opt_state"),
        "EMA": stays("ema"),
        "batch": memory.count_shard_bytes(batch),
    }
    if configs.is_autoencoder(config):
        return make_program(card, footprint, parts, flops=None, executed=0)
    flops = diffusion_run.count_step_flops(run) // run.mesh.size
    forward = diffusion_run.forward_flops(run.model) * config.batch_size // run.mesh.size
    return make_program(
        card,
        footprint,
        parts,
        flops,
        # Rematerialization is one more forward pass.
        executed=flops if config.memory.remat == "none" else flops + forward,
        least_wire=diffusion_run.least_step_wire(run),
    )


def plan_sample(model: Model, card: device_specs.Card, devices: Any) -> Program:
    """All steps of the sampler, for a batch of config.sample, from parameters laid out for it."""
    settings = SamplerSettings(**model.sampling)
    mesh = make_sampling_mesh(model.config, settings.batch_size, devices)
    model = make_model(without_lora(model.config), mesh)
    programs = run_sampler.make_run_programs(model, settings)
    condition = blank_condition(model, programs.batch_size, model.video_shape)
    arguments = programs.abstract_args(model.abstract_params, condition)["denoise"]
    footprint = memory.measure(
        programs.denoise.trace(*arguments), mesh.size, bool(card.description)
    )
    parts = {
        "parameters": memory.count_shard_bytes(model.abstract_params),
        "batch": memory.count_shard_bytes((arguments[0], arguments[3])),
    }
    forward = diffusion_run.forward_flops(model)
    flops = programs.calls * programs.batch_size * forward // mesh.size
    return make_program(card, footprint, parts, flops, executed=flops)


def plan_rollout(model: Model, card: device_specs.Card, devices: Any) -> Program:
    """A chunk of a long video, for a batch of config.sample: all steps, behind a full KV cache."""
    settings, plan = SamplerSettings(**model.sampling), run_rollout.plan_rollout(model)
    grid, options = run_rollout.chunk_grid(model, plan), model.config.model
    mesh = choose_mesh(settings.batch_size, devices, grid, "factorized", options.num_heads)
    model = make_model(without_lora(model.config), mesh, grid=grid)
    rollout = run_rollout.make_run_rollout(model, plan, settings)
    shape = run_rollout.chunk_shape(model, plan)
    condition = blank_condition(model, rollout.batch_size, shape)
    arguments = rollout.abstract_args(model.abstract_params, condition)
    footprint = memory.measure(rollout.extend.trace(*arguments), mesh.size, bool(card.description))
    parts = {
        "parameters": memory.count_shard_bytes(model.abstract_params),
        "batch": memory.count_shard_bytes((arguments[0], arguments[3])),
    }
    # A chunk's share of a clip: it attends to about as many frames.
    chunk = diffusion_run.forward_flops(model) * plan.chunk // model.token_grid[0]
    flops = rollout.calls * rollout.batch_size * chunk // mesh.size
    return make_program(card, footprint, parts, flops, executed=flops)


def blank_condition(model: Model, count: int, shape: tuple[int, int, int, int]) -> Any:
    """The condition of `count` videos of a shape, abstract."""
    batch = abstract_batch(model, count)
    condition = {name: leaf for name, leaf in batch.items() if name != "video"}
    return condition | model.conditioning.empty((count, *shape))


def plan_decode(model: Model, card: device_specs.Card) -> Program:
    """One chunk of frames through the autoencoder."""
    decoder = model.latent_space.make_decoder(model.mesh)
    traced = decoder.program.trace(*decoder.abstract_args)
    footprint = memory.measure(traced, model.mesh.size, bool(card.description))
    parts = {
        "parameters": memory.count_shard_bytes(decoder.abstract_args[0]),
        "batch": memory.count_shard_bytes(decoder.abstract_args[1:]),
    }
    return make_program(card, footprint, parts, flops=None, executed=0)


def make_program(
    card: device_specs.Card,
    footprint: memory.Footprint,
    parts: dict[str, int],
    flops: int | None,
    *,
    executed: int,
    least_wire: int | None = None,
) -> Program:
    """Puts together what was measured and what was counted.

    Args:
      card: the device.
      footprint: of the compiled program.
      parts: bytes of its arguments.
      flops: of the model, on a device.
      executed: with what is computed again.
      least_wire: bytes.
    Returns:
      The program.
    """
    rest = footprint.peak - sum(parts.values())
    work = {
        "arithmetic": (executed, card.flops),
        "memory": (footprint.traffic, card.bandwidth),
        "wire": (sum(footprint.sent.values()), card.link),
        "host": (2 * footprint.host, card.host_link),  # there and back
    }
    return Program(
        memory=parts | {"activations and workspace": rest},
        peak=footprint.peak,
        host=footprint.host,
        collectives=footprint.collectives,
        flops=flops,
        wire=footprint.sent,
        least_wire=least_wire,
        traffic=footprint.traffic,
        times={name: amount / speed for name, (amount, speed) in work.items() if speed},
    )


def fits(plan: Plan, card: device_specs.Card) -> bool:
    """Whether every program leaves room for what CUDA itself takes; the CPU's memory has no bound here."""
    if card.memory is None:
        return True
    return all(program.peak + memory.RESERVE <= card.memory for program in plan.values())


def try_levers(
    config: ml_collections.ConfigDict, card: device_specs.Card, devices: Any
) -> tuple[dict[str, Any], Plan]:
    """Pulls the memory levers one after the other, cheapest first, until the config fits.

    Args:
      config: that does not fit.
      card: the device.
      devices: to compile for.
    Returns:
      (the overrides by dotted name, the plan with them, which may still not fit).
    """
    overrides: dict[str, Any] = {}
    plan: Plan = {}
    for lever in levers(config):
        lines = dict(configs.flatten(config.to_dict()))
        changed = {name: value for name, value in lever.items() if lines[name] != value}
        if not changed:
            continue
        overrides |= changed
        config = configs.get_config(**configs.nest(lines | changed))
        plan = make_plan(config, card, devices)
        if fits(plan, card):
            break
    return overrides, plan


def levers(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """The levers that a config has, in the order in which to try them; each keeps those before it."""
    chosen: list[dict[str, Any]] = (
        [{"sample.batch_size": 1}] if config.sample.batch_size > 1 else []
    )
    if config.memory.remat != "block":
        chosen.append({"memory.remat": "block"})
    chosen.append({"memory.offload_activations": True})
    grid = token_grid(config)
    for pieces in PIECES:
        if pieces > config.memory.pieces and grid[0] % pieces == 0 == grid[1] * grid[2] % pieces:
            chosen.append({"memory.pieces": pieces})
            break
    if config.optimizer.name != "schedule_free":
        chosen.append({"optimizer.mu_dtype": "bfloat16"})
    chosen += [{"memory.offload_ema": True}, {"memory.offload_optimizer": True}]
    parts = config.mesh.data * config.mesh.fsdp
    per_device = config.batch_size // parts
    chosen += [
        {"train.accumulation": count}
        for count in range(config.train.accumulation + 1, per_device + 1)
        if per_device % count == 0
    ]
    return chosen


def to_table(card: device_specs.Card, count: int, plan: Plan) -> str:
    """The plan as lines of text, a column for each program."""
    size = "" if card.memory is None else f" of {card.memory / GIB:.1f} GiB"
    rows: list[tuple[str, list[str]]] = [("per device", list(plan))]

    def add(label: str, values: list[str]) -> None:
        rows.append((label, values))

    names = list(dict.fromkeys(name for program in plan.values() for name in program.memory))
    for name in names:
        add(f"{name}, GiB", [gib(program.memory.get(name)) for program in plan.values()])
    programs = list(plan.values())
    add("peak, GiB", [gib(program.peak) for program in programs])
    if card.memory is not None:
        left = [card.memory - memory.RESERVE - program.peak for program in programs]
        add(f"headroom beside {memory.RESERVE / GIB:.1f} for CUDA, GiB", [gib(one) for one in left])
    add("largest collective, within the peak, GiB", [gib(one.collectives) for one in programs])
    add("pinned host memory, GiB", [gib(one.host) for one in programs])
    flops = ["-" if one.flops is None else f"{one.flops / 1e12:.2f}" for one in programs]
    add("model operations, 10^12", flops)
    add("sent to other devices, GiB", [gib(sum(one.wire.values())) for one in programs])
    add("the least that must be sent, GiB", [gib(one.least_wire) for one in programs])
    for what in ("arithmetic", "memory", "wire", "host"):
        if card.flops:
            add(f"seconds by {what}, at least", [f"{one.times[what]:.2f}" for one in programs])
    if card.flops:
        best = [max(one.times.values()) for one in programs]
        add("roofline estimate, seconds", [f"{one:.2f}" for one in best])
    width = max(len(label) for label, _ in rows)
    lines = [label.ljust(width) + "".join(value.rjust(10) for value in values) for label, values in rows]  # fmt: skip
    return "\n".join([f"{count} x {card.name}{size}", *lines])


def gib(count: int | float | None) -> str:
    """Bytes in GiB."""
    return "-" if count is None else f"{count / GIB:.2f}"


def to_verdict(card: device_specs.Card, plan: Plan, overrides: dict[str, Any], better: Plan) -> str:
    """One sentence, with the overrides that would help."""
    if fits(plan, card):
        return "It fits."
    tight = [name for name, one in plan.items() if one.peak + memory.RESERVE > card.memory]
    sentence = f"It does not fit: {' and '.join(tight)} would not."
    flags_for = " ".join(f"--config.{name}={value!r}" for name, value in overrides.items())
    if not overrides:
        return sentence
    if fits(better, card):
        peaks = ", ".join(f"{name} {gib(one.peak)} GiB" for name, one in better.items())
        return f"{sentence} It does with {flags_for} ({peaks})."
    return (
        f"{sentence} Nor does it with {flags_for}: shorten the clips, narrow the model, or take more devices on "
        "mesh.seq or mesh.fsdp."
    )


def to_json(
    plan: Plan, card: device_specs.Card, overrides: dict[str, Any], better: Plan
) -> dict[str, Any]:
    """The plan as numbers under names."""
    content: dict[str, Any] = {
        name: {
            "peak_gib": one.peak / GIB,
            "memory_gib": {part: count / GIB for part, count in one.memory.items()},
            "host_gib": one.host / GIB,
            "collective_gib": one.collectives / GIB,
            "flops": one.flops,
            "wire_bytes": one.wire,
            "least_wire_bytes": one.least_wire,
            "traffic_bytes": one.traffic,
            "roofline_seconds": one.times,
        }
        for name, one in plan.items()
    }
    content["memory_gib"] = None if card.memory is None else card.memory / GIB
    content["fits"] = fits(plan, card)
    content["overrides"] = overrides
    content["fits_with_overrides"] = fits(better, card)
    return content


def count_parameters(config: ml_collections.ConfigDict) -> int:
    """Parameters of the model, or of the autoencoder."""
    run = find_kind(config).make_run(config, meshes.make_mesh(devices=jax.devices()[:1]))
    return sum(leaf.size for leaf in jax.tree.leaves(run.model.abstract_params))


def to_row(
    config: ml_collections.ConfigDict, card: device_specs.Card, count: int, plan: Plan
) -> str:
    """A row of the README's table."""
    video = f"{config.data.frames} x {config.data.height}x{config.data.width}"
    parameters = count_parameters(config) / 1e6
    peaks = " | ".join(f"{gib(one.peak)} GiB" for one in plan.values())
    seconds = max(plan["train"].times.values(), default=math.nan)
    verdict = "fits" if fits(plan, card) else "does not fit"
    return f"| {video} | {parameters:.0f} M | {count} x {card.name} | {peaks} | {verdict} | {seconds:.1f} s |"


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["config", "target"])
    command.start("plan", main)
