"""Autoencoders between video and latents, with one interface.

| name     | weights                             | downsample  | channels | shift and scale            |
| -------- | ----------------------------------- | ----------- | -------- | -------------------------- |
| identity | none                                | (1, 1, 1)   | 3        | 0 and 1                    |
| taef2    | taef2.safetensors                   | (1, 8, 8)   | 32       | 0 and 1                    |
| sd       | diffusers' `AutoencoderKL`          | (1, 8, 8)   | 4 or 16  | config.json, or 0, 0.18215 |
| wan      | diffusers' `AutoencoderKLWan`       | (4, 8, 8)   | 16       | config.json                |
| ltx      | diffusers' `AutoencoderKLLTXVideo`  | (8, 32, 32) | 128      | among the weights          |
| workdir  | a run of launch.py                  | its config  | likewise | 0 and 1                    |

`encode` returns and `decode` takes latents normalized per channel, (latents - shift) * scale. The first three process
frames independently, and so does `workdir` (causal_vae.py) with a temporal kernel of one frame. The others encode the
first frame alone, and no latent depends on later frames: with a stride of 4, 1 + 4k frames become 1 + k latent frames.
"""

import functools
import math
from types import ModuleType
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models import ltx_vae, sd_vae, taef2, wan_vae
from videogen_jax.models.autoencoder_interface import (
    FILE,
    NAMES,
    Autoencoder,
    find_config,
    infer_shapes,
    load_params,
    reject_key,
    with_statistics,
)
from videogen_jax.models.video_autoencoder import Part, make_streamed, make_video_autoencoder
from videogen_jax.models.weights import WeightsError

__all__ = ["NAMES", "Autoencoder", "make_autoencoder", "make_video_autoencoder", "with_statistics"]

DTYPES = ("float32", "bfloat16")
IMAGE_DOWNSAMPLE = (1, 8, 8)


