"""Between video and tokens: 3-D patches.

A patch of size (pt, ph, pw) covers pt frames and ph x pw places; a video (B, T*pt, H*ph, W*pw, C) is (B, T, H*W) tokens
of pt*ph*pw*C numbers each.
"""

import einops
import jax


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
