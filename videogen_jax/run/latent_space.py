"""Between the pixels of a clip and what the model of a run sees: the run's autoencoder, its weights and programs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.models.autoencoder import Autoencoder, make_autoencoder, with_statistics
from videogen_jax.models.chunks import (
    ChunkProgram,
    decode_arriving,
    decode_videos,
    encode_chunks,
    make_decoder,
    make_encoder,
)
from videogen_jax.models.weights import hash_params
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run.trained_autoencoder import read_autoencoder

PIXELS = "identity"  # vae.name of a model of pixels

_make_autoencoder = functools.cache(make_autoencoder)  # its shapes take a second to infer


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """The autoencoder of a run, its weights not read."""

    name: str
    path: str  # of its weights
    dtype: str  # that it decodes in
    encode_dtype: str  # that it encodes in
    size: tuple[int, int]  # (H, W) of a frame in pixels
    chunk_frames: int  # frames at a time on each device
    tile: int  # side of the tiles that frames are decoded in, in latents; 0: whole

    @property
    def pixels(self) -> bool:
        """Whether the model sees pixels, and there is no autoencoder."""
        return self.name == PIXELS

    def encoding(self) -> "LatentSpace":
        """The same autoencoder, computing in the type that it encodes in."""
        return dataclasses.replace(self, dtype=self.encode_dtype)

    def describe(self, fetch: bool = False) -> Autoencoder:
        """The autoencoder.

        Args:
          fetch: see `autoencoder.make_autoencoder`; True where weights are wanted.
        Returns:
          The autoencoder, its weights not read.
        Raises:
          ValueError: the autoencoder is unknown, or `path` is no run of one.
          FileNotFoundError: there is nothing at `path`.
        """
        if self.name == "workdir":
            return read_autoencoder(self.path, self.dtype)
        return _make_autoencoder(self.name, self.path, dtype=self.dtype, fetch=fetch)

    def latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        """(T, h, w, C) of so many frames as the model sees them.

        Raises:
          ValueError: the autoencoder's strides do not divide the clip.
        """
        return self.describe().latent_shape(frames, *self.size)

    def load(self, latents: LatentInfo) -> tuple[Autoencoder, Any]:
        """The autoencoder of a data set's latents, which it brings to mean 0 and deviation 1.

        Args:
          latents: of the data set.
        Returns:
          (autoencoder, its parameters on the host).
        Raises:
          ValueError: the weights are others than those that encoded the data set.
          FileNotFoundError: they are not there.
        """
        autoencoder = self.describe(fetch=True)
        params = autoencoder.load()
        if hash_params(params) != latents.weights:
            raise ValueError(
                f"The weights of vae.path={self.path!r} are not those that encoded the data set: "
                "name the same ones, or encode it again."
            )
        return with_statistics(autoencoder, latents.mean, latents.deviation), params

    def make_decoder(
        self, mesh: Mesh, autoencoder: Autoencoder | None = None, frames: int | None = None
    ) -> ChunkProgram:
        """The program from latents to pixels.

        Args:
          mesh: to decode on.
          autoencoder: of `load`; by default without the data set's statistics.
          frames: of the video in a chunk; by default `chunk_frames` for each device.
        Returns:
          The program.
        """
        autoencoder = self.describe() if autoencoder is None else autoencoder
        frames = self.chunk_frames * mesh.size if frames is None else frames
        size = autoencoder.latent_shape(autoencoder.video_frames(1), *self.size)[1:3]
        return make_decoder(autoencoder, mesh, frames, size, self.tile)

    def load_decoder(
        self, latents: LatentInfo, latent_frames: int | None = None
    ) -> tuple[ChunkProgram, Any]:
        """The decoder on this process's devices, and its weights there.

        Args:
          latents: of the data set.
          latent_frames: of a chunk; by default those of `chunk_frames` for each device.
        Returns:
          (decoder, parameters).
        Raises:
          ValueError: as of `load`.
          FileNotFoundError: likewise.
        """
        autoencoder, params = self.load(latents)
        frames = None if latent_frames is None else latent_frames * autoencoder.downsample[0]
        decoder = self.make_decoder(_local_mesh(), autoencoder, frames)
        return decoder, decoder.put_params(params)

    def make_decode(self, latents: LatentInfo | None) -> Callable[[np.ndarray], np.ndarray]:
        """From what the sampler makes to pixels; reads the autoencoder's weights.

        Args:
          latents: of the data set; None for pixels.
        Returns:
          (N, T, h, w, C) of mean 0 and deviation 1, or pixels, to (N, T, H, W, 3) uint8.
        Raises:
          ValueError: as of `load`.
          FileNotFoundError: likewise.
        """
        if latents is None:
            return lambda videos: videos
        return functools.partial(decode_videos, *self.load_decoder(latents))

    def make_decode_arriving(
        self, latents: LatentInfo | None, frames: int
    ) -> Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]:
        """From chunks of latents to chunks of pixels; reads the autoencoder's weights, once for all videos.

        Args:
          latents: of the data set; None for pixels.
          frames: a number of latent frames that divides those of every chunk.
        Returns:
          A function from the chunks of B videos in order, (B, n, h, w, C), to (B, m, H, W, 3) uint8, which may lag.
        Raises:
          ValueError: as of `load`.
          FileNotFoundError: likewise.
        """
        if latents is None:
            return lambda chunks: chunks
        autoencoder = self.describe()
        if not autoencoder.causal:
            chunk = None
        else:  # at most `chunk_frames` at a time
            chunk = math.gcd(frames, max(1, self.chunk_frames // autoencoder.downsample[0]))
        decoder, params = self.load_decoder(latents, chunk)
        return lambda chunks: decode_arriving(decoder, params, chunks)

    def make_encode(self, latents: LatentInfo | None) -> tuple[Callable, int, bool]:
        """From single frames or whole clips in pixels to what the model sees; reads the autoencoder's weights.

        Args:
          latents: of the data set; None for pixels.
        Returns:
          ((n, H, W, 3) uint8 to (t, h, w, C) float32, frames of a latent frame, whether the autoencoder is causal).
        """
        if latents is None:
            return lambda pixels: pixels.astype(np.float32) / 127.5 - 1, 1, False
        autoencoder, params = self.encoding().load(latents)
        mesh = _local_mesh()
        encoder = make_encoder(autoencoder, mesh, self.chunk_frames * mesh.size, self.size)
        params = encoder.put_params(params)
        encode = lambda pixels: np.concatenate(list(encode_chunks(encoder, params, pixels)))  # noqa: E731
        return encode, autoencoder.downsample[0], autoencoder.causal


def _local_mesh() -> Mesh:
    """All devices of this process, as parts of a batch."""
    devices = jax.local_devices()
    return meshes.make_mesh(data=len(devices), devices=devices)
