"""The product of queries, keys and values, without a matrix of all scores beyond a bound.

| kernel | how                                                             | where                         |
| ------ | --------------------------------------------------------------- | ----------------------------- |
| cudnn  | flash attention; lengths and heads that it refuses are padded   | NVIDIA GPUs from Ampere on,   |
|        |                                                                 | bfloat16 or float16           |
| xla    | all scores at once or, beyond a bound, in pieces of the queries | anywhere                      |

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
LARGEST_SCORES = 2**27  # numbers in the scores of one piece: 512 MiB in float32
HIDDEN = (
    -1e30
)  # score of a key that is not seen; finite, so that a query that sees none has a gradient
CUDNN_HEAD = 128  # numbers per head that every card's cuDNN takes
CUDNN_MULTIPLE = 8  # of numbers per head, and of tokens (it refuses odd numbers of these)


def choose_kernel(name: str, devices: Iterable[jax.Device]) -> str:
    """The kernel for the devices that a program is compiled for, which need not be here.

    Args:
      name: one of KERNELS; auto is cudnn where all devices have it.
      devices: of the mesh.
    Returns:
      cudnn or xla.
    Raises:
      ValueError: the name is unknown, or cudnn is asked for and a device or the CUDA wheels lack it.
    """
    if name not in KERNELS:
        raise ValueError(
            f"Unknown memory.attention_kernel {name!r}: choose one of {', '.join(KERNELS)}."
        )
    if name == "xla":
        return name
    able = [_has_flash(device) for device in devices]
    if name == "auto":
        return "cudnn" if all(able) else "xla"
    if not all(able):
        raise ValueError(
            "memory.attention_kernel is 'cudnn', which wants NVIDIA GPUs of the Ampere generation or later and "
            "the wheels of jax[cuda12]: set it to 'auto'."
        )
    return name


def _has_flash(device: jax.Device) -> bool:
    wheels = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    capability = getattr(device, "compute_capability", None)
    if device.platform not in ("gpu", "cuda") or not any(map(importlib.util.find_spec, wheels)):
        return False
    # Devices that are only described (jax.experimental.topologies) do not tell; all cards with a plan can do it.
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
    """Softmax attention, of groups of sequences.

    `cudnn` falls back to `xla` for float32, for more than 128 numbers per head, and for a mask of another form than
    `causal` and `lengths`: there it has no flash attention, or one that would store the mask for every query and key.

    Args:
      query: (B, *G, N, K, Dh).
      key: (B, *G, M, K, Dh), or (B, M, K, Dh) for all sequences of a group.
      value: as key.
      mask: bool, broadcast to (B * G, K, N, M), False where a query may not see a key; None if it may see all.
      causal: query i sees keys 0 to i; N = M.
      lengths: (B,) int32, at least 1: queries see so many leading keys; None if they see all.
      kernel: cudnn or xla.
      largest_scores: bound of B G K N' M of xla, N' queries in a piece.
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
        mask = _both(mask, jnp.tri(query.shape[1], key.shape[1], dtype=bool)[None, None])
    if lengths is not None:
        seen = jnp.arange(key.shape[1]) < lengths[:, None]  # (B, M)
        mask = _both(mask, seen[:, None, None])
    return _attend_xla(query, key, value, mask, largest_scores).reshape(shape)


def _both(mask: jax.Array | None, other: jax.Array) -> jax.Array:
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
    """(B, N, K, Dh) with zeros up to the next multiples."""
    tokens, width = (-x.shape[axis] % CUDNN_MULTIPLE for axis in (1, 3))
    return jnp.pad(x, ((0, 0), (0, tokens), (0, 0), (0, width))) if tokens or width else x


def _attend_xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    largest_scores: int,
) -> jax.Array:
    """All scores at once, or pieces of the queries one after the other.

    Pieces are computed again in the backward pass, so that memory grows with the sequence and not with its square. The
    numbers are those of the whole.

    Source: the loop over queries of arXiv:2112.05682, section 3.
    """
    if query.dtype == jnp.float16 and jax.default_backend() == "cpu":
        # XLA's CPU has no product of float16 that adds up in float32, which the scores want.
        query, key, value = (array.astype(jnp.float32) for array in (query, key, value))
    batch, length, heads, _ = query.shape
    pieces = count_pieces(length, batch * heads * length * key.shape[1], largest_scores)
    if pieces == 1:
        return _attend_whole(query, key, value, mask)

    # A mask that is the same for all queries is no part of a piece.
    whole = mask is None or mask.shape[2] == 1
    parts = [einops.rearrange(query, "b (p n) k d -> p b n k d", p=pieces)]
    if not whole:
        parts.append(einops.rearrange(mask, "b k (p n) m -> p b k n m", p=pieces))

    @jax.checkpoint
    def attend_piece(piece: list[jax.Array]) -> jax.Array:
        own = mask if whole else piece[1]
        return _attend_whole(piece[0], key, value, own)

    out = jax.lax.map(attend_piece, parts)  # (P, B, N / P, K, Dh)
    return einops.rearrange(out, "p b n k d -> b (p n) k d")


def _attend_whole(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """All scores at once; the softmax is float32.

    Queries, keys and values are scaled and rearranged rather than the scores, which are more: XLA's CPU would rearrange
    those to multiply arrays of (B, N, K, Dh).
    """
    query = query * query.shape[-1] ** -0.5
    query, key, value = (einops.rearrange(x, "b n k d -> b k n d") for x in (query, key, value))
    scores = _multiply(query, jnp.swapaxes(key, 2, 3), jnp.float32)  # (B, K, N, M)
    if mask is not None:
        scores = jnp.where(mask, scores, HIDDEN)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return einops.rearrange(_multiply(weights, value, value.dtype), "b k n d -> b n k d")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """(B, K, N, M) times (B, K, M, D) to (B, K, N, D) of type `dtype`.

    The gradient is JAX's own but for its order of axes: XLA's CPU has fast products only for a first factor that is
    summed over its last axis, and takes ten times as long for many small ones of another form.
    """
    return jnp.matmul(a, b, preferred_element_type=dtype)


def _multiply_forward(a, b, dtype):
    return _multiply(a, b, dtype), (a, b)


def _multiply_backward(dtype, factors, gradient):
    a, b = factors
    gradient = gradient.astype(a.dtype)
    turned = jax.lax.platform_dependent(
        jnp.swapaxes(a, 2, 3),
        cpu=jax.lax.optimization_barrier,  # else XLA makes one product of the two
        default=lambda x: x,
    )
    return gradient @ jnp.swapaxes(b, 2, 3), turned @ gradient


_multiply.defvjp(_multiply_forward, _multiply_backward)


def count_pieces(length: int, scores: int, largest_scores: int) -> int:
    """The fewest equal pieces of `length` queries whose scores are not too many; at most one a query."""
    wanted = math.ceil(scores / largest_scores)
    return next((n for n in range(max(wanted, 1), length) if length % n == 0), max(length, 1))
