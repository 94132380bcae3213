"""3-D patches: conversion between video and tokens.

A patch (pt, ph, pw) spans pt frames and ph x pw pixels (or latent positions); a video (B, T*pt, H*ph, W*pw, C) has
(B, T, H*W) patches with pt*ph*pw*C elements each.
"""

import einops
import jax


def patch_grid(
    video_shape: tuple[int, ...], patch_size: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Number of patches along (time, height, width).

    Args:
      video_shape: (frames, height, width), in frames and pixels (or latent positions).
      patch_size: (pt, ph, pw), same units.
    Returns:
      (T, H, W), the token grid.
    Raises:
      ValueError: a size is not a multiple of the patch's.
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
    """Splits a video into patches.

    Args:
      video: (B, T*pt, H*ph, W*pw, C), any float type.
      patch_size: (pt, ph, pw).
    Returns:
      (B, T, H*W, pt*ph*pw*C).
    Raises:
      ValueError: a size is not a multiple of the patch's.
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
      height: H*ph.
      width: W*pw.
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
