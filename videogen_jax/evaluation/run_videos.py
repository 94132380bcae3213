"""Videos of a run to score: of its EMA, of its model before training, and reconstructions by its autoencoder."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from videogen_jax.config import is_autoencoder
from videogen_jax.data.vocabulary import split_words
from videogen_jax.evaluation import bounds, clip_sets, label_accuracy, protocol, set_scores
from videogen_jax.evaluation.clip_sets import Clips, Window
from videogen_jax.evaluation.scoring import Videos
from videogen_jax.generate import from_checkpoint
from videogen_jax.run import saved_config


class Run(NamedTuple):
    """Properties of a run's clips, from its config."""

    frames: int
    size: tuple[int, int]  # (height, width)
    fps: float
    data: str  # folder of its data set
    is_autoencoder: bool


class Request(NamedTuple):
    """What to make with a run, and to compare with."""

    workdir: str
    count: int  # N, videos and clips of the reference
    seed: int  # of the first video, and of the captions
    batch_size: int  # videos at a time
    reference: str  # folder of videos, or data set
    split: str  # of a data set
    fps: float | None = None  # to resample a folder to
    step: int | None = None  # of the checkpoint; None: the newest
    ema: str | None = None  # name of the moving average; None: the first
    sampling: dict[str, Any] = {}  # fields of `SamplerSettings` in the place of the config's
    bounds: bool = False  # whether floor and ceiling are made too
    label: re.Pattern | None = None  # that prompts and reference clips should have


def read_run(workdir: Path) -> Run:
    """Reads the properties of a run's clips from its config.

    Raises:
      ValueError, FileNotFoundError: see `saved_config.read_config`.
    """
    config = saved_config.read_config(workdir)
    data = config.data
    size = (data.height, data.width)
    return Run(data.frames, size, data.fps, data.path, is_autoencoder(config))


def make_videos(request: Request, window: Window, run: Run, scratch: Path) -> Videos:
    """Makes videos for captions of training clips, and opens their reference.

    Args:
      request: what to make.
      window: frames of each clip that are evaluated.
      run: of the workdir.
      scratch: folder for the videos.
    Raises:
      ValueError: run, data set and request do not fit; before videos are made.
      OSError: a file cannot be read.
    """
    from videogen_jax.data.bucketed_data import draw_captions  # TensorFlow: seconds

    count = request.count
    seeds = range(request.seed, request.seed + count)
    reference, entries = clip_sets.open_set(
        request.reference, request.split, fps=request.fps, size=run.size
    )
    beside: dict[str, Clips] = {}
    if request.bounds:
        summary, beside = bounds.open_floor(reference, window, count)
    else:
        summary = clip_sets.summarize(reference, window, count)
    set_scores.check_shapes(run.size if window.size is None else window.size, summary.shape)
    prompts = draw_captions(run.data, count, request.seed)
    # A caption without a word, such as "...", trained the model as no caption does.
    prompts = [prompt if split_words(prompt) else "" for prompt in prompts]
    if request.label is not None:
        label_accuracy.check_labels(prompts, summary.captions, request.label)
    model = from_checkpoint.load(
        request.workdir,
        step=request.step,
        ema=request.ema,
        batch_size=min(request.batch_size, count),
    )

    def store(name: str, made_by: from_checkpoint.VideoModel, label: str) -> Clips:
        batches = made_by.iterate(prompts, seeds=seeds, **request.sampling)
        return clip_sets.store_videos(scratch / name, batches, count, run.fps, prompts, label)

    clips = store("made.npy", model, "Making videos")
    if request.bounds:
        beside["ceiling"] = store("untrained.npy", untrain(model), "Making untrained videos")
        if model.latents is not None:
            pairs = reconstruct(model, beside["floor"], window, count, run)
            beside["reconstructions"] = clip_sets.store_videos(
                scratch / "reconstructed.npy", pairs, count, run.fps, label="Reconstructing"
            )
    settings = model.describe(model.choose_settings(count, **request.sampling)) | entries
    settings |= {
        "prompts": "training captions",
        "prompts_and_seeds": protocol.digest(list(zip(prompts, seeds, strict=True))),
        "seed": request.seed,
    }
    return Videos(
        clips,
        settings,
        prompts=prompts,
        reference=reference,
        reference_summary=summary,
        beside=beside,
    )


def untrain(model: from_checkpoint.VideoModel) -> from_checkpoint.VideoModel:
    """The same model before training: random parameters, as its config initializes them; programs are shared."""
    init = jax.jit(model.model.init_params, out_shardings=model.model.param_shardings)
    untrained = copy.copy(model)
    untrained.params = init()
    return untrained


def reconstruct(
    model: from_checkpoint.VideoModel, clips: Clips, window: Window, count: int, run: Run
) -> Iterator[np.ndarray]:
    """Encodes and decodes clips with the autoencoder of a model of latents.

    Args:
      model: of latents.
      clips: set of clips in pixels.
      window: frames of each clip that are evaluated; clips that are too short for it are passed over.
      count: clips to reconstruct.
      run: whose number of frames is reconstructed, from the middle of each clip.
    Yields:
      (1, T, H, W, 3) uint8.
    Raises:
      ValueError: a clip has fewer frames than the run's.
    """
    space = model.model.latent_space
    encode, _, _ = space.make_encode(model.latents)
    decode = space.make_decode(model.latents)
    left_out: list[dict[str, str]] = []
    names = [clip.name for clip, _ in clip_sets.crop_clips(clips, window, count, [])]
    chosen = clip_sets.select_by_name(clips, names)
    for _, frames in clip_sets.crop_clips(
        chosen, Window(run.frames, size=run.size), None, left_out
    ):
        yield decode(encode(frames)[None])
    if left_out:
        raise ValueError(
            f"{left_out[0]['file']} of the reference cannot be reconstructed ({left_out[0]['reason']}): leave out "
            "--bounds, or name a --reference of longer clips."
        )
