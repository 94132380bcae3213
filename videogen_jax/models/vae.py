"""The autoencoders by name, what they make of a clip, and the way back in chunks of frames.

| name     | frames, rows and columns to one latent | channels | weights                               |
| -------- | -------------------------------------- | -------- | ------------------------------------- |
| identity | 1, 1, 1                                | 3        | none: pixels                          |
| sd       | 1, 8, 8                                | 4        | Stable Diffusion's AutoencoderKL      |
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.models.sd_vae import AutoencoderKL


class Strides(NamedTuple):
    """What an autoencoder makes one latent of."""

    frames: int
    height: int  # pixels
    width: int  # pixels
    channels: int  # of the latent


AUTOENCODERS = {
    "identity": Strides(1, 1, 1, 3),
    "sd": Strides(1, 8, 8, 4),
}


def latent_shape(name: str, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Shape of a clip's latents.

    Args:
      name: one of AUTOENCODERS.
      frames: of the clip.
      height: pixels.
      width: pixels.
    Returns:
      (T, H, W, C).
    Raises:
      ValueError: the name is unknown, or a size does not divide.
    """
    if name not in AUTOENCODERS:
        raise ValueError(f"Unknown vae.name {name!r}: choose one of {', '.join(AUTOENCODERS)}.")
    strides = AUTOENCODERS[name]
    sizes = {"frames": frames, "height": height, "width": width}
    for (what, size), stride in zip(sizes.items(), strides, strict=False):
        if size % stride:
            raise ValueError(
                f"data.{what} is {size}, but the autoencoder {name} makes one latent of {stride}: choose a multiple."
            )
    return (
        frames // strides.frames,
        height // strides.height,
        width // strides.width,
        strides.channels,
    )


class Decoder(NamedTuple):
    """The jitted step from latents to pixels, of a chunk of frames that all devices share."""

    run: Callable[[Any, jax.Array], jax.Array]  # (params, (F, H, W, C) latents) to (F, ...) uint8
    params: Any  # abstract, whole on each device
    chunk: jax.ShapeDtypeStruct  # of the latents


def make_module(name: str, dtype: jnp.dtype) -> AutoencoderKL:
    """The Flax module of an autoencoder.

    Args:
      name: sd.
      dtype: of the convolutions; norms are float32.
    Returns:
      The module.
    Raises:
      ValueError: there is none of this name.
    """
    if name != "sd":
        raise ValueError(f"The autoencoder {name!r} has no network: choose sd.")
    return AutoencoderKL(dtype=dtype)


def make_decoder(
    name: str, mesh: Mesh, shape: tuple[int, int, int, int], frames: int, dtype: jnp.dtype
) -> Decoder:
    """Builds the program that decodes some frames at a time, so that a video is never whole on a device.

    Args:
      name: of the autoencoder, one frame to one latent.
      mesh: whose devices share the frames.
      shape: (T, H, W, C) of the video's latents.
      frames: on each device at a time.
      dtype: of the convolutions.
    Returns:
      The decoder, of chunks of frames * mesh.size.
    """
    module = make_module(name, dtype)
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    strides = AUTOENCODERS[name]
    pixels = jnp.zeros((1, shape[1] * strides.height, shape[2] * strides.width, 3))
    abstract = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]

    def decode(params: Any, latents: jax.Array) -> jax.Array:
        return to_pixels(module.apply({"params": params}, latents, method="decode"))

    return Decoder(
        run=jax.jit(decode, in_shardings=(whole, rows), out_shardings=rows),
        params=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), abstract
        ),
        chunk=jax.ShapeDtypeStruct((frames * mesh.size, *shape[1:]), jnp.float32, sharding=rows),
    )


def decode_chunks(decoder: Decoder, params: Any, latents: np.ndarray) -> Iterator[np.ndarray]:
    """Decodes a video as it goes.

    Args:
      decoder: of `make_decoder`.
      params: of the autoencoder.
      latents: (T, H, W, C), as the autoencoder made them.
    Yields:
      (F, H', W', 3) uint8, T frames in all.
    """
    size = decoder.chunk.shape[0]
    for start in range(0, len(latents), size):
        part = np.asarray(latents[start : start + size], np.float32)
        filled = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
        frames = decoder.run(params, jax.device_put(filled, decoder.chunk.sharding))
        yield jax.device_get(frames)[: len(part)]


def to_pixels(video: jax.Array) -> jax.Array:
    """Float in [-1, 1] to uint8, rounded; values outside are clamped.

    Args:
      video: any shape.
    Returns:
      Same shape, uint8.
    """
    return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)
