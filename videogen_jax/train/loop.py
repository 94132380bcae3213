"""The train loop, on one page.

    restore or init; for each step: dispatch N, read back N-1; log; sample; evaluate, then save on the same step

Batches and random numbers are functions of (seed, step), so a run that was killed goes on as if it had not been.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.data import augment, pipeline, prefetch
from videogen_jax.data.augment import Augmentation
from videogen_jax.data.captions import Vocabulary
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate import contact_sheet
from videogen_jax.generate.generator import make_generator
from videogen_jax.models import weights
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import processes
from videogen_jax.train import checkpoint, metrics, setup, snapshots
from videogen_jax.train.ema import width_name
from videogen_jax.train.setup import Run
from videogen_jax.train.state import TrainState


class Interrupted(RuntimeError):
    """SIGTERM came; the state is saved."""


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
        check_numbers(config)
        run = setup.make_run(config)
        setup.check_choices(run)
        meshes.check_batch(run.mesh, config.batch_size, config.train.accumulation)
        processes.find_share(run.mesh, config.batch_size)
        data = pipeline.open_data(config.data.path)
        check_data(config, data)
        vocabulary = Vocabulary.from_counts(data.words, config.text.vocabulary_size)
    if len(data.words) > len(vocabulary.words):
        logging.warning(
            "The captions have %d words, of which the %d rarest are unknown to the model: "
            "raise --config.text.vocabulary_size.",
            len(data.words),
            len(data.words) - len(vocabulary.words),
        )
    processes.share_folder(workdir)
    with checkpoint.open_checkpoints(workdir, config.checkpoint.keep) as manager:
        state = restore_or_init(run, manager, vocabulary, data.latents)
        if int(state.step) >= config.train.steps:
            logging.info("%s is at step %d already: nothing to do.", workdir, int(state.step))
            return
        with processes.together():
            if jax.process_index() == 0:
                setup.write_config(workdir, config)
        metrics.log_parameters(state.params)
        try:
            run_steps(run, workdir, manager, state, vocabulary, data)
        except metrics.TrainingDiverged as error:
            manager.wait_until_finished()
            good = manager.latest_step()
            where = f"checkpoint {good} in {manager.directory}" if good else "none was saved"
            raise metrics.TrainingDiverged(
                f"{error}; last good checkpoint: {where}. Lower learning_rate.peak and run again."
            ) from error


def run_steps(
    run: Run,
    workdir: Path,
    manager: Any,
    state: TrainState,
    vocabulary: Vocabulary,
    data: pipeline.PackedData,
) -> None:
    """The loop itself: from the state's step to the last.

    Args:
      run: of `make_run`.
      workdir: for the dashboard and samples.
      manager: of `checkpoint.open_checkpoints`.
      state: is donated.
      vocabulary: of the captions.
      data: of `pipeline.open_data`.
    Raises:
      TrainingDiverged: the loss is not finite.
      Interrupted: SIGTERM came.
    """
    config = run.config
    first, last = int(jax.device_get(state.step)) + 1, config.train.steps
    stop = processes.catch_sigterm(run.mesh)
    started = time.perf_counter()
    put = partial(put_clips, run, vocabulary, data)
    interrupted = False
    with contextlib.ExitStack() as stack:
        writer = metrics.make_writer(workdir)
        stack.callback(writer.close)
        snapshot_writer = stack.enter_context(ocp.StandardCheckpointer())
        evaluate = make_evaluate(run, put, data)
        show_samples = make_show_samples(run, workdir, vocabulary, data.latents)
        metadata = {"vocabulary": list(vocabulary.words), "config": config.to_dict()}
        metadata["latents"] = note_latents(data.latents)
        batches = stack.enter_context(open_batches(run, put, vocabulary, first - 1))
        stack.enter_context(jax.transfer_guard("disallow"))
        train_step = setup.compile_step(run)  # while the first batches load
        window = metrics.Window(config.batch_size, lambda: batches.wait_seconds)
        for step in range(first, last + 1):
            state, values = train_step(state, next(batches))
            window.add(step, values)
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


def check_data(config: ml_collections.ConfigDict, data: Any) -> None:
    """Refuses clips of another size or rate than the config's.

    Args:
      config: of the run.
      data: of `pipeline.open_data`.
    Raises:
      ValueError: names the line of the config and the packed value.
    """
    check_latents(config, data.latents)
    check_augmentation(config, data)
    for name in ("fps",) if data.latents is None else ("height", "width", "fps"):
        wanted, packed = config.data[name], getattr(data, name)
        if wanted != packed:
            raise ValueError(
                f"data.{name} is {wanted}, but the clips in {config.data.path} were packed with {packed}: "
                f"set --config.data.{name}={packed}, or pack again."
            )


def make_augmentation(config: ml_collections.ConfigDict) -> Augmentation:
    """What the config does to training clips."""
    return Augmentation(size=(config.data.height, config.data.width), **config.augment)


def check_augmentation(config: ml_collections.ConfigDict, data: pipeline.PackedData) -> None:
    """Refuses an augmentation that pixels cannot serve, or with which latents were not encoded.

    Raises:
      ValueError: names the line of the config.
    """
    augmentation = make_augmentation(config)
    if augmentation.fps_min < augmentation.fps_max and "fps" not in config.model.micro_conditions:
        raise ValueError(
            f"augment.fps_min and fps_max take clips at {augmentation.fps_min} to {augmentation.fps_max} frames per "
            "second, but the model is not told which: add 'fps' to model.micro_conditions, or make them equal."
        )
    if 0 < augmentation.fps_max < config.data.fps:
        logging.warning(
            "Training sees clips at %g to %g frames per second, validation and samples are at data.fps of %g: "
            "raise augment.fps_max.",
            augmentation.fps_min,
            augmentation.fps_max,
            config.data.fps,
        )
    if data.latents is None:
        augment.check_augmentation(augmentation, data, config.data.frames)
        return
    found = data.latents.augment or Augmentation(augmentation.size).note()
    for name, wanted in augmentation.note().items():
        if wanted != found[name]:
            raise ValueError(
                f"augment.{name} is {wanted}, but the latents in {config.data.path} were encoded with {found[name]}: "
                f"set --config.augment.{name}={found[name]}, or encode into another folder."
            )


def check_latents(config: ml_collections.ConfigDict, latents: LatentInfo | None) -> None:
    """Refuses a data set of pixels where the config wants latents, of latents where it wants pixels, or of others.

    Raises:
      ValueError: says which it is.
    """
    name, path = config.vae.name, config.data.path
    if latents is None and name != "identity":
        raise ValueError(
            f"vae.name is {name!r}, but {path} holds pixels: run videogen_jax.encode on it and set --config.data.path "
            "to its output, or set --config.vae.name=identity and a model.patch_size to suit."
        )
    if latents is not None and name != latents.autoencoder:
        raise ValueError(
            f"vae.name is {name!r}, but {path} holds latents of {latents.autoencoder!r}: "
            f"set --config.vae.name={latents.autoencoder}."
        )
    shape = list(setup.video_shape(config)[1:])
    if latents is not None and shape != latents.shape:
        raise ValueError(
            f"The latent frames in {path} have the shape {latents.shape}, but the autoencoder of "
            f"vae.path={config.vae.path!r} makes {shape}: name the weights that encoded them, in a folder with their "
            "config.json."
        )


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Refuses counts below 1.

    Raises:
      ValueError: names the line of the config.
    """
    names = ["batch_size", "data.frames", "data.shuffle_window", "data.threads", "text.length"]
    names += [
        "train.steps",
        "train.accumulation",
        "train.log_every",
        *(f"mesh.{axis}" for axis in meshes.AXES),
    ]
    names += [
        "memory.pieces",
        "memory.unroll",
        "checkpoint.every",
        "checkpoint.keep",
        "sample.every",
        "sample.batch_size",
    ]
    flat = config.to_dict()
    for name in names:
        value: Any = flat
        for part in name.split("."):
            value = value[part]
        if value < 1:
            raise ValueError(f"{name} is {value}: give at least 1.")


