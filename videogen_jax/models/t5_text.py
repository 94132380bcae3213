"""The encoders of T5 v1.1 and umT5: captions to token embeddings; the pooled embedding is their mean.

| weights                    | width | layers | heads | vocabulary | parameters | layout    |
| -------------------------- | ----- | ------ | ----- | ---------- | ---------- | --------- |
| google/t5-v1_1-small       | 512   | 8      | 6     | 32,128     | 35 M       | t5        |
| google/t5-v1_1-base        | 768   | 12     | 12    | 32,128     | 110 M      | t5        |
| google/t5-v1_1-large       | 1024  | 24     | 16    | 32,128     | 341 M      | t5        |
| google/t5-v1_1-xl          | 2048  | 24     | 32    | 32,128     | 1.22 B     | t5        |
| google/t5-v1_1-xxl         | 4096  | 24     | 64    | 32,128     | 4.76 B     | t5        |
| google/umt5-xxl (Wan 2.1)  | 4096  | 24     | 64    | 256,384    | 5.68 B     | umt5      |

T5 v1.1 learns the bias of relative positions in its first layer and shares it; umT5 learns one in every layer. mT5 has
the layout of T5 v1.1. The original T5 (feed_forward_proj relu) is refused.

Residuals, norms, scores and results are float32 in every precision: activations of T5 exceed float16.

Source: T5, arXiv:1910.10683; umT5, arXiv:2304.09151; transformers `models/t5/modeling_t5.py`, `models/umt5`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models.clip_common import check_dtype
from videogen_jax.models.hub import find_config
from videogen_jax.models.layers import RMSNorm
from videogen_jax.models.model_config import make_config, read_json
from videogen_jax.models.text_common import (
    LONGEST,
    PADDING,
    TextEncoder,
    load_params,
    mask_and_mean,
    name_sources,
    refuse_without_config,
    wrap_network,
)
from videogen_jax.models.weight_layouts import Source
from videogen_jax.models.weights import WeightsError

KINDS = ("t5", "mt5", "umt5")
BIAS = "layer.0.SelfAttention.relative_attention_bias"
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # of which a file holds one or both
IGNORED = r"decoder\..*|lm_head\.weight|shared\.weight|encoder\.embed_tokens\.weight"


class Config(NamedTuple):
    """Fields of transformers' config.json that define the network; the defaults are those of T5 v1.1 XXL."""

    model_type: str = "t5"
    vocab_size: int = 32_128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"
    eos_token_id: int = 1


XXL = Config()
UMT5_XXL = Config(model_type="umt5", vocab_size=256_384)


def _of_width(d_model: int, d_ff: int, num_layers: int, num_heads: int) -> Config:
    return Config(d_model=d_model, d_ff=d_ff, num_layers=num_layers, num_heads=num_heads)


PUBLISHED = {  # configs of models on the hub, to know shapes offline
    "google/t5-v1_1-small": _of_width(512, 1024, 8, 6),
    "google/t5-v1_1-base": _of_width(768, 2048, 12, 12),
    "google/t5-v1_1-large": _of_width(1024, 2816, 24, 16),
    "google/t5-v1_1-xl": _of_width(2048, 5120, 24, 32),
    "google/t5-v1_1-xxl": XXL,
    "Lightricks/LTX-Video/text_encoder": XXL,
    "google/umt5-xxl": UMT5_XXL,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder": UMT5_XXL,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers/text_encoder": UMT5_XXL,
}


def make_text_encoder(path: str, *, dtype: str = "float32", fetch: bool = True) -> TextEncoder:
    """Makes an encoder of T5 v1.1 or umT5; its weights are read when `load` is called.

    `encode` returns the states of the last layer after the final norm, the mask, and the mean of the tokens of each
    caption. Padding is masked as keys, so that it changes no token.

    Args:
      path: a folder, a safetensors file or a name on the Hugging Face hub (hub.py), with config.json beside the
        weights. If empty, the network is that of google/t5-v1_1-xxl and `load` raises.
      dtype: float32 or bfloat16, in which matrices are kept and multiplied.
      fetch: if False, take the config of a model on the hub from PUBLISHED or the hub's cache (default:
        T5 v1.1 XXL's), so that shapes are known offline.
    Raises:
      ValueError: the dtype is unknown.
      FileNotFoundError: the path exists neither here nor on the hub.
      WeightsError: config.json is missing or describes another network.
    """
    check_dtype(dtype, "a text encoder")
    config = find_config(
        path, read_config, XXL, refuse_without_config, published=PUBLISHED, fetch=fetch
    )
    network = Encoder(config, jnp.dtype(dtype))
    return wrap_network(
        network,
        path,
        _load,
        width=config.d_model,
        pooled_width=config.d_model,
        length=LONGEST,
        vocabulary_size=config.vocab_size,
        eos_id=config.eos_token_id,
        pad_id=PADDING,
    )


