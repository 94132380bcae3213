"""Attention kernels with bounded memory for the scores.

| kernel | how                                                             | where                         |
| ------ | --------------------------------------------------------------- | ----------------------------- |
| cudnn  | flash attention; unsupported lengths and heads are padded       | NVIDIA GPUs since Ampere,     |
|        |                                                                 | bfloat16 or float16           |
| xla    | all scores at once or, above a bound, in chunks of queries      | anywhere                      |

Source: flash attention, arXiv:2205.14135 and arXiv:2307.08691.
"""

import functools
import importlib.util
import math
from collections.abc import Iterable

import einops
import jax
import jax.numpy as jnp

KERNELS = ("auto", "cudnn", "xla")
LARGEST_SCORES = 2**27  # elements of the scores of one chunk: 512 MiB in float32
MASKED = -1e30  # score of a masked key; finite, so that gradients are finite if all keys are masked
CUDNN_HEAD = 128  # largest head dimension that cuDNN supports on every card
CUDNN_MULTIPLE = (
    8  # pad head dimension and tokens to multiples of this (cuDNN rejects odd numbers of tokens)
)


def choose_kernel(name: str, devices: Iterable[jax.Device]) -> str:
    """Chooses the kernel for the devices that a program is compiled for, which need not be present.

    Args:
      name: one of KERNELS; auto is cudnn if all devices support it.
      devices: devices of the mesh.
    Returns:
      cudnn or xla.
    Raises:
      ValueError: the name is unknown, or it is cudnn and a device or the CUDA wheels lack it.
    """
    if name not in KERNELS:
        raise ValueError(
            f"Unknown memory.attention_kernel {name!r}: choose one of {', '.join(KERNELS)}."
        )
    if name == "xla":
        return name
    supported = [_has_flash(device) for device in devices]
    if name == "auto":
        return "cudnn" if all(supported) else "xla"
    if not all(supported):
        raise ValueError(
            "memory.attention_kernel is 'cudnn', which needs NVIDIA GPUs of the Ampere generation or later and "
            "the wheels of jax[cuda12]: set it to 'auto'."
        )
    return name


