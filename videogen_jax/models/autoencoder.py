"""Autoencoders between video and latents, with one interface.

| name     | weights                    | downsample | channels | shift and scale             |
| -------- | -------------------------- | ---------- | -------- | --------------------------- |
| identity | none                       | (1, 1, 1)  | 3        | 0 and 1                     |
| taef2    | taef2.safetensors          | (1, 8, 8)  | 32       | 0 and 1                     |
| sd       | diffusers' `AutoencoderKL` | (1, 8, 8)  | 4 or 16  | config.json, or 0, 0.18215  |
| workdir  | a run of launch.py         | its config | likewise | 0 and 1                     |

`encode` returns and `decode` takes latents normalized per channel, (latents - shift) * scale. The first three process
frames independently, and so does `workdir` (causal_vae.py) with a temporal kernel of one frame. Otherwise it is causal
in time and encodes the first frame alone: with a stride of 4, 1 + 4k frames become 1 + k latent frames.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models import causal_vae, sd_vae, taef2
from videogen_jax.models.hub import find_file
from videogen_jax.models.weights import WeightsError, name_sources, place_tensors, read_tensors

NAMES = ("identity", "taef2", "sd", "workdir")
DTYPES = ("float32", "bfloat16")
IMAGE_DOWNSAMPLE = (1, 8, 8)

Frames = Callable[[Any, jax.Array], jax.Array]  # (params, (N, ...)) to (N, ...)
# (params, state, whole groups of frames, or their latents) to (latents, or frames; state); the first state is None.
Stream = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


class Autoencoder(NamedTuple):
    """An autoencoder; its parameters are read by `load`."""

    name: str
    channels: int  # C, latent channels
    downsample: tuple[int, int, int]  # pixels per latent in (time, height, width)
    shift: np.ndarray  # (C,) float32
    scale: np.ndarray  # (C,) float32
    abstract_params: Any  # tree of jax.ShapeDtypeStruct, float32
    load: Callable[[], Any]  # () to parameters, float32 NumPy
    # Without normalization of the latents:
    encode_raw: Callable[[Any, jax.Array, jax.Array | None], jax.Array]  # (params, video, key)
    decode_head: Frames  # (params, (B, T, h, w, C)) to features (B, T, h, w, D)
    decode_tail: Frames  # (params, features) to video (B, T, H, W, 3), about [-1, 1], not clipped
    tile_margin: int  # latents at a tile's edge where decode_tail differs from the full image
    tile_blend: int  # latents over which neighbouring tiles are blended
    # For autoencoders that are causal in time, else None:
    encode_stream: Stream | None = None
    decode_stream: Stream | None = None

    @property
    def causal(self) -> bool:
        """Whether it is causal in time: the first frame is encoded alone, and long videos are streamed with a state."""
        return self.decode_stream is not None

    def video_frames(self, latents: int) -> int:
        """Number of video frames for a number of latent frames."""
        group = self.downsample[0]
        return 1 + group * (latents - 1) if self.causal else group * latents

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (T, h, w, C) of the latents of a video with `frames` frames of height x width pixels.

        Raises:
          ValueError: a size is not a multiple of `downsample`, or frames are not 1 + 4k if it is causal.
        """
        sizes = {"frames": frames, "height": height, "width": width}
        if self.causal:
            group = self.downsample[0]
            if frames < 1 or frames % group != 1 % group:
                below = max(frames - 1, 0) // group * group + 1
                raise ValueError(
                    f"A video of {frames} frames does not fit the autoencoder {self.name!r}, which encodes the first "
                    f"frame and then every {group} frames as one latent: use {below} or {below + group} frames."
                )
            sizes["frames"] = frames + group - 1
        for (axis, size), factor in zip(sizes.items(), self.downsample, strict=True):
            if size % factor:
                raise ValueError(
                    f"A video's {axis} of {size} is not a multiple of {factor}, as the autoencoder {self.name!r} "
                    f"requires: use {size // factor * factor} or {-(-size // factor) * factor}."
                )
        sizes = zip(sizes.values(), self.downsample, strict=True)
        return (*(size // factor for size, factor in sizes), self.channels)

    def encode(self, params: Any, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes videos.

        Args:
          params: from `load`.
          video: (B, T, H, W, 3) in [-1, 1].
          key: None for the mean of the latents, or a random key to sample them (`sd` and `workdir`).
        Returns:
          (B, T, h, w, C) float32, normalized.
        Raises:
          ValueError: the video does not fit (see `latent_shape`), or a key is given to a deterministic encoder.
        """
        self.latent_shape(*video.shape[1:4])
        return self.normalize(self.encode_raw(params, video, key))

    def normalize(self, latents: jax.Array) -> jax.Array:
        """(latents - shift) * scale for latents (..., C) of the network, float32."""
        return (latents.astype(jnp.float32) - self.shift) * self.scale

    def decode(self, params: Any, latents: jax.Array) -> jax.Array:
        """Decodes latents.

        Args:
          params: from `load`.
          latents: (B, T, h, w, C), normalized.
        Returns:
          (B, T, H, W, 3) float32 in [-1, 1].
        """
        video = self.decode_tail(params, self.decode_features(params, latents))
        return jnp.clip(video.astype(jnp.float32), -1, 1)

    def decode_features(self, params: Any, latents: jax.Array) -> jax.Array:
        """The decoder's head: normalized latents (B, T, h, w, C) to features (B, T, h, w, D)."""
        return self.decode_head(params, self.denormalize(latents))

    def denormalize(self, latents: jax.Array) -> jax.Array:
        """The inverse of `normalize`."""
        return latents.astype(jnp.float32) / self.scale + self.shift


def make_autoencoder(
    name: str, path: str = "", *, dtype: str = "float32", fetch: bool = True
) -> Autoencoder:
    """Makes an autoencoder; its weights are read when `load` is called.

    Args:
      name: one of NAMES.
      path: a safetensors file, a folder, or a name on the Hugging Face hub (hub.py). If empty, the network is Stable
        Diffusion 1's (or taef2's) and `load` raises. Without config.json the network is Stable Diffusion 1's too.
      dtype: compute type of the convolutions, one of DTYPES. Parameters, group norms and latents are float32.
      fetch: if False, assume Stable Diffusion 1's config.json for one on the hub, so that shapes are known offline.
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
    return _make_sd(path, jnp.dtype(dtype), fetch)


def with_statistics(
    autoencoder: Autoencoder, mean: Sequence[float], deviation: Sequence[float]
) -> Autoencoder:
    """The autoencoder with shift and scale replaced, so that the latents of a data set have mean 0 and variance 1.

    Args:
      autoencoder: the autoencoder that encoded the data set.
      mean: (C,), mean of these latents per channel.
      deviation: (C,), their standard deviation.
    """
    shift = autoencoder.shift + np.asarray(mean) / autoencoder.scale
    scale = autoencoder.scale / np.asarray(deviation)
    return autoencoder._replace(shift=shift.astype(np.float32), scale=scale.astype(np.float32))


def make_video_autoencoder(
    network: causal_vae.Network,
    load: Callable[[], Any],
    dtype: str = "float32",
    name: str = "workdir",
) -> Autoencoder:
    """Makes the video autoencoder of causal_vae.py.

    Args:
      network: its sizes.
      load: () to parameters.
      dtype: compute type of the convolutions, one of DTYPES.
      name: name in error messages.
    """
    encoder = causal_vae.Encoder(network, jnp.dtype(dtype))
    decoder = causal_vae.Decoder(network, jnp.dtype(dtype))
    group = network.downsample[0]

    def encode(params: Any, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        moments = encoder.apply(
            {"params": params["encoder"]}, causal_vae.repeat_first(video, group)
        )
        mean, logvar = causal_vae.split_moments(moments)  # (B, T, h, w, C) each
        return mean if key is None else causal_vae.draw_latents(mean, logvar, key)

    def decode(params: Any, latents: jax.Array) -> jax.Array:
        return decoder.apply({"params": params["decoder"]}, latents)[:, group - 1 :]

    def stream(module: nn.Module, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params} | (state or {})
        return module.apply(variables, x, mutable=[causal_vae.STREAM])

    def encode_stream(params: Any, state: Any, video: jax.Array) -> tuple[jax.Array, Any]:
        moments, state = stream(encoder, params["encoder"], state, video)
        return causal_vae.split_moments(moments)[0], state

    def decode_stream(params: Any, state: Any, latents: jax.Array) -> tuple[jax.Array, Any]:
        return stream(decoder, params["decoder"], state, latents)

    init = functools.partial(causal_vae.init_params, network)
    return Autoencoder(
        name=name,
        channels=network.channels,
        downsample=network.downsample,
        shift=np.zeros(network.channels, np.float32),
        scale=np.ones(network.channels, np.float32),
        abstract_params=jax.eval_shape(init, jax.random.key(0)),
        load=load,
        encode_raw=encode,
        # No layer has a global receptive field, so the whole decoder can be tiled.
        decode_head=lambda params, latents: latents,
        decode_tail=decode,
        tile_margin=network.margin,
        tile_blend=1,
        encode_stream=encode_stream if network.causal else None,
        decode_stream=decode_stream if network.causal else None,
    )


def _make_identity() -> Autoencoder:
    def identity(params: Any, video: jax.Array, key: None = None) -> jax.Array:
        del params
        _reject_key("identity", key)
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
    decoder = _shapes(head, taef2.CHANNELS) | _shapes(tail, taef2.WIDTH)
    abstract_params = {"encoder": _shapes(encoder, 3), "decoder": decoder}

    def encode(params: Any, video: jax.Array, key: None = None) -> jax.Array:
        _reject_key("taef2", key)
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
        load=functools.partial(_load, "taef2", path, taef2.FILE, abstract_params),
        encode_raw=encode,
        decode_head=lambda params, z: _per_frame(head, params["decoder"], z),
        decode_tail=decode_tail,
        # Receptive field of the tail: 10 pixels at 1/4 of full resolution, 10 at 1/2, 5 at full, thus 8.1 latents.
        tile_margin=9,
        tile_blend=2,
    )


def _make_sd(path: str, dtype: Any, fetch: bool) -> Autoencoder:
    config = _find_config(path, fetch)
    encoder, head, tail = (
        module(config, dtype) for module in (sd_vae.Encoder, sd_vae.DecoderHead, sd_vae.DecoderTail)
    )
    channels, width = config.latent_channels, config.block_out_channels[-1]
    factor = 2 ** (len(config.block_out_channels) - 1)
    decoder = _shapes(head, channels) | _shapes(tail, width)
    abstract_params = {"encoder": _shapes(encoder, 3, factor), "decoder": decoder}
    mix_in, mix_out = nn.Conv(2 * channels, (1, 1)), nn.Conv(channels, (1, 1))  # in float32
    if config.use_quant_conv:
        abstract_params["quant_conv"] = _shapes(mix_in, 2 * channels)
    if config.use_post_quant_conv:
        abstract_params["post_quant_conv"] = _shapes(mix_out, channels)

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
        load=functools.partial(_load, "sd", path, sd_vae.FILE, abstract_params),
        encode_raw=encode,
        decode_head=decode_head,
        decode_tail=lambda params, features: _per_frame(tail, params["decoder"], features),
        tile_margin=4,
        tile_blend=8,
    )


def _find_config(path: str, fetch: bool) -> sd_vae.Config:
    if not path:
        return sd_vae.Config()
    here = Path(path)
    if here.exists():
        file = (here if here.is_dir() else here.parent) / sd_vae.CONFIG_FILE
        return sd_vae.read_config(file) if file.is_file() else sd_vae.Config()
    if not fetch:
        return sd_vae.Config()
    return sd_vae.read_config(find_file(path, sd_vae.CONFIG_FILE))


def _load(name: str, path: str, file: str, abstract_params: Any) -> Any:
    if not path:
        raise ValueError(
            f"The autoencoder {name!r} has no weights: set vae.path to {file}, its folder or a model on the hub."
        )
    here = Path(path)
    # A folder without this file may hold sharded weights, or a pickle, which is rejected.
    found = here if here.is_dir() and not (here / file).is_file() else find_file(path, file)
    rename = taef2.rename_published if name == "taef2" else sd_vae.rename_legacy
    tensors = rename(read_tensors(found))
    try:
        return place_tensors(
            tensors,
            name_sources(abstract_params),
            abstract_params,
            what=f"the autoencoder {name!r}",
            remedy=f"Set vae.path to weights of that autoencoder ({file}), or choose another vae.name of "
            f"{', '.join(NAMES)}.",
        )
    except WeightsError as error:
        raise WeightsError(f"{found}: {error}") from None


def _reject_key(name: str, key: Any) -> None:
    if key is not None:
        raise ValueError(f"The encoder {name!r} is deterministic: encode without a key.")


def _shapes(module: nn.Module, channels: int, size: int = 8) -> Any:
    frame = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), frame)["params"]


def _per_frame(module: nn.Module, params: Any, video: jax.Array) -> jax.Array:
    frames = einops.rearrange(video, "b t h w c -> (b t) h w c")
    out = module.apply({"params": params}, frames)
    return einops.rearrange(out, "(b t) h w c -> b t h w c", b=video.shape[0])
