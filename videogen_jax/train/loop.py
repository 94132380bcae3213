"""The train loop, on one page.

    restore or init; for each step: dispatch N, read back N-1; log; sample; evaluate, then save on the same step

Batches and random numbers are functions of (seed, step), so a run that was killed goes on as if it had not been.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.data import buckets, pipeline, prefetch
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate import contact_sheet
from videogen_jax.generate.generator import make_generator
from videogen_jax.models import weights
from videogen_jax.models.chunks import to_pixels
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import processes
from videogen_jax.train import autoencoder, checkpoint, checks, metrics, setup, snapshots, texts
from videogen_jax.train.ema import width_name
from videogen_jax.train.setup import Run
from videogen_jax.train.state import TrainState
from videogen_jax.train.step import to_float
from videogen_jax.train.texts import Texts


class Interrupted(RuntimeError):
    """SIGTERM came; the state is saved."""


class Kind(NamedTuple):
    """What a run of a diffusion model and one of an autoencoder have not in common."""

    make_run: Callable[..., Run]  # (config, mesh, null text), the last two or None
    check_choices: Callable[[Run], None]
    grid: Callable[
        ..., tuple[int, int, int]
    ]  # config to (T, H, W), by which buckets share the work
    open_texts: Callable[..., Texts]  # (config, data)
    read_batch: Callable[..., dict[str, Any]]  # (run, texts, data, clips)
    make_measure: Callable[[Run], Callable[..., dict[str, jax.Array]]]  # what validation tells
    make_show: Callable[..., Callable[[Any, int, Any], None]]  # (run, workdir, texts, sets)


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains to the last step, from the newest checkpoint in the workdir if there is one.

    Args:
      config: as in configs/.
      workdir: gets config.json, checkpoints/, tensorboard/ and samples/.
    Raises:
      ValueError: config, data, checkpoint and mesh do not fit together; the sentence says how.
      TrainingDiverged: the loss is not finite.
      Interrupted: SIGTERM; the same command again goes on.
    """
    workdir = Path(workdir)
    with processes.together():
        checks.check_numbers(config)
        kind = find_kind(config)
        run = kind.make_run(config)
        kind.check_choices(run)
        meshes.check_batch(run.mesh, config.batch_size, config.train.accumulation)
        sets = buckets.open_buckets(config.data.path)
        checks.check_data(config, sets)
        data = next(iter(sets.values()))  # for what they all share
        own_texts = kind.open_texts(config, data)
        if data.texts is not None:  # embeddings have the widths of the data's
            run = kind.make_run(config, run.mesh, own_texts.null)
        shapes = checks.bucket_shapes(config, sets)
        runs = setup.make_bucket_runs(run, shapes, kind.make_run, kind.grid)
        for bucket in runs.values():
            processes.find_share(bucket.mesh, bucket.config.batch_size)
    processes.share_folder(workdir)
    with checkpoint.open_checkpoints(workdir, config.checkpoint.keep) as manager:
        state = restore_or_init(run, manager, own_texts, data.latents)
        if int(state.step) >= config.train.steps:
            logging.info("%s is at step %d already: nothing to do.", workdir, int(state.step))
            return
        with processes.together():
            if jax.process_index() == 0:
                setup.write_config(workdir, config)
        metrics.log_parameters(state.params)
        try:
            run_steps(run, runs, workdir, manager, state, own_texts, sets)
        except metrics.TrainingDiverged as error:
            manager.wait_until_finished()
            good = manager.latest_step()
            where = f"checkpoint {good} in {manager.directory}" if good else "none was saved"
            raise metrics.TrainingDiverged(
                f"{error}; last good checkpoint: {where}. Lower learning_rate.peak and run again."
            ) from error


