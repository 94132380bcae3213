"""Validation metrics on held-out clips, while a run trains."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.data import pipeline
from videogen_jax.parallel import processes
from videogen_jax.run.state import VALIDATION
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import metrics, setup
from videogen_jax.train.feed import put_clips
from videogen_jax.train.run_kinds import Kind
from videogen_jax.train.training_run import Run


def make_evaluate(
    kind: Kind,
    runs: Mapping[str, Run],
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
) -> Callable[[Any, int, Any], float | None]:
    """Validation loss of the EMA on the same clips and random numbers whenever it is called: the mean over the buckets.

    Other metrics of the kind of run: scalars under evaluation/; those of several noise levels in a group of their own
    and as a histogram over the schedule's clock.
    None where the data set has no validation clips, or train.validation_batches is 0.
    """
    config = next(iter(runs.values())).config
    held_out = [name for name in runs if sum(sets[name].lengths.get("validation", []))]
    if not held_out or not config.train.validation_batches:
        return lambda writer, step, ema: None
    measures = {name: make_bucket_measure(kind, runs[name], texts, sets[name]) for name in held_out}

    def evaluate(writer: Any, step: int, ema: Any) -> float:
        values = {name: measure(ema) for name, measure in measures.items()}
        shown = {}
        for quantity in next(iter(values.values())):
            several = {Path(name).name: one[quantity] for name, one in values.items()}
            mean = np.mean(list(several.values()), axis=0)
            if mean.ndim:
                write_levels(writer, step, quantity, mean)
                continue
            tag = "loss/validation" if quantity == "loss" else f"evaluation/{quantity}"
            if len(several) > 1:
                shown |= {f"{tag}_{name}": float(one) for name, one in several.items()}
            shown[tag] = float(mean)
        writer.write_scalars(step, shown)
        return shown["loss/validation"]

    return evaluate


def write_levels(writer: Any, step: int, quantity: str, values: np.ndarray) -> None:
    """Shows a number for each of K equal parts of the schedule's clock, as scalars and as one histogram.

    Args:
      writer: of `metrics.make_writer`.
      step: of the run.
      quantity: names the group.
      values: (K,), the least noise first.
    """
    edges = np.linspace(0, 1, len(values) + 1)
    tags = [f"{quantity}/{low:.3f}-{high:.3f}" for low, high in itertools.pairwise(edges)]
    writer.write_scalars(step, dict(zip(tags, values.tolist(), strict=True)))
    metrics.write_bars(writer, step, f"{quantity}/histogram", values)


def make_bucket_measure(
    kind: Kind, run: Run, texts: Texts, data: pipeline.PackedData
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Means over the first validation clips of a bucket."""
    config = run.config
    measure = jax.jit(kind.make_measure(run))
    batches = [
        put_clips(kind, run, texts, data, clips)
        for clips in pipeline.make_validation_clips(
            data,
            batch_size=config.batch_size,
            frames=config.data.frames,
            num_batches=config.train.validation_batches,
            text_length=texts.stored_length,
            size=setup.make_augmentation(config).size if data.latents is None else None,
            share=processes.find_share(run.mesh, config.batch_size),
        )
    ]
    whole = NamedSharding(run.mesh, PartitionSpec())

    def draw_keys() -> list[jax.Array]:
        # Not split off the seed's key itself: in JAX, split(key, n)[i] is fold_in(key, i), which other purposes use.
        rng = jax.random.fold_in(jax.random.key(config.seed), VALIDATION)
        return list(jax.random.split(rng, len(batches)))

    keys = jax.jit(draw_keys, out_shardings=whole)()

    def means(ema: Any) -> dict[str, np.ndarray]:
        found = [measure(ema, batch, key) for batch, key in zip(batches, keys, strict=True)]
        found = jax.device_get(found)
        return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}

    return means
