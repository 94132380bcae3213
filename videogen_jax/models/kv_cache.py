"""The sliding-window KV cache of temporal attention, for videos that are made chunk by chunk.

Source: ViD-GPT, arXiv:2406.10981; Ca2-VDM, arXiv:2411.16375, section 3.3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """Sliding-window KV cache of the G temporal blocks: P slots for the latent frames before a clip."""

    keys: jax.Array  # (G, B, N, P, K, Dh), before rotary embedding
    values: jax.Array  # (G, B, N, P, K, Dh)
    length: jax.Array  # () int32, number of valid slots; they are the last ones

    def append(self, keys: jax.Array, values: jax.Array) -> "KVCache":
        """Appends T latent frames, (G, B, N, T, K, Dh) each; the T oldest slots are dropped, so shapes stay fixed."""

        def push(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([old, new.astype(old.dtype)], axis=3)[:, :, :, new.shape[3] :]

        length = jnp.minimum(self.length + keys.shape[3], self.keys.shape[3])
        return KVCache(push(self.keys, keys), push(self.values, values), length)
