"""The train loop, on one page.

    restore or init; for each step: dispatch N, read back N-1; log; evaluate, then save on the same step; sample

Batches and random numbers are functions of (seed, step), so a run that was killed resumes to the same bits.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import logging

from videogen_jax import config as configs
from videogen_jax.data import bucketed_data, pipeline
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate.generator import Generate
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import processes
from videogen_jax.run import checkpoint, ema_snapshots, saved_config
from videogen_jax.run.ema import width_name
from videogen_jax.run.state import TrainState
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import (
    feed,
    fvd,
    init_params,
    metrics,
    profile,
    resume_checks,
    run_kinds,
    run_report,
    setup,
    training_run,
    validation,
)
from videogen_jax.train.device_use import find_peak_flops, measure_memory
from videogen_jax.train.training_run import Run


class Interrupted(RuntimeError):
    """SIGTERM came; the state is saved."""


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains to the last step, from the newest checkpoint in the workdir if there is one.

    Args:
      config: as in configs/.
      workdir: gets config.json, checkpoints/, tensorboard/, samples/, and report.html at the end.
    Raises:
      ValueError: config, data, checkpoint and mesh do not fit together; the sentence says how.
      TrainingDiverged: the loss is not finite.
      Interrupted: SIGTERM; the same command again resumes.
    """
    workdir = Path(workdir)
    with processes.propagate_errors():
        config = setup.absolute_paths(configs.validate(config))
        kind = run_kinds.find_kind(config)
        mesh = meshes.make_mesh(**config.mesh)
        sets = bucketed_data.open_buckets(config.data.path)
        setup.check_data(config, sets)
        config = setup.resolve_length(config, mesh, sets, kind)
        data = next(iter(sets.values()))  # for what all buckets share
        texts = kind.open_texts(config, data)
        run = kind.make_run(config, mesh, texts.null)
        generate = kind.make_generate(run)
        runs = setup.make_bucket_runs(run, setup.bucket_shapes(config, sets), kind)
        for bucket in runs.values():
            processes.find_share(bucket.mesh, bucket.config.batch_size)
    processes.make_shared_folder(workdir)
    with checkpoint.open_checkpoints(workdir, config.checkpoint.keep) as manager:
        state = restore_or_init(run, manager, texts, data.latents)
        if int(state.step) >= config.train.steps:
            logging.info("%s is at step %d already: nothing to do.", workdir, int(state.step))
            return
        with processes.propagate_errors():
            if jax.process_index() == 0:
                saved_config.write_config(workdir, config)
        metrics.log_parameters(state.params)
        try:
            run_steps(run, runs, workdir, manager, state, texts, sets, generate)
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
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    generate: Generate | None,
) -> None:
    """The loop itself: from the state's step to the last.

    Args:
      run: of the config's shape.
      runs: of each bucket.
      workdir: for the dashboard and samples.
      manager: of `checkpoint.open_checkpoints`.
      state: is donated.
      texts: of `text_conditioning.open_texts`.
      sets: of `bucketed_data.open_buckets`.
      generate: makes the samples; None for an autoencoder.
    Raises:
      TrainingDiverged: the loss is not finite.
      Interrupted: SIGTERM came.
      DataError: the data set is damaged, has vanished or was replaced; the state is saved.
    """
    config = run.config
    first, last = int(jax.device_get(state.step)) + 1, config.train.steps
    stop = processes.catch_sigterm(run.mesh)
    started = time.perf_counter()
    latents = next(iter(sets.values())).latents
    interrupted = False
    with contextlib.ExitStack() as stack:
        with processes.propagate_errors():
            writer = metrics.make_writer(workdir, **config.wandb)
        stack.callback(writer.close)
        metrics.show_config(writer, first - 1, workdir, config.to_dict())
        snapshots = stack.enter_context(ema_snapshots.open_writer(workdir))
        kind = run_kinds.find_kind(config)
        flops = {name: kind.count_flops(one) for name, one in runs.items()}
        evaluate = validation.make_evaluate(kind, runs, texts, sets)
        log_samples = kind.make_log_samples(run, workdir, texts, sets, generate)
        measure_fvd = fvd.make_measure_fvd(run, texts, sets, generate)
        metadata = texts.metadata | {"config": config.to_dict()}
        metadata["latents"] = setup.latents_metadata(latents)
        schedule = feed.make_schedule(runs, sets)
        batches = stack.enter_context(feed.open_batches(runs, texts, sets, schedule, first - 1))
        stack.enter_context(jax.transfer_guard("disallow"))
        # While the first batches load; those of buckets that come later while the first ones train.
        order = [list(runs)[i] for i in schedule.first_uses(first - 1)]
        train_steps = stack.enter_context(
            training_run.compile_steps({name: runs[name] for name in order})
        )
        window = metrics.Window(lambda: batches.wait_seconds, find_peak_flops(run.mesh))
        before_step = stack.enter_context(profile.open_profile(workdir, **config.profile))
        for step in range(first, last + 1):
            try:
                bucket, batch = next(batches)
            except pipeline.DataError:
                save_before_failure(manager, state, metadata, window, first)
                raise
            before_step(step, state)
            state, values = train_steps[bucket].result()(state, batch)
            window.add(step, values, runs[bucket].config.batch_size, flops[bucket])
            if step == first:
                jax.block_until_ready(values)
                logging.info("The first step ended after %.1f s.", time.perf_counter() - started)
            interrupted = stop()  # read once: a signal within a step counts for the next one
            stopping = interrupted or step == last
            if step % config.train.log_every == 0 or stopping:
                writer.write_scalars(step, window.summary() | measure_memory())
                window.restart()
            if due(step, last, fvd.find_interval(run)) and not interrupted:
                window.flush()
                measure_fvd(writer, step, read_ema(run, state))
                window.restart()
            if due(step, last, config.ema.snapshot_every):
                window.flush()
                powers = {name: state.ema[name] for name in map(width_name, config.ema.widths)}
                with jax.transfer_guard("allow"):
                    ema_snapshots.save_snapshot(snapshots, step, powers)
                window.restart()
            if step % config.checkpoint.every == 0 or stopping:
                window.flush()  # never save what has diverged
                loss = None if interrupted else evaluate(writer, step, read_ema(run, state))
                if loss is not None and not math.isfinite(loss):
                    raise metrics.TrainingDiverged(f"The validation loss of step {step} is {loss}")
                with jax.transfer_guard("allow"):  # Orbax copies the state to the host
                    checkpoint.save(manager, state, metadata, loss)
                window.restart()
            if (step % config.sample.every == 0 or step == last) and not interrupted:
                window.flush()
                log_samples(writer, step, read_ema(run, state))
                window.restart()
            if interrupted:
                break
    manager.wait_until_finished()
    if interrupted:
        raise Interrupted(f"SIGTERM: saved step {step}; the same command again resumes from there.")
    if jax.process_index() == 0:
        run_report.write_run_report(workdir)


