"""Text conditioning modules: a caption encoder trained with the model, and a projection of pretrained embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models import layers, positions
from videogen_jax.parallel.sequence_parallel import TokenSharding

PADDING_ID = 0  # as in data/vocabulary.py
POOLINGS = ("mean", "weighted")
# From importances to logits. At 1 the weights sharpen too late: with Adam an importance moves by the learning rate.
IMPORTANCE_SCALE = 8.0


class CaptionEncoder(nn.Module):
    """Word embeddings, `depth` transformer layers and pooling over words.

    | pooling  | pooled vector of a caption of n words                                                           |
    | -------- | ----------------------------------------------------------------------------------------------- |
    | mean     | mean of the tokens                                                                              |
    | weighted | n times the mean of the embeddings, weighted by a softmax of learned importances: first the sum |

    The mean has a sixtieth of each word of 60, all of norm 1: the few that matter are learned late. In the weighted sum
    a word's embedding starts small and grows if it helps, whatever the number of words beside it.
    """

    vocabulary_size: int  # including the special ids of data/vocabulary.py
    width: int
    depth: int
    num_heads: int
    token_sharding: TokenSharding | None = None  # None on one device
    kernel: str = "xla"  # see attention.py
    dtype: jnp.dtype = jnp.float32
    pooling: str = "mean"  # one of POOLINGS

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encodes captions.

        Args:
          ids: (B, L) int32, padded with 0.
        Returns:
          tokens (B, L, D) of type `dtype`, mask (B, L) bool (True at words), pooled (B, D) float32.
        """
        mask = ids != PADDING_ID
        lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
        weighted = self.pooling == "weighted"
        # Unit variance: if word embeddings are nearly equal at initialization, their mean is learned late.
        embed_init = nn.initializers.normal(0.1 if weighted else 1.0)
        x = nn.Embed(self.vocabulary_size, self.width, embedding_init=embed_init, name="words")(ids)
        if weighted:
            pooled = self._weigh(x, ids, mask)
        x = x + positions.sincos_1d(np.arange(ids.shape[1]), self.width)
        x = x.astype(self.dtype)  # (B, L, D)
        for i in range(self.depth):
            attend = layers.Attention(
                self.num_heads,
                token_sharding=self.token_sharding,
                kernel=self.kernel,
                dtype=self.dtype,
                name=f"attention_{i}",
            )
            x = x + attend(layers.RMSNorm(name=f"attention_norm_{i}")(x), lengths=lengths)
            mlp = layers.MLP(token_sharding=self.token_sharding, dtype=self.dtype, name=f"mlp_{i}")
            x = x + mlp(layers.RMSNorm(name=f"mlp_norm_{i}")(x))
        x = layers.RMSNorm(name="norm")(x)
        if not weighted:
            weight = mask[..., None].astype(jnp.float32)
            pooled = (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)  # (B, D)
        return x, mask, pooled

    def _weigh(self, embeddings: jax.Array, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, L, D) to the pooled vector, (B, D)."""
        zeros = nn.initializers.zeros
        importance = self.param("importance", zeros, (self.vocabulary_size,))
        weights = jax.nn.softmax(IMPORTANCE_SCALE * importance[ids], axis=1, where=mask)  # (B, L)
        counts = jnp.sum(mask, axis=1, keepdims=True)
        return jnp.sum(embeddings * (counts * weights)[..., None], axis=1)


class CaptionProjection(nn.Module):
    """Two linear layers with a GELU (tanh form) between: projects text tokens to the hidden size.

    Source: PixArt-alpha, arXiv:2310.00426, section 2.3.
    """

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, L, E) to (B, L, D) of type `dtype`."""
        init = layers.EMBED_INIT
        x = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="hidden")(tokens)
        return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(layers.gelu(x))
