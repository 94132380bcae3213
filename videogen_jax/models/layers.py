"""Layers of the diffusion transformer and its caption encoder.

Parameters are float32; `dtype` is the type of matrix products. Norms, softmax and modulation are computed in float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from videogen_jax.models.attention import attend
from videogen_jax.models.positions import rotate
from videogen_jax.parallel.sequence_parallel import TokenSharding

KERNEL_INIT = nn.initializers.xavier_uniform()
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


def layer_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Layer norm over the last axis without learned scale and shift, which adaLN provides.

    Args:
      x: (..., D), any float type.
      epsilon: added to the variance.
    Returns:
      (..., D) float32 of mean 0 and variance 1.
    """
    shape = x.shape
    if len(shape) > 1 and shape[0] == 1:
        x = x[0]  # the gradient is four times slower with a batch axis of 1 in XLA's CPU backend
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return x.reshape(shape)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """adaLN: normalizes, scales by 1 + `scale` and shifts.

    Args:
      x: (B, T, N, D).
      shift: (B, T or 1, 1, D) float32.
      scale: (B, T or 1, 1, D) float32.
    Returns:
      (B, T, N, D) float32.
    Source: DiT, arXiv:2212.09748, section 3.2.
    """
    return layer_norm(x) * (1 + scale) + shift


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned scale, computed in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D) of the same type."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * scale).astype(x.dtype)


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
        Returns:
          (B, *G, N, D) of type `dtype`; with `cached` also x's keys and values, without rotary embedding.
        Source: QK-norm, arXiv:2302.05442, section 2.
        """
        width = x.shape[-1]
        heads = (self.num_heads, width // self.num_heads)
        if context is None:
            qkv = self._project("qkv", (3, *heads))(x)  # (B, *G, N, 3, K, Dh)
            query, key, value = (qkv[..., i, :, :] for i in range(3))
        else:
            query = self._project("query", heads)(x)  # (B, *G, N, K, Dh)
            key_value = self._project("key_value", (2, *heads))(context)  # (B, M, 2, K, Dh)
            key, value = key_value[:, :, 0], key_value[:, :, 1]
        if self.qk_norm:
            query = RMSNorm(name="query_norm")(query)
            key = RMSNorm(name="key_norm")(key)
        new = (key, value)
        if cached is not None:
            key, value = (jnp.concatenate(pair, axis=-3) for pair in zip(cached, new, strict=True))
        if rotary is not None:
            query = rotate(query, rotary[..., -query.shape[-3] :, :])
            key = rotate(key, rotary)
        query, key, value = (checkpoint_name(array, "qkv") for array in (query, key, value))
        if mask is not None:
            mask = mask[:, None]  # (B or 1, 1, N or 1, M)

        def run(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
            return attend(query, key, value, causal=causal, kernel=self.kernel, **options)

        if self.token_sharding is not None:
            run = self.token_sharding.shard_attention(run, self.joint)
        out = run(query, key, value, mask=mask, lengths=lengths)  # (B, *G, N, K, Dh)
        out = checkpoint_name(out, "attention")
        out = nn.DenseGeneral(
            width, axis=(-2, -1), kernel_init=self.out_init, dtype=self.dtype, name="out"
        )(out)
        return out if cached is None else (out, new)

    def _project(self, name: str, features: tuple[int, ...]) -> nn.Module:
        return nn.DenseGeneral(features, kernel_init=KERNEL_INIT, dtype=self.dtype, name=name)


class MLP(nn.Module):
    """Two linear layers with a GELU (tanh form) between."""

    ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D) of type `dtype`."""
        width = x.shape[-1]
        x = nn.Dense(self.ratio * width, kernel_init=KERNEL_INIT, dtype=self.dtype, name="up")(x)
        x = nn.gelu(checkpoint_name(x, "mlp"))  # (..., ratio * D)
        return nn.Dense(width, kernel_init=KERNEL_INIT, dtype=self.dtype, name="down")(x)


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
