"""The train loop, on one page.

    restore or init; for each step: dispatch N, read back N-1; log; evaluate, then save on the same step; sample

Batches and random numbers are functions of (seed, step), so a run that was killed resumes to the same bits.
"""

import contextlib
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import logging

from videogen_jax import config as configs
from videogen_jax.data import bucketed_data, locking, pipeline
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate.generator import Generate
from videogen_jax.models.parameter_paths import combine
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import processes
from videogen_jax.run import checkpoint, ema_snapshots, saved_config
from videogen_jax.run.ema import width_name
from videogen_jax.run.state import TrainState
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import (
    dashboard,
    feed,
    fvd,
    init_params,
    metrics,
    profile,
    progress,
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
    """A signal came; the state is saved."""

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"{name}: saved step {step}; the same command again resumes from there.")
        self.signal = number


class Observers(NamedTuple):
    """What is measured and shown of a run besides its training loss: functions of (writer, step, EMA)."""

    validate: Callable[[Any, int, Any], float | None]
    measure_fvd: Callable[[Any, int, Any], None]
    log_samples: Callable[[Any, int, Any], None]


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains to the last step, from the newest checkpoint in the workdir if there is one.

    Args:
      config: as in configs/.
      workdir: gets config.json, checkpoints/, tensorboard/, samples/, and report.html at the end.
    Raises:
      ValueError: config, data, checkpoint and mesh do not fit together; the sentence says how.
      TrainingDiverged: the loss is not finite.
      Interrupted: SIGTERM, SIGHUP or Ctrl-C; the same command again resumes.
    """
    workdir = Path(workdir)
    with processes.propagate_errors():
        saved_config.check_link(workdir)
        saved_config.check_no_export(workdir)
        checkpoint.check_folder(workdir)
        config = setup.absolute_paths(configs.validate(config))
        kind = run_kinds.find_kind(config)
        mesh = meshes.make_mesh(**config.mesh)
        sets = bucketed_data.open_buckets(config.data.path)
        setup.check_data(config, sets)
        setup.warn_of_large_patch(config)
        saved = resume_checks.read_saved_config(workdir)
        config = setup.resolve_vocabulary(config, sets, saved)
        config = setup.resolve_length(config, mesh, sets, kind)
        resume_checks.check_options(saved, config, workdir)
        data = next(iter(sets.values()))  # for what all buckets share
        texts = kind.open_texts(config, data)
        run = kind.make_run(config, mesh, texts.null)
        generate = kind.make_generate(run)
        runs = setup.make_bucket_runs(run, setup.bucket_shapes(config, sets), kind)
        for bucket in runs.values():
            processes.find_share(bucket.mesh, bucket.config.batch_size)
    processes.make_shared_folder(workdir)
    with contextlib.ExitStack() as stack:
        with processes.propagate_errors():
            if jax.process_index() == 0:
                stack.enter_context(locking.lock_folder(workdir))
        manager = stack.enter_context(checkpoint.open_checkpoints(workdir, config.checkpoint.keep))
        state = restore_or_init(run, manager, texts, data.latents)
        if int(state.step):
            metadata = checkpoint.restore_metadata(manager, int(state.step))
            setup.warn_of_other_data(metadata, sets, config.data.path)
        observe = functools.partial(make_observers, run, runs, workdir, texts, sets, generate)
        if int(state.step) >= config.train.steps:
            finish(run, workdir, manager, state, observe)
            return
        with processes.propagate_errors():
            if jax.process_index() == 0:
                saved_config.write_config(workdir, config)
        metrics.write_parameters(state.params, state.frozen, workdir)
        try:
            with processes.catch_signals(run.mesh) as stop:
                run_steps(run, runs, workdir, manager, state, texts, sets, observe(), stop)
        except metrics.TrainingDiverged as error:
            manager.wait_until_finished()
            good = manager.latest_step()
            where = f"checkpoint {good} in {manager.directory}" if good else "none was saved"
            raise metrics.TrainingDiverged(
                f"{error}; last good checkpoint: {where}. Lower learning_rate.peak and run again."
            ) from error


def make_observers(
    run: Run,
    runs: Mapping[str, Run],
    workdir: Path,
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    generate: Generate | None,
) -> Observers:
    """Reads the held-out clips and captions that are measured and shown.

    Args:
      run: of the config's shape.
      runs: of each bucket.
      workdir: for the samples.
      texts: of `text_conditioning.open_texts`.
      sets: of `bucketed_data.open_buckets`.
      generate: makes the samples; None for an autoencoder.
    """
    kind = run_kinds.find_kind(run.config)
    return Observers(
        validation.make_evaluate(kind, runs, texts, sets),
        fvd.make_measure_fvd(run, texts, sets, generate),
        kind.make_log_samples(run, workdir, texts, sets, generate),
    )


def run_steps(
    run: Run,
    runs: Mapping[str, Run],
    workdir: Path,
    manager: checkpoint.Checkpoints,
    state: TrainState,
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    observers: Observers,
    stop: Callable[[], int],
) -> None:
    """The loop itself: from the state's step to the last.

    Args:
      run: of the config's shape.
      runs: of each bucket.
      workdir: for the dashboard and snapshots.
      manager: of `checkpoint.open_checkpoints`.
      state: is donated.
      texts: of `text_conditioning.open_texts`.
      sets: of `bucketed_data.open_buckets`.
      observers: of `make_observers`.
      stop: of `processes.catch_signals`.
    Raises:
      TrainingDiverged: the loss is not finite.
      Interrupted: a signal came.
      DataError: the data set is damaged, has vanished or was replaced; the state is saved.
    """
    config = run.config
    first, last = int(jax.device_get(state.step)) + 1, config.train.steps
    started = time.perf_counter()
    interrupted = 0
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(dashboard.open_dashboard(workdir, first - 1, config))
        snapshots = stack.enter_context(ema_snapshots.open_writer(workdir))
        kind = run_kinds.find_kind(config)
        flops = {name: kind.count_flops(one) for name, one in runs.items()}
        metadata = setup.checkpoint_metadata(config, texts, sets)
        schedule = feed.make_schedule(runs, sets)
        batches = stack.enter_context(feed.open_batches(runs, texts, sets, schedule, first - 1))
        stack.enter_context(jax.transfer_guard("disallow"))
        # While the first batches load; those of buckets that come later while the first ones train.
        order = [list(runs)[i] for i in schedule.first_uses(first - 1)]
        train_steps = stack.enter_context(
            training_run.compile_steps({name: runs[name] for name in order})
        )
        logging.info("Compiling the train step: this takes a minute or more the first time.")
        shown = progress.Progress(first, last, speaks=jax.process_index() == 0)
        stack.callback(shown.close)
        window = metrics.Window(lambda: batches.wait_seconds, find_peak_flops(run.mesh))
        save = save_on_data_errors(manager, lambda: state, metadata, window, first)
        stack.enter_context(save)
        before_step = stack.enter_context(profile.open_profile(workdir, **config.profile))
        for step in range(first, last + 1):
            bucket, batch = next(batches)
            before_step(step, state)
            state, values = train_steps[bucket].result()(state, batch)
            window.add(step, values, runs[bucket].config.batch_size, flops[bucket])
            shown.step(step)
            if step == first:
                jax.block_until_ready(values)
                logging.info("The first step ended after %.1f s.", time.perf_counter() - started)
                window.skip_time()
            manager.check()  # a full disk is told at once
            interrupted = stop()  # read once: a signal within a step counts for the next one
            stopping = interrupted or step == last
            if step % config.train.log_every == 0 or stopping:
                summary = window.summary() | measure_memory()
                writer.write_scalars(step, summary)
                shown.read(step, summary)
                window.restart()
            if due(step, last, fvd.find_interval(run)) and not interrupted:
                window.flush()
                observers.measure_fvd(writer, step, read_ema(run, state))
                window.restart()
            if due(step, last, config.ema.snapshot_every):
                window.flush()
                with jax.transfer_guard("allow"):
                    save_snapshot(snapshots, run, state)
                window.restart()
            if step % config.checkpoint.every == 0 or stopping:
                window.flush()  # never save what has diverged
                loss = None
                if not interrupted:
                    loss = observers.validate(writer, step, read_ema(run, state))
                if loss is not None and not math.isfinite(loss):
                    raise metrics.TrainingDiverged(f"The validation loss of step {step} is {loss}")
                with jax.transfer_guard("allow"):  # Orbax copies the state to the host
                    stopped = {"stopped": bool(interrupted)}
                    checkpoint.save(manager, state, metadata | stopped, loss)
                window.restart()
            if due(step, last, config.sample.every) and not interrupted:
                window.flush()
                observers.log_samples(writer, step, read_ema(run, state))
                window.restart()
            if interrupted:
                break
    manager.wait_until_finished()
    if interrupted:
        raise Interrupted(interrupted, step)
    write_report(workdir)


def finish(
    run: Run,
    workdir: Path,
    manager: checkpoint.Checkpoints,
    state: TrainState,
    observe: Callable[[], Observers],
) -> None:
    """Makes what a run at its last step lacks, for it was stopped in that step or before its report was written.

    Args:
      run: of the config's shape.
      workdir: of the run.
      manager: of `checkpoint.open_checkpoints`.
      state: at the last step.
      observe: makes the observers; not called if nothing is missing.
    """
    step = int(state.step)
    with processes.propagate_errors():
        missing = run_report.is_due(workdir, manager.directory / str(step))
        stopped = checkpoint.restore_metadata(manager, step).get("stopped", False)
    if not missing:
        logging.info("%s is at step %d already: nothing to do.", workdir, step)
        return
    logging.info("%s was stopped in its last step: making what it lacks.", workdir)
    with dashboard.open_dashboard(workdir, step, run.config) as writer:
        observers, ema = observe(), read_ema(run, state)
        if stopped:  # before what precedes the checkpoint of the last step
            observers.validate(writer, step, ema)
            if fvd.find_interval(run) > 0:
                observers.measure_fvd(writer, step, ema)
        observers.log_samples(writer, step, ema)
    if run.config.ema.snapshot_every > 0:
        with ema_snapshots.open_writer(workdir) as snapshots:
            save_snapshot(snapshots, run, state)
    write_report(workdir)


def write_report(workdir: Path) -> None:
    """Writes the report on process 0.

    Raises:
      OSError: it cannot be written.
    """
    with processes.propagate_errors():
        try:
            if jax.process_index() == 0:
                run_report.write_run_report(workdir)
        except (OSError, ValueError) as error:
            raise OSError(
                f"The run is trained and saved, but its report cannot be written ({error}): mend that, and run the "
                "same command again."
            ) from error


@contextlib.contextmanager
def save_on_data_errors(
    manager: checkpoint.Checkpoints,
    read_state: Callable[[], TrainState],
    metadata: dict[str, Any],
    window: metrics.Window,
    first: int,
) -> Iterator[None]:
    """Saves the last state where the data cannot be read on; in a single process, for all must take part.

    Args:
      manager: of `checkpoint.open_checkpoints`.
      read_state: returns the state after the last step.
      metadata: for the checkpoint.
      window: of the loop.
      first: step with which this call began.
    """
    try:
        yield
    except pipeline.DataError:
        if jax.process_count() == 1:
            window.flush()  # never save what has diverged
            with jax.transfer_guard("allow"):
                state = read_state()
                step = int(state.step)
                if step >= first and step != manager.latest_step():
                    checkpoint.save(manager, state, metadata | {"stopped": True}, None)
                    manager.wait_until_finished()
                    logging.info("The data cannot be read: saved step %d.", step)
        raise


def save_snapshot(writer: Any, run: Run, state: TrainState) -> None:
    """Starts writing the power-function averages of a step, unless they are there."""
    powers = {name: state.ema[name] for name in map(width_name, run.config.ema.widths)}
    ema_snapshots.save_snapshot(writer, int(state.step), powers)


def read_ema(run: Run, state: TrainState) -> Any:
    """The parameters that sample, their moving average, on the devices also if it waits in the host's memory."""
    params = combine(state.ema[run.ema_name], state.frozen)
    return jax.device_put(params, run.model.param_shardings)


def due(step: int, last: int, every: int) -> bool:
    """Whether something happens at this step that happens every so often and at the end; never for 0."""
    return every > 0 and (step % every == 0 or step == last)


def restore_or_init(
    run: Run, manager: checkpoint.Checkpoints, texts: Texts, latents: LatentInfo | None
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
        with processes.propagate_errors():
            params = init_params.init_params(run.model, texts)
        return init(jax.device_put(params, run.model.param_shardings))
    step = int(state.step)
    with processes.propagate_errors():
        metadata = checkpoint.restore_metadata(manager, step)
        resume_checks.check_same_run(metadata, run.model, texts, latents)
    logging.info("Resuming from step %d of %s.", step, manager.directory)
    return state
