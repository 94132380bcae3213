"""Held-out clips of a run: those shown on the dashboard, and reconstructions of them by an autoencoder."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from videogen_jax import __version__
from videogen_jax.data import bucketed_data, pipeline
from videogen_jax.generate.from_checkpoint import restore_average
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import autoencoder_model, checkpoint, saved_config
from videogen_jax.run.model import Shape


def find_held_out(
    sets: Mapping[str, pipeline.PackedData], shape: Shape
) -> pipeline.PackedData | None:
    """The first bucket with validation clips of (frames, height, width); None if none has."""
    frames, height, width = shape
    for data in sets.values():
        held_out = sum(data.lengths.get("validation", []))
        large = data.height >= height and data.width >= width
        if held_out and large and data.min_frames >= frames:
            return data
    return None


def read_held_out(
    sets: Mapping[str, pipeline.PackedData], shape: Shape, count: int, text_length: int = 0
) -> pipeline.Clips | None:
    """The first validation clips, or their latents.

    Args:
      sets: of `bucketed_data.open_buckets`.
      shape: (frames, height, width) of the clips in pixels.
      count: N.
      text_length: as of `pipeline.make_clips`.
    Returns:
      The clips, "video" (N, T, H, W, C) among them; None if no bucket of that shape has any.
    """
    data = find_held_out(sets, shape)
    if data is None:
        return None
    batches = pipeline.make_validation_clips(
        data,
        batch_size=count,
        frames=shape[0],
        num_batches=1,
        size=shape[1:] if data.latents is None else None,
        text_length=text_length,
    )
    return next(batches)


def reconstruct_clips(
    workdir: Path,
    count: int,
    *,
    step: int | None = None,
    ema: str | None = None,
    batch_size: int = 16,
    data_path: str | None = None,
) -> tuple[Iterator[np.ndarray], dict[str, Any], int]:
    """Held-out clips of an autoencoder's run, each followed by its reconstruction by the EMA.

    Args:
      workdir: of the run.
      count: clips at most.
      step: of the checkpoint; by default the newest.
      ema: name of the moving average; by default the first one.
      batch_size: clips at a time, on each device.
      data_path: data set; by default that of the run.
    Returns:
      (batches (2 B, T, H, W, 3) uint8, what is needed to make them again, clips).
    Raises:
      ValueError: the data set has no held-out clips, or the checkpoint is another model's.
    """
    config = saved_config.read_config(workdir)
    devices = jax.local_devices()
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    model = autoencoder_model.make_model(config, mesh)
    step, params = checkpoint.read_newest(
        workdir, step, lambda step, _: (step, restore_average(model, workdir, step, ema))
    )
    data_path = data_path or config.data.path
    data = find_held_out(bucketed_data.open_buckets(data_path), model.clip_shape)
    if data is None:
        raise ValueError(f"{data_path} has no held-out clips of the run's shape.")
    count = min(count, sum(data.lengths["validation"]))
    rows = min(batch_size, count) * mesh.size
    batches = pipeline.make_validation_clips(
        data,
        batch_size=rows,
        frames=config.data.frames,
        num_batches=-(-count // rows),
        size=model.clip_shape[1:],
    )
    recipe = {
        "workdir": str(workdir),
        "step": step,
        "weights": ema or model.ema_names[0],
        "version": __version__,
        "generated": "reconstructions of the validation clips",
    }
    place = NamedSharding(mesh, meshes.BATCH)
    program = jax.jit(functools.partial(autoencoder_model.reconstruct, model))

    def make() -> Iterator[np.ndarray]:
        left = count
        for batch in batches:
            video = batch["video"][: max(left, 0)]
            made = np.asarray(program(params, jax.device_put(batch["video"], place)))[: len(video)]
            yield autoencoder_model.pair_up(video, made)
            left -= len(video)

    return make(), recipe, count
