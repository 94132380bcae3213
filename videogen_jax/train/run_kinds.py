"""The two kinds of run that share the loop: a diffusion model, and an autoencoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from videogen_jax import config as configs
from videogen_jax.data import pipeline
from videogen_jax.generate import run_rollout, run_sampler
from videogen_jax.generate.generator import Generate, make_generator
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.run import autoencoder_model, model, text_conditioning
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import autoencoder_run, caption_lengths, diffusion_run, log_samples
from videogen_jax.train.training_run import Run


class Kind(NamedTuple):
    """Where a run of a diffusion model and one of an autoencoder differ."""

    make_run: Callable[..., Run]  # (config, mesh, null text), the last two or None
    grid: Callable[..., tuple[int, int, int]]  # config to (T, H, W), by which buckets share work
    open_texts: Callable[..., Texts]  # (config, data)
    read_batch: Callable[..., dict[str, Any]]  # (run, texts, data, clips)
    make_measure: Callable[[Run], Callable[..., dict[str, jax.Array]]]  # validation metrics
    count_flops: Callable[[Run], int | None]  # of a train step, where they are counted
    make_generate: Callable[[Run], Generate | None]  # the sampler of the config
    # (run, workdir, texts, sets, generate)
    make_log_samples: Callable[..., Callable[[Any, int, Any], None]]


def read_batch(
    run: Run, texts: Texts, data: pipeline.PackedData, clips: pipeline.Clips
) -> dict[str, Any]:
    """A batch of a diffusion model: pixels or latents, captions and micro-conditions."""
    scores = np.searchsorted(data.motion_score_buckets, clips["motion_score"], side="right")
    micro = {"fps": clips["fps"], "motion": scores.astype(np.float32)}
    micro = {name: micro[name] for name in run.model.conditioning.batch_conditions}
    return {"video": clips["video"], "text": texts.read(clips)} | micro


def open_texts(config: ml_collections.ConfigDict, data: pipeline.PackedData) -> Texts:
    """The captions of a run, see `text_conditioning.open_texts`; warns of those that are cut."""
    texts = text_conditioning.open_texts(config.text, data)
    caption_lengths.warn_of_cut_captions(config.text.encoder, config.text.length, data)
    return texts


def _make_generate(run: Run) -> Generate:
    if run.config.tasks.prefix:
        run_rollout.plan_rollout(run.model)  # raises where long videos could not be sampled
    settings = SamplerSettings(**run.model.sampling)
    return make_generator(run_sampler.make_run_programs(run.model, settings))


DIFFUSION = Kind(
    make_run=lambda config, *rest: diffusion_run.make_run(model.make_model(config, *rest)),
    grid=model.token_grid,
    open_texts=open_texts,
    read_batch=read_batch,
    make_measure=diffusion_run.make_measure,
    count_flops=diffusion_run.count_step_flops,
    make_generate=_make_generate,
    make_log_samples=log_samples.make_log_videos,
)
AUTOENCODER = Kind(
    make_run=lambda config, mesh=None, null_text=None: autoencoder_run.make_run(
        autoencoder_model.make_model(config, mesh)
    ),
    grid=autoencoder_model.latent_grid,
    open_texts=lambda config, data: text_conditioning.NONE,
    read_batch=lambda run, texts, data, clips: {"video": clips["video"]},
    make_measure=autoencoder_run.make_measure,
    count_flops=lambda run: None,
    make_generate=lambda run: None,
    make_log_samples=log_samples.make_log_reconstructions,
)


def find_kind(config: ml_collections.ConfigDict) -> Kind:
    """The kind of run that a config describes."""
    return AUTOENCODER if configs.is_autoencoder(config) else DIFFUSION
