"""Clips from the data set to the mesh: which bucket a step draws from, and its batch as the step takes it."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax

from videogen_jax.data import bucketed_data, pipeline, prefetch
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import processes
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import setup
from videogen_jax.train.run_kinds import Kind, find_kind
from videogen_jax.train.training_run import Run


def make_schedule(
    runs: Mapping[str, Run], sets: Mapping[str, pipeline.PackedData]
) -> bucketed_data.BucketSchedule:
    """Which bucket each step draws from."""
    clips = [sum(sets[name].lengths["train"]) for name in runs]
    configs = [run.config for run in runs.values()]
    sizes = [config.batch_size for config in configs]
    return bucketed_data.make_schedule(clips, sizes, configs[0].seed)


def open_batches(
    runs: Mapping[str, Run],
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    schedule: bucketed_data.BucketSchedule,
    start_step: int,
) -> Any:
    """(bucket, batch on its mesh), from the one after `start_step` steps on; a context manager."""
    kind = find_kind(next(iter(runs.values())).config)

    def open_bucket(name: str, start_step: int) -> Iterator[pipeline.Clips]:
        run = runs[name]
        config = run.config
        return pipeline.make_clips(
            sets[name],
            "train",
            batch_size=config.batch_size,
            frames=config.data.frames,
            seed=config.seed,
            start_step=start_step,
            flip=setup.mirrors(config, sets[name].words),
            augmentation=setup.make_augmentation(config) if sets[name].latents is None else None,
            shuffle_window=config.data.shuffle_window,
            text_length=texts.stored_length,
            share=processes.find_share(run.mesh, config.batch_size),
            threads=config.data.threads,
        )

    def put(drawn: tuple[str, pipeline.Clips]) -> tuple[str, dict[str, jax.Array]]:
        name, clips = drawn
        return name, put_clips(kind, runs[name], texts, sets[name], clips)

    sources = {name: partial(open_bucket, name) for name in runs}
    return prefetch.prefetch_to_mesh(bucketed_data.mix_clips(sources, schedule, start_step), put)


def put_clips(
    kind: Kind, run: Run, texts: Texts, data: pipeline.PackedData, clips: pipeline.Clips
) -> dict[str, jax.Array]:
    """Host clips to what the step takes, on the mesh."""
    return meshes.put_batch(run.mesh, kind.read_batch(run, texts, data, clips))
