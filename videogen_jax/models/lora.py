"""LoRA: a trained low-rank update beside frozen linear layers.

    y = W x + b + scale (x A) B       W (*I, *O) frozen, A (*I, r), B (r, *O); scale = alpha / r

A starts uniform in +-1 / sqrt(I) and B at zero, so that the first output is the frozen model's. The product with W has
no gradient for W, and the update adds r (I + O) parameters; `merge` adds it into W, W + scale A B, for sampling.

Queries, keys and values of self-attention are one layer, `qkv`, and share A. Under `nn.scan`, A and B have a leading
axis of layers, as the kernel.

Source: LoRA, arXiv:2106.09685, section 4.1; initial A and scale as in peft.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util

from videogen_jax.models.linear import Linear
from videogen_jax.models.parameter_paths import matches
from videogen_jax.parallel.sharding import ADAPTERS

A, B = ADAPTERS
BLOCKS = "blocks/"
# Uniform in +-1 / sqrt(fan_in).
A_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LoRA(NamedTuple):
    """Which layers have an update, and of which form."""

    rank: int
    scale: float
    layers: tuple[str, ...]  # patterns, see `parameter_paths.matches`; of layers in the blocks


def adapt(function: Callable[..., Any], lora: LoRA | None) -> Callable[..., Any]:
    """Adds the updates to `init` or `apply` of a Linen module.

    `init` makes A and B in the layers that `lora.layers` matches; `apply` takes them wherever the parameters have them.

    Args:
      function: `init` or `apply`.
      lora: None for no update.
    Returns:
      The function with updates.
    Raises:
      ValueError: when called, if the rank is that of a whole matrix or more.
    """
    if lora is None:
        return function

    @functools.wraps(function)
    def adapted(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(functools.partial(_add_factors, lora)):
            return function(*args, **kwargs)

    return adapted


def _add_factors(
    lora: LoRA, layer: Callable[..., Any], inputs: tuple, options: dict[str, Any], context: Any
) -> Any:
    """Adds A and scale B to the weights that a `Linear` returns; `linear.multiply` multiplies by them."""
    module = context.module
    weights = layer(*inputs, **options)
    if not isinstance(module, Linear) or context.method_name != "__call__":
        return weights
    path = "/".join(module.path)
    if module.is_initializing():
        adapted = path.startswith(BLOCKS) and matches(lora.layers, path)
    else:
        adapted = module.has_variable("params", A)
    if not adapted:
        return weights
    if lora.rank >= min(math.prod(inputs), math.prod(module.features)):
        raise ValueError(
            f"train.lora.rank is {lora.rank}, but the matrix of {path} is {math.prod(inputs)} x "
            f"{math.prod(module.features)}: choose a rank below both, or leave the layer out of train.lora.layers."
        )
    a = module.param(A, _init_a, inputs, lora.rank)
    b = module.param(B, nn.initializers.zeros, (lora.rank, *module.features))
    return weights | {A: a, B: lora.scale * b}


def _init_a(key: jax.Array, inputs: tuple[int, ...], rank: int) -> jax.Array:
    return A_INIT(key, (math.prod(inputs), rank)).reshape(*inputs, rank)


def is_adapter(path: str) -> bool:
    """Whether the parameter of a path is A or B of an update."""
    return path.rpartition("/")[2] in ADAPTERS


def merge(params: Any, scale: float) -> Any:
    """Adds the updates into the kernels, in float32: W + scale A B.

    Args:
      params: of a module with updates.
      scale: alpha / rank.
    Returns:
      Those of the module without.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for path in [path for path in flat if path.endswith(f"/{A}")]:
        layer = path.removesuffix(A)
        a, b = flat.pop(path), flat.pop(layer + B)
        # Over the rank, for each layer of the scan.
        update = jax.lax.dot_general(
            a, b, (((a.ndim - 1,), (1,)), ((0,), (0,))), precision=jax.lax.Precision.HIGHEST
        )
        flat[f"{layer}kernel"] += scale * update
    return traverse_util.unflatten_dict(flat, sep="/")
