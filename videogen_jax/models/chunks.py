"""Encoding and decoding videos chunk by chunk on all devices of a mesh, while the video stays on the host.

One program is compiled for all chunks, with replicated parameters; its device memory does not depend on the length of
the video. Autoencoders that process frames independently shard a chunk over frames, without communication. A causal
autoencoder shards rows (or columns) of all frames, with halo exchange, and passes a state from chunk to chunk.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.models.autoencoder import Autoencoder
from videogen_jax.models.tiling import check_tile, decode_in_tiles
from videogen_jax.models.video_convolutions import set_length

ENDLESS = 2**30  # length of a video that has not ended yet, in latent frames


class ChunkProgram(NamedTuple):
    """A jitted function of one chunk, and what is needed to apply it to videos of any length.

    "Frames" are its inputs, video frames or latent frames. A causal autoencoder passes a state between the chunks of a
    video; for others the state is None, and a chunk may contain frames of several videos.
    """

    # jitted: (params, state, chunk) to (output chunk, replicated; state)
    program: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    abstract_args: tuple[Any, Any, jax.ShapeDtypeStruct]  # with shardings, to compile without data
    init_state: Callable[[], Any] = lambda: None  # the state before the first chunk of a video
    group: tuple[int, int] = (1, 1)  # input frames, and output frames for them
    repeats: int = 0  # extra copies of a video's first frame in the input
    drops: int = 0  # output frames to drop at the beginning of a video
    delay: int = 0  # of these, frames by which the output is behind: as many are pushed through behind a video's end

    @property
    def frames(self) -> int:
        """Input frames of a chunk."""
        return self.abstract_args[2].shape[0]

    def put_params(self, params: Any) -> Any:
        """Replicates the parameters of `Autoencoder.load` on the devices."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_args[0])
        return jax.device_put(params, shardings)

    def __call__(self, params: Any, frames: Any) -> np.ndarray:
        """Processes a video of at most one chunk.

        Args:
          params: from `put_params`.
          frames: (n, ...), n at most `self.frames - self.repeats`.
        Returns:
          (m, ...), the output frames.
        Raises:
          ValueError: the frames do not fit.
        """
        self._check(frames, self.frames - self.repeats)
        return np.concatenate(list(self.stream(params, np.asarray(frames)[None])))

    def stream(self, params: Any, videos: Any) -> Iterator[np.ndarray]:
        """Processes videos of any length; the next chunk is dispatched before a chunk is yielded.

        Args:
          params: from `Autoencoder.load` or `put_params`.
          videos: (B, T, ...).
        Yields:
          (n, ...), the output frames of the videos in order, chunk by chunk; the last one may be shorter.
        """
        params = self.put_params(params)
        if self.abstract_args[1] is None:
            videos = videos.reshape(1, -1, *videos.shape[2:])
        previous = None
        for current in self._dispatch(params, videos):
            if previous:
                yield np.asarray(previous[0])[previous[1]]
            previous = current
        if previous:
            yield np.asarray(previous[0])[previous[1]]

    def _dispatch(self, params: Any, videos: Any) -> Iterator[tuple[jax.Array, slice]]:
        """Dispatches chunks; yields each output on the device and the slice of its valid frames."""
        expected = self.abstract_args[2]
        for video in videos:
            self._check(video)
            length = len(video) + self.repeats
            state = set_length(self.init_state(), length)
            for first in range(0, length + self.flushed, self.frames):
                # Behind the end, the last frame is repeated.
                index = np.minimum(np.arange(first, first + self.frames), length - 1)
                chunk = np.asarray(video[np.maximum(index - self.repeats, 0)], expected.dtype)
                out, state = self.program(params, state, jax.device_put(chunk, expected.sharding))
                if (valid := self.valid(first, length)) is not None:
                    yield out, valid

    @property
    def flushed(self) -> int:
        """Input frames that are pushed through behind the end of a video."""
        frames_in, frames_out = self.group
        return -(-self.delay * frames_in // frames_out)

    def valid(self, first: int, length: int) -> slice | None:
        """Which output frames of a chunk are frames of the video.

        Args:
          first: input frames before the chunk.
          length: input frames of the video.
        Returns:
          The slice; None if it is empty.
        """
        frames_in, frames_out = self.group
        before, inside = (count * frames_out // frames_in for count in (first, self.frames))
        start = max(self.drops - before, 0)
        end = min(length * frames_out // frames_in + self.delay - before, inside)
        return slice(start, end) if start < end else None

    def _check(self, frames: Any, most: float = np.inf) -> None:
        expected = self.abstract_args[2].shape
        count = len(frames) + self.repeats
        if frames.shape[1:] != expected[1:] or not 0 < len(frames) <= most or count % self.group[0]:
            raise ValueError(
                f"Frames of shape {frames.shape} do not fit this program for {expected}: make one for their size."
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
      autoencoder: from `autoencoder.make_autoencoder`.
      mesh: shards a chunk over frames, or over rows if the autoencoder is causal.
      frames_per_chunk: video frames per chunk, over all devices; rounded up to a multiple of the devices, or of the
        frames per latent if the autoencoder is causal.
      size: (height, width) in latents.
      tile: see `tiling.decode_in_tiles`.
    Returns:
      (params, (F, h, w, C) normalized latents, float32) to (F * temporal stride, H, W, 3) uint8.
    Raises:
      ValueError: the tile is not larger than its overlap, or tiling is requested for a causal autoencoder.
    """
    check_tile(autoencoder, tile)
    if tile and autoencoder.causal:
        raise ValueError(
            f"The autoencoder {autoencoder.name!r} passes a state between chunks and cannot be tiled: "
            f"set vae.tile to 0 instead of {tile}, and lower vae.chunk_frames to save memory."
        )

    def decode(params: Any, state: Any, latents: jax.Array) -> tuple[jax.Array, Any]:
        if not autoencoder.causal:
            return to_pixels(decode_in_tiles(autoencoder, params, latents[None], tile)[0]), state
        raw = autoencoder.denormalize(latents[None])
        video, state = autoencoder.decode_stream(params, state, raw)
        return to_pixels(video[0]), state

    group = autoencoder.downsample[0]
    latents = -(-frames_per_chunk // group)
    shape = (latents, *size, autoencoder.channels)
    program = _make_program(decode, autoencoder, mesh, shape, jnp.float32, rows=size)
    delay = autoencoder.delay
    drops = delay + group - 1 if autoencoder.causal else 0
    return program._replace(group=(1, group), drops=drops, delay=delay)


def make_encoder(
    autoencoder: Autoencoder, mesh: Mesh, frames_per_chunk: int, size: tuple[int, int]
) -> ChunkProgram:
    """Makes the program that encodes a chunk to the mean of its latents.

    Args:
      autoencoder: from `autoencoder.make_autoencoder`.
      mesh: see `make_decoder`.
      frames_per_chunk: see `make_decoder`.
      size: (height, width) in pixels.
    Returns:
      (params, (F, H, W, 3) uint8) to (F / temporal stride, h, w, C) float32, normalized.
    """

    def encode(params: Any, state: Any, frames: jax.Array) -> tuple[jax.Array, Any]:
        video = (frames.astype(jnp.float32) / 127.5 - 1)[None]
        if not autoencoder.causal:
            return autoencoder.encode(params, video)[0], state
        latents, state = autoencoder.encode_stream(params, state, video)
        return autoencoder.normalize(latents)[0], state

    group, y_factor, x_factor = autoencoder.downsample
    frames = -(-frames_per_chunk // group) * group
    rows = (size[0] // y_factor, size[1] // x_factor)
    program = _make_program(encode, autoencoder, mesh, (frames, *size, 3), jnp.uint8, rows=rows)
    return program._replace(group=(group, 1), repeats=group - 1 if autoencoder.causal else 0)


def decode_chunks(decoder: ChunkProgram, params: Any, latents: Any) -> Iterator[np.ndarray]:
    """Decodes videos of any length; devices hold one chunk at a time.

    Args:
      decoder: from `make_decoder`.
      params: from `Autoencoder.load` or `ChunkProgram.put_params`.
      latents: (B, T, h, w, C) or (T, h, w, C), normalized.
    Yields:
      (n, H, W, 3) uint8, the frames of the videos in order; a chunk may span two videos.
    """
    latents = jax.device_get(latents)
    yield from decoder.stream(params, latents[None] if latents.ndim == 4 else latents)


def decode_videos(decoder: ChunkProgram, params: Any, latents: Any) -> np.ndarray:
    """Decodes videos with `decode_chunks` and concatenates the frames.

    Args:
      decoder: from `make_decoder`.
      params: from `Autoencoder.load` or `ChunkProgram.put_params`.
      latents: (B, T, h, w, C), normalized.
    Returns:
      (B, T * temporal stride, H, W, 3) uint8; for a causal autoencoder (B, 1 + (T - 1) * temporal stride, H, W, 3).
    """
    frames = np.concatenate(list(decode_chunks(decoder, params, latents)))
    return frames.reshape(len(latents), -1, *frames.shape[1:])


def decode_arriving(
    decoder: ChunkProgram, params: Any, parts: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """Decodes videos whose latents arrive incrementally, each part before the next one is asked for.

    Args:
      decoder: from `make_decoder`; for a causal autoencoder, its chunk must divide every number of arriving frames.
      params: from `Autoencoder.load` or `ChunkProgram.put_params`.
      parts: the next latents of B videos, (B, n, h, w, C) each.
    Yields:
      Their frames (B, m, H, W, 3) uint8. Where the decoder has a delay, the first ones come after several parts, and
      the last ones behind all of them.
    Raises:
      ValueError: the chunk does not divide a number of arriving frames.
    """
    params = decoder.put_params(params)
    if decoder.abstract_args[1] is None:
        for part in parts:
            yield decode_videos(decoder, params, part)
        return
    states: list[Any] = []
    first, part = 0, np.zeros(0)

    def decode(part: np.ndarray, length: int) -> Iterator[np.ndarray]:
        nonlocal first
        for start in range(0, part.shape[1], decoder.frames):
            frames = []
            for i, latents in enumerate(part[:, start : start + decoder.frames]):
                chunk = jax.device_put(
                    np.asarray(latents, np.float32), decoder.abstract_args[2].sharding
                )
                out, states[i] = decoder.program(params, states[i], chunk)
                frames.append(out)
            if (valid := decoder.valid(first, length)) is not None:
                yield np.stack([np.asarray(out)[valid] for out in frames])
            first += decoder.frames

    for part in parts:
        if part.shape[1] % decoder.frames:
            raise ValueError(
                f"{part.shape[1]} latent frames are not a multiple of the decoder's chunk of {decoder.frames}: "
                "make a decoder whose chunk divides them."
            )
        states = states or [decoder.init_state() for _ in part]
        if ready := list(decode(part, ENDLESS)):
            yield np.concatenate(ready, axis=1)
    if decoder.delay and states:
        length = first
        states = [set_length(state, length) for state in states]
        chunks = -(-decoder.flushed // decoder.frames)
        last = np.repeat(part[:, -1:], chunks * decoder.frames, axis=1)
        yield from decode(last, length)


def encode_chunks(encoder: ChunkProgram, params: Any, frames: Any) -> Iterator[np.ndarray]:
    """Encodes videos of any length; devices hold one chunk at a time.

    Args:
      encoder: from `make_encoder`.
      params: from `Autoencoder.load` or `ChunkProgram.put_params`.
      frames: (B, T, H, W, 3) or (T, H, W, 3) uint8.
    Yields:
      (n, h, w, C) float32 normalized latents of the videos in order.
    """
    yield from encoder.stream(params, frames[None] if frames.ndim == 4 else frames)


def to_pixels(video: jax.Array) -> jax.Array:
    """Converts float in [-1, 1] to uint8 by rounding; values outside are clipped."""
    return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _make_program(
    function: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]],
    autoencoder: Autoencoder,
    mesh: Mesh,
    shape: tuple[int, ...],
    dtype: Any,
    rows: tuple[int, int],
) -> ChunkProgram:
    """Jits a function of chunks of `shape` with shardings; `rows` are height and width in latents."""
    replicated = NamedSharding(mesh, PartitionSpec())
    axes: list[Any] = [None, None, None]  # mesh axes of frames, height, width
    if not autoencoder.causal:
        shape = (-(-shape[0] // mesh.size) * mesh.size, *shape[1:])
        axes[0] = mesh.axis_names
    else:
        # Frames depend on all earlier ones, rows on their neighbours only. If neither rows nor columns divide, each
        # device computes everything.
        divides = [axis for axis, length in enumerate(rows, 1) if length % mesh.size == 0]
        if divides:
            axes[divides[0]] = mesh.axis_names
    params = _with_sharding(autoencoder.abstract_params, replicated)
    chunk = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
    init_state = lambda: None  # noqa: E731
    state = None
    if autoencoder.causal:
        sharded = NamedSharding(mesh, PartitionSpec(None, *axes))
        state = jax.eval_shape(function, params, None, chunk)[1]
        # Frames that layers keep are sharded like the chunk; counters are not.
        shardings = jax.tree.map(lambda leaf: sharded if leaf.ndim else replicated, state)
        state = jax.tree.map(_place, state, shardings)
        zeros = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)  # noqa: E731
        init_state = jax.jit(zeros, out_shardings=shardings)
    program = jax.jit(
        function,
        in_shardings=jax.tree.map(lambda leaf: leaf.sharding, (params, state, chunk)),
        out_shardings=(replicated, jax.tree.map(lambda leaf: leaf.sharding, state)),
        donate_argnums=1,
    )
    return ChunkProgram(program, (params, state, chunk), init_state)


def _with_sharding(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)


def _place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
