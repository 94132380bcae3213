"""Encoding and decoding in chunks of frames, spread over all devices of a mesh: the video stays on the host.

One program for all chunks; parameters on every device whole. What it needs of a device does not grow with the video.
Autoencoders of single frames share the frames of a chunk among the devices, which exchange nothing. A causal one shares
rows (or columns) of all frames, whose edges neighbours exchange, and hands its state from chunk to chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.models.autoencoder import Autoencoder
from videogen_jax.models.tiling import check_tile, decode_in_tiles


class ChunkProgram(NamedTuple):
    """A compiled-once function of one chunk, which is also called with less than a chunk.

    Frames here are what goes in: of a video, or of its latents. An autoencoder that is causal in time hands a state
    from chunk to chunk of one video; for others the state is None, and a chunk may hold frames of several videos.
    """

    # jitted: (params, state, chunk) to (chunk, state); the chunk whole on every device
    program: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    abstract_args: tuple[Any, Any, jax.ShapeDtypeStruct]  # with shardings, to compile without data
    start: Callable[[], Any] = lambda: None  # () to the state before a video
    group: tuple[int, int] = (1, 1)  # frames in, and what comes out for them
    repeats: int = 0  # how often a video's first frame goes in before it
    drops: int = 0  # what comes out first of a video and is not of it

    @property
    def frames(self) -> int:
        """Frames of a chunk."""
        return self.abstract_args[2].shape[0]

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
        """Computes a video of up to a chunk.

        Args:
          params: of `put_params`.
          frames: (n, ...), n at most `frames` less `repeats`.
        Returns:
          (m, ...).
        Raises:
          ValueError: the frames do not fit.
        """
        self._check(frames, self.frames - self.repeats)
        return next(self.stream(params, np.asarray(frames)[None]))

    def stream(self, params: Any, videos: Any) -> Iterator[np.ndarray]:
        """Computes videos of any length, a chunk ahead of what is asked for.

        Args:
          params: of `Autoencoder.load`, or of `put_params`.
          videos: (B, T, ...).
        Yields:
          (n, ...) in order: those of the first video, then of the next, a chunk at a time and at last what is left.
        """
        params = self.put_params(params)
        if self.abstract_args[1] is None:
            videos = videos.reshape(1, -1, *videos.shape[2:])
        ahead = None
        for now in self._dispatch(params, videos):
            if ahead:
                yield np.asarray(ahead[0])[ahead[1]]
            ahead = now
        if ahead:
            yield np.asarray(ahead[0])[ahead[1]]

    def _dispatch(self, params: Any, videos: Any) -> Iterator[tuple[jax.Array, slice]]:
        """Chunks under way, and the part of each that is wanted."""
        expected = self.abstract_args[2]
        for video in videos:
            self._check(video)
            state, length = self.start(), len(video) + self.repeats
            for first in range(0, length, self.frames):
                end = min(first + self.frames, length)
                index = np.minimum(
                    np.arange(first, first + self.frames), end - 1
                )  # fills the last chunk up
                chunk = np.asarray(video[np.maximum(index - self.repeats, 0)], expected.dtype)
                out, state = self.program(params, state, jax.device_put(chunk, expected.sharding))
                frames_in, frames_out = self.group
                start = 0 if first else self.drops
                yield out, slice(start, (end - first) * frames_out // frames_in)

    def _check(self, frames: Any, most: float = np.inf) -> None:
        expected = self.abstract_args[2].shape
        count = len(frames) + self.repeats
        if frames.shape[1:] != expected[1:] or not 0 < len(frames) <= most or count % self.group[0]:
            raise ValueError(
                f"Frames of shape {frames.shape} do not fit this program of {expected}: make one for their size."
            )


def make_decoder(
    autoencoder: Autoencoder,
    mesh: Mesh,
    frames_per_chunk: int,
    size: tuple[int, int],
    tile: int = 0,
) -> ChunkProgram:
    """Makes the program that decodes a chunk.

    Args:
      autoencoder: of `autoencoder.make_autoencoder`.
      mesh: whose devices share the frames, or rows of all frames where the autoencoder is causal.
      frames_per_chunk: of the video, at a time over all devices; rounded up to a multiple of them, or of the frames
        that one latent is of.
      size: (height, width) of the latents.
      tile: see `tiling.decode_in_tiles`.
    Returns:
      (params, (F, h, w, C) normalised latents, float32) to (F, H, W, 3) uint8, F times the stride in time.
    Raises:
      ValueError: the tile is no larger than its overlap, or the autoencoder is causal and has no tiles in chunks.
    """
    check_tile(autoencoder, tile)
    if tile and autoencoder.causal:
        raise ValueError(
            f"The autoencoder {autoencoder.name!r} hands a state from chunk to chunk of a whole picture: "
            f"set vae.tile to 0 instead of {tile}, and lower vae.chunk_frames to save memory."
        )

    def decode(params: Any, state: Any, latents: jax.Array) -> tuple[jax.Array, Any]:
        if not autoencoder.causal:
            return to_pixels(decode_in_tiles(autoencoder, params, latents[None], tile)[0]), state
        raw = autoencoder.denormalise(latents[None])
        video, state = autoencoder.decode_stream(params, state, raw)
        return to_pixels(video[0]), state

    group = autoencoder.downsample[0]
    latents = -(-frames_per_chunk // group)
    shape = (latents, *size, autoencoder.channels)
    program = _make_program(decode, autoencoder, mesh, shape, jnp.float32, rows=size)
    return program._replace(group=(1, group), drops=group - 1 if autoencoder.causal else 0)


def make_encoder(
    autoencoder: Autoencoder, mesh: Mesh, frames_per_chunk: int, size: tuple[int, int]
) -> ChunkProgram:
    """Makes the program that encodes a chunk, to the latents' mean.

    Args:
      autoencoder: of `autoencoder.make_autoencoder`.
      mesh: as of `make_decoder`.
      frames_per_chunk: as of `make_decoder`.
      size: (height, width) of the frames.
    Returns:
      (params, (F, H, W, 3) uint8) to (F over the stride in time, h, w, C) float32, normalised.
    """

    def encode(params: Any, state: Any, frames: jax.Array) -> tuple[jax.Array, Any]:
        video = (frames.astype(jnp.float32) / 127.5 - 1)[None]
        if not autoencoder.causal:
            return autoencoder.encode(params, video)[0], state
        latents, state = autoencoder.encode_stream(params, state, video)
        return autoencoder.normalise(latents)[0], state

    group, y_factor, x_factor = autoencoder.downsample
    frames = -(-frames_per_chunk // group) * group
    rows = (size[0] // y_factor, size[1] // x_factor)
    program = _make_program(encode, autoencoder, mesh, (frames, *size, 3), jnp.uint8, rows=rows)
    return program._replace(group=(group, 1), repeats=group - 1 if autoencoder.causal else 0)


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
    yield from decoder.stream(params, latents[None] if latents.ndim == 4 else latents)


def decode_videos(decoder: ChunkProgram, params: Any, latents: Any) -> np.ndarray:
    """As `decode_chunks`, all at once.

    Args:
      decoder: of `make_decoder`.
      params: of `Autoencoder.load`, or of `ChunkProgram.put_params`.
      latents: (B, T, h, w, C), normalised.
    Returns:
      (B, T times the stride in time, H, W, 3) uint8; of a causal autoencoder (B, 1 + (T - 1) stride, H, W, 3).
    """
    frames = np.concatenate(list(decode_chunks(decoder, params, latents)))
    return frames.reshape(len(latents), -1, *frames.shape[1:])


def open_streams(
    decoder: ChunkProgram, params: Any, count: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Decodes videos side by side while they are made.

    Args:
      decoder: of `make_decoder`; of a causal autoencoder, its chunk divides all numbers of frames that come.
      params: of `Autoencoder.load`, or of `ChunkProgram.put_params`.
      count: videos, B.
    Returns:
      A function from the next latents, (B, n, h, w, C), to their frames (B, m, H, W, 3) uint8.
    """
    params = decoder.put_params(params)
    causal = decoder.abstract_args[1] is not None
    states = [decoder.start() for _ in range(count)]
    begun = False

    def push(latents: np.ndarray) -> np.ndarray:
        nonlocal begun
        if not causal:
            return decode_videos(decoder, params, latents)
        if latents.shape[1] % decoder.frames:
            raise ValueError(
                f"{latents.shape[1]} latent frames are no whole chunks of {decoder.frames}: make a decoder whose "
                "chunk divides them."
            )
        videos = []
        for i, video in enumerate(latents):
            parts = []
            for first in range(0, len(video), decoder.frames):
                chunk = np.asarray(video[first : first + decoder.frames], np.float32)
                chunk = jax.device_put(chunk, decoder.abstract_args[2].sharding)
                out, states[i] = decoder.program(params, states[i], chunk)
                parts.append(np.asarray(out))
            videos.append(np.concatenate(parts)[0 if begun else decoder.drops :])
        begun = True
        return np.stack(videos)

    return push


