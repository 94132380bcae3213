"""Layers of the autoencoders: convolution, group norm and upsampling.

Parameters are float32; `dtype` is the compute type of convolutions. Norms are computed in float32.
"""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp


def conv(
    features: int,
    name: str,
    dtype: Any,
    *,
    size: int = 3,
    stride: int = 1,
    padding: Any = None,
    bias: bool = True,
) -> nn.Conv:
    """A 2-D convolution of frames (N, H, W, C) with PyTorch's padding.

    Args:
      features: output channels.
      name: module name.
      dtype: compute type.
      size: kernel size, odd.
      stride: stride in height and width.
      padding: see `nn.Conv`; by default size // 2 on every side ("SAME" pads one side only at stride 2).
      bias: whether it has a bias.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2 if padding is None else padding,
        use_bias=bias,
        dtype=dtype,
        name=name,
    )


def group_norm(groups: int, epsilon: float, name: str) -> nn.GroupNorm:
    """A group norm of frames, (N, H, W, C) to the same shape in float32.

    Args:
      groups: number of groups of channels.
      epsilon: added to the variance.
      name: module name.
    """
    # The fast variance (mean of squares minus squared mean) would cancel, since features can have a large mean.
    return nn.GroupNorm(
        groups, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Doubles height and width by nearest-neighbour upsampling.

    Args:
      x: (N, H, W, C).
    Returns:
      (N, 2 H, 2 W, C).
    """
    return einops.repeat(x, "n h w c -> n (h i) (w j) c", i=2, j=2)
