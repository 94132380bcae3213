"""Linear layers as matrix products with their bias, with adaLN and LoRA in the weights.

    y = gate * (W ((1 + scale) x + shift) + b)  =  W' x + b'
    W' = gate W (1 + scale),  b' = gate * (W shift + b)          gate along W's outputs, scale along its inputs

Where a device has one clip with one condition, `place` lets `fold` compute W' and b', which are far smaller than the
tokens: no modulated tokens are read or written, and the gate's gradient comes from that of W', so that the product
before the gate is not recomputed for it. Per-frame conditions and several clips per device modulate the tokens.

Weights are kept in the shapes of `nn.DenseGeneral`, as saved runs have them, and are multiplied as matrices: XLA adds
a bias of one axis within the product on GPUs, and one of more axes in a pass of its own over the tokens.

Source: adaLN, DiT, arXiv:2212.09748, section 3.2.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.parallel.mesh import batch_parts
from videogen_jax.parallel.sequence_parallel import TokenSharding

KERNEL_INIT = nn.initializers.xavier_uniform()
Weights = dict[str, jax.Array]  # kernel and bias; with LoRA also lora_a and lora_b, see lora.py


class Modulation(NamedTuple):
    """Modulation of a layer's input and output; None for absent parts.

    Of tokens, a part is float32 (B, T or 1, 1, D). Of weights, it is (D,), or (B, D) with a row per clip.
    """

    shift: jax.Array | None = None
    scale: jax.Array | None = None
    gate: jax.Array | None = None


NO_MODULATION = Modulation()


def can_fold(dtype: jnp.dtype) -> bool:
    """Whether gated weights keep their precision: not in float16, whose normal numbers end at 6e-5."""
    return dtype != jnp.float16


def place(
    modulation: Modulation, token_sharding: TokenSharding | None, dtype: jnp.dtype
) -> tuple[Modulation, Modulation]:
    """Divides a modulation into what is left for the tokens and what is folded into the weights.

    Weights can be modulated if each device has one clip and that one condition; then they are far smaller than tokens.

    Args:
      modulation: of tokens.
      token_sharding: None on one device.
      dtype: of the product.
    Returns:
      (modulation of tokens, modulation of weights), one of them empty.
    """
    clips, times = modulation.shift.shape[:2]
    devices = 1 if token_sharding is None else batch_parts(token_sharding.mesh)
    if times > 1 or clips > devices or not can_fold(dtype):
        return modulation, NO_MODULATION
    rows = 0 if clips == 1 else slice(None)
    vectors = [None if part is None else part[rows, 0, 0] for part in modulation]
    return NO_MODULATION, Modulation(*vectors)


class Linear(nn.Module):
    """Parameters of a linear layer with inputs and outputs of several axes, as `nn.DenseGeneral` has them.

    The product is `multiply`, a function, so that others can change the weights before it: `fold`, LoRA, `in_pieces`.
    """

    features: tuple[int, ...]  # sizes of the outputs' axes
    kernel_init: nn.initializers.Initializer = KERNEL_INIT

    @nn.compact
    def __call__(self, *inputs: int) -> Weights:
        """Weights for inputs of these sizes: kernel (*I, *O) and bias (*O) float32; see lora.py for more."""
        matrix = math.prod(inputs), math.prod(self.features)

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return self.kernel_init(key, matrix).reshape(shape)

        kernel = self.param("kernel", init, (*inputs, *self.features))
        bias = self.param("bias", nn.initializers.zeros, self.features)
        return {"kernel": kernel, "bias": bias}


def split(weights: Weights) -> list[Weights]:
    """Weights of each of P parts, from those of a layer with outputs (P, *O)."""
    take = {
        "kernel": lambda leaf, i: leaf[:, i],
        "bias": lambda leaf, i: leaf[i],
        "lora_a": lambda leaf, i: leaf,
        "lora_b": lambda leaf, i: leaf[:, i],
    }
    parts = range(len(weights["bias"]))
    return [{name: take[name](leaf, i) for name, leaf in weights.items()} for i in parts]


def fold(weights: Weights, dtype: jnp.dtype, modulation: Modulation = NO_MODULATION) -> Weights:
    """Weights of gate * (W ((1 + scale) x + shift) + b), for `multiply`.

    Args:
      weights: from `Linear`.
      dtype: of the product.
      modulation: of weights.
    Returns:
      kernel (I, O) or (B, I, O), bias (O,) or (B, O); with LoRA, lora_a (I, r) or (B, I, r) and lora_b alike.
    """
    axes = weights["kernel"].ndim - weights["bias"].ndim
    weights = {name: _merge_axes(name, leaf, axes) for name, leaf in weights.items()}
    shift, scale, gate = modulation
    if shift is not None:
        weights["bias"] = multiply(weights, shift)
    if scale is not None:
        for name in [name for name in ("kernel", "lora_a") if name in weights]:
            weights[name] = weights[name] * (1 + scale)[..., None]
    if gate is not None:
        weights["bias"] = weights["bias"] * gate
        for name in [name for name in ("kernel", "lora_b") if name in weights]:
            weights[name] = weights[name] * gate[..., None, :]
    return {name: leaf.astype(dtype) for name, leaf in weights.items()}


def _merge_axes(name: str, leaf: jax.Array, axes: int) -> jax.Array:
    """A leaf of weights whose inputs have `axes` axes, as a matrix, or the bias as a vector, in float32."""
    leaf = leaf.astype(jnp.float32)
    if name == "bias":
        return leaf.reshape(-1)
    count = 1 if name == "lora_b" else axes
    return leaf.reshape(math.prod(leaf.shape[:count]), math.prod(leaf.shape[count:]))


def multiply(
    weights: Weights, x: jax.Array, token_sharding: TokenSharding | None = None
) -> jax.Array:
    """Linear layer over the last axis, of the weights' type.

    Args:
      weights: from `fold`; with one matrix per clip, B matrices.
      x: (B, ..., I).
      token_sharding: None on one device.
    Returns:
      (B, ..., O).
    """
    kernel, bias = weights["kernel"], weights["bias"]
    shape = x.shape
    if token_sharding is None or token_sharding.parts == 1:
        # One axis of tokens: for the gradient of the weights, XLA's CPU backend copies arrays with more axes.
        # Axes that are sharded must not be merged.
        x = x.reshape(*kernel.shape[:-2], -1, shape[-1])
    x = x.astype(kernel.dtype)
    bias = bias.reshape(*bias.shape[:-1], *(1,) * (x.ndim - bias.ndim), bias.shape[-1])
    y = _matmul(x, kernel) + bias
    if "lora_a" in weights:
        y = y + _matmul(_matmul(x, weights["lora_a"]), weights["lora_b"])
    return y.reshape(*shape[:-1], y.shape[-1])


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies (B, ..., I) by (I, O), or by (B, I, O)."""
    clips = tuple(range(kernel.ndim - 2))
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (kernel.ndim - 2,)), (clips, clips)))
