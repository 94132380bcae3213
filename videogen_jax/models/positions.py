"""Position embeddings: sinusoidal tables added to tokens, and rotary embeddings of queries and keys.

| positions | space (h, w)                            | time t                                               |
| --------- | --------------------------------------- | ---------------------------------------------------- |
| sincos    | added, a third of the hidden size each  | added, the remaining third                           |
| rope      | rotary, in spatial or joint attention   | rotary, in temporal or joint attention               |
| dit       | added: half columns, half rows          | rotary, in temporal or joint attention               |
| latte     | added: half columns, half rows          | added before the first temporal block, if T > 1      |

Positions count patches from 0. If the grid differs from the original one, its positions are interpolated over the
original range.
"""

import jax
import jax.numpy as jnp
import numpy as np

POSITIONS = ("sincos", "rope", "latte", "dit")
ADDED_IN_TIME = ("sincos", "latte")  # absolute in time; the rotary ones are relative

# Rotary axes, of (t, h, w), by positions and kind of attention; no rotary embedding where absent.
ROTARY_AXES = {
    ("rope", "spatial"): (1, 2),
    ("rope", "temporal"): (0,),
    ("rope", "joint"): (0, 1, 2),
    ("dit", "temporal"): (0,),
    ("dit", "joint"): (0,),
}


def split_width(dim: int, axes: int) -> tuple[int, ...]:
    """Splits a size among axes: equal even parts, the first of which includes the remainder.

    Args:
      dim: hidden size or head dimension.
      axes: number of axes, of (t, h, w).
    Returns:
      The parts, even and at least 2.
    Raises:
      ValueError: the size is odd or too small.
    """
    if dim % 2 or dim < 2 * axes:
        raise ValueError(
            f"Positions along {axes} axes need an even width of at least {2 * axes}, not {dim}: "
            "change model.width (for rotary ones model.width / model.num_heads) or model.positions."
        )
    part = dim // axes // 2 * 2
    return (dim - (axes - 1) * part,) + (axes - 1) * (part,)


def axis_positions(count: int, original: float | None = None) -> np.ndarray:
    """Positions along one axis.

    Args:
      count: number of patches.
      original: number of patches of the original grid; `count` if None.
    Returns:
      (count,) float64, evenly spaced over [0, original).
    """
    return np.arange(count) * ((original or count) / count)