def check_same_run(
    metadata: dict[str, Any],
    config: ml_collections.ConfigDict,
    vocabulary: Vocabulary,
    latents: LatentInfo | None,
) -> None:
    """Refuses to go on with words or a setup that give the same parameters another meaning.

    Args:
      metadata: saved with the checkpoint.
      config: of the run that goes on.
      vocabulary: of its data.
      latents: of its data.
    Raises:
      ValueError: lists what differs.
    """

    def meaning(config: dict[str, Any]) -> dict[str, Any]:
        model = {f"model.{key}": value for key, value in config["model"].items()}
        schedule = {f"schedule.{key}": value for key, value in config["schedule"].items()}
        rest = {"objective.prediction": config["objective"]["prediction"]}
        return model | schedule | rest | {"text.length": config["text"]["length"]}

    ours = json.loads(json.dumps(meaning(config.to_dict())))  # tuples become lists, as there
    theirs = meaning(metadata["config"])
    differences = [
        f"{name} is {ours[name]} instead of {theirs.get(name)}"
        for name in ours
        if ours[name] != theirs.get(name)
    ]
    if list(vocabulary.words) != metadata["vocabulary"]:
        differences.append("the captions have other words")
    if note_latents(latents) != metadata.get("latents"):
        differences.append("the latents were encoded or measured otherwise")
    if differences:
        raise ValueError(
            f"The checkpoint was trained otherwise: {'; '.join(differences)}. "
            "Set them back, or use another --workdir."
        )


