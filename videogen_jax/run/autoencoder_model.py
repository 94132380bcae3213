"""The video autoencoder of a run that trains one: the counterpart of model.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.models import causal_vae
from videogen_jax.models.autoencoder import make_video_autoencoder
from videogen_jax.models.chunks import to_pixels
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import sharding
from videogen_jax.run.model import Grid, Model, clip_shape, place_abstract
from videogen_jax.run.state import PARAMETERS, compute_dtype
from videogen_jax.run.trained_autoencoder import make_network


def make_model(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> Model:
    """Builds the autoencoder.

    Args:
      config: complete and valid, as of `config.validate`.
      mesh: to use instead of the config's.
    Returns:
      The model; its `apply` takes (params, video, key or None) to (reconstruction, mean, log variance).
    Raises:
      ValueError: the clip's size does not fit the autoencoder.
    """
    mesh = meshes.make_mesh(**config.mesh) if mesh is None else mesh
    network = make_network(**config.autoencoder)
    latent_grid(config)
    whole = NamedSharding(mesh, PartitionSpec())
    options = {
        "dtype": compute_dtype(config.train.precision),
        "remat": config.memory.remat == "block",
    }
    encoder = causal_vae.Encoder(network, **options)
    decoder = causal_vae.Decoder(network, **options)
    group = network.downsample[0]

    def reconstruct(params: Any, video: jax.Array, key: jax.Array | None) -> tuple[jax.Array, ...]:
        # Each device computes with all parameters, wherever they are kept.
        params = jax.lax.with_sharding_constraint(params, whole)
        video = causal_vae.repeat_first(video, group)
        moments = encoder.apply({"params": params["encoder"]}, video)
        mean, logvar = causal_vae.split_moments(moments)
        latents = mean if key is None else causal_vae.draw_latents(mean, logvar, key)
        made = decoder.apply({"params": params["decoder"]}, latents)
        return made[:, group - 1 :], mean, logvar

    def init_params() -> Any:
        rng = jax.random.fold_in(jax.random.key(config.seed), PARAMETERS)
        return causal_vae.init_params(network, rng)

    rules = sharding.AUTOENCODER_AXES
    abstract_params, param_shardings = place_abstract(mesh, init_params, rules)
    return Model(config, mesh, reconstruct, init_params, abstract_params, param_shardings, rules)


def latent_grid(config: ml_collections.ConfigDict) -> Grid:
    """(T, h, w) of a clip's latents.

    Raises:
      ValueError: the clip's size does not fit the autoencoder.
    """
    network = make_network(**config.autoencoder)
    return _describe(network).latent_shape(*clip_shape(config))[:3]


@functools.cache
def _describe(network: causal_vae.Network) -> Any:
    return make_video_autoencoder(network, load=dict, name="autoencoder")


def reconstruct(model: Model, params: Any, video: jax.Array) -> jax.Array:
    """Encodes clips and decodes the mean of their latents, (B, T, H, W, 3) uint8 to the same."""
    return to_pixels(model.apply(params, video.astype(jnp.float32) / 127.5 - 1, None)[0])


def pair_up(video: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Each clip followed by its reconstruction, (2 B, T, H, W, 3)."""
    return np.stack([video, made], axis=1).reshape(-1, *video.shape[1:])
