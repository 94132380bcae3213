"""Encoding and decoding in chunks of frames, spread over all devices of a mesh: the video stays on the host.

One program for all chunks; parameters on every device whole. What it needs of a device does not grow with the video.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.models.tiling import check_tile, decode_in_tiles
from videogen_jax.models.vae import Autoencoder


class ChunkProgram(NamedTuple):
    """A compiled-once function of one chunk, which is also called with less than a chunk."""

    program: Callable[
        [Any, jax.Array], jax.Array
    ]  # jitted: (params, chunk) to chunk, whole on every device
    abstract_args: tuple[Any, jax.ShapeDtypeStruct]  # with shardings, to compile without data

    @property
    def frames(self) -> int:
        """Frames of a chunk."""
        return self.abstract_args[1].shape[0]

    def put_params(self, params: Any) -> Any:
        """Lays parameters on all devices.

        Args:
          params: of `Autoencoder.load`.
        Returns:
          The same, on the devices.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_args[0])
        return jax.device_put(params, shardings)

    def __call__(self, params: Any, frames: Any) -> np.ndarray:
        """Computes up to a chunk.

        Args:
          params: of `put_params`.
          frames: (n, ...), n at most `frames`.
        Returns:
          (n, ...).
        """
        return np.asarray(self._dispatch(params, frames))[: len(frames)]

    def stream(self, params: Any, frames: Any) -> Iterator[np.ndarray]:
        """Computes any number of frames, a chunk ahead of what is asked for.

        Args:
          params: of `Autoencoder.load`, or of `put_params`.
          frames: (N, ...), those of one video or of several behind each other.
        Yields:
          (n, ...) in order, `frames` at a time and at last what is left.
        """
        params = self.put_params(params)
        ahead = None
        for start in range(0, len(frames), self.frames):
            part = frames[start : start + self.frames]
            now = self._dispatch(params, part), len(part)
            if ahead:
                yield np.asarray(ahead[0])[: ahead[1]]
            ahead = now
        if ahead:
            yield np.asarray(ahead[0])[: ahead[1]]

    def _dispatch(self, params: Any, frames: Any) -> jax.Array:
        expected = self.abstract_args[1]
        frames = np.asarray(frames, expected.dtype)
        if frames.shape[1:] != expected.shape[1:] or not 0 < len(frames) <= self.frames:
            raise ValueError(
                f"Frames of shape {frames.shape} do not fit this program of {expected.shape}: make one for their size."
            )
        index = np.minimum(np.arange(self.frames), len(frames) - 1)  # fills the last chunk up
        return self.program(params, jax.device_put(frames[index], expected.sharding))


def make_decoder(
    autoencoder: Autoencoder,
    mesh: Mesh,
    frames_per_chunk: int,
    size: tuple[int, int],
    tile: int = 0,
) -> ChunkProgram:
    """Makes the program that decodes a chunk.

    Args:
      autoencoder: of `vae.make_autoencoder`.
      mesh: whose devices share the frames.
      frames_per_chunk: at a time over all devices; rounded up to a multiple of them.
      size: (height, width) of the latents.
      tile: see `tiling.decode_in_tiles`.
    Returns:
      (params, (F, h, w, C) normalised latents, float32) to (F, H, W, 3) uint8.
    Raises:
      ValueError: the tile is no larger than its overlap.
    """
    check_tile(autoencoder, tile)

    def decode(params: Any, latents: jax.Array) -> jax.Array:
        return to_pixels(decode_in_tiles(autoencoder, params, latents[None], tile)[0])

    shape = (*size, autoencoder.channels)
    return _make_program(decode, autoencoder, mesh, frames_per_chunk, shape, jnp.float32)


def make_encoder(
    autoencoder: Autoencoder, mesh: Mesh, frames_per_chunk: int, size: tuple[int, int]
) -> ChunkProgram:
    """Makes the program that encodes a chunk, to the latents' mean.

    Args:
      autoencoder: of `vae.make_autoencoder`.
      mesh: whose devices share the frames.
      frames_per_chunk: at a time over all devices; rounded up to a multiple of them.
      size: (height, width) of the frames.
    Returns:
      (params, (F, H, W, 3) uint8) to (F, h, w, C) float32, normalised.
    """

    def encode(params: Any, frames: jax.Array) -> jax.Array:
        video = frames.astype(jnp.float32) / 127.5 - 1
        return autoencoder.encode(params, video[None])[0]

    return _make_program(encode, autoencoder, mesh, frames_per_chunk, (*size, 3), jnp.uint8)


def decode_chunks(decoder: ChunkProgram, params: Any, latents: Any) -> Iterator[np.ndarray]:
    """Decodes videos of any length; neither they nor their latents are whole on a device.

    Args:
      decoder: of `make_decoder`.
      params: of `Autoencoder.load`, or of `ChunkProgram.put_params`.
      latents: (B, T, h, w, C) or (T, h, w, C), normalised.
    Yields:
      (n, H, W, 3) uint8, the frames of the first video, then of the next; a chunk may hold the seam.
    """
    latents = jax.device_get(latents)
    yield from decoder.stream(params, latents.reshape(-1, *latents.shape[-3:]))


def encode_chunks(encoder: ChunkProgram, params: Any, frames: Any) -> Iterator[np.ndarray]:
    """Encodes videos of any length.

    Args:
      encoder: of `make_encoder`.
      params: of `Autoencoder.load`, or of `ChunkProgram.put_params`.
      frames: (B, T, H, W, 3) or (T, H, W, 3) uint8.
    Yields:
      (n, h, w, C) float32 normalised latents, those of the first video, then of the next.
    """
    yield from encoder.stream(params, frames.reshape(-1, *frames.shape[-3:]))


def to_pixels(video: jax.Array) -> jax.Array:
    """Float in [-1, 1] to uint8, rounded; values outside are clamped.

    Args:
      video: any shape.
    Returns:
      Same shape, uint8.
    """
    return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _make_program(
    function: Callable[[Any, jax.Array], jax.Array],
    autoencoder: Autoencoder,
    mesh: Mesh,
    frames: int,
    shape: tuple[int, ...],
    dtype: Any,
) -> ChunkProgram:
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    whole = NamedSharding(mesh, PartitionSpec())
    frames = -(-frames // mesh.size) * mesh.size
    program = jax.jit(function, in_shardings=(whole, spread), out_shardings=whole)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        autoencoder.abstract_params,
    )
    chunk = jax.ShapeDtypeStruct((frames, *shape), dtype, sharding=spread)
    return ChunkProgram(program, (params, chunk))
