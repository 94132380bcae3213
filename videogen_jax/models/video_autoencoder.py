"""Makes an `Autoencoder` of networks that encode a video's first frame alone and stream the rest with a state."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models import causal_vae
from videogen_jax.models.autoencoder_interface import Autoencoder
from videogen_jax.models.video_convolutions import STREAM


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
      dtype: compute type of the convolutions, one of `autoencoder.DTYPES`.
      name: name in error messages.
    """
    made = make_streamed(
        name,
        encoder=Part(causal_vae.Encoder(network, jnp.dtype(dtype)), "encoder"),
        # No layer has a global receptive field, so the whole decoder can be tiled.
        head=None,
        tail=Part(causal_vae.Decoder(network, jnp.dtype(dtype)), "decoder"),
        channels=network.channels,
        downsample=network.downsample,
        abstract_params=jax.eval_shape(
            lambda key: causal_vae.init_params(network, key), jax.random.key(0)
        ),
        load=load,
        tile_margin=network.margin,
    )
    if network.causal:
        return made
    return made._replace(encode_stream=None, head_stream=None, tail_stream=None)


class Part:
    """A network with the part of an autoencoder's parameters that is its own."""

    def __init__(self, module: nn.Module, name: str = "") -> None:
        """`name` is that of the branch of the parameters; empty for the whole tree."""
        self.module, self.name = module, name

    def __call__(self, params: Any, x: jax.Array) -> jax.Array:
        """The output for a whole video."""
        return self.module.apply(self._variables(params), x)

    def stream(self, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        """The output for the next chunk, and the state behind it; the first state is None."""
        variables = self._variables(params) | (state or {})
        return self.module.apply(variables, x, mutable=[STREAM])

    def _variables(self, params: Any) -> dict[str, Any]:
        return {"params": params[self.name] if self.name else params}


def make_streamed(
    name: str,
    encoder: Part,
    head: Part | None,
    tail: Part,
    *,
    channels: int,
    downsample: tuple[int, int, int],
    abstract_params: Any,
    load: Callable[[], Any],
    tile_margin: int,
    shift: Any = 0.0,
    scale: Any = 1.0,
    delay: int = 0,
) -> Autoencoder:
    """Makes an autoencoder of three networks.

    Args:
      name: in error messages.
      encoder: from whole groups of frames to moments (B, T, h, w, 2 C), see `causal_vae.split_moments`; the first group
        of a video is its first frame, repeated.
      head: from latents to features; None if features are the latents.
      tail: from features to whole groups of frames, of which the last of the first group counts.
      channels: C.
      downsample: pixels per latent in (time, height, width).
      abstract_params: shapes.
      load: () to parameters.
      tile_margin: see `Autoencoder`.
      shift: of the normalization, a number or (C,).
      scale: likewise.
      delay: see `Autoencoder`.
    """
    group = downsample[0]

    def encode(params: Any, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        moments = encoder(params, causal_vae.repeat_first(video, group))
        mean, logvar = causal_vae.split_moments(moments)  # (B, T, h, w, C) each
        return mean if key is None else causal_vae.draw_latents(mean, logvar, key)

    def encode_stream(params: Any, state: Any, video: jax.Array) -> tuple[jax.Array, Any]:
        moments, state = encoder.stream(params, state, video)
        return causal_vae.split_moments(moments)[0], state

    return Autoencoder(
        name=name,
        channels=channels,
        downsample=downsample,
        shift=np.broadcast_to(np.asarray(shift, np.float32), (channels,)),
        scale=np.broadcast_to(np.asarray(scale, np.float32), (channels,)),
        abstract_params=abstract_params,
        load=load,
        encode_raw=encode,
        decode_head=head or (lambda params, latents: latents),
        decode_tail=lambda params, features: tail(params, features)[:, group - 1 :],
        tile_margin=tile_margin,
        tile_blend=1,
        encode_stream=encode_stream,
        head_stream=head.stream if head else (lambda params, state, latents: (latents, None)),
        tail_stream=tail.stream,
        delay=delay,
    )