def make_autoencoder(
    name: str, path: str = "", *, dtype: str = "float32", fetch: bool = True
) -> Autoencoder:
    """Makes an autoencoder; its weights are read when `load` is called.

    Args:
      name: one of NAMES.
      path: a safetensors file, a folder, or a name on the Hugging Face hub (hub.py). If empty, the network is that of
        Stable Diffusion 1, Wan 2.1, LTX-Video 0.9 or taef2, and `load` raises; and so it is without config.json.
      dtype: compute type of the convolutions, one of DTYPES. Parameters, group norms and latents are float32.
      fetch: if False, the hub is not asked: what was downloaded before is read, or the network is the same as for an
        empty path, so that shapes are known offline.
    Raises:
      ValueError: the name or dtype is unknown, or the autoencoder is a run's, which run/trained_autoencoder.py reads.
      FileNotFoundError: the path exists neither here nor on the hub.
      WeightsError: config.json describes another network.
    """
    if name not in NAMES:
        raise ValueError(f"Unknown vae.name {name!r}: choose one of {', '.join(NAMES)}.")
    if dtype not in DTYPES:
        raise ValueError(f"Unknown vae.dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    if name == "workdir":
        raise ValueError(
            "The autoencoder 'workdir' is read by run.trained_autoencoder.read_autoencoder."
        )
    if name == "identity":
        return _make_identity()
    if name == "taef2":
        return _make_taef2(path, jnp.dtype(dtype))
    network, make = {
        "sd": (sd_vae, make_sd),
        "wan": (wan_vae, make_wan),
        "ltx": (ltx_vae, make_ltx),
    }[name]
    config = find_config(path, fetch, network.read_config, network.Config())
    try:
        return make(config, path, jnp.dtype(dtype))
    except (einops.EinopsError, TypeError, ZeroDivisionError):  # of arrays that do not fit
        raise WeightsError(
            f"{path}: the sizes in config.json do not fit one another: download it again."
        ) from None


def _make_identity() -> Autoencoder:
    def identity(params: Any, video: jax.Array, key: None = None) -> jax.Array:
        del params
        reject_key("identity", key)
        return video

    return Autoencoder(
        name="identity",
        channels=3,
        downsample=(1, 1, 1),
        shift=np.zeros(3, np.float32),
        scale=np.ones(3, np.float32),
        abstract_params={},
        load=dict,
        encode_raw=identity,
        decode_head=identity,
        decode_tail=identity,
        tile_margin=0,
        tile_blend=0,
    )


def _make_taef2(path: str, dtype: Any) -> Autoencoder:
    encoder, head, tail = (
        module(dtype) for module in (taef2.Encoder, taef2.DecoderHead, taef2.DecoderTail)
    )
    decoder = infer_shapes(head, 1, 8, 8, taef2.CHANNELS) | infer_shapes(tail, 1, 8, 8, taef2.WIDTH)
    abstract_params = {"encoder": infer_shapes(encoder, 1, 8, 8, 3), "decoder": decoder}

    def encode(params: Any, video: jax.Array, key: None = None) -> jax.Array:
        reject_key("taef2", key)
        return _per_frame(encoder, params["encoder"], (video + 1) / 2)

    def decode_tail(params: Any, features: jax.Array) -> jax.Array:
        return 2 * _per_frame(tail, params["decoder"], features) - 1

    return Autoencoder(
        name="taef2",
        channels=taef2.CHANNELS,
        downsample=IMAGE_DOWNSAMPLE,
        shift=np.zeros(taef2.CHANNELS, np.float32),
        scale=np.ones(taef2.CHANNELS, np.float32),
        abstract_params=abstract_params,
        load=functools.partial(
            load_params, "taef2", path, taef2.FILE, abstract_params, taef2.rename_published
        ),
        encode_raw=encode,
        decode_head=lambda params, z: _per_frame(head, params["decoder"], z),
        decode_tail=decode_tail,
        # Receptive field of the tail: 10 pixels at 1/4 of full resolution, 10 at 1/2, 5 at full, thus 8.1 latents.
        tile_margin=9,
        tile_blend=2,
    )


def make_sd(config: sd_vae.Config, path: str, dtype: Any) -> Autoencoder:
    """Makes Stable Diffusion's autoencoder of a config; see `make_autoencoder`."""
    encoder, head, tail = (
        module(config, dtype) for module in (sd_vae.Encoder, sd_vae.DecoderHead, sd_vae.DecoderTail)
    )
    channels, width = config.latent_channels, config.block_out_channels[-1]
    factor = 2 ** (len(config.block_out_channels) - 1)
    decoder = infer_shapes(head, 1, 8, 8, channels) | infer_shapes(tail, 1, 8, 8, width)
    abstract_params = {"encoder": infer_shapes(encoder, 1, factor, factor, 3), "decoder": decoder}
    mix_in, mix_out = nn.Conv(2 * channels, (1, 1)), nn.Conv(channels, (1, 1))  # in float32
    if config.use_quant_conv:
        abstract_params["quant_conv"] = infer_shapes(mix_in, 1, 8, 8, 2 * channels)
    if config.use_post_quant_conv:
        abstract_params["post_quant_conv"] = infer_shapes(mix_out, 1, 8, 8, channels)

    def encode(params: Any, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        moments = _per_frame(encoder, params["encoder"], video).astype(jnp.float32)
        if config.use_quant_conv:
            moments = _per_frame(mix_in, params["quant_conv"], moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)  # (B, T, h, w, C) each
        if key is None:
            return mean
        deviation = jnp.exp(jnp.clip(logvar, *sd_vae.LOGVAR_RANGE) / 2)
        return mean + deviation * jax.random.normal(key, mean.shape)

    def decode_head(params: Any, latents: jax.Array) -> jax.Array:
        if config.use_post_quant_conv:
            latents = _per_frame(mix_out, params["post_quant_conv"], latents)
        return _per_frame(head, params["decoder"], latents)

    shift, scale = sd_vae.normalization(config)
    return Autoencoder(
        name="sd",
        channels=channels,
        downsample=(1, factor, factor),
        shift=shift,
        scale=scale,
        abstract_params=abstract_params,
        load=functools.partial(
            load_params, "sd", path, FILE, abstract_params, sd_vae.rename_legacy
        ),
        encode_raw=encode,
        decode_head=decode_head,
        decode_tail=lambda params, features: _per_frame(tail, params["decoder"], features),
        tile_margin=4,
        tile_blend=8,
    )


def make_wan(config: wan_vae.Config, path: str, dtype: Any) -> Autoencoder:
    """Makes Wan's video autoencoder of a config; see `make_autoencoder`."""
    parts, abstract_params = _make_parts(
        wan_vae, config, dtype, config.z_dim, config.decoder_dims[0]
    )
    return make_streamed(
        "wan",
        *parts,
        channels=config.z_dim,
        downsample=config.downsample,
        shift=config.latents_mean,
        scale=1 / np.asarray(config.latents_std, np.float32),
        abstract_params=abstract_params,
        load=functools.partial(
            load_params, "wan", path, FILE, abstract_params, wan_vae.flatten_gammas
        ),
        tile_margin=config.margin,
    )


def make_ltx(config: ltx_vae.Config, path: str, dtype: Any) -> Autoencoder:
    """Makes LTX's video autoencoder of a config; see `make_autoencoder`."""
    parts, abstract_params = _make_parts(
        ltx_vae, config, dtype, config.latent_channels, config.decoder_block_out_channels[-1]
    )
    return make_streamed(
        "ltx",
        *parts,
        channels=config.latent_channels,
        downsample=config.downsample,
        scale=config.scaling_factor,
        abstract_params=abstract_params,
        load=functools.partial(
            load_params, "ltx", path, FILE, abstract_params, ltx_vae.drop_multiplier
        ),
        tile_margin=math.ceil(config.tail_reach[1]),
        delay=config.delay,
    )


def _per_frame(module: nn.Module, params: Any, video: jax.Array) -> jax.Array:
    frames = einops.rearrange(video, "b t h w c -> (b t) h w c")
    out = module.apply({"params": params}, frames)
    return einops.rearrange(out, "(b t) h w c -> b t h w c", b=video.shape[0])


def _make_parts(
    network: ModuleType, config: Any, dtype: Any, channels: int, width: int
) -> tuple[list[Part], Any]:
    """Encoder, head and tail of wan_vae.py or ltx_vae.py, and the shapes of their parameters.

    Args:
      network: the module.
      config: its `Config`.
      dtype: compute type.
      channels: of latents.
      width: of the features between head and tail.
    """
    classes = (network.Encoder, network.DecoderHead, network.DecoderTail)
    encoder, head, tail = modules = [part(config, dtype) for part in classes]
    abstract_params = (
        infer_shapes(encoder, 1, *config.downsample, 3)
        | infer_shapes(head, 1, 1, 1, 1, channels)
        | infer_shapes(tail, 1, 1, 1, 1, width)
    )
    return [Part(module) for module in modules], abstract_params