def run_steps(
    run: Run,
    runs: Mapping[str, Run],
    workdir: Path,
    manager: Any,
    state: TrainState,
    own_texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
) -> None:
    """The loop itself: from the state's step to the last.

    Args:
      run: of `make_run`.
      runs: of `make_bucket_runs`.
      workdir: for the dashboard and samples.
      manager: of `checkpoint.open_checkpoints`.
      state: is donated.
      own_texts: of `texts.open_texts`.
      sets: of `buckets.open_buckets`.
    Raises:
      TrainingDiverged: the loss is not finite.
      Interrupted: SIGTERM came.
    """
    config = run.config
    first, last = int(jax.device_get(state.step)) + 1, config.train.steps
    stop = processes.catch_sigterm(run.mesh)
    started = time.perf_counter()
    latents = next(iter(sets.values())).latents
    interrupted = False
    with contextlib.ExitStack() as stack:
        writer = metrics.make_writer(workdir)
        stack.callback(writer.close)
        snapshot_writer = stack.enter_context(ocp.StandardCheckpointer())
        kind = find_kind(config)
        evaluate = make_evaluate(kind, runs, own_texts, sets)
        show_samples = kind.make_show(run, workdir, own_texts, sets)
        metadata = own_texts.note | {"config": config.to_dict()}
        metadata["latents"] = checks.note_latents(latents)
        schedule = make_schedule(runs, sets)
        batches = stack.enter_context(open_batches(runs, own_texts, sets, schedule, first - 1))
        stack.enter_context(jax.transfer_guard("disallow"))
        # While the first batches load; those of buckets that come later while the first ones train.
        order = [list(runs)[i] for i in schedule.first_uses(first - 1)]
        train_steps = stack.enter_context(setup.compile_steps({name: runs[name] for name in order}))
        window = metrics.Window(lambda: batches.wait_seconds)
        for step in range(first, last + 1):
            bucket, batch = next(batches)
            state, values = train_steps[bucket].result()(state, batch)
            window.add(step, values, runs[bucket].config.batch_size)
            if step == first:
                jax.block_until_ready(values)
                logging.info("The first step ended after %.1f s.", time.perf_counter() - started)
            interrupted = stop()  # asked once: a signal in mid-step is for the next one
            stopping = interrupted or step == last
            if step % config.train.log_every == 0 or stopping:
                writer.write_scalars(step, window.summary())
                window.restart()
            if (step % config.sample.every == 0 or step == last) and not interrupted:
                window.flush()
                show_samples(writer, step, read_ema(run, state))
                window.restart()
            if due(step, last, config.ema.snapshot_every):
                window.flush()
                powers = {name: state.ema[name] for name in map(width_name, config.ema.widths)}
                with jax.transfer_guard("allow"):
                    snapshots.save_snapshot(snapshot_writer, workdir, step, powers)
                window.restart()
            if step % config.checkpoint.every == 0 or stopping:
                window.flush()  # never save what has diverged
                loss = None if interrupted else evaluate(writer, step, read_ema(run, state))
                if loss is not None and not math.isfinite(loss):
                    raise metrics.TrainingDiverged(f"The validation loss of step {step} is {loss}")
                with jax.transfer_guard("allow"):  # Orbax copies the state to the host
                    checkpoint.save(manager, state, metadata, loss)
                window.restart()
            if interrupted:
                break
    manager.wait_until_finished()
    if interrupted:
        raise Interrupted(f"SIGTERM: saved step {step}; the same command again goes on from there.")


def read_ema(run: Run, state: TrainState) -> Any:
    """The moving average that samples, on the devices also if it waits in the host's memory."""
    return jax.device_put(state.ema[run.ema_name], run.shardings.params)


def due(step: int, last: int, every: int) -> bool:
    """Whether something happens at this step that happens every so often and at the end; never for 0."""
    return every > 0 and (step % every == 0 or step == last)


def restore_or_init(
    run: Run, manager: Any, own_texts: Texts, latents: LatentInfo | None
) -> TrainState:
    """The newest checkpoint's state, or a new one, laid out on the mesh.

    Raises:
      ValueError: the checkpoint is another run's, or the weights to start from do not fit.
    """
    state = checkpoint.restore(manager, run.abstract)
    if state is None:
        init = jax.jit(run.init, out_shardings=run.shardings)
        if "init" not in run.config or not run.config.init.path:
            return init()
        params = jax.jit(run.init_params, out_shardings=run.shardings.params)()
        with processes.together():
            params = weights.load_weights(run.config.init.path, run.config.init.layout, params)
        return init(jax.device_put(params, run.shardings.params))
    step = int(state.step)
    with processes.together():
        metadata = checkpoint.restore_metadata(manager, step)
        checks.check_same_run(metadata, run.config, own_texts, latents)
    logging.info("Going on from step %d of %s.", step, manager.directory)
    return state


def make_schedule(
    runs: Mapping[str, Run], sets: Mapping[str, pipeline.PackedData]
) -> buckets.BucketSchedule:
    """Which bucket each step draws from."""
    clips = [sum(sets[name].lengths["train"]) for name in runs]
    configs = [run.config for run in runs.values()]
    sizes = [config.batch_size for config in configs]
    return buckets.make_schedule(clips, sizes, configs[0].seed)


