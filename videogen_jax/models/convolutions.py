"""The layers that the autoencoders are made of: convolutions, norms over groups, doubling.

Parameters are float32; `dtype` is the type of the convolutions. Norms are float32 inside.
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
    """Makes a convolution of frames (N, H, W, C), padded as PyTorch's layers are.

    Args:
      features: channels of the result.
      name: of its parameters.
      dtype: in which it computes.
      size: of the kernel, odd.
      stride: of the kernel.
      padding: as `nn.Conv`; by default size // 2 on every side ("SAME" would put it on one, at stride 2).
      bias: whether it has one.
    Returns:
      The module.
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
    """Makes a norm over groups of channels and all places of a frame, in float32.

    Args:
      groups: that the channels divide into.
      epsilon: added to the variance.
      name: of its parameters.
    Returns:
      The module, (N, H, W, C) to the same in float32.
    """
    # The mean of squares minus the square of the mean would cancel: features can lie far from 0.
    return nn.GroupNorm(
        groups, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Doubles height and width by repeating each place.

    Args:
      x: (N, H, W, C).
    Returns:
      (N, 2 H, 2 W, C).
    """
    return einops.repeat(x, "n h w c -> n (h i) (w j) c", i=2, j=2)
