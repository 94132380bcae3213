"""CLIP's text encoder: captions to token embeddings for cross-attention and a pooled embedding.

| weights                              | width | layers | pooled | activation |
| ------------------------------------ | ----- | ------ | ------ | ---------- |
| openai/clip-vit-base-patch32 (or 16) | 512   | 12     | 512    | quick_gelu |
| openai/clip-vit-large-patch14        | 768   | 12     | 768    | quick_gelu |
| Stable Diffusion 2's text_encoder    | 1024  | 23     | 1024   | gelu       |
| SDXL's text_encoder_2                | 1280  | 32     | 1280   | gelu       |

And any other size in the layout of transformers' `CLIPModel`, `CLIPTextModel` or `CLIPTextModelWithProjection`, such as
OpenCLIP's models. The image encoder is in clip_vision.py, shared code in clip_common.py.

Source: CLIP, arXiv:2103.00020, section 2.4; transformers `models/clip/modeling_clip.py`.
"""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models.clip_common import (
    CONFIG_FILE,
    FILE,
    check_config,
    check_dtype,
    make_layers,
    make_norm,
    place_tower,
    read_fields,
    read_weights,
)
from videogen_jax.models.hub import find_file
from videogen_jax.models.model_config import make_config
from videogen_jax.models.text_common import TextEncoder, wrap_network
from videogen_jax.models.weights import PICKLES, WeightsError, read_shapes, read_tensors

HEAD_DIM = 64  # head dimension of every published model
LEGACY_EOS = (
    2  # eos_token_id of old config.json files: the end-of-text token is then the largest id
)
VISION = (
    r"vision_model\..*|visual_projection\..*"  # tensors of the image encoder, which are ignored
)


class Config(NamedTuple):
    """Fields of transformers' config.json that define the network; the defaults are transformers' (ViT-B/32)."""

    vocab_size: int = 49_408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49_407
    projection_dim: int | None = None  # output size of `text_projection`; None without one


BASE = Config(projection_dim=512)
LARGE = Config(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
PUBLISHED = {  # configs of models on the hub, to know shapes offline
    "openai/clip-vit-base-patch32": BASE,
    "openai/clip-vit-base-patch16": BASE,
    "openai/clip-vit-large-patch14": LARGE,
    "stabilityai/stable-diffusion-2-1/text_encoder": Config(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
    ),
    "stabilityai/stable-diffusion-xl-base-1.0/text_encoder_2": Config(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
        projection_dim=1280,
    ),
}
# The activation by (hidden size, layers), for sizes where it is unique; used without config.json.
ACTIVATIONS = {(1024, 23): "gelu", (1024, 24): "gelu", (1280, 32): "gelu"}


def make_text_encoder(path: str, *, dtype: str = "float32", fetch: bool = True) -> TextEncoder:
    """Makes a text encoder; its weights are read when `load` is called.

    `encode` returns the hidden states of the last layer after the final norm; a mask, True up to and including the end
    of text; and the state at the end of text, projected by `text_projection` if there is one. Attention is causal, so
    padding after the end of text does not affect unmasked tokens.

    Args:
      path: a safetensors file, a folder, or a name on the Hugging Face hub (hub.py), with config.json beside the
        weights. Without config.json, sizes are inferred from the tensors, if they determine the activation. If empty,
        the network is that of openai/clip-vit-large-patch14 and `load` raises.
      dtype: compute type, one of DTYPES. Parameters, norms and results are float32.
      fetch: if False, take the config of a model on the hub from PUBLISHED (by default
        openai/clip-vit-large-patch14's), so that shapes are known offline.
    Raises:
      ValueError: the dtype is unknown.
      FileNotFoundError: the path exists neither here nor on the hub.
      WeightsError: config.json describes another network, or is missing and needed.
    """
    check_dtype(dtype, "a text encoder")
    config = _find_config(path, fetch)
    network = Transformer(config, jnp.dtype(dtype))
    return wrap_network(
        network,
        path,
        _load,
        width=config.hidden_size,
        pooled_width=config.projection_dim or config.hidden_size,
        length=config.max_position_embeddings,
        vocabulary_size=config.vocab_size,
        eos_id=config.eos_token_id,
        # OpenAI's tokenizer pads with the end-of-text token, OpenCLIP's with 0; the activation distinguishes them.
        pad_id=0 if config.hidden_act == "gelu" else config.vocab_size - 1,
    )


class Transformer(nn.Module):
    """CLIP's text transformer."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encodes captions.

        Args:
          ids: (B, L) int32.
        Returns:
          tokens (B, L, E) float32, mask (B, L) bool, pooled (B, P) float32.
        Raises:
          ValueError: L exceeds the model's number of positions.
        """
        config, length = self.config, ids.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"{length} tokens exceed the maximum of this text encoder, {config.max_position_embeddings}."
            )
        embed = functools.partial(nn.Embed, features=config.hidden_size)
        x = embed(config.vocab_size, name="embeddings.token_embedding")(ids)
        positions = embed(config.max_position_embeddings, name="embeddings.position_embedding")
        x = (x + positions(jnp.arange(length))).astype(self.dtype)  # (B, L, E)
        x, _ = make_layers(config, self.dtype, causal=True)(x)
        tokens = make_norm(config, "final_layer_norm")(x.astype(jnp.float32))

        end = find_end(ids, config.eos_token_id)  # (B,)
        mask = jnp.arange(length) <= end[:, None]
        pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]  # (B, E)
        if config.projection_dim:
            project = nn.Dense(config.projection_dim, use_bias=False, name="text_projection")
            pooled = project(pooled)
        return tokens, mask, pooled


