"""What `plan` compiles: every program of a run, and what each takes and costs on a device of the target."""

import functools
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_collections

from videogen_jax import config as configs
from videogen_jax.data import prefetch
from videogen_jax.data.workers import count_usable_cpus
from videogen_jax.generate import run_rollout, run_sampler
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.models.chunks import ChunkProgram, make_encoder
from videogen_jax.models.text_encoder import PRETRAINED
from videogen_jax.parallel import batched, device_specs, kernel_times, memory, offload
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.kernel_times import Estimate
from videogen_jax.parallel.kernels import Kernel, count_executed_flops, count_traffic
from videogen_jax.run import autoencoder_model, caption_embedder
from videogen_jax.run.merged_lora import without_lora
from videogen_jax.run.model import (
    Model,
    abstract_condition,
    choose_mesh,
    make_lora,
    make_model,
    make_sampling_mesh,
)
from videogen_jax.train import autoencoder_run, diffusion_run, training_run
from videogen_jax.train.training_run import Run


class Program(NamedTuple):
    """What a program takes and costs, on each device and for one run; bytes and seconds."""

    memory: dict[str, int]  # by what it is for; adds up to the peak
    peak: int
    resident: int  # of the run in training that it is part of, beside the peak
    devices: int  # that run it
    host: int  # pinned memory of the host
    collectives: int  # the buffers of the largest one, within the peak
    flops: int | None  # of the model; what is computed again does not count
    wire: dict[str, int]  # sent to other devices, by kind of collective
    least_wire: int | None  # that any program would have to send
    kernels: list[Kernel]
    roofline: Estimate | None  # where the card's speed is known
    expected: Estimate | None  # by assumed efficiencies

    @property
    def total(self) -> int:
        """Bytes of the device's memory that are in use at most."""
        return self.peak + self.resident

    @property
    def traffic(self) -> int:
        """Bytes read from and written to the device's memory."""
        return count_traffic(self.kernels)

    @property
    def executed(self) -> int:
        """FLOPs with what is computed again."""
        return count_executed_flops(self.kernels)

    def utilisation(self, card: device_specs.Card) -> float | None:
        """FLOPs of the model over what the card does at its peak in the expected time ("MFU")."""
        if self.flops is None or self.expected is None:
            return None
        return self.flops / self.expected.total / card.flops


Plan = dict[str, Program]  # train, sample, in training, rollout, decode, encode, prompts


