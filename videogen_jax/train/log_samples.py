"""Samples of a run on its dashboard: videos of a diffusion model, reconstructions of an autoencoder."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.data import pipeline
from videogen_jax.generate import contact_sheet, run_sampler
from videogen_jax.generate.generator import Generate
from videogen_jax.generate.known_frames import condition_on_frames
from videogen_jax.parallel import processes
from videogen_jax.run import autoencoder_model
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import metrics
from videogen_jax.train.held_out import read_held_out
from videogen_jax.train.loss import to_float
from videogen_jax.train.training_run import Run

RECONSTRUCTED = 4  # validation clips shown beside samples that are decoded from latents
CONTINUED = 4  # validation clips from whose first frames samples are made


def make_log_videos(
    run: Run,
    workdir: Path,
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    generate: Generate,
) -> Callable[[Any, int, Any], None]:
    """Videos of the EMA for the config's prompts, the same seeds each time, as one GIF on disk and on the dashboard.

    With latents, the first time also the best that samples can look like: validation clips decoded from their latents.
    Of a model that learns from first frames, also videos from those of some validation clips, with their captions.
    """
    prompts, motion = run.config.sample.prompts, run.config.sample.motion
    if not prompts:
        return lambda writer, step, ema: None
    with processes.propagate_errors():
        text = texts.embed(prompts)
    conditions = {}
    if run.config.tasks.text:
        conditions["prompts"] = run_sampler.make_condition(run.model, text, motion)
    with processes.propagate_errors():
        if run.config.tasks.image and (first := first_frame_condition(run, texts, sets)):
            conditions["first_frames"] = first
    decode, held_out = None, None
    with processes.propagate_errors():
        latents = next(iter(sets.values())).latents
        if jax.process_index() == 0:
            decode = run.model.latent_space.make_decode(latents)
            shape = run.model.clip_shape
            held_out = read_held_out(sets, shape, RECONSTRUCTED) if latents else None

    def log_videos(writer: Any, step: int, ema: Any) -> None:
        nonlocal held_out
        fps = run.config.data.fps
        for tag, condition in conditions.items():
            videos = generate(ema, condition, list(range(len(jax.tree.leaves(condition)[0]))))
            if decode is not None:
                name = None if tag == "prompts" else f"{tag}_{step:08d}"
                write_videos(writer, workdir, step, tag, decode(videos), fps, name)
        if decode is None:
            return
        if held_out is not None:
            made, held_out = decode(held_out["video"].astype(np.float32)), None
            write_videos(writer, workdir, step, "reconstructions", made, fps, "reconstructions")

    return log_videos


def first_frame_condition(
    run: Run, texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> dict[str, Any] | None:
    """The condition of the first frames of validation clips and their captions; None without such clips."""
    clips = read_held_out(sets, run.model.clip_shape, CONTINUED, texts.stored_length)
    if clips is None:
        return None
    video = to_float(jnp.asarray(clips["video"]))
    mask = np.zeros(video.shape[:2], bool)
    mask[:, 0] = True
    motion = run.config.sample.motion
    condition = run_sampler.make_condition(run.model, texts.read(clips), motion)
    seeds = list(range(CONTINUED))
    return condition | condition_on_frames(run.model, np.asarray(video), mask, seeds)


def make_log_reconstructions(
    run: Run,
    workdir: Path,
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    generate: None,
) -> Callable[[Any, int, Any], None]:
    """Validation clips beside their reconstructions by the EMA, as one GIF on disk and on the dashboard."""
    del texts, generate
    count = run.config.sample.clips
    held_out = read_held_out(sets, run.model.clip_shape, count) if count else None
    if held_out is None:
        return lambda writer, step, ema: None
    clips = held_out["video"]
    whole = NamedSharding(run.mesh, PartitionSpec())
    video = jax.make_array_from_callback(clips.shape, whole, lambda index: clips[index])
    reconstruct = functools.partial(autoencoder_model.reconstruct, run.model)
    program = jax.jit(reconstruct, out_shardings=whole)

    def log_reconstructions(writer: Any, step: int, ema: Any) -> None:
        made = np.asarray(program(ema, video))
        if jax.process_index() != 0:
            return
        pairs = autoencoder_model.pair_up(clips, made)
        write_videos(writer, workdir, step, "reconstructions", pairs, run.config.data.fps)

    return log_reconstructions


def write_videos(
    writer: Any,
    workdir: Path,
    step: int,
    tag: str,
    videos: np.ndarray,
    fps: float,
    name: str | None = None,
) -> None:
    """Writes videos as one GIF to `workdir`/samples, and on the dashboard under samples/.

    Args:
      writer: of `metrics.make_writer`.
      workdir: folder of the run.
      step: optimizer steps taken.
      tag: name on the dashboard.
      videos: (N, T, H, W, 3) uint8.
      fps: frames per second.
      name: of the file; by default the step's.
    """
    gif, size = contact_sheet.animation(videos, fps)
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    (folder / f"{name or f'step_{step:08d}'}.gif").write_bytes(gif)
    metrics.write_animation(writer, step, f"samples/{tag}", gif, size)