def sincos_1d(positions: np.ndarray, dim: int, max_period: float = 10_000.0) -> np.ndarray:
    """Sinusoids of geometrically spaced frequencies: sines first, then cosines.

    Args:
      positions: (N,) in patches.
      dim: size of the embedding, even.
      max_period: longest wavelength over 2 pi, in patches.
    Returns:
      (N, dim) float32.
    Source: Attention Is All You Need, arXiv:1706.03762, section 3.5.
    """
    angles = positions[:, None] * _frequencies(dim, max_period)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def sincos_2d(
    grid: tuple[int, int], dim: int, original: tuple[float, float] | None = None
) -> jax.Array:
    """Position embedding of a frame's tokens as in DiT: columns in the first half of the channels, rows in the second.

    Args:
      grid: (H, W) in patches.
      dim: hidden size D, a multiple of 4.
      original: original grid (H, W); `grid` if None.
    Returns:
      (H*W, D) float32.
    Raises:
      ValueError: D is not a multiple of 4.
    Source: DiT, arXiv:2212.09748; interpolation as in diffusers' `PatchEmbed`.
    """
    if dim % 4:
        raise ValueError(
            f"model.width is {dim}, but rows and columns need a multiple of 4: "
            "change model.width or model.positions."
        )
    h, w = grid
    rows, columns = original or grid
    parts = (
        sincos_1d(axis_positions(w, columns), dim // 2)[None, :],
        sincos_1d(axis_positions(h, rows), dim // 2)[:, None],
    )
    parts = [jnp.broadcast_to(part, (h, w, dim // 2)) for part in parts]
    return jnp.concatenate(parts, axis=-1).reshape(h * w, dim)


def sincos_3d(
    grid: tuple[int, int, int],
    dim: int,
    original: tuple[float, float] | None = None,
    frames: jax.Array | None = None,
    cycle: int = 0,
) -> jax.Array:
    """Position embedding of a token grid: a third of the channels each for time, height and width.

    Broadcast inside the program: as a constant, the table of a long video would take gigabytes.

    Args:
      grid: (T, H, W) in patches.
      dim: hidden size D, even and at least 6.
      original: original (H, W); those of `grid` if None.
      frames: see `sincos_frames`.
      cycle: see `sincos_frames`.
    Returns:
      (T, H*W, D) float32, or (B, T, H*W, D) for `frames` per clip.
    Raises:
      ValueError: D is odd or less than 6.
    Source: MAE's 2-D table (arXiv:2111.06377, appendix), with time added.
    """
    t, h, w = grid
    time, *space = split_width(dim, 3)
    rows, columns = original or (h, w)
    parts = (
        sincos_frames(t, time, frames, cycle)[..., None, None, :],
        sincos_1d(axis_positions(h, rows), space[0])[:, None],
        sincos_1d(axis_positions(w, columns), space[1])[None, :],
    )
    shape = (*parts[0].shape[:-3], h, w)  # (T, H, W) or (B, T, H, W)
    parts = [jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts]
    return jnp.concatenate(parts, axis=-1).reshape(*shape[:-2], h * w, dim)


def sincos_frames(
    count: int, dim: int, frames: jax.Array | None = None, cycle: int = 0
) -> jax.Array:
    """Temporal position embedding, optionally cyclic.

    Args:
      count: T.
      dim: size of the embedding, even.
      frames: (T,) or (B, T) int32, indices of the frames in the video; 0 to T - 1 if None.
      cycle: period in frames, so that videos of any length use positions seen in training; 0 for none.
    Returns:
      (T, dim) float32, or (B, T, dim).
    Source: cyclic positions, Ca2-VDM, arXiv:2411.16375, section 3.3.
    """
    if frames is None:
        return jnp.asarray(sincos_1d(np.arange(count) % (cycle or count), dim))
    table = sincos_1d(np.arange(cycle), dim)
    return jnp.asarray(table)[frames % cycle]


def coordinates(
    grid: tuple[int, int, int], original: tuple[float, float] | None = None
) -> jax.Array:
    """(t, h, w) of every token, for `rotate`.

    Args:
      grid: (T, H, W) in patches.
      original: original (H, W); those of `grid` if None.
    Returns:
      (T, H*W, 3) float32.
    """
    t, h, w = grid
    rows, columns = original or (h, w)
    axes = (axis_positions(t), axis_positions(h, rows), axis_positions(w, columns))
    mesh = jnp.meshgrid(*(jnp.asarray(axis, jnp.float32) for axis in axes), indexing="ij")
    return jnp.stack(mesh, axis=-1).reshape(t, h * w, 3)


def rotate(x: jax.Array, positions: jax.Array, max_period: float = 10_000.0) -> jax.Array:
    """Axial rotary embedding: rotates pairs of channels by angles proportional to the position.

    Attention scores then depend on relative positions only. Channel i of a head is paired with channel i + Dh/2; the
    pairs are divided among the axes.

    Args:
      x: (B, N, K, Dh), queries or keys, any float type.
      positions: (N, A) or (B, N, A), along A axes.
      max_period: longest wavelength over 2 pi, in patches.
    Returns:
      (B, N, K, Dh) of x's type and norms.
    Raises:
      ValueError: Dh cannot be divided among A axes.
    Source: RoFormer, arXiv:2104.09864, section 3.2.2; axial form, arXiv:2403.13298.
    """
    widths = split_width(x.shape[-1], positions.shape[-1])
    angles = [
        positions[..., i, None].astype(jnp.float32) * _frequencies(width, max_period)
        for i, width in enumerate(widths)
    ]
    angles = jnp.concatenate(angles, axis=-1)[..., None, :]  # (N, 1, Dh/2) or (B, N, 1, Dh/2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, first * sin + second * cos)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _frequencies(dim: int, max_period: float) -> np.ndarray:
    return max_period ** (-np.arange(dim // 2) / (dim // 2))