def make_run(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Run:
    """The run of a config on a mesh, as `run_kinds.find_kind` makes it, but without TensorFlow.

    Raises:
      ValueError: the config, its mesh and the devices do not fit together.
    """
    if configs.is_autoencoder(config):
        return autoencoder_run.make_run(autoencoder_model.make_model(config, mesh))
    return diffusion_run.make_run(make_model(config, mesh))


def make_plan(
    config: ml_collections.ConfigDict,
    card: device_specs.Card,
    devices: Any,
    names: Collection[str] | None = None,
    done: Mapping[str, Program] | None = None,
) -> Plan:
    """Compiles the programs of a config for devices, several at a time.

    Args:
      config: complete and valid, as of `config.validate`.
      card: of `device_specs.parse_target`.
      devices: of `device_specs.find_devices`; the mesh may leave some idle.
      names: of the programs to compile; None: all that the config has.
      done: of the config, compiled before.
    Returns:
      Name to program, those of `done` too.
    Raises:
      ValueError: the config, its mesh and the devices do not fit together, or XLA cannot compile a program.
    """
    run = make_run(config, meshes.make_mesh(**config.mesh, devices=devices))
    jobs, done = list_jobs(run, card, devices), dict(done or {})
    wanted = [name for name in jobs if name not in done and (names is None or name in names)]
    with ThreadPoolExecutor(count_usable_cpus()) as pool:
        futures = {name: pool.submit(_compile, jobs[name], card) for name in wanted}
        done |= {name: future.result() for name, future in futures.items()}
    return {name: done[name] for name in jobs if name in done}


def list_jobs(run: Run, card: device_specs.Card, devices: Any) -> dict[str, Callable[[], Program]]:
    """What compiles each program of a run, the longest first."""
    resident = count_resident(run, card)
    jobs: dict[str, Callable[[], Program]] = {
        "train": lambda: plan_train(run, card, resident.observers)
    }
    config, model = run.config, run.model
    if configs.is_autoencoder(config):
        return jobs
    sampler = make_sampling_model(model, devices)
    shown = bool(config.sample.every)
    # The verb's program and that of training are one where they have one mesh.
    same = sampler.mesh == model.mesh and make_lora(config) is None
    kept = resident.sampling if shown and same else 0
    jobs["sample"] = functools.partial(plan_sample, sampler, card, kept)
    if shown and not same:
        jobs["in training"] = lambda: plan_sample(model, card, resident.sampling)
    if config.tasks.prefix:
        jobs["rollout"] = lambda: plan_rollout(model, card, devices)
    if not model.latent_space.pixels:  # pixels are neither decoded nor encoded
        jobs["decode"] = lambda: plan_decode(model, card, resident.decoding if shown else 0)
        jobs["encode"] = lambda: plan_encode(model, card, devices)
    if config.text.encoder in PRETRAINED:
        jobs["prompts"] = lambda: plan_prompts(
            config, card, devices, resident.state if shown else 0
        )
    return jobs


class Resident(NamedTuple):
    """Bytes on a device that stay there in a run while a program of it runs, beside the program's own."""

    state: int  # the train state, without what waits on the host
    observers: int  # beside the train step: what samples are decoded with, and the next batches
    sampling: int  # beside the sampler, whose parameters are the average in the train state
    decoding: int  # beside the decoder


def count_resident(run: Run, card: device_specs.Card) -> Resident:
    """Counts what a run in training keeps on each device."""
    state = sum(_count_state(run, card).values())
    waiting = memory.count_shard_bytes(training_run.place_batch(run)) * prefetch.MOST_ON_DEVICES
    model, decoder = run.model, 0
    if configs.is_autoencoder(run.config):
        return Resident(state, waiting, 0, 0)
    watched = run.config.sample.every or run.config.evaluation.fvd_every
    if watched and not model.latent_space.pixels:
        arguments = model.latent_space.make_decoder(model.mesh).abstract_args
        decoder = memory.count_shard_bytes(arguments[0])
    sampled = memory.count_shard_bytes(model.abstract_params)
    # An average that waits on the host is copied to the device to sample.
    copied = "ema" in _offloaded(run, card)
    return Resident(
        state=state,
        observers=decoder + waiting,
        sampling=state - (0 if copied else sampled) + decoder + waiting,
        decoding=state + (sampled if copied else 0) + waiting,
    )


def _offloaded(run: Run, card: device_specs.Card) -> tuple[str, ...]:
    # The CPU's devices are in the host's memory themselves.
    return run.offloaded if card.description else ()


def _count_state(run: Run, card: device_specs.Card) -> dict[str, int]:
    state, away = run.abstract, _offloaded(run, card)

    def stays(field: str) -> int:
        return memory.count_shard_bytes(
            getattr(state, field), lambda leaf: field not in away or not offload.is_offloaded(leaf)
        )

    return {
        "parameters": stays("params") + memory.count_shard_bytes(state.frozen),
        "optimizer": stays("opt_state"),
        "EMA": stays("ema"),
    }


def plan_train(run: Run, card: device_specs.Card, resident: int = 0) -> Program:
    """The train step."""
    config, state = run.config, run.abstract
    batch = training_run.place_batch(run)
    on_host = jax.tree.map(lambda _: False, (state, batch))
    for field in _offloaded(run, card):
        waits = jax.tree.map(offload.is_offloaded, getattr(state, field))
        on_host = (on_host[0].replace(**{field: waits}), on_host[1])
    traced = training_run.trace_step(run)
    footprint = _measure(traced, run.model, card, jax.tree.leaves(on_host))
    parts = _count_state(run, card) | {"batch": memory.count_shard_bytes(batch)}
    if configs.is_autoencoder(config):
        return make_program(card, footprint, parts, run.mesh.size, resident=resident)
    return make_program(
        card,
        footprint,
        parts,
        run.mesh.size,
        flops=diffusion_run.count_step_flops(run) // run.mesh.size,
        least_wire=diffusion_run.least_step_wire(run),
        resident=resident,
    )


def make_sampling_model(model: Model, devices: Any) -> Model:
    """The model as the verb `sample` makes it on all devices."""
    settings = SamplerSettings(**model.sampling)
    mesh = make_sampling_mesh(model.config, settings.batch_size, devices)
    return make_model(without_lora(model.config), mesh)


def plan_sample(model: Model, card: device_specs.Card, resident: int = 0) -> Program:
    """All steps of the sampler, for a batch of config.sample, on the mesh of the model."""
    settings = SamplerSettings(**model.sampling)
    programs = run_sampler.make_run_programs(model, settings)
    condition = abstract_condition(model, programs.batch_size, model.video_shape)
    arguments = programs.abstract_args(model.abstract_params, condition)["denoise"]
    footprint = _measure(programs.denoise.trace(*arguments), model, card)
    parts = {
        "parameters": memory.count_shard_bytes(model.abstract_params),
        "batch": memory.count_shard_bytes((arguments[0], arguments[3])),
    }
    size = model.mesh.size
    flops = programs.calls * programs.batch_size * diffusion_run.forward_flops(model) // size
    return make_program(card, footprint, parts, size, flops=flops, resident=resident)


def plan_rollout(model: Model, card: device_specs.Card, devices: Any) -> Program:
    """A chunk of a long video, for a batch of config.sample: all steps, behind a full KV cache."""
    settings, plan = SamplerSettings(**model.sampling), run_rollout.plan_rollout(model)
    grid, options = run_rollout.chunk_grid(model, plan), model.config.model
    mesh = choose_mesh(settings.batch_size, devices, grid, "factorized", options.num_heads)
    model = make_model(without_lora(model.config), mesh, grid=grid)
    rollout = run_rollout.make_run_rollout(model, plan, settings)
    shape = run_rollout.chunk_shape(model, plan)
    condition = abstract_condition(model, rollout.batch_size, shape)
    arguments = rollout.abstract_args(model.abstract_params, condition)
    footprint = _measure(rollout.extend.trace(*arguments), model, card)
    parts = {
        "parameters": memory.count_shard_bytes(model.abstract_params),
        "batch": memory.count_shard_bytes((arguments[0], arguments[3])),
    }
    # A chunk's share of a clip: it attends to about as many frames.
    chunk = diffusion_run.forward_flops(model) * plan.chunk // model.token_grid[0]
    flops = rollout.calls * rollout.batch_size * chunk // mesh.size
    return make_program(card, footprint, parts, mesh.size, flops=flops)


def plan_decode(model: Model, card: device_specs.Card, resident: int = 0) -> Program:
    """One chunk of frames from latents to pixels."""
    return _plan_chunk(model.latent_space.make_decoder(model.mesh), model, card, resident)


def plan_encode(model: Model, card: device_specs.Card, devices: Any) -> Program:
    """One chunk of frames from pixels to latents, as the verb `encode` computes it on all devices."""
    return _plan_chunk(make_chunk_encoder(model, devices), model, card)


def make_chunk_encoder(model: Model, devices: Any) -> ChunkProgram:
    """The program from a chunk of frames to latents."""
    config, space = model.config, model.latent_space
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    frames = min(config.vae.chunk_frames * mesh.size, config.data.frames)
    return make_encoder(space.encoding().describe(), mesh, frames, space.size)


def _plan_chunk(
    program: ChunkProgram, model: Model, card: device_specs.Card, resident: int = 0
) -> Program:
    arguments = program.abstract_args
    model = model._replace(mesh=arguments[2].sharding.mesh)
    footprint = _measure(program.program.trace(*arguments), model, card)
    parts = {
        "parameters": memory.count_shard_bytes(arguments[0]),
        "batch": memory.count_shard_bytes(arguments[1:]),
    }
    return make_program(card, footprint, parts, model.mesh.size, resident=resident)


def plan_prompts(
    config: ml_collections.ConfigDict, card: device_specs.Card, devices: Any, resident: int
) -> Program:
    """The weights of the text encoders while prompts are embedded; what computes on them is not compiled."""
    dtype = "float32" if config.vae.encode_precision == "float32" else "bfloat16"
    total = 0
    encoders = caption_embedder.make_encoders(config.text, dtype, fetch=False)
    for encoder in {id(one): one for one in encoders}.values():  # one may be both
        shapes = encoder.abstract_params
        placed = batched.lay_out(shapes, devices, caption_embedder.LARGEST_REPLICATED)[0]
        leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
        total += memory.count_shard_bytes(
            [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where) for leaf, where in leaves]
        )
    footprint = memory.Footprint(total, total, 0, 0, {}, [])
    return make_program(card, footprint, {"parameters": total}, len(devices), resident=resident)