def open_batches(
    runs: Mapping[str, Run],
    own_texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    schedule: buckets.BucketSchedule,
    start_step: int,
) -> Any:
    """(bucket, batch on its mesh), from the one after `start_step` steps on; a context manager."""
    kind = find_kind(next(iter(runs.values())).config)

    def open_bucket(name: str, start_step: int) -> Iterator[pipeline.Clips]:
        run = runs[name]
        config = run.config
        index, count = processes.find_share(run.mesh, config.batch_size)
        return pipeline.make_clips(
            sets[name],
            "train",
            batch_size=config.batch_size,
            frames=config.data.frames,
            seed=config.seed,
            start_step=start_step,
            flip=setup.mirrors(config, sets[name].words),
            augmentation=checks.make_augmentation(config) if sets[name].latents is None else None,
            shuffle_window=config.data.shuffle_window,
            text_length=own_texts.stored_length,
            process_index=index,
            process_count=count,
            threads=config.data.threads,
        )

    def put(drawn: tuple[str, pipeline.Clips]) -> tuple[str, dict[str, jax.Array]]:
        name, clips = drawn
        return name, put_clips(kind, runs[name], own_texts, sets[name], clips)

    sources = {name: partial(open_bucket, name) for name in runs}
    return prefetch.prefetch_to_mesh(buckets.mix_clips(sources, schedule, start_step), put)


def put_clips(
    kind: Kind, run: Run, own_texts: Texts, data: pipeline.PackedData, clips: pipeline.Clips
) -> dict[str, jax.Array]:
    """Host clips to what the step takes, on the mesh."""
    return meshes.put_batch(run.mesh, kind.read_batch(run, own_texts, data, clips))


def read_batch(
    run: Run, own_texts: Texts, data: pipeline.PackedData, clips: pipeline.Clips
) -> dict[str, Any]:
    """What a diffusion model takes of clips: pixels or latents, texts and micro-conditions."""
    scores = np.searchsorted(data.motion_score_buckets, clips["motion_score"], side="right")
    micro = {"fps": clips["fps"], "motion": scores.astype(np.float32)}
    micro = {name: micro[name] for name in run.config.model.micro_conditions}
    return {"video": clips["video"], "text": own_texts.read(clips)} | micro


def make_evaluate(
    kind: Kind,
    runs: Mapping[str, Run],
    own_texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
) -> Callable[[Any, int, Any], float | None]:
    """Validation loss of the EMA on the same clips and random numbers whenever it is called: the mean over the buckets.

    What else the kind of run measures is written beside it.
    None where the data set has no validation clips, or train.validation_batches is 0.
    """
    config = next(iter(runs.values())).config
    held_out = [name for name in runs if sum(sets[name].lengths.get("validation", []))]
    if not held_out or not config.train.validation_batches:
        return lambda writer, step, ema: None
    measures = {
        name: make_bucket_measure(kind, runs[name], own_texts, sets[name]) for name in held_out
    }

    def evaluate(writer: Any, step: int, ema: Any) -> float:
        values = {name: measure(ema) for name, measure in measures.items()}
        shown = {}
        for quantity in next(iter(values.values())):
            several = {Path(name).name: one[quantity] for name, one in values.items()}
            if len(several) > 1:
                shown |= {f"validation/{quantity}_{name}": one for name, one in several.items()}
            shown[f"validation/{quantity}"] = float(np.mean(list(several.values())))
        writer.write_scalars(step, shown)
        return shown["validation/loss"]

    return evaluate


def make_bucket_measure(
    kind: Kind, run: Run, own_texts: Texts, data: pipeline.PackedData
) -> Callable[[Any], dict[str, float]]:
    """Means over the first validation clips of a bucket."""
    config = run.config
    measure = jax.jit(kind.make_measure(run))
    index, count = processes.find_share(run.mesh, config.batch_size)
    batches = [
        put_clips(kind, run, own_texts, data, clips)
        for clips in pipeline.make_validation_clips(
            data,
            batch_size=config.batch_size,
            frames=config.data.frames,
            num_batches=config.train.validation_batches,
            text_length=own_texts.stored_length,
            size=checks.make_augmentation(config).size if data.latents is None else None,
            process_index=index,
            process_count=count,
        )
    ]
    whole = NamedSharding(run.mesh, PartitionSpec())
    split = lambda: list(jax.random.split(jax.random.key(config.seed), len(batches)))  # noqa: E731
    keys = jax.jit(split, out_shardings=whole)()

    def means(ema: Any) -> dict[str, float]:
        found = [measure(ema, batch, key) for batch, key in zip(batches, keys, strict=True)]
        found = jax.device_get(found)
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    return means


