"""A trained model as others use it: captions and seeds in, videos out, with the recipe that made them."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import NamedSharding

from videogen_jax import __version__
from videogen_jax.data import buckets, pipeline
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate.generator import make_generator
from videogen_jax.parallel import mesh as meshes
from videogen_jax.train import (
    autoencoder,
    checkpoint,
    checks,
    sampling,
    setup,
    show,
    snapshots,
    texts,
)


def make_videos(
    workdir: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    step: int | None = None,
    ema: str | None = None,
    ema_width: float | None = None,
    dtype: str | None = None,
    motion: float | None = None,
    negative_prompt: str = "",
    batch_size: int = 16,
    **options: Any,
) -> tuple[Iterator[np.ndarray], dict[str, Any], ml_collections.ConfigDict]:
    """Restores a run's EMA and makes videos of it, on all devices; the checkpoint is not touched.

    Args:
      workdir: of the run.
      prompts: N captions.
      seeds: N seeds; each makes the same video in any company.
      step: of the checkpoint; by default the newest.
      ema: name of the moving average; by default the first one.
      ema_width: relative width of a power average to make of the run's snapshots instead.
      dtype: of the matrix products; by default the config's.
      motion: bucket of the motion score; by default the config's.
      negative_prompt: what the videos shall not show.
      batch_size: videos at a time.
      **options: lines of config.sample in the place of the config's.
    Returns:
      (batches of videos (B, T, H, W, 3) uint8 in order, all that is needed to make them again, the run's config).
    Raises:
      ValueError: an option, a prompt or the checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read.
    """
    if ema is not None and ema_width is not None:
        raise ValueError("--ema names an average and --ema_width makes one: give one of them.")
    config = setup.read_config(workdir)
    if checks.is_autoencoder(config):
        raise ValueError(
            f"{workdir} is the run of an autoencoder, which makes no videos by itself: name the --workdir of a "
            "diffusion model."
        )
    if dtype is not None:
        with config.unlocked():
            config.train.precision = dtype
    options = sampling.sampler_options(config) | options
    batch_size = options["batch_size"] = min(batch_size, len(prompts))
    motion = config.sample.motion if motion is None else motion
    metadata, step = read_metadata(workdir, step)
    own_texts = texts.restore_texts(config, metadata)
    rows = own_texts.embed([*prompts, negative_prompt])
    text = jax.tree.map(lambda column: column[:-1], rows)
    null_text = jax.tree.map(lambda column: column[-1], rows)
    mesh = sampling.choose_sample_mesh(config, len(prompts), jax.devices())
    run = setup.make_run(config, mesh, own_texts.null)
    params = restore(run, workdir, step, ema, ema_width)
    latents = metadata.get("latents")
    decode = sampling.make_decode(config, latents and LatentInfo(**latents))
    programs = sampling.make_run_programs(run, options, null_text)
    generate = make_generator(programs)
    logging.info("Sampling %d videos from step %d on %d devices.", len(seeds), step, run.mesh.size)
    condition = sampling.make_condition(config, text, motion)
    recipe = {
        "workdir": str(workdir),
        "step": step,
        "weights": ema or run.ema_name if ema_width is None else f"width {ema_width}",
        "negative_prompt": negative_prompt,
        "motion": motion,
        "dtype": config.train.precision,
        "version": __version__,
        **{name: value for name, value in options.items() if name != "batch_size"},
    }

    def make() -> Iterator[np.ndarray]:
        for start in range(0, len(prompts), programs.batch_size):
            part = slice(start, start + programs.batch_size)
            own = jax.tree.map(lambda column: column[part], condition)  # noqa: B023
            yield decode(generate(params, own, list(seeds[part])))

    return make(), recipe, config


def read_metadata(workdir: Path, step: int | None) -> tuple[dict[str, Any], int]:
    """What was saved with a checkpoint, and its step.

    Raises:
      CheckpointError: it is not there.
    """
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        step = checkpoint.find_step(manager, step)
        return checkpoint.restore_metadata(manager, step), step


def restore(
    run: setup.Run, workdir: Path, step: int, ema: str | None, ema_width: float | None
) -> Any:
    """A run's average, laid out on its mesh.

    Raises:
      CheckpointError: it is not there, or another model's.
    """
    abstract = run.abstract.params
    if ema_width is not None:
        params = snapshots.reconstruct(workdir, abstract, run.config.ema.widths, ema_width, step)
        return jax.device_put(params, run.shardings.params)
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        return checkpoint.restore_ema(manager, abstract, ema or run.ema_name, step)[0]


def reconstruct_clips(
    workdir: Path,
    count: int,
    *,
    step: int | None = None,
    ema: str | None = None,
    batch_size: int = 16,
) -> tuple[Iterator[np.ndarray], dict[str, Any], int]:
    """Held-out clips of an autoencoder's run, each followed by what its EMA makes of it.

    Args:
      workdir: of the run.
      count: clips at most.
      step: of the checkpoint; by default the newest.
      ema: name of the moving average; by default the first one.
      batch_size: clips at a time, on each device.
    Returns:
      (batches (2 B, T, H, W, 3) uint8, what is needed to make them again, clips).
    Raises:
      ValueError: the data set has no held-out clips, or the checkpoint is another model's.
    """
    config = setup.read_config(workdir)
    devices = jax.local_devices()
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    run = autoencoder.make_run(config, mesh)
    _, step = read_metadata(workdir, step)
    params = restore(run, workdir, step, ema, None)
    data = show.find_held_out(config, buckets.open_buckets(config.data.path))
    if data is None:
        raise ValueError(f"{config.data.path} has no held-out clips of the run's shape.")
    count = min(count, sum(data.lengths["validation"]))
    rows = min(batch_size, count) * mesh.size
    batches = pipeline.make_validation_clips(
        data,
        batch_size=rows,
        frames=config.data.frames,
        num_batches=-(-count // rows),
        size=checks.make_augmentation(config).size,
    )
    recipe = {
        "workdir": str(workdir),
        "step": step,
        "weights": ema or run.ema_name,
        "version": __version__,
        "generated": "reconstructions of the validation clips",
    }
    place = NamedSharding(mesh, meshes.BATCH)
    program = jax.jit(functools.partial(autoencoder.reconstruct, run))

    def make() -> Iterator[np.ndarray]:
        left = count
        for batch in batches:
            video = batch["video"][: max(left, 0)]
            made = np.asarray(program(params, jax.device_put(batch["video"], place)))[: len(video)]
            yield autoencoder.pair_up(video, made)
            left -= len(video)

    return make(), recipe, count