def _measure(
    traced: Any, model: Model, card: device_specs.Card, on_host: list[bool] | None = None
) -> memory.Footprint:
    return memory.measure(traced, model.mesh.size, bool(card.description), on_host)


def _compile(job: Callable[[], Program], card: device_specs.Card) -> Program:
    """Compiles a program; where XLA cannot, that is a ValueError with the way out."""
    try:
        return job()
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(describe_failure(str(error), card)) from error


def describe_failure(text: str, card: device_specs.Card) -> str:
    """A sentence on a program that XLA cannot compile for a card, from the text of its error."""
    first = " ".join(text.split("\n\n")[0].split()).rstrip(".")[:300]
    way_out = "take another target, or other sizes of the model"
    if "dnn" in text.lower() or "fmha" in text.lower():
        way_out = "take XLA's attention by --config.memory.attention_kernel=xla"
    return f"XLA cannot compile a program for {card.name} ({first}): {way_out}."


def make_program(
    card: device_specs.Card,
    footprint: memory.Footprint,
    parts: dict[str, int],
    devices: int,
    *,
    flops: int | None = None,
    least_wire: int | None = None,
    resident: int = 0,
) -> Program:
    """Puts together what was measured and what was counted.

    Args:
      card: the device.
      footprint: of the compiled program.
      parts: bytes of its arguments.
      devices: that run it.
      flops: of the model, on a device.
      least_wire: bytes.
      resident: bytes of the run beside it.
    Returns:
      The program.
    """
    kernels = footprint.kernels
    efficiencies = kernel_times.expected_efficiencies(card)
    expected = None
    if kernels and efficiencies:
        expected = kernel_times.estimate(kernels, card, efficiencies)
    return Program(
        memory=parts | {"activations and workspace": footprint.peak - sum(parts.values())},
        peak=footprint.peak,
        resident=resident,
        devices=devices,
        host=footprint.host,
        collectives=footprint.collectives,
        flops=flops,
        wire=footprint.sent,
        least_wire=least_wire,
        kernels=kernels,
        roofline=kernel_times.estimate(kernels, card, kernel_times.ROOFLINE) if kernels else None,
        expected=expected,
    )
