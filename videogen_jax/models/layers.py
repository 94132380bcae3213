"""Layers of the diffusion transformer and its caption encoder.

Parameters are float32; `dtype` is the type of matrix products. Norms, softmax and modulation are computed in float32.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models.attention import attend
from videogen_jax.models.linear import (
    KERNEL_INIT,
    NO_MODULATION,
    Linear,
    Modulation,
    Weights,
    fold,
    multiply,
    split,
)
from videogen_jax.models.positions import rotate
from videogen_jax.models.remat import gather, in_pieces
from videogen_jax.parallel.sequence_parallel import TokenSharding

EPSILON = 1e-6  # of norms
EMBED_INIT = nn.initializers.normal(0.02)


def timestep_embedding(t: jax.Array, dim: int, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoidal embedding of a diffusion time: cosines first, then sines, as DiT's weights expect.

    Args:
      t: any shape, in steps of the schedule (0 .. 999), any number type.
      dim: size of the embedding, even.
      max_period: longest wavelength over 2 pi, in steps.
    Returns:
      (*t.shape, dim) float32.
    Source: facebookresearch/DiT, `TimestepEmbedder.timestep_embedding`.
    """
    # In float64, since large t amplify rounding errors of the frequencies.
    frequencies = max_period ** (-np.arange(dim // 2) / (dim // 2))
    angles = t.astype(jnp.float32)[..., None] * frequencies.astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@jax.custom_vjp
def layer_norm(x: jax.Array) -> jax.Array:
    """Layer norm over the last axis without learned scale and shift, which adaLN provides.

    The backward pass recomputes mean and variance, so that only x is saved.

    Args:
      x: (..., D), any float type.
    Returns:
      (..., D) float32 of mean 0 and variance 1.
    """
    return _standardize(x)[0]


def _standardize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(..., D) with mean 0 and variance 1, and the inverse of its standard deviation (..., 1), in float32."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + EPSILON)
    return x * inverse, inverse


def _layer_norm_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    normed, inverse = _standardize(x)
    mean = jnp.mean(gradient, axis=-1, keepdims=True)
    along = jnp.mean(gradient * normed, axis=-1, keepdims=True)
    return ((inverse * (gradient - mean - normed * along)).astype(x.dtype),)


layer_norm.defvjp(lambda x: (layer_norm(x), x), _layer_norm_backward)


def modulate(x: jax.Array, modulation: Modulation) -> jax.Array:
    """Normalizes, scales by 1 + scale and shifts.

    Args:
      x: (B, T, N, D).
      modulation: of tokens; its gate is not applied.
    Returns:
      (B, T, N, D) float32.
    """
    x = layer_norm(x)
    return x if modulation.shift is None else x * (1 + modulation.scale) + modulation.shift


def add_gated(x: jax.Array, y: jax.Array, gate: jax.Array | None) -> jax.Array:
    """The sum x + gate * y in x's type; None for a gate of 1."""
    return x + (y if gate is None else gate * y).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array | None, epsilon: float = EPSILON) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32.

    The backward pass recomputes the root mean square, so that only x and the scale are saved.

    Args:
      x: (..., D), any float type.
      scale: (D,) float32; None for 1.
      epsilon: added to the mean square.
    Returns:
      (..., D) of the same type.
    """
    y = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    y = y * inverse
    return (y if scale is None else y * scale).astype(x.dtype)


def _rms_norm_forward(
    x: jax.Array, scale: jax.Array | None, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
    return rms_norm(x, scale, epsilon), (x, scale)


def _rms_norm_backward(
    epsilon: float, saved: tuple[jax.Array, jax.Array | None], gradient: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    x, scale = saved
    dtype = x.dtype
    # The barriers keep XLA from sharing the mean with a recomputed forward pass, and from merging the sums over tokens
    # and heads: each would take a further pass over x on GPUs.
    x = x if scale is None else jax.lax.optimization_barrier(x)
    x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    scaled = gradient if scale is None else gradient * scale
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    along = jnp.mean(scaled * x, axis=-1, keepdims=True) * inverse**2
    of_x = (inverse * (scaled - x * along)).astype(dtype)
    if scale is None:
        return of_x, None
    sums = jnp.sum(gradient * (x * inverse), axis=range(x.ndim - 2))
    return of_x, jnp.sum(jax.lax.optimization_barrier(sums), axis=0)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned scale."""

    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D) of the same type."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, scale, self.epsilon)


