"""Qwen3 as a text encoder: hidden states of one of its layers as token embeddings; the pooled embedding is their mean.

| weights                   | width | layers | heads   | parameters |
| ------------------------- | ----- | ------ | ------- | ---------- |
| Qwen/Qwen3-0.6B           | 1024  | 28     | 16 of 8 | 0.60 B     |
| Qwen/Qwen3-Embedding-0.6B | 1024  | 28     | 16 of 8 | 0.60 B     |
| Qwen/Qwen3-1.7B           | 2048  | 28     | 16 of 8 | 1.72 B     |
| Qwen/Qwen3-4B             | 2560  | 36     | 32 of 8 | 4.02 B     |

`layer` counts as transformers' `hidden_states` do: 0 are the embeddings, k the states after k layers, -1 those of the
last layer after the final norm. Layers behind it are not read. Published practice: -1 (Ovis-Image), -2 (Z-Image).

Source: Qwen3, arXiv:2505.09388; transformers `models/qwen3/modeling_qwen3.py`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

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

PREFIX = "model."  # of the tensors of a causal language model; those of a bare Qwen3Model have none
# Fields that describe a network other than this one, and their value here.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "rope_scaling": None,
}


class Config(NamedTuple):
    """Fields of transformers' config.json that define the network; the defaults are those of Qwen3-0.6B."""

    vocab_size: int = 151_936
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    eos_token_id: int = 151_645


SMALL = Config()
PUBLISHED = {  # configs of models on the hub, to know shapes offline
    "Qwen/Qwen3-0.6B": SMALL,
    "Qwen/Qwen3-Embedding-0.6B": SMALL._replace(vocab_size=151_669, eos_token_id=151_643),
    "Qwen/Qwen3-1.7B": SMALL._replace(hidden_size=2048, intermediate_size=6144),
    "Qwen/Qwen3-4B": SMALL._replace(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32
    ),
}


def make_text_encoder(
    path: str, layer: int = -1, *, dtype: str = "float32", fetch: bool = True
) -> TextEncoder:
    """Makes a text encoder of the first layers of a Qwen3; its weights are read when `load` is called.

    `encode` returns the hidden states, the mask, and the mean of the tokens of each caption. Attention is causal, so
    padding behind a caption changes no token of it.

    Args:
      path: a folder, a safetensors file or a name on the Hugging Face hub (hub.py), with config.json beside the
        weights. If empty, the network is that of Qwen/Qwen3-0.6B and `load` raises.
      layer: which hidden states; see above.
      dtype: float32 or bfloat16, in which matrices are kept and multiplied.
      fetch: if False, take the config of a model on the hub from PUBLISHED or the hub's cache (default:
        Qwen3-0.6B's), so that shapes are known offline.
    Raises:
      ValueError: the dtype is unknown, or the network has no such layer.
      FileNotFoundError: the path exists neither here nor on the hub.
      WeightsError: config.json is missing or describes another network.
    """
    check_dtype(dtype, "a text encoder")
    config = find_config(
        path, read_config, SMALL, refuse_without_config, published=PUBLISHED, fetch=fetch
    )
    last = config.num_hidden_layers
    if not -last - 1 <= layer <= last:
        raise ValueError(
            f"text.layer is {layer}, but {path or 'Qwen3-0.6B'} has {last} layers: give a number from {-last - 1} to "
            f"{last}."
        )
    network = Decoder(config, layer % (last + 1), jnp.dtype(dtype))
    return wrap_network(
        network,
        path,
        _load,
        width=config.hidden_size,
        pooled_width=config.hidden_size,
        length=LONGEST,
        vocabulary_size=config.vocab_size,
        eos_id=config.eos_token_id,
        pad_id=PADDING,
    )


