"""Samples of a run on its dashboard: videos of a diffusion model, reconstructions of an autoencoder."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.data import atomic_files, bucketed_data, pipeline, video_writer
from videogen_jax.data.vocabulary import split_words
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
CAPTIONS = 4  # of the data, where the config has no prompts
COLUMNS, TILE = 4, 160  # videos in a row, and least height in pixels, of what the dashboard shows
CONTINUED = 4  # validation clips from whose first frames samples are made


def make_log_videos(
    run: Run,
    workdir: Path,
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    generate: Generate,
) -> Callable[[Any, int, Any], None]:
    """Videos of the EMA for the config's prompts, the same seeds each time, as one mp4 on disk and on the dashboard.

    With latents, the first time also the best that samples can look like: validation clips decoded from their latents.
    Of a model that learns from first frames, also videos from those of some validation clips, with their captions.
    """
    motion = run.config.sample.motion
    if not run.config.sample.every:
        return lambda writer, step, ema: None
    conditions, captions = {}, {}
    with processes.propagate_errors():
        if run.config.tasks.text and (found := read_prompts(run, texts, sets)):
            captions["prompts"], text = found
            conditions["prompts"] = run_sampler.make_condition(run.model, text, motion)
        if run.config.tasks.image and (first := first_frame_condition(run, texts, sets)):
            captions["first_frames"], conditions["first_frames"] = first
    decode, held_out = None, None
    with processes.propagate_errors():
        latents = next(iter(sets.values())).latents
        if jax.process_index() == 0:
            decode = run.model.latent_space.make_decode(latents)
            shape = run.model.clip_shape
            held_out = read_held_out(sets, shape, RECONSTRUCTED) if latents else None

    def log_videos(writer: Any, step: int, ema: Any) -> None:
        nonlocal held_out
        sample = run.config.sample
        options = {"frames": sample.shown_frames, "side": sample.shown_side}
        if captions.get("prompts") and jax.process_index() == 0:
            (workdir / "samples").mkdir(exist_ok=True)
            write_captions(workdir / "samples" / "prompts.txt", captions["prompts"])
        for tag, condition in conditions.items():
            videos = generate(ema, condition, list(range(len(jax.tree.leaves(condition)[0]))))
            if decode is not None:
                shown, share = reduce_videos(videos, decode, **options)
                fps = run.config.data.fps * share
                name = None if tag == "prompts" else f"{tag}_{step:08d}"
                write_videos(writer, workdir, step, tag, shown, fps, name, captions.get(tag))
        if decode is None:
            return
        if held_out is not None:
            latent, held_out = held_out["video"].astype(np.float32), None
            shown, share = reduce_videos(latent, decode, **options)
            fps = run.config.data.fps * share
            write_videos(writer, workdir, step, "reconstructions", shown, fps, "reconstructions")

    return log_videos


def read_prompts(
    run: Run, texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> tuple[list[str], Any] | None:
    """The prompts of the samples and their rows; without any in the config, some captions of the data.

    Those of training clips, whose words the model knows; with CLIP those of validation clips, whose embeddings are
    stored, so that its weights need not be here.

    Returns:
      (N captions, rows of a batch); None where there are neither prompts nor captions.
    """
    config = run.config
    prompts = list(config.sample.prompts)
    if not prompts and not texts.stored_length:
        drawn = bucketed_data.draw_captions(config.data.path, CAPTIONS, config.seed)
        prompts = [caption for caption in dict.fromkeys(drawn) if split_words(caption)]
    if prompts:
        return prompts, texts.embed(prompts)
    clips = texts.stored_length and read_held_out(
        sets, run.model.clip_shape, CAPTIONS, texts.stored_length
    )
    if not clips:
        logging.info("No samples: sample.prompts is empty, and the data has no captions for them.")
        return None
    return [caption.decode("utf-8", "replace") for caption in clips["caption"]], texts.read(clips)


def first_frame_condition(
    run: Run, texts: Texts, sets: Mapping[str, pipeline.PackedData]
) -> tuple[list[str], dict[str, Any]] | None:
    """Captions of validation clips, and the condition of these and of their known frames; None without such clips."""
    clips = read_held_out(sets, run.model.clip_shape, CONTINUED, texts.stored_length)
    if clips is None:
        return None
    video = to_float(jnp.asarray(clips["video"]))
    mask = np.zeros(video.shape[:2], bool)
    mask[:, : run.config.known.first] = True
    motion = run.config.sample.motion
    condition = run_sampler.make_condition(run.model, texts.read(clips), motion)
    seeds = list(range(CONTINUED))
    condition |= condition_on_frames(run.model, np.asarray(video), mask, seeds)
    return [caption.decode("utf-8", "replace") for caption in clips["caption"]], condition


def make_log_reconstructions(
    run: Run,
    workdir: Path,
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    generate: None,
) -> Callable[[Any, int, Any], None]:
    """Validation clips beside their reconstructions by the EMA, as one mp4 on disk and on the dashboard."""
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
        sample = run.config.sample
        shown, share = reduce_videos(
            pairs, lambda video: video, sample.shown_frames, sample.shown_side
        )
        fps = run.config.data.fps * share
        write_videos(writer, workdir, step, "reconstructions", shown, fps)

    return log_reconstructions


def reduce_videos(
    videos: np.ndarray, decode: Callable[[np.ndarray], np.ndarray], frames: int, side: int
) -> tuple[np.ndarray, float]:
    """Decodes videos one after the other, and keeps of each what is shown: memory is that of one whole video.

    Args:
      videos: (N, F, H, W, C) as the model makes them.
      decode: (1, F, H, W, C) to pixels, (1, T, H, W, 3) uint8.
      frames: most frames to keep, evenly spaced from the first to the last.
      side: most pixels of the longer side.
    Returns:
      ((N, t, h, w, 3) uint8, kept frames for each one of the video).
    """
    shown, share = [], 1.0
    for i in range(len(videos)):
        video = decode(videos[i : i + 1])[0]
        kept = contact_sheet.choose_frames(len(video), frames)
        share = len(kept) / len(video)
        shown.append(contact_sheet.downscale(video[kept], side))
    return np.stack(shown), share


def write_captions(path: Path, captions: Sequence[str]) -> None:
    """Writes a caption a line, without line ends of its own, as `sample --prompts_file` reads them."""
    lines = [" ".join(caption.split()) for caption in captions]
    atomic_files.write_text(path, "\n".join(lines) + "\n")


def write_videos(
    writer: Any,
    workdir: Path,
    step: int,
    tag: str,
    videos: np.ndarray,
    fps: float,
    name: str | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Writes videos as one mp4 to `workdir`/samples with their captions beside it, and as a GIF on the dashboard.

    Args:
      writer: of `metrics.make_writer`.
      workdir: folder of the run.
      step: optimizer steps taken.
      tag: name on the dashboard, under samples/.
      videos: (N, T, H, W, 3) uint8.
      fps: frames per second.
      name: of the file; by default the step's.
      captions: of the videos, shown above them on the dashboard.
    """
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name or f'step_{step:08d}'}.mp4"
    video_writer.write_video(path, contact_sheet.arrange(videos), fps)
    if captions:
        write_captions(path.with_suffix(".txt"), captions)
    # TensorBoard plays GIFs only.
    gif, size = contact_sheet.animation(videos, fps, COLUMNS, TILE, captions)
    metrics.write_animation(writer, step, f"samples/{tag}", gif, size)