class UnscaledRMSNorm(nn.Module):
    """`RMSNorm` whose scale is left to the linear layer after it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Norms (..., D); returns also the scale, (D,) float32."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, None), scale


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form; the backward pass reads x alone.

    Source: arXiv:1606.08415, section 2.
    """
    return nn.gelu(x)


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    dtype = x.dtype
    x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    rate, cubic = math.sqrt(2 / math.pi), 0.044715
    tanh = jnp.tanh(rate * x * (1 + cubic * x**2))
    slope = rate * (1 + 3 * cubic * x**2)  # of the argument of tanh
    return ((gradient * 0.5 * (1 + tanh + x * (1 - tanh**2) * slope)).astype(dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a context."""

    num_heads: int
    qk_norm: bool = True  # RMSNorm of queries and keys
    out_init: nn.initializers.Initializer = KERNEL_INIT  # of the output projection
    token_sharding: TokenSharding | None = None  # None on one device
    joint: bool = False  # sequences are sharded over tokens
    kernel: str = "xla"  # see attention.py
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        causal: bool = False,
        lengths: jax.Array | None = None,
        rotary: jax.Array | None = None,
        cached: tuple[jax.Array, jax.Array] | None = None,
        modulation: Modulation = NO_MODULATION,
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends over the last axis but one.

        Args:
          x: (B, *G, N, D).
          context: (B, M, E), source of keys and values; x if None.
          mask: bool, broadcast to (B, N, M), False where a query must not attend to a key; None for no mask.
          causal: token i attends to tokens 0 to i.
          lengths: (B,) int32, number of valid leading tokens of the context (or of x); None if all are valid.
          rotary: (N, A) or (B, N, A), positions for rotary embedding; None for none. With `cached`, (P + N, A), the
            queries' positions last.
          cached: keys and values (B, *G, P, K, Dh) of tokens before x, without rotary embedding; then the mask is
            (B or 1, N, P + N).
          modulation: of weights; with a context, of the query's and of the output's.
        Returns:
          (B, *G, N, D) of type `dtype`; with `cached` also x's keys and values, without rotary embedding.
        Source: QK-norm, arXiv:2302.05442, section 2.
        """
        width = x.shape[-1]
        inner, outer = modulation._replace(gate=None), Modulation(gate=modulation.gate)
        heads = (self.num_heads, width // self.num_heads)
        if context is None:
            weights = split(Linear((3, *heads), name="qkv")(width))
            query, key, value = (self._project(part, x, inner) for part in weights)
        else:
            query = self._project(Linear(heads, name="query")(width), x, inner)  # (B, *G, N, K, Dh)
            weights = split(Linear((2, *heads), name="key_value")(context.shape[-1]))
            key, value = (self._project(part, context) for part in weights)  # (B, M, K, Dh)
        if self.qk_norm:
            query = RMSNorm(name="query_norm")(query)
            key = RMSNorm(name="key_norm")(key)
        new = (key, value)
        if cached is not None:
            key, value = (jnp.concatenate(pair, axis=-3) for pair in zip(cached, new, strict=True))
        if rotary is not None:
            query = rotate(query, rotary[..., -query.shape[-3] :, :])
            key = rotate(key, rotary)
        if mask is not None:
            mask = mask[:, None]  # (B or 1, 1, N or 1, M)

        def run(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
            return attend(query, key, value, causal=causal, kernel=self.kernel, **options)

        if self.token_sharding is not None:
            run = self.token_sharding.shard_attention(run, self.joint)
        out = run(query, key, value, mask=mask, lengths=lengths)  # (B, *G, N, K, Dh)
        weights = Linear((width,), self.out_init, name="out")(*heads)
        weights = fold(weights, self.dtype, outer)
        out = multiply(weights, out.reshape(x.shape), self.token_sharding)
        return out if cached is None else (out, new)

    def _project(
        self, weights: Weights, x: jax.Array, modulation: Modulation = NO_MODULATION
    ) -> jax.Array:
        """(..., D) to (..., K, Dh)."""
        shape = (*x.shape[:-1], *weights["bias"].shape)
        x = multiply(fold(weights, self.dtype, modulation), x, self.token_sharding)
        return x.reshape(shape)


class MLP(nn.Module):
    """Two linear layers with a GELU (tanh form) between."""

    ratio: int = 4
    token_sharding: TokenSharding | None = None  # None on one device
    pieces: int = 1  # sequential pieces in which it is computed, see `remat.in_pieces`
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        axis: int = 1,
        *,
        modulation: Modulation = NO_MODULATION,
    ) -> jax.Array:
        """Computes the layers.

        Args:
          x: (B, ..., D).
          axis: the axis that is divided into pieces.
          modulation: of weights.
        Returns:
          (B, ..., D) of type `dtype`.
        """
        width = x.shape[-1]
        up = Linear((self.ratio * width,), name="up")(width)
        down = Linear((width,), name="down")(self.ratio * width)
        folded = {
            "up": fold(up, self.dtype, modulation._replace(gate=None)),
            "down": fold(down, self.dtype, Modulation(gate=modulation.gate)),
        }
        folded = gather({"mlp": folded}, self.pieces, self.token_sharding)["mlp"]

        def run(weights: dict[str, Weights], x: jax.Array) -> jax.Array:
            hidden = gelu(multiply(weights["up"], x, self.token_sharding))  # (..., ratio * D)
            return multiply(weights["down"], hidden, self.token_sharding)

        return in_pieces(run, folded, x, axis, self.pieces)


class Embedder(nn.Module):
    """Two linear layers with a SiLU between: projects a conditioning vector to the hidden size."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., E) to (..., D) of type `dtype`."""
        x = nn.Dense(self.width, kernel_init=EMBED_INIT, dtype=self.dtype, name="hidden")(x)
        return nn.Dense(self.width, kernel_init=EMBED_INIT, dtype=self.dtype, name="out")(
            nn.silu(x)
        )