class Decoder(nn.Module):
    """The first `layers` layers of a Qwen3; the final norm follows the last one only."""

    config: Config
    layers: int
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encodes captions.

        Args:
          ids: (B, L) int32, PADDING behind the end of each caption.
        Returns:
          tokens (B, L, E) float32, mask (B, L) bool, pooled (B, E) float32.
        """
        config = self.config
        embed = nn.Embed(
            config.vocab_size, config.hidden_size, param_dtype=self.dtype, name="embed_tokens"
        )
        x = embed(jnp.maximum(ids, 0)).astype(jnp.float32)  # (B, L, E)
        if self.layers:
            blocks = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=self.layers,
            )
            angles = _make_angles(config, ids.shape[1])
            x, _ = blocks(config, self.dtype, name="blocks")(x, angles)
        if self.layers == config.num_hidden_layers:
            x = RMSNorm(config.rms_norm_eps, name="norm")(x)
        return x, *mask_and_mean(ids, x)


class Block(nn.Module):
    """A pre-norm layer: causal grouped-query attention with rotary positions and a gated MLP, with residuals."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, None]:
        """(B, L, E) float32 and angles (L, Dh / 2) to (B, L, E), and None for `nn.scan`."""
        config = self.config
        dense = functools.partial(
            nn.Dense, use_bias=False, dtype=self.dtype, param_dtype=self.dtype
        )
        norm = functools.partial(RMSNorm, config.rms_norm_eps)
        h = norm(name="input_layernorm")(x).astype(self.dtype)
        counts = {"q": config.num_attention_heads}
        counts |= dict.fromkeys("kv", config.num_key_value_heads)
        query, key, value = (
            dense(count * config.head_dim, name=f"self_attn.{name}_proj")(h).reshape(
                *x.shape[:2], count, config.head_dim
            )
            for name, count in counts.items()
        )
        query = _rotate(norm(name="self_attn.q_norm")(query), angles)
        key = _rotate(norm(name="self_attn.k_norm")(key), angles)
        h = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        h = dense(config.hidden_size, name="self_attn.o_proj")(h.reshape(*x.shape[:2], -1))
        x = x + h.astype(jnp.float32)
        h = norm(name="post_attention_layernorm")(x).astype(self.dtype)
        gate, up = (
            dense(config.intermediate_size, name=f"mlp.{name}_proj")(h) for name in ("gate", "up")
        )
        h = dense(config.hidden_size, name="mlp.down_proj")(nn.silu(gate) * up)
        return x + h.astype(jnp.float32), None


def _make_angles(config: Config, length: int) -> jax.Array:
    """Rotary angles of each position and pair of channels, (L, Dh / 2) float32."""
    rates = config.rope_theta ** -(jnp.arange(0, config.head_dim, 2) / config.head_dim)
    return jnp.arange(length)[:, None] * rates


def _rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """(B, L, K, Dh) with each pair of channels i and i + Dh / 2 rotated by its angle."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(x.dtype)


def read_config(path: Path) -> Config:
    """Reads transformers' config.json.

    Raises:
      WeightsError: it is not JSON, or describes another network.
    """
    given = read_json(path)
    if given.get("model_type") != "qwen3":
        raise WeightsError(
            f"{path} is the config of {given.get('model_type')!r}: give the folder of a Qwen3."
        )
    rope = given.get("rope_parameters")  # as transformers 5 writes it
    rope = rope if isinstance(rope, dict) else {}
    if "rope_theta" in rope:
        given |= {"rope_theta": rope["rope_theta"]}
    for name, value in FIXED.items():
        if given.get(name, value) != value:
            raise WeightsError(f"{path}: {name} is {given[name]!r}: only {value!r} is supported.")
    if rope.get("rope_type", "default") != "default":
        raise WeightsError(
            f"{path}: rope_type is {rope['rope_type']!r}: only 'default' is supported."
        )
    if isinstance(given.get("eos_token_id"), list):
        given |= {"eos_token_id": next(iter(given["eos_token_id"]), None)}
    config = make_config(path, Config, given)
    if config.num_attention_heads % config.num_key_value_heads:
        raise WeightsError(
            f"{path}: num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{config.num_key_value_heads}: download it again."
        )
    return config


def _load(path: str, abstract_params: Any) -> Any:
    if not path:
        raise ValueError(
            "The text encoder has no weights: set text.path to the folder of a Qwen3, or a model on the hub "
            "(Qwen/Qwen3-0.6B)."
        )
    # Where the last layer is not read, nor are the final norm and layers behind the one that is.
    later = "" if "norm" in abstract_params else r"|norm\.weight|layers\.\d+\..*"

    def sources(tensors: Mapping[str, Any]) -> dict[str, Source]:
        prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
        return name_sources(
            abstract_params,
            lambda module: f"{prefix}{module.replace('blocks/', 'layers.{i}.')}.weight",
        )

    ignored = rf"lm_head\.weight|({PREFIX})?(.*\.rotary_emb\.inv_freq{later})"
    return load_params(path, abstract_params, sources, ignored=ignored, what="Qwen3")
