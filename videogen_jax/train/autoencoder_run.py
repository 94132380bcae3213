"""A run that trains the video autoencoder: from a config of configs/vae_*.py to the objects of a `model.Run`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.evaluation.psnr_ssim import psnr
from videogen_jax.models import causal_vae, perceptual
from videogen_jax.models.autoencoder import make_causal
from videogen_jax.models.chunks import to_pixels
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import sharding
from videogen_jax.run import model as run_model
from videogen_jax.run.model import Run
from videogen_jax.run.state import compute_dtype
from videogen_jax.run.trained_autoencoder import make_network
from videogen_jax.train import autoencoder_loss
from videogen_jax.train.step import Batch, to_float

REMATS = ("none", "block")


def make_run(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> Run:
    """Builds everything that needs no data.

    Args:
      config: as in configs/vae_*.py.
      mesh: to use instead of the config's.
    Returns:
      The run; its `apply` takes (params, video, key or None) to (reconstruction, mean, log variance).
    Raises:
      ValueError: a name or size in the config does not fit; the sentence names it.
    """
    mesh = meshes.make_mesh(**config.mesh) if mesh is None else mesh
    for axis in ("seq", "tensor"):
        if mesh.shape[axis] > 1:
            raise ValueError(
                f"mesh.{axis} is {mesh.shape[axis]}, but devices cannot share a clip of an autoencoder that trains: "
                "put them on mesh.data or mesh.fsdp."
            )
    if config.memory.remat not in REMATS:
        raise ValueError(
            f"Unknown memory.remat {config.memory.remat!r}: choose one of {', '.join(REMATS)}."
        )
    network = make_network(config.autoencoder)
    latent_grid(config)
    whole = NamedSharding(mesh, PartitionSpec())
    options = {
        "dtype": compute_dtype(config.train.precision),
        "remat": config.memory.remat == "block",
    }
    encoder, decoder = (
        module(network, **options) for module in (causal_vae.Encoder, causal_vae.Decoder)
    )
    group = network.downsample[0]

    def reconstruct(params: Any, video: jax.Array, key: jax.Array | None) -> tuple[jax.Array, ...]:
        # Each device computes with all parameters, wherever they lie.
        params = jax.lax.with_sharding_constraint(params, whole)
        video = causal_vae.repeat_first(video, group)
        moments = encoder.apply({"params": params["encoder"]}, video)
        mean, logvar = causal_vae.split_moments(moments)
        latents = mean if key is None else causal_vae.draw_latents(mean, logvar, key)
        made = decoder.apply({"params": params["decoder"]}, latents)
        return made[:, group - 1 :], mean, logvar

    def init_params() -> Any:
        rng = jax.random.fold_in(jax.random.key(config.seed), 0)
        return causal_vae.init_params(network, rng)

    return run_model.assemble_run(
        config,
        mesh,
        init_params,
        sharding.AUTOENCODER_AXES,
        apply=reconstruct,
        loss=make_run_loss,
        batch=abstract_batch,
    )


def reconstruct(run: Run, params: Any, video: jax.Array) -> jax.Array:
    """What an autoencoder makes of the mean of clips' latents, (B, T, H, W, 3) uint8 to the same."""
    return to_pixels(run.apply(params, to_float(video), None)[0])


def pair_up(video: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Each clip followed by its reconstruction, (2 B, T, H, W, 3)."""
    return np.stack([video, made], axis=1).reshape(-1, *video.shape[1:])


def latent_grid(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(T, h, w) of a clip's latents.

    Raises:
      ValueError: the clip's size does not fit the autoencoder.
    """
    network = make_network(config.autoencoder)
    return _describe(network).latent_shape(*run_model.clip_shape(config))[:3]


@functools.cache
def _describe(network: causal_vae.Network) -> Any:
    return make_causal(network, load=dict, name="autoencoder")


def abstract_batch(config: ml_collections.ConfigDict, count: int) -> Batch:
    """Shapes and types of a batch of `count` clips, as the step takes it."""
    return {"video": jax.ShapeDtypeStruct((count, *run_model.clip_shape(config), 3), jnp.uint8)}


def make_run_loss(run: Run) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """The config's loss of a batch; reads VGG16's weights where they are named."""
    config, vgg = run.config.perceptual, None
    if config.path and config.weight:
        size = min(run.config.data.height, run.config.data.width)
        if size < perceptual.LEAST_SIZE:
            raise ValueError(
                f"The clips' side of {size} is below the {perceptual.LEAST_SIZE} pixels that VGG16 needs: "
                "set perceptual.path to ''."
            )
        vgg = jax.device_put(_load_vgg(config.path), NamedSharding(run.mesh, PartitionSpec()))
    return autoencoder_loss.make_loss(
        run.apply,
        kl_weight=run.config.loss.kl_weight,
        perceptual_weight=config.weight,
        perceptual_frames=config.frames,
        vgg=vgg,
    )


_load_vgg = functools.cache(perceptual.load_vgg)


def check_choices(run: Run) -> None:
    """Refuses a loss or a number of the config that means nothing, before anything is computed.

    Raises:
      ValueError: names it.
    """
    make_run_loss(run)
    run_model.check_snapshots(run.config)


def make_measure(run: Run) -> Callable[[Any, Batch, jax.Array], dict[str, jax.Array]]:
    """What is told of a validation batch: the loss as in training, and the PSNR of what the mean is decoded to."""
    loss = make_run_loss(run)

    def measure(params: Any, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        video = to_float(batch["video"])
        made, _, _ = run.apply(params, video, None)
        return {
            "loss": loss(params, batch, rng),
            "psnr": jnp.mean(psnr(video, jnp.clip(made, -1, 1), span=2)),
        }

    return measure