def encode_chunks(encoder: ChunkProgram, params: Any, frames: Any) -> Iterator[np.ndarray]:
    """Encodes videos of any length.

    Args:
      encoder: of `make_encoder`.
      params: of `Autoencoder.load`, or of `ChunkProgram.put_params`.
      frames: (B, T, H, W, 3) or (T, H, W, 3) uint8.
    Yields:
      (n, h, w, C) float32 normalised latents, those of the first video, then of the next.
    """
    yield from encoder.stream(params, frames[None] if frames.ndim == 4 else frames)


def to_pixels(video: jax.Array) -> jax.Array:
    """Float in [-1, 1] to uint8, rounded; values outside are clamped.

    Args:
      video: any shape.
    Returns:
      Same shape, uint8.
    """
    return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _make_program(
    function: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]],
    autoencoder: Autoencoder,
    mesh: Mesh,
    shape: tuple[int, ...],
    dtype: Any,
    rows: tuple[int, int],
) -> ChunkProgram:
    """Lays chunks of `shape` on the mesh; `rows` are height and width of the latents."""
    whole = NamedSharding(mesh, PartitionSpec())
    axes: list[Any] = [None, None, None]  # of frames, height, width
    if not autoencoder.causal:
        shape = (-(-shape[0] // mesh.size) * mesh.size, *shape[1:])
        axes[0] = mesh.axis_names
    else:
        # Frames wait for each other; rows need but their neighbours. Where neither rows nor columns divide, each
        # device computes the whole.
        divides = [axis for axis, length in enumerate(rows, 1) if length % mesh.size == 0]
        if divides:
            axes[divides[0]] = mesh.axis_names
    params = _place(autoencoder.abstract_params, whole)
    chunk = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
    start = lambda: None  # noqa: E731
    state = None
    if autoencoder.causal:
        spread = NamedSharding(mesh, PartitionSpec(None, *axes))
        state = _place(jax.eval_shape(function, params, None, chunk)[1], spread)
        zeros = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)  # noqa: E731
        start = jax.jit(zeros, out_shardings=spread)
    program = jax.jit(
        function,
        in_shardings=jax.tree.map(lambda leaf: leaf.sharding, (params, state, chunk)),
        out_shardings=(whole, jax.tree.map(lambda leaf: leaf.sharding, state)),
        donate_argnums=1,
    )
    return ChunkProgram(program, (params, state, chunk), start)


def _place(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
