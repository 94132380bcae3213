"""The run of a diffusion model in training: its losses, and what a step of it costs."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from videogen_jax.models.flops import TRAIN_FACTOR, count_flops
from videogen_jax.parallel.communication import min_sent_bytes
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run.model import Model, abstract_batch
from videogen_jax.run.state import compute_dtype
from videogen_jax.train.loss import (
    ClipLosses,
    make_clip_losses,
    make_loss,
    make_loss_by_noise_level,
)
from videogen_jax.train.training_run import Run, assemble_run

KERNEL = re.compile("blocks/.*/kernel")
NOISE_LEVELS = 8  # at which validation measures the loss


def make_run(model: Model) -> Run:
    """The run of a diffusion model.

    Raises:
      ValueError: options of objective, optimizer or averages do not go together.
    """
    batch_of = functools.partial(abstract_batch, model)
    return assemble_run(model, make_run_loss(model), batch_of)


def make_run_clip_losses(model: Model) -> ClipLosses:
    """The config's loss of each clip at a given time."""
    chosen = model.config.objective
    return make_clip_losses(
        model.apply,
        model.schedule,
        model.conditioning.tasks,
        prediction=chosen.prediction,
        weighting=chosen.weighting,
        gamma=chosen.gamma,
    )


def make_run_loss(model: Model, dropout: bool = True) -> Callable[..., jax.Array]:
    """The config's loss of a batch; without `dropout`, no caption and no known frame is dropped."""
    config, chosen = model.config, model.config.objective
    return make_loss(
        make_run_clip_losses(model),
        model.schedule,
        model.null_text,
        time_distribution=chosen.time_distribution,
        time_mean=chosen.time_mean,
        time_std=chosen.time_std,
        stratified=chosen.stratified,
        text_dropout=config.text.dropout * dropout,
        known_dropout=config.known.dropout * dropout,
        joint_dropout=config.known.joint_dropout * dropout,
    )


def make_measure(run: Run) -> Callable[[Any, Any, jax.Array], dict[str, jax.Array]]:
    """The loss on a batch of held-out clips: as in training without dropout, and at each noise level."""
    model = run.model
    loss = make_run_loss(model, dropout=False)
    by_level = make_loss_by_noise_level(make_run_clip_losses(model), model.schedule, NOISE_LEVELS)
    return lambda params, batch, rng: {
        "loss": loss(params, batch, rng),
        "loss_by_noise_level": by_level(params, batch, rng),
    }


def forward_flops(model: Model) -> int:
    """FLOPs of the model's forward pass over one clip."""
    options, channels = model.config.model, model.video_shape[-1]
    places = math.prod(options.patch_size)
    return count_flops(
        model.token_grid,
        width=options.width,
        depth=options.depth,
        mlp_ratio=options.mlp_ratio,
        attention=options.attention,
        causal=options.causal,
        cross_attention=options.cross_attention,
        patch_in=places * model.conditioning.input_channels(channels),
        patch_out=places * channels,
        text_tokens=model.config.text.length,
        text_depth=options.text_depth,
        patch_places=math.prod(options.patch_size[1:]),
        detailer_width=options.detailer_width,
        detailer_blocks=options.detailer_blocks,
    )


def count_step_flops(run: Run) -> int:
    """FLOPs of the model in a train step, over all devices; see models/flops.py.

    The products for the gradients of kernels, a third, count by the share of the blocks' kernels that are trained.
    """
    factor = TRAIN_FACTOR - 1 + share_trained(run)
    return round(factor * forward_flops(run.model) * run.config.batch_size)


def share_trained(run: Run) -> float:
    """The share of the blocks' kernels that has a gradient; LoRA's factors are not counted."""

    def count(tree: Any) -> int:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return sum(leaf.size for path, leaf in leaves if KERNEL.fullmatch(path_name(path)))

    return count(run.abstract.params) / count(run.model.abstract_params)


def least_step_wire(run: Run) -> int:
    """The fewest bytes that a device must send in a train step."""
    config, options = run.config, run.config.model
    reads = {"none": 0, "gated": options.depth, "pixart": options.depth}[options.cross_attention]
    if options.cross_attention == "pixart" and options.attention == "factorized":
        reads //= 2  # spatial blocks only
    item_bytes = jnp.dtype(compute_dtype(config.train.precision)).itemsize
    return min_sent_bytes(
        run.abstract.params,
        run.mesh.shape,
        frozen=run.abstract.frozen,
        tokens=config.batch_size * math.prod(run.model.token_grid),
        width=options.width,
        depth=options.depth,
        attention=options.attention,
        branches=2 * options.depth + reads,
        item_bytes=item_bytes,
        residual_bytes=item_bytes if options.residual_dtype == "compute" else 4,
        accumulation=config.train.accumulation,
    )