def find_end(ids: jax.Array, eos_token_id: int) -> jax.Array:
    """Index of the first end-of-text token.

    Args:
      ids: (B, L) int32.
      eos_token_id: from config.json; LEGACY_EOS means the largest id of the caption.
    Returns:
      (B,) int32.
    """
    found = ids if eos_token_id == LEGACY_EOS else ids == eos_token_id
    return jnp.argmax(found, axis=1)


def read_config(path: Path) -> Config:
    """Reads transformers' config.json of a text encoder or a full CLIP; missing fields have transformers' defaults.

    Raises:
      WeightsError: it is not JSON, or describes another network.
    """
    fields = read_fields(path, "text", "a CLIP text encoder")
    return check_config(path, make_config(path, Config, fields))


def _find_config(path: str, fetch: bool) -> Config:
    if not path:
        return LARGE
    here = Path(path)
    if here.exists():
        file = (here if here.is_dir() else here.parent) / CONFIG_FILE
        return read_config(file) if file.is_file() else _infer_config(here)
    if not fetch:
        return PUBLISHED.get(path, LARGE)
    return read_config(find_file(path, CONFIG_FILE))


def _infer_config(path: Path) -> Config:
    """Infers the config from the shapes of the tensors."""
    file = path / FILE if path.is_dir() else path
    if file.suffix.lower() in PICKLES or not file.is_file():
        read_tensors(path)  # raises if the weights are invalid
        raise WeightsError(f"{path} has no {CONFIG_FILE}: put that of the same model there.")
    shapes = {name.removeprefix("text_model."): shape for name, shape in read_shapes(file).items()}
    layers = [
        int(found[1])
        for found in (re.match(r"encoder\.layers\.(\d+)\.layer_norm1\.weight", n) for n in shapes)
        if found
    ]
    try:
        vocabulary, width = shapes["embeddings.token_embedding.weight"]
        positions, _ = shapes["embeddings.position_embedding.weight"]
        hidden, _ = shapes["encoder.layers.0.mlp.fc1.weight"]
    except (KeyError, ValueError):
        raise WeightsError(
            f"{file} has no CLIP text encoder: give the {FILE} of one, in transformers' layout."
        ) from None
    activation = ACTIVATIONS.get((width, len(layers)))
    if activation is None:
        raise WeightsError(
            f"{file} has no {CONFIG_FILE} beside it, and the activation (quick_gelu or gelu) of a text encoder of "
            f"{len(layers)} layers and width {width} cannot be inferred: put the model's {CONFIG_FILE} beside it."
        )
    return check_config(
        file,
        Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=len(layers),
            num_attention_heads=max(width // HEAD_DIM, 1),
            max_position_embeddings=positions,
            hidden_act=activation,
            projection_dim=next(iter(shapes.get("text_projection.weight", ())), None),
        ),
    )


def _load(path: str, abstract_params: Any) -> Any:
    if not path:
        raise ValueError(
            f"The text encoder has no weights: set text.path to {FILE}, its folder or a model on the hub "
            "(openai/clip-vit-large-patch14)."
        )
    found, tensors = read_weights(path)
    # Most files have this prefix, but not all.
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    return place_tower(
        found,
        tensors,
        abstract_params,
        prefix=prefix,
        projection="text_projection",
        ignored=VISION,
        what="CLIP text encoder",
    )
