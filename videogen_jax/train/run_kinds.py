"""The two kinds of run that share the loop: a diffusion model, and an autoencoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from videogen_jax.data import pipeline
from videogen_jax.generate import run_rollout, run_sampler
from videogen_jax.run import conditioning, text_conditioning
from videogen_jax.run import model as run_model
from videogen_jax.run.model import Run
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train import autoencoder_run, checks, device_use, log_samples

NOISE_LEVELS = 8  # at which validation tells the loss of a diffusion model


class Kind(NamedTuple):
    """What a run of a diffusion model and one of an autoencoder have not in common."""

    make_run: Callable[..., Run]  # (config, mesh, null text), the last two or None
    check_choices: Callable[[Run], None]
    grid: Callable[
        ..., tuple[int, int, int]
    ]  # config to (T, H, W), by which buckets share the work
    open_texts: Callable[..., Texts]  # (config, data)
    read_batch: Callable[..., dict[str, Any]]  # (run, texts, data, clips)
    make_measure: Callable[[Run], Callable[..., dict[str, jax.Array]]]  # what validation tells
    count_flops: Callable[..., int | None]  # (config) to a train step's, where they are counted
    make_show: Callable[..., Callable[[Any, int, Any], None]]  # (run, workdir, texts, sets)


def read_batch(
    run: Run, own_texts: Texts, data: pipeline.PackedData, clips: pipeline.Clips
) -> dict[str, Any]:
    """What a diffusion model takes of clips: pixels or latents, texts and micro-conditions."""
    scores = np.searchsorted(data.motion_score_buckets, clips["motion_score"], side="right")
    micro = {"fps": clips["fps"], "motion": scores.astype(np.float32)}
    micro = {name: micro[name] for name in conditioning.batch_conditions(run.config)}
    return {"video": clips["video"], "text": own_texts.read(clips)} | micro


def make_measure(run: Run) -> Callable[[Any, Any, jax.Array], dict[str, jax.Array]]:
    """The loss of a diffusion model on a batch of validation clips: as in training, and at each noise level."""
    loss = run_model.make_run_loss(run, drops=False)
    by_noise_level = run_model.make_run_level_losses(run, NOISE_LEVELS)
    return lambda params, batch, rng: {
        "loss": loss(params, batch, rng),
        "loss_by_noise_level": by_noise_level(params, batch, rng),
    }


def check_choices(run: Run) -> None:
    """Refuses an objective, a sampler or a long video that means nothing, before anything is computed.

    Raises:
      ValueError: names it.
    """
    run_sampler.check_choices(run)
    if run.config.tasks.prefix:
        run_rollout.plan_rollout(run.config)
    if run.config.evaluation.fvd_every and not run.config.tasks.text:
        raise ValueError(
            "evaluation.fvd_every judges videos made from text alone, which this run never learns (tasks.text=0): set "
            "it to 0."
        )


DIFFUSION = Kind(
    make_run=run_model.make_run,
    check_choices=check_choices,
    grid=run_model.token_grid,
    open_texts=text_conditioning.open_texts,
    read_batch=read_batch,
    make_measure=make_measure,
    count_flops=device_use.count_step_flops,
    make_show=log_samples.make_show_samples,
)
AUTOENCODER = Kind(
    make_run=lambda config, mesh=None, null_text=None: autoencoder_run.make_run(config, mesh),
    check_choices=autoencoder_run.check_choices,
    grid=autoencoder_run.latent_grid,
    open_texts=lambda config, data: text_conditioning.NONE,
    read_batch=lambda run, own_texts, data, clips: {"video": clips["video"]},
    make_measure=autoencoder_run.make_measure,
    count_flops=lambda config: None,
    make_show=log_samples.make_show_reconstructions,
)


def find_kind(config: ml_collections.ConfigDict) -> Kind:
    """What a config describes."""
    return AUTOENCODER if checks.is_autoencoder(config) else DIFFUSION
