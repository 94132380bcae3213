"""What a run shows while it trains: samples of a diffusion model, reconstructions of an autoencoder."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.data import pipeline
from videogen_jax.generate import contact_sheet, run_sampler
from videogen_jax.generate.generator import make_generator
from videogen_jax.generate.known_frames import tell_known
from videogen_jax.parallel import processes
from videogen_jax.run.model import Run
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import autoencoder_run, checks, metrics
from videogen_jax.train.step import to_float

RECONSTRUCTED = 4  # validation clips shown beside samples that are decoded from latents
CONTINUED = 4  # validation clips from whose first frames samples are made


def make_show_samples(
    run: Run, workdir: Path, own_texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> Callable[[Any, int, Any], None]:
    """Videos of the EMA for the config's prompts, the same seeds each time, as one GIF on disk and on the dashboard.

    Where these are decoded from latents, the first time also what samples can look like at best: validation clips, as
    the autoencoder gives them back. Of a model that learns from first frames also what it makes of those of some
    validation clips, with their captions.
    """
    prompts, motion = run.config.sample.prompts, run.config.sample.motion
    if not prompts:
        return lambda writer, step, ema: None
    with processes.together():
        text = own_texts.embed(prompts)
    conditions = {}
    if run.config.tasks.text:
        conditions["prompts"] = run_sampler.make_condition(run.config, text, motion)
    with processes.together():
        if run.config.tasks.image and (told := tell_first_frames(run, own_texts, sets)):
            conditions["first_frames"] = told
    generate = make_generator(
        run_sampler.make_run_programs(run, run_sampler.sampler_options(run.config))
    )
    decode, held_out = None, None
    with processes.together():
        latents = next(iter(sets.values())).latents
        if jax.process_index() == 0:
            decode = run_sampler.make_decode(run.config, latents)
            held_out = read_held_out(run.config, sets, RECONSTRUCTED) if latents else None

    def show_samples(writer: Any, step: int, ema: Any) -> None:
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

    return show_samples


def tell_first_frames(
    run: Run, own_texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> dict[str, Any] | None:
    """What the model is told of the first frames of validation clips and their captions; None without such clips."""
    config = run.config
    clips = read_held_out(config, sets, CONTINUED, own_texts.stored_length)
    if clips is None:
        return None
    video = to_float(jnp.asarray(clips["video"]))
    mask = np.zeros(video.shape[:2], bool)
    mask[:, 0] = True
    condition = run_sampler.make_condition(config, own_texts.read(clips), config.sample.motion)
    return condition | tell_known(config, np.asarray(video), mask, list(range(CONTINUED)))


def make_show_reconstructions(
    run: Run, workdir: Path, own_texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> Callable[[Any, int, Any], None]:
    """Validation clips beside their reconstructions by the EMA, as one GIF on disk and on the dashboard."""
    del own_texts
    config = run.config
    count = config.sample.clips
    held_out = read_held_out(config, sets, count) if count else None
    if held_out is None:
        return lambda writer, step, ema: None
    clips = held_out["video"]
    whole = NamedSharding(run.mesh, PartitionSpec())
    video = jax.make_array_from_callback(clips.shape, whole, lambda index: clips[index])

    program = jax.jit(functools.partial(autoencoder_run.reconstruct, run), out_shardings=whole)

    def show(writer: Any, step: int, ema: Any) -> None:
        made = np.asarray(program(ema, video))
        if jax.process_index() != 0:
            return
        pairs = autoencoder_run.pair_up(clips, made)
        write_videos(writer, workdir, step, "reconstructions", pairs, config.data.fps)

    return show


def read_held_out(
    config: ml_collections.ConfigDict,
    sets: Mapping[str, pipeline.PackedData],
    count: int,
    text_length: int = 0,
) -> pipeline.Clips | None:
    """The first validation clips, or their latents, of the config's shape.

    Args:
      config: of the run.
      sets: of `bucketed_data.open_buckets`.
      count: N.
      text_length: as of `pipeline.make_clips`.
    Returns:
      The clips, "video" (N, T, H, W, C) among them; None if no bucket of that shape has any.
    """
    data = find_held_out(config, sets)
    if data is None:
        return None
    size = checks.make_augmentation(config).size if data.latents is None else None
    batches = pipeline.make_validation_clips(
        data,
        batch_size=count,
        frames=config.data.frames,
        num_batches=1,
        size=size,
        text_length=text_length,
    )
    return next(batches)


def find_held_out(
    config: ml_collections.ConfigDict, sets: Mapping[str, pipeline.PackedData]
) -> pipeline.PackedData | None:
    """The first bucket that has validation clips of the config's shape; None if none has."""
    for data in sets.values():
        held_out = sum(data.lengths.get("validation", []))
        large = data.height >= config.data.height and data.width >= config.data.width
        if held_out and large and data.min_frames >= config.data.frames:
            return data
    return None


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
      workdir: of the run.
      step: of the run.
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
