"""Tiled decoding of images too large to decode at once, with overlap and blending.

The decoder's head runs on the whole image, and its tail, which takes most of the memory, on tiles. The outer
`tile_margin` latents of a tile are discarded (except at the image border); the next `tile_blend` latents are blended
with its neighbour. If the receptive field of the tail is within the margin (`taef2`, `workdir`), tiled decoding is
exact. In the tail of `sd`, group norms use the statistics of the tile instead of the image: there are no visible seams,
but values may differ everywhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models.autoencoder import Autoencoder


def decode_in_tiles(
    autoencoder: Autoencoder, params: Any, latents: jax.Array, tile: int
) -> jax.Array:
    """Decodes latents, with the decoder's tail in square tiles, sequentially.

    Args:
      autoencoder: from `autoencoder.make_autoencoder`.
      params: from its `load`.
      latents: (B, T, h, w, C), normalized.
      tile: height and width of a tile in latents; 0 for no tiling.
    Returns:
      (B, T, H, W, 3) float32 in [-1, 1].
    Raises:
      ValueError: the tile is not larger than its overlap.
    """
    check_tile(autoencoder, tile)
    rows, columns = latents.shape[2:4]
    if not tile or (rows <= tile and columns <= tile):
        return autoencoder.decode(params, latents)
    features = autoencoder.decode_features(params, latents)
    (tops, row_weights), (lefts, column_weights) = (
        tile_axis(autoencoder, length, tile, factor)
        for length, factor in zip((rows, columns), autoencoder.downsample[1:], strict=True)
    )
    size = (min(tile, rows), min(tile, columns))
    _, y_factor, x_factor = autoencoder.downsample

    def add_tile(canvas: jax.Array, index: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        i, j = index
        top, left = jnp.asarray(tops)[i], jnp.asarray(lefts)[j]
        part = jax.lax.dynamic_slice_in_dim(features, top, size[0], axis=2)
        part = jax.lax.dynamic_slice_in_dim(part, left, size[1], axis=3)
        pixels = autoencoder.decode_tail(params, part).astype(jnp.float32)
        weights = jnp.asarray(row_weights)[i][:, None] * jnp.asarray(column_weights)[j]
        start = (0, 0, top * y_factor, left * x_factor, 0)
        before = jax.lax.dynamic_slice(canvas, start, pixels.shape)
        after = before + pixels * weights[..., None]
        return jax.lax.dynamic_update_slice(canvas, after, start), None

    frames = autoencoder.video_frames(latents.shape[1])
    canvas = jnp.zeros((len(latents), frames, rows * y_factor, columns * x_factor, 3))
    indices = np.indices((len(tops), len(lefts))).reshape(2, -1)
    canvas, _ = jax.lax.scan(add_tile, canvas, tuple(jnp.asarray(indices)))
    return jnp.clip(canvas, -1, 1)


def check_tile(autoencoder: Autoencoder, tile: int) -> None:
    """Raises ValueError if a tile (in latents, 0 for no tiling) is not larger than its overlap."""
    overlap = tile_overlap(autoencoder)
    if tile < 0 or 0 < tile <= overlap:
        raise ValueError(
            f"A tile of {tile} latents is not larger than the overlap of tiles of {autoencoder.name!r}, {overlap}: "
            f"use {2 * overlap} or more, or 0 for no tiling."
        )


def tile_overlap(autoencoder: Autoencoder) -> int:
    """Minimum overlap of neighbouring tiles in latents."""
    return 2 * autoencoder.tile_margin + autoencoder.tile_blend


def tile_axis(
    autoencoder: Autoencoder, length: int, tile: int, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced tiles along one axis, and their blending weights, which sum to 1 at each pixel.

    Args:
      autoencoder: from `autoencoder.make_autoencoder`.
      length: size of the axis in latents.
      tile: size of a tile in latents.
      factor: pixels per latent.
    Returns:
      Starts (n,) int32 in latents, and weights (n, min(tile, length) * factor) float32 per pixel.
    """
    overlap = tile_overlap(autoencoder)
    # The fewest tiles with at least this overlap.
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    tile = min(tile, length)
    starts = np.round(np.linspace(0, length - tile, count)).astype(np.int32)
    margin, blend = autoencoder.tile_margin * factor, max(autoencoder.tile_blend * factor, 1)
    pixels = np.arange(tile * factor) + 0.5
    weights, total = np.zeros((count, len(pixels))), np.zeros(length * factor)
    for weight, start in zip(weights, starts, strict=True):
        # A linear ramp from the margin on, except at the borders of the image.
        before = pixels if start > 0 else np.inf
        after = pixels[::-1] if start + tile < length else np.inf
        weight[:] = np.clip((np.minimum(before, after) - margin) / blend, 0, 1)
        total[start * factor :][: len(pixels)] += weight
    for weight, start in zip(weights, starts, strict=True):
        weight /= total[start * factor :][: len(pixels)]
    return starts, weights.astype(np.float32)
