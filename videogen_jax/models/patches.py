"""Between video and tokens: 3-D patches and their positions.

A patch of size (pt, ph, pw) covers pt frames and ph x pw places; a video (B, T*pt, H*ph, W*pw, C) is (B, T, H*W) tokens
of pt*ph*pw*C numbers each.
"""

import einops
import jax
import jax.numpy as jnp
import numpy as np


def patch_grid(
    video_shape: tuple[int, ...], patch_size: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Number of patches along (time, height, width).

    Args:
      video_shape: (frames, height, width), in frames and pixels (or latent places).
      patch_size: (pt, ph, pw), same units.
    Returns:
      (T, H, W), the grid of tokens.
    Raises:
      ValueError: a side is not a multiple of the patch.
    """
    names = ("frames", "height", "width")
    for name, size, patch in zip(names, video_shape, patch_size, strict=True):
        if size % patch:
            raise ValueError(
                f"The video's {name} of {size} is not a multiple of the patch of {patch}: "
                f"change data.{name} or model.patch_size."
            )
    grid = [size // patch for size, patch in zip(video_shape, patch_size, strict=True)]
    return grid[0], grid[1], grid[2]


def patchify(video: jax.Array, patch_size: tuple[int, int, int]) -> jax.Array:
    """Cuts a video into patches.

    Args:
      video: (B, T*pt, H*ph, W*pw, C), any float type.
      patch_size: (pt, ph, pw).
    Returns:
      (B, T, H*W, pt*ph*pw*C), the same numbers.
    Raises:
      ValueError: a side is not a multiple of the patch.
    """
    patch_grid(video.shape[1:4], patch_size)
    pt, ph, pw = patch_size
    return einops.rearrange(
        video, "b (t pt) (h ph) (w pw) c -> b t (h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw
    )


def unpatchify(
    patches: jax.Array, patch_size: tuple[int, int, int], height: int, width: int
) -> jax.Array:
    """Inverse of `patchify`.

    Args:
      patches: (B, T, H*W, pt*ph*pw*C).
      patch_size: (pt, ph, pw).
      height: of the video, in pixels (H*ph).
      width: of the video, in pixels (W*pw).
    Returns:
      (B, T*pt, H*ph, W*pw, C).
    """
    pt, ph, pw = patch_size
    return einops.rearrange(
        patches,
        "b t (h w) (pt ph pw c) -> b (t pt) (h ph) (w pw) c",
        h=height // ph,
        w=width // pw,
        pt=pt,
        ph=ph,
        pw=pw,
    )


def sincos_1d(positions: np.ndarray, dim: int, max_period: float = 10_000.0) -> np.ndarray:
    """Sinusoids of geometrically spaced frequencies: sines first, then cosines.

    Args:
      positions: (N,) in patches.
      dim: width of the result, even.
      max_period: longest wavelength over 2 pi, in patches.
    Returns:
      (N, dim) float32.
    Source: Attention Is All You Need, arXiv:1706.03762, section 3.5.
    """
    frequencies = max_period ** (-np.arange(dim // 2) / (dim // 2))
    angles = positions[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def sincos_3d(grid: tuple[int, int, int], dim: int) -> jax.Array:
    """Positions of a grid of tokens: a third of the width for each of time, height and width.

    The thirds are rounded down to even numbers, and time takes what is left over. The table is spread out inside the
    program: as a constant of it, that of a long video would take gigabytes.

    Args:
      grid: (T, H, W) in patches.
      dim: model width D, even and at least 6.
    Returns:
      (T, H*W, D) float32.
    Raises:
      ValueError: D is odd or less than 6.
    Source: MAE's 2-D table (arXiv:2111.06377, appendix), with time added.
    """
    if dim % 2 or dim < 6:
        raise ValueError(
            f"model.width is {dim}, but 3-D positions need an even width of at least 6."
        )
    space = dim // 3 // 2 * 2
    time = dim - 2 * space
    t, h, w = grid
    parts = (
        sincos_1d(np.arange(t), time)[:, None, None],
        sincos_1d(np.arange(h), space)[None, :, None],
        sincos_1d(np.arange(w), space)[None, None, :],
    )
    parts = [jnp.broadcast_to(part, (t, h, w, part.shape[-1])) for part in parts]
    return jnp.concatenate(parts, axis=-1).reshape(t, h * w, dim)
