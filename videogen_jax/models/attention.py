"""The product of queries, keys and values, without a matrix of all scores beyond a bound."""

import math

import einops
import jax
import jax.numpy as jnp

LARGEST_SCORES = 2**27  # numbers in the scores of one piece: 512 MiB in float32


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    largest_scores: int = LARGEST_SCORES,
) -> jax.Array:
    """Softmax attention, in pieces of the queries if all scores at once would be too many.

    Pieces are computed one after the other, and again in the backward pass, so that memory grows with the sequence and
    not with its square. The numbers are those of the whole.

    Args:
      query: (B, N, K, Dh).
      key: (B, M, K, Dh).
      value: (B, M, K, Dh).
      mask: bool, broadcast to (B, K, N, M), False where a query may not see a key; None if it may see all.
      largest_scores: bound of B K N' M, N' queries in a piece.
    Returns:
      (B, N, K, Dh), of the query's type.
    Source: the loop over queries of arXiv:2112.05682, section 3.
    """
    if query.dtype == jnp.float16 and jax.default_backend() == "cpu":
        # XLA's CPU has no product of float16 that adds up in float32, which the scores want.
        query, key, value = (array.astype(jnp.float32) for array in (query, key, value))
    batch, length, heads, _ = query.shape
    pieces = count_pieces(length, batch * heads * length * key.shape[1], largest_scores)
    if pieces == 1:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)

    # A mask that is the same for all queries is no part of a piece.
    whole = mask is None or mask.shape[2] == 1
    parts = [einops.rearrange(query, "b (p n) k d -> p b n k d", p=pieces)]
    if not whole:
        parts.append(einops.rearrange(mask, "b k (p n) m -> p b k n m", p=pieces))

    @jax.checkpoint
    def attend_piece(piece: list[jax.Array]) -> jax.Array:
        own = mask if whole else piece[1]
        return jax.nn.dot_product_attention(piece[0], key, value, mask=own)

    out = jax.lax.map(attend_piece, parts)  # (P, B, N / P, K, Dh)
    return einops.rearrange(out, "p b n k d -> b (p n) k d")


def count_pieces(length: int, scores: int, largest_scores: int) -> int:
    """The fewest equal pieces of `length` queries whose scores are not too many; at most one a query."""
    wanted = math.ceil(scores / largest_scores)
    return next((n for n in range(max(wanted, 1), length) if length % n == 0), max(length, 1))
