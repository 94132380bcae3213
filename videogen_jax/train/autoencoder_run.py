"""The run of a video autoencoder in training: its loss, and what validation measures."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.evaluation.psnr_ssim import psnr
from videogen_jax.models import perceptual
from videogen_jax.run.model import Model
from videogen_jax.train import autoencoder_loss
from videogen_jax.train.loss import Batch, to_float
from videogen_jax.train.training_run import Run, assemble_run

_load_vgg = functools.cache(perceptual.load_vgg)


def make_run(model: Model) -> Run:
    """The run of an autoencoder.

    Raises:
      ValueError: options of loss, optimizer or averages do not go together.
    """
    shape = (*model.clip_shape, 3)
    batch_of = lambda count: {"video": jax.ShapeDtypeStruct((count, *shape), jnp.uint8)}  # noqa: E731
    return assemble_run(model, make_run_loss(model), batch_of)


def make_run_loss(model: Model) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """The config's loss of a batch; reads VGG16's weights where they are named."""
    options, vgg = model.config.perceptual, None
    if options.path and options.weight:
        size = min(model.clip_shape[1:])
        if size < perceptual.LEAST_SIZE:
            raise ValueError(
                f"The clips' side of {size} is below the {perceptual.LEAST_SIZE} pixels that VGG16 needs: "
                "set perceptual.path to ''."
            )
        vgg = jax.device_put(_load_vgg(options.path), NamedSharding(model.mesh, PartitionSpec()))
    return autoencoder_loss.make_loss(
        model.apply,
        kl_weight=model.config.loss.kl_weight,
        distance=model.config.loss.distance,
        perceptual_weight=options.weight,
        perceptual_frames=options.frames,
        vgg=vgg,
    )


def make_measure(run: Run) -> Callable[[Any, Batch, jax.Array], dict[str, jax.Array]]:
    """On a batch of held-out clips: the loss as in training, and the PSNR of decoded means."""

    def measure(params: Any, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        video = to_float(batch["video"])
        made, _, _ = run.model.apply(params, video, None)
        return {
            "loss": run.loss(params, batch, rng),
            "psnr": jnp.mean(psnr(video, jnp.clip(made, -1, 1), span=2)),
        }

    return measure