def make_measure(run: Run) -> Callable[[Any, Any, jax.Array], dict[str, jax.Array]]:
    """The loss of a diffusion model on a batch of validation clips."""
    loss = setup.make_run_loss(run, text_dropout=0.0)
    return lambda params, batch, rng: {"loss": loss(params, batch, rng)}


def make_show_samples(
    run: Run, workdir: Path, own_texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> Callable[[Any, int, Any], None]:
    """Videos of the EMA for the config's prompts, the same seeds each time, as one GIF on disk and on the dashboard."""
    prompts, motion = run.config.sample.prompts, run.config.sample.motion
    if not prompts:
        return lambda writer, step, ema: None
    with processes.together():
        text = own_texts.embed(prompts)
    condition = setup.make_condition(run.config, text, motion)
    generate = make_generator(setup.make_run_programs(run, setup.sampler_options(run.config)))
    with processes.together():
        latents = next(iter(sets.values())).latents
        decode = setup.make_decode(run.config, latents) if jax.process_index() == 0 else None

    def show_samples(writer: Any, step: int, ema: Any) -> None:
        videos = generate(ema, condition, list(range(len(prompts))))
        if decode is None:
            return
        gif, size = contact_sheet.animation(decode(videos), run.config.data.fps)
        folder = workdir / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step_{step:08d}.gif").write_bytes(gif)
        metrics.write_animation(writer, step, "samples", gif, size)

    return show_samples


def make_show_reconstructions(
    run: Run, workdir: Path, own_texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> Callable[[Any, int, Any], None]:
    """Validation clips beside their reconstructions by the EMA, as one GIF on disk and on the dashboard."""
    del own_texts
    config = run.config
    count = config.sample.clips
    fit = [
        data
        for data in sets.values()
        if sum(data.lengths.get("validation", []))
        and data.height >= config.data.height
        and data.width >= config.data.width
        and data.min_frames >= config.data.frames
    ]
    if not fit or not count:
        return lambda writer, step, ema: None
    clips = next(
        pipeline.make_validation_clips(
            fit[0],
            batch_size=count,
            frames=config.data.frames,
            num_batches=1,
            size=checks.make_augmentation(config).size,
        )
    )["video"]
    whole = NamedSharding(run.mesh, PartitionSpec())
    video = jax.make_array_from_callback(clips.shape, whole, lambda index: clips[index])

    def reconstruct(params: Any, video: jax.Array) -> jax.Array:
        return to_pixels(run.apply(params, to_float(video), None)[0])

    program = jax.jit(reconstruct, out_shardings=whole)

    def show(writer: Any, step: int, ema: Any) -> None:
        made = np.asarray(program(ema, video))
        if jax.process_index() != 0:
            return
        pairs = np.stack([clips, made], axis=1).reshape(-1, *clips.shape[1:])
        gif, size = contact_sheet.animation(pairs, config.data.fps)
        folder = workdir / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step_{step:08d}.gif").write_bytes(gif)
        metrics.write_animation(writer, step, "reconstructions", gif, size)

    return show


DIFFUSION = Kind(
    make_run=setup.make_run,
    check_choices=setup.check_choices,
    grid=setup.token_grid,
    open_texts=texts.open_texts,
    read_batch=read_batch,
    make_measure=make_measure,
    make_show=make_show_samples,
)
AUTOENCODER = Kind(
    make_run=lambda config, mesh=None, null_text=None: autoencoder.make_run(config, mesh),
    check_choices=autoencoder.check_choices,
    grid=autoencoder.latent_grid,
    open_texts=lambda config, data: texts.NONE,
    read_batch=lambda run, own_texts, data, clips: {"video": clips["video"]},
    make_measure=autoencoder.make_measure,
    make_show=make_show_reconstructions,
)


def find_kind(config: ml_collections.ConfigDict) -> Kind:
    """What a config describes."""
    return AUTOENCODER if checks.is_autoencoder(config) else DIFFUSION