class Encoder(nn.Module):
    """The encoder of T5 v1.1 or umT5."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encodes captions.

        Args:
          ids: (B, L) int32, PADDING behind the end of each caption.
        Returns:
          tokens (B, L, E) float32, mask (B, L) bool, pooled (B, E) float32.
        """
        config, length = self.config, ids.shape[1]
        embed = nn.Embed(config.vocab_size, config.d_model, param_dtype=self.dtype, name="shared")
        x = embed(jnp.maximum(ids, 0)).astype(jnp.float32)  # (B, L, E)
        mask = (ids != PADDING)[:, None, None]  # (B, 1, 1, L), of keys
        bias = None
        if config.model_type != "umt5":
            bias = _make_bias(config, length, "relative_attention_bias")
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.num_layers,
        )
        x, _ = blocks(config, self.dtype, name="blocks")(x, mask, bias)
        tokens = RMSNorm(config.layer_norm_epsilon, name="final_layer_norm")(x)
        return tokens, *mask_and_mean(ids, tokens)


class Block(nn.Module):
    """A pre-norm layer: bidirectional attention without scale and a gated MLP, with residual connections."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, bias: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """(B, L, E) float32, mask (B, 1, 1, L), bias (1, K, L, L) or None to (B, L, E), and None for `nn.scan`."""
        config = self.config
        dense = functools.partial(
            nn.Dense, use_bias=False, dtype=self.dtype, param_dtype=self.dtype
        )
        norm = functools.partial(RMSNorm, config.layer_norm_epsilon)
        h = norm(name="layer.0.layer_norm")(x).astype(self.dtype)
        heads = (*x.shape[:2], config.num_heads, config.d_kv)
        query, key, value = (
            dense(config.num_heads * config.d_kv, name=f"layer.0.SelfAttention.{name}")(h)
            for name in "qkv"
        )
        if bias is None:
            bias = _make_bias(config, x.shape[1], BIAS)
        h = jax.nn.dot_product_attention(
            *(array.reshape(heads) for array in (query, key, value)), bias, mask, scale=1.0
        )
        h = h.reshape(*x.shape[:2], -1)
        x = x + dense(config.d_model, name="layer.0.SelfAttention.o")(h).astype(jnp.float32)
        h = norm(name="layer.1.layer_norm")(x).astype(self.dtype)
        gate, up = (dense(config.d_ff, name=f"layer.1.DenseReluDense.wi_{i}")(h) for i in range(2))
        h = nn.gelu(gate, approximate=True) * up
        return x + dense(config.d_model, name="layer.1.DenseReluDense.wo")(h).astype(
            jnp.float32
        ), None


def _make_bias(config: Config, length: int, name: str) -> jax.Array:
    """The learned bias of the scores, (1, K, L, L) float32."""
    buckets = position_buckets(
        length, config.relative_attention_num_buckets, config.relative_attention_max_distance
    )
    table = nn.Embed(config.relative_attention_num_buckets, config.num_heads, name=name)
    return table(jnp.asarray(buckets)).transpose(2, 0, 1)[None]


def position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each key's position relative to each query's.

    Half of the buckets are for keys behind the query. In each half, the first half is for single distances, and the
    others grow with the logarithm of the distance up to `max_distance`.

    Returns:
      (L, L) int32, by query and key.
    Source: arXiv:1910.10683, section 2.1.
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    # In float32, in which the weights' bucket boundaries were rounded.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    grown = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + grown.astype(np.int32), half - 1)
    within = np.where(distance < exact, distance, far)
    return (within + half * (relative > 0)).astype(np.int32)


def read_config(path: Path) -> Config:
    """Reads transformers' config.json.

    Raises:
      WeightsError: it is not JSON, or describes another network.
    """
    given = read_json(path)
    kind = given.get("model_type")
    if kind not in KINDS:
        raise WeightsError(
            f"{path} is the config of {kind!r}: give the folder of an encoder of T5 v1.1 or umT5."
        )
    # Fields that old files lack have the values of transformers' T5Config.
    config = make_config(path, Config, {"feed_forward_proj": "relu"} | given)
    if config.feed_forward_proj != "gated-gelu":
        raise WeightsError(
            f"{path}: feed_forward_proj is {config.feed_forward_proj!r}, of the original T5: give an encoder of T5 "
            "v1.1 or umT5, whose is gated-gelu."
        )
    return config


def _load(path: str, abstract_params: Any) -> Any:
    if not path:
        raise ValueError(
            "The text encoder has no weights: set text.path to the folder of an encoder of T5 v1.1 or umT5, or a model "
            "on the hub (Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder)."
        )

    def sources(tensors: Mapping[str, Any]) -> dict[str, Source]:
        embedding = next((name for name in EMBEDDINGS if name in tensors), EMBEDDINGS[0])

        def rename(module: str) -> str:
            if module == "shared":
                return embedding
            if module == "relative_attention_bias":
                return f"encoder.block.0.{BIAS}.weight"
            return f"encoder.{module.replace('blocks/', 'block.{i}.')}.weight"

        return name_sources(abstract_params, rename)

    return load_params(path, abstract_params, sources, ignored=IGNORED, what="T5 encoder")
