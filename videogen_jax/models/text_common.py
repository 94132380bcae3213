"""Shared by the text encoders: their interface, the pooled vector of those that have none, and how files are read."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models.hub import CONFIG_FILE, find_weights
from videogen_jax.models.weight_layouts import Source
from videogen_jax.models.weights import WeightsError, open_tensors, place_tensors
from videogen_jax.parallel.sharding import path_name

PADDING = -1  # id of padding of encoders whose tokenizer's own padding id may occur in a caption
LONGEST = 512  # tokens that T5 and Qwen3 read here; their relative positions know no limit


class TextEncoder(NamedTuple):
    """A text encoder; its parameters are read by `load`."""

    name: str  # its path
    width: int  # E, size of token embeddings
    pooled_width: int  # P, size of the pooled embedding
    length: int  # maximum number of tokens, including start and end of text
    vocabulary_size: int
    eos_id: int  # end-of-text id of its config
    pad_id: int  # id of padding
    abstract_params: Any  # tree of jax.ShapeDtypeStruct
    load: Callable[[], Any]  # () to parameters, NumPy
    # (params, ids (B, L) int32) to tokens (B, L, E) float32, mask (B, L) bool, pooled (B, P) float32
    encode: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def wrap_network(
    network: nn.Module, path: str, load: Callable[[str, Any], Any], **fields: Any
) -> TextEncoder:
    """A text encoder of a network.

    Args:
      network: from ids (B, L) int32 to what `TextEncoder.encode` returns.
      path: see hub.py.
      load: (path, abstract parameters) to parameters, NumPy.
      **fields: width, pooled_width, length, vocabulary_size, eos_id and pad_id of `TextEncoder`.
    """
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    abstract_params = jax.eval_shape(network.init, jax.random.key(0), ids)["params"]
    return TextEncoder(
        name=path,
        abstract_params=abstract_params,
        load=functools.partial(load, path, abstract_params),
        encode=lambda params, ids: network.apply({"params": params}, ids),
        **fields,
    )


def mask_and_mean(ids: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mask of a batch, and the mean of the tokens of each caption as its pooled vector.

    Args:
      ids: (B, L) int32, PADDING behind the end of each caption.
      tokens: (B, L, E) float32.
    Returns:
      mask (B, L) bool; (B, E) float32.
    """
    mask = ids != PADDING
    weight = mask[..., None].astype(tokens.dtype)
    return mask, (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def refuse_without_config(path: Path) -> NoReturn:
    """Raises WeightsError for local weights without config.json; for `hub.find_config`."""
    raise WeightsError(
        f"{path} has no {CONFIG_FILE} beside its weights: put that of the model there."
    )


def name_sources(abstract_params: Any, rename: Callable[[str], str]) -> dict[str, Source]:
    """Sources of parameters of dense layers, norms and embeddings.

    Args:
      abstract_params: their shapes.
      rename: path of a module, such as blocks/mlp.up_proj, to the name of its tensor; {i} is the block's number.
    Returns:
      Parameter path -> source.
    """
    patterns = {"kernel": "o i -> i o", "scale": "o -> o", "embedding": "o i -> o i"}
    sources = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params):
        name = path_name(path)
        module, kind = name.rsplit("/", 1)
        sources[name] = Source((rename(module),), patterns[kind])
    return sources


def load_params(
    path: str,
    abstract_params: Any,
    sources: Callable[[Mapping[str, Any]], dict[str, Source]],
    *,
    ignored: str,
    what: str,
) -> Any:
    """Reads the parameters of a text encoder, tensor by tensor, in the types of `abstract_params`.

    Args:
      path: see hub.py.
      abstract_params: tree of jax.ShapeDtypeStruct.
      sources: names of the stored tensors to the sources of the parameters.
      ignored: regular expression of tensors that are not read.
      what: name of the model in errors.
    Returns:
      Parameters, NumPy.
    Raises:
      FileNotFoundError: there are no weights.
      WeightsError: they cannot be read or do not fit.
    """
    found = find_weights(path)
    tensors = open_tensors(found)
    try:
        return place_tensors(
            tensors,
            sources(tensors),
            abstract_params,
            what=f"the {what} that {CONFIG_FILE} describes",
            remedy=f"Give the safetensors of a {what} in transformers' layout, with their {CONFIG_FILE}.",
            ignored=[name for name in tensors if re.fullmatch(ignored, name)],
        )
    except WeightsError as error:
        raise WeightsError(f"{found}: {error}") from None