def save_before_failure(
    manager: Any, state: TrainState, metadata: dict[str, Any], window: metrics.Window, first: int
) -> None:
    """Saves the last state where the data cannot be read on; in a single process, for all must take part."""
    if jax.process_count() > 1:
        return
    window.flush()  # never save what has diverged
    with jax.transfer_guard("allow"):
        step = int(state.step)
        if step >= first and step != manager.latest_step():
            checkpoint.save(manager, state, metadata, None)
            logging.info(
                "The data cannot be read: saved step %d, from which training resumes.", step
            )


def read_ema(run: Run, state: TrainState) -> Any:
    """The moving average that samples, on the devices also if it waits in the host's memory."""
    return jax.device_put(state.ema[run.ema_name], run.shardings.params)


def due(step: int, last: int, every: int) -> bool:
    """Whether something happens at this step that happens every so often and at the end; never for 0."""
    return every > 0 and (step % every == 0 or step == last)


def restore_or_init(run: Run, manager: Any, texts: Texts, latents: LatentInfo | None) -> TrainState:
    """The newest checkpoint's state, or a new one, laid out on the mesh.

    Raises:
      ValueError: the checkpoint is another run's, or the weights to start from do not fit.
    """
    state = checkpoint.restore(manager, run.abstract)
    if state is None:
        init = jax.jit(run.init, out_shardings=run.shardings)
        if "init" not in run.config or not run.config.init.path:
            return init()
        with processes.propagate_errors():
            params = init_params.init_params(run.model, texts)
        return init(jax.device_put(params, run.shardings.params))
    step = int(state.step)
    with processes.propagate_errors():
        metadata = checkpoint.restore_metadata(manager, step)
        resume_checks.check_same_run(metadata, run.model, texts, latents)
    logging.info("Resuming from step %d of %s.", step, manager.directory)
    return state