def _has_flash(device: jax.Device) -> bool:
    wheels = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    capability = getattr(device, "compute_capability", None)
    if device.platform not in ("gpu", "cuda") or not any(map(importlib.util.find_spec, wheels)):
        return False
    # Devices of jax.experimental.topologies have no capability; all cards that plan knows support it.
    return capability is None or float(capability) >= 8.0


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    lengths: jax.Array | None = None,
    kernel: str = "xla",
    largest_scores: int = LARGEST_SCORES,
) -> jax.Array:
    """Softmax attention over sequences with optional group axes.

    `cudnn` falls back to `xla` for float32, for head dimensions above 128, and for masks other than `causal` and
    `lengths`: cuDNN has no flash attention for these, or one that materializes the mask for every query and key.

    Args:
      query: (B, *G, N, K, Dh).
      key: (B, *G, M, K, Dh), or (B, M, K, Dh) shared by all sequences of a group.
      value: as key.
      mask: bool, broadcast to (B * G, K, N, M), False where a query must not attend to a key; None for no mask.
      causal: query i attends to keys 0 to i; N = M.
      lengths: (B,) int32, at least 1: number of valid leading keys; None if all are valid.
      kernel: cudnn or xla.
      largest_scores: for xla, upper bound of B G K N' M with N' queries in a chunk.
    Returns:
      (B, *G, N, K, Dh), of the query's type.
    """
    shape = query.shape
    query = query.reshape(-1, *shape[-3:])  # (B * G, N, K, Dh)
    key, value = (array.reshape(-1, *array.shape[-3:]) for array in (key, value))
    if len(query) > len(key):
        key, value = (jnp.repeat(array, len(query) // len(array), axis=0) for array in (key, value))
    if lengths is not None:
        lengths = jnp.repeat(lengths, len(query) // len(lengths))
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if kernel == "cudnn" and half and mask is None and query.shape[-1] <= CUDNN_HEAD:
        return _attend_cudnn(query, key, value, causal, lengths).reshape(shape)
    if causal:
        mask = _combine(mask, jnp.tri(query.shape[1], key.shape[1], dtype=bool)[None, None])
    if lengths is not None:
        valid = jnp.arange(key.shape[1]) < lengths[:, None]  # (B, M)
        mask = _combine(mask, valid[:, None, None])
    return _attend_xla(query, key, value, mask, largest_scores).reshape(shape)


def _combine(mask: jax.Array | None, other: jax.Array) -> jax.Array:
    return other if mask is None else mask & other


def _attend_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, lengths: jax.Array | None
) -> jax.Array:
    batch, queries, _, width = query.shape
    keys = key.shape[1]
    padded = [_pad(array) for array in (query, key, value)]
    query_lengths = None
    if lengths is not None or padded[0].shape[1] > queries or padded[1].shape[1] > keys:
        query_lengths = jnp.full(batch, queries, jnp.int32)
        lengths = jnp.full(batch, keys, jnp.int32) if lengths is None else lengths
    out = jax.nn.dot_product_attention(
        *padded,
        scale=width**-0.5,
        is_causal=causal,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :queries, :, :width]


def _pad(x: jax.Array) -> jax.Array:
    """(B, N, K, Dh), zero-padded to multiples of CUDNN_MULTIPLE in N and Dh."""
    tokens, width = (-x.shape[axis] % CUDNN_MULTIPLE for axis in (1, 3))
    return jnp.pad(x, ((0, 0), (0, tokens), (0, 0), (0, width))) if tokens or width else x


def _attend_xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    largest_scores: int,
) -> jax.Array:
    """All scores at once, or one chunk of queries after the other, with the same results.

    Chunks are recomputed in the backward pass, so memory is linear in the sequence length, not quadratic.

    Source: the loop over queries of arXiv:2112.05682, section 3.
    """
    if query.dtype == jnp.float16 and jax.default_backend() == "cpu":
        # XLA's CPU backend has no float16 product with float32 accumulation, which the scores need.
        query, key, value = (array.astype(jnp.float32) for array in (query, key, value))
    batch, length, heads, _ = query.shape
    chunks = count_chunks(length, batch * heads * length * key.shape[1], largest_scores)
    if chunks == 1:
        return _attend_full(query, key, value, mask)

    # A mask shared by all queries is not chunked.
    shared = mask is None or mask.shape[2] == 1
    parts = [einops.rearrange(query, "b (p n) k d -> p b n k d", p=chunks)]
    if not shared:
        parts.append(einops.rearrange(mask, "b k (p n) m -> p b k n m", p=chunks))

    @jax.checkpoint
    def attend_chunk(chunk: list[jax.Array]) -> jax.Array:
        return _attend_full(chunk[0], key, value, mask if shared else chunk[1])

    out = jax.lax.map(attend_chunk, parts)  # (P, B, N / P, K, Dh)
    return einops.rearrange(out, "p b n k d -> b (p n) k d")


def _attend_full(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """All scores at once, with the softmax in float32.

    Scales and transposes queries, keys and values rather than the larger scores, which XLA's CPU backend would
    transpose for arrays of (B, N, K, Dh).
    """
    query = query * query.shape[-1] ** -0.5
    query, key, value = (einops.rearrange(x, "b n k d -> b k n d") for x in (query, key, value))
    scores = _multiply(query, jnp.swapaxes(key, 2, 3), jnp.float32)  # (B, K, N, M)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return einops.rearrange(_multiply(weights, value, value.dtype), "b k n d -> b n k d")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """(B, K, N, M) times (B, K, M, D) to (B, K, N, D) of type `dtype`.

    The gradient equals JAX's up to the order of axes: XLA's CPU backend is fast only if the first factor is contracted
    over its last axis, and ten times slower for many small products of another form.
    """
    return jnp.matmul(a, b, preferred_element_type=dtype)


def _multiply_forward(a, b, dtype):
    return _multiply(a, b, dtype), (a, b)


def _multiply_backward(dtype, factors, gradient):
    a, b = factors
    gradient = gradient.astype(a.dtype)
    transposed = jax.lax.platform_dependent(
        jnp.swapaxes(a, 2, 3),
        cpu=jax.lax.optimization_barrier,  # else XLA fuses the transpose into the product
        default=lambda x: x,
    )
    return gradient @ jnp.swapaxes(b, 2, 3), transposed @ gradient


_multiply.defvjp(_multiply_forward, _multiply_backward)


def count_chunks(length: int, scores: int, largest_scores: int) -> int:
    """The least number of equal chunks of `length` queries with at most `largest_scores` scores each."""
    least = math.ceil(scores / largest_scores)
    return next((n for n in range(max(least, 1), length) if length % n == 0), max(length, 1))
