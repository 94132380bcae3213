"""Code shared by CLIP's text and image encoders: layers, reading of config.json and weights.

Modules are named like their tensors; layers are stacked under `blocks/`.

Source: CLIP, arXiv:2103.00020, section 2.4; transformers `models/clip/modeling_clip.py`.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models import model_config
from videogen_jax.models.attention import attend
from videogen_jax.models.hub import CONFIG_FILE, FILE, find_weights
from videogen_jax.models.weight_layouts import Source
from videogen_jax.models.weights import WeightsError, place_tensors, read_tensors
from videogen_jax.parallel.sharding import path_name

DTYPES = ("float32", "bfloat16")
# Tensors of neither encoder, which are ignored.
IGNORED = r"logit_scale|(.*\.)?position_ids"


class Sizes(Protocol):
    """The fields of an encoder's config.json that its layers use."""

    hidden_size: int  # E
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float


def check_dtype(dtype: str, what: str) -> None:
    """Raises ValueError, naming `what`, if a compute type is not one of DTYPES."""
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r} of {what}: choose {' or '.join(DTYPES)}.")


def make_layers(config: Sizes, dtype: Any, causal: bool) -> nn.Module:
    """Makes the layers of an encoder.

    Args:
      config: sizes.
      dtype: compute type.
      causal: whether attention is causal.
    Returns:
      A module from (B, N, E) to (the same shape, None).
    """
    blocks = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=config.num_hidden_layers,
    )
    return blocks(config, dtype, causal, name="blocks")


class Block(nn.Module):
    """A pre-norm transformer layer: attention and MLP with residual connections."""

    config: Sizes
    dtype: Any
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """(B, N, E) to the same shape, and None for `nn.scan`."""
        config = self.config
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        h = make_norm(config, "layer_norm1")(x).astype(self.dtype)
        heads = (*x.shape[:2], config.num_attention_heads, -1)
        query, key, value = (
            dense(config.hidden_size, name=f"self_attn.{name}_proj")(h).reshape(heads)
            for name in "qkv"
        )
        h = attend(query, key, value, causal=self.causal).reshape(x.shape)
        x = x + dense(config.hidden_size, name="self_attn.out_proj")(h)
        h = make_norm(config, "layer_norm2")(x).astype(self.dtype)
        h = dense(config.intermediate_size, name="mlp.fc1")(h)
        h = h * nn.sigmoid(1.702 * h) if config.hidden_act == "quick_gelu" else _gelu(h)
        return x + dense(config.hidden_size, name="mlp.fc2")(h), None


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


def make_norm(config: Sizes, name: str) -> nn.Module:
    """A layer norm named `name`, computed in float32."""
    # The fast variance is imprecise if a few channels are very large, as in CLIP.
    return nn.LayerNorm(
        config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def read_fields(path: Path, tower: str, expected: str) -> dict[str, Any]:
    """Reads transformers' config.json of an encoder or a full CLIP.

    Args:
      path: the file.
      tower: text or vision.
      expected: name of the expected model in the error.
    Returns:
      The fields of the encoder. `projection_dim` is None if it has no projection.
    Raises:
      WeightsError: the file is not JSON, or describes another network.
    """
    encoder_type = f"clip_{tower}_model"
    given = model_config.read_json(path)
    kind = given.get("model_type", "clip" if f"{tower}_config" in given else encoder_type)
    if kind not in ("clip", encoder_type):
        raise WeightsError(f"{path} is the config of {kind!r}: give the folder of {expected}.")
    if kind == "clip":  # old files have the fields twice, and transformers uses the second ones
        fields: dict[str, Any] = {}
        for name in (f"{tower}_config", f"{tower}_config_dict"):
            if not isinstance(given.get(name) or {}, dict):
                raise WeightsError(f"{path}: {name} should be an object: download it again.")
            fields |= given.get(name) or {}
        return fields | {"projection_dim": given.get("projection_dim", 512)}
    architectures = given.get("architectures") or []
    if not isinstance(architectures, list):
        raise WeightsError(f"{path}: architectures should be a list: download it again.")
    projects = f"CLIP{tower.title()}ModelWithProjection" in architectures
    return given if projects else given | {"projection_dim": None}


def check_config(path: Path, config: Any) -> Any:
    """Validates and returns the config of an encoder.

    Args:
      path: its file, for the error.
      config: fields of the encoder.
    Raises:
      WeightsError: names the invalid field.
    """
    if config.hidden_act not in ("quick_gelu", "gelu"):
        raise WeightsError(
            f"{path}: hidden_act {config.hidden_act!r}: only quick_gelu and gelu are supported."
        )
    for name, kind in type(config).__annotations__.items():
        value = getattr(config, name)
        if kind is int and (not isinstance(value, int) or value < 1):
            raise WeightsError(f"{path}: {name} {value!r} is not a positive integer.")
    if config.hidden_size % config.num_attention_heads:
        raise WeightsError(
            f"{path}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}."
        )
    return config


def read_weights(path: str) -> tuple[Path, dict[str, np.ndarray]]:
    """Reads the tensors of a model.

    Args:
      path: see hub.py.
    Returns:
      (local path, name -> array).
    Raises:
      FileNotFoundError: there are none.
      WeightsError: they cannot be read.
    """
    found = find_weights(path)
    return found, read_tensors(found)


def place_tower(
    found: Path,
    tensors: Mapping[str, np.ndarray],
    abstract_params: Any,
    *,
    prefix: str,
    projection: str,
    ignored: str,
    what: str,
) -> Any:
    """Converts tensors to the parameters of an encoder.

    Args:
      found: path from `read_weights`, for the error.
      tensors: tensors from `read_weights`.
      abstract_params: tree of jax.ShapeDtypeStruct.
      prefix: prefix of all tensor names except the projection's.
      projection: name of the projection.
      ignored: regular expression of tensors of the other encoder.
      what: name of the encoder in the error.
    Returns:
      Parameters, float32 NumPy.
    Raises:
      WeightsError: they do not fit.
    """
    try:
        return place_tensors(
            tensors,
            _name_sources(abstract_params, prefix, projection),
            abstract_params,
            what=f"the {what} that config.json describes",
            remedy=f"Give the {FILE} of a {what} in transformers' layout, with its {CONFIG_FILE}.",
            ignored=[name for name in tensors if re.fullmatch(f"{ignored}|{IGNORED}", name)],
        )
    except WeightsError as error:
        raise WeightsError(f"{found}: {error}") from None


def _name_sources(params: Any, prefix: str, projection: str) -> dict[str, Source]:
    sources = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        tensor = re.sub(r"/(kernel|scale|embedding)$", ".weight", name).replace("/bias", ".bias")
        tensor = tensor.replace("blocks/", "encoder.layers.{i}.")
        if not tensor.startswith(f"{projection}."):
            tensor = prefix + tensor
        pattern = "o -> o"
        if name.endswith("/kernel"):
            pattern = "o i h w -> h w i o" if leaf.ndim == 4 else "o i -> i o"
        elif name.endswith("/embedding"):
            pattern = "o i -> o i"
        sources[name] = Source((tensor,), pattern)
    return sources