def note_latents(latents: LatentInfo | None) -> dict[str, Any] | None:
    """As it is saved with checkpoints, for sampling."""
    return None if latents is None else latents._asdict()


def restore_or_init(
    run: Run, manager: Any, vocabulary: Vocabulary, latents: LatentInfo | None
) -> TrainState:
    """The newest checkpoint's state, or a new one, laid out on the mesh.

    Raises:
      ValueError: the checkpoint is another run's, or the weights to start from do not fit.
    """
    state = checkpoint.restore(manager, run.abstract)
    if state is None:
        init = jax.jit(run.init, out_shardings=run.shardings)
        if not run.config.init.path:
            return init()
        params = jax.jit(run.init_params, out_shardings=run.shardings.params)()
        with processes.together():
            params = weights.load_weights(run.config.init.path, run.config.init.layout, params)
        return init(jax.device_put(params, run.shardings.params))
    step = int(state.step)
    with processes.together():
        metadata = checkpoint.restore_metadata(manager, step)
        check_same_run(metadata, run.config, vocabulary, latents)
    logging.info("Going on from step %d of %s.", step, manager.directory)
    return state


def open_batches(run: Run, put: Callable[..., Any], vocabulary: Vocabulary, start_step: int) -> Any:
    """Training batches on the mesh, from the one after `start_step` steps on; a context manager."""
    config = run.config
    index, count = processes.find_share(run.mesh, config.batch_size)
    clips = pipeline.make_clips(
        config.data.path,
        "train",
        batch_size=config.batch_size,
        frames=config.data.frames,
        seed=config.seed,
        start_step=start_step,
        flip=setup.mirrors(config, vocabulary.words),
        augmentation=make_augmentation(config) if config.vae.name == "identity" else None,
        shuffle_window=config.data.shuffle_window,
        process_index=index,
        process_count=count,
        threads=config.data.threads,
    )
    return prefetch.prefetch_to_mesh(clips, put)


def put_clips(
    run: Run, vocabulary: Vocabulary, data: pipeline.PackedData, clips: dict[str, np.ndarray]
) -> dict[str, jax.Array]:
    """Host clips to what the step takes: pixels, caption ids and micro-conditions, on the mesh."""
    texts = [caption.decode() for caption in clips["caption"]]
    text = vocabulary.encode(texts, run.config.text.length)
    buckets = np.searchsorted(data.motion_score_buckets, clips["motion_score"], side="right")
    micro = {"fps": clips["fps"], "motion": buckets.astype(np.float32)}
    micro = {name: micro[name] for name in run.config.model.micro_conditions}
    return meshes.put_batch(run.mesh, {"video": clips["video"], "text": text} | micro)


def make_evaluate(
    run: Run, put: Callable[..., Any], data: pipeline.PackedData
) -> Callable[[Any, int, Any], float | None]:
    """Validation loss of the EMA on the same clips, noise and times whenever it is called.

    None where the data set has no validation clips, or train.validation_batches is 0.
    """
    config = run.config
    if not sum(data.lengths.get("validation", [])) or not config.train.validation_batches:
        return lambda writer, step, ema: None
    loss = jax.jit(setup.make_run_loss(run, text_dropout=0.0))
    index, count = processes.find_share(run.mesh, config.batch_size)
    batches = [
        put(clips)
        for clips in pipeline.make_validation_clips(
            config.data.path,
            batch_size=config.batch_size,
            frames=config.data.frames,
            num_batches=config.train.validation_batches,
            size=make_augmentation(config).size if data.latents is None else None,
            process_index=index,
            process_count=count,
        )
    ]
    whole = NamedSharding(run.mesh, PartitionSpec())
    split = lambda: list(jax.random.split(jax.random.key(config.seed), len(batches)))  # noqa: E731
    keys = jax.jit(split, out_shardings=whole)()

    def evaluate(writer: Any, step: int, ema: Any) -> float:
        losses = [loss(ema, batch, key) for batch, key in zip(batches, keys, strict=True)]
        value = float(np.mean(jax.device_get(losses)))
        writer.write_scalars(step, {"validation/loss": value})
        return value

    return evaluate


def make_show_samples(
    run: Run, workdir: Path, vocabulary: Vocabulary, latents: LatentInfo | None
) -> Callable[[Any, int, Any], None]:
    """Videos of the EMA for the config's prompts, the same seeds each time, as one GIF on disk and on the dashboard."""
    prompts, motion = run.config.sample.prompts, run.config.sample.motion
    if not prompts:
        return lambda writer, step, ema: None
    for prompt in prompts:
        vocabulary.check(prompt)
    text = vocabulary.encode(prompts, run.config.text.length)
    condition = setup.make_condition(run.config, text, motion)
    generate = make_generator(setup.make_run_programs(run, setup.sampler_options(run.config)))
    with processes.together():
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
