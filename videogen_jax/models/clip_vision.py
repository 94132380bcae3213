"""CLIP's image encoder: images to embeddings close to the pooled text embeddings of matching captions.

| weights                         | pixels | patch | width | layers | output | activation |
| ------------------------------- | ------ | ----- | ----- | ------ | ------ | ---------- |
| openai/clip-vit-base-patch32    | 224    | 32    | 768   | 12     | 512    | quick_gelu |
| openai/clip-vit-large-patch14   | 224    | 14    | 1024  | 24     | 768    | quick_gelu |
| laion/CLIP-ViT-B-32-laion2B-... | 224    | 32    | 768   | 12     | 512    | gelu       |

And any other size in the layout of transformers' `CLIPModel`. The text encoder is in clip_text.py, shared code in
clip_common.py.

Source: CLIP, arXiv:2103.00020, section 2.4; transformers `models/clip/modeling_clip.py`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from videogen_jax.models.clip_common import (
    CONFIG_FILE,
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
from videogen_jax.models.weights import WeightsError

FULL_CLIP = "a full CLIP (transformers' CLIPModel), text and image encoder"
TEXT = r"text_model\..*|text_projection\..*"  # tensors of the text encoder, which are ignored
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # statistics of pixels in [0, 1]
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Config(NamedTuple):
    """Fields of transformers' config.json that define the network; the defaults are transformers' (ViT-B/32)."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224  # height and width in pixels
    patch_size: int = 32  # height and width in pixels
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512


class ImageEncoder(NamedTuple):
    """An image encoder; its parameters are read by `load`."""

    name: str  # its path
    width: int  # P, size of the embedding
    size: int  # S, height and width in pixels
    abstract_params: Any  # tree of jax.ShapeDtypeStruct, float32
    load: Callable[[], Any]  # () to parameters, float32 NumPy
    encode: Callable[[Any, jax.Array], jax.Array]  # (params, (B, S, S, 3) uint8) to (B, P) float32


def make_image_encoder(path: str, *, dtype: str = "float32") -> ImageEncoder:
    """Makes an image encoder; its weights are read when `load` is called.

    `encode` returns the state of the class token after the last norm, projected by `visual_projection`.

    Args:
      path: a safetensors file of a full CLIP, its folder, or a name on the Hugging Face hub (hub.py), with config.json
        beside the weights, since the tensors do not determine the activation.
      dtype: compute type, float32 or bfloat16. Parameters, norms and results are float32.
    Raises:
      ValueError: the dtype is unknown.
      FileNotFoundError: the path or config.json exists neither here nor on the hub.
      WeightsError: config.json describes another network.
    """
    check_dtype(dtype, "an image encoder")
    here = Path(path)
    config = read_config(find_file(str(here.parent) if here.is_file() else path, CONFIG_FILE))
    network = VisionTransformer(config, jnp.dtype(dtype))
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    abstract_params = jax.eval_shape(network.init, jax.random.key(0), pixels)["params"]

    def encode(params: Any, pixels: jax.Array) -> jax.Array:
        return network.apply({"params": params}, pixels)

    return ImageEncoder(
        name=path,
        width=config.projection_dim,
        size=config.image_size,
        abstract_params=abstract_params,
        load=functools.partial(_load, path, abstract_params),
        encode=encode,
    )


class VisionTransformer(nn.Module):
    """CLIP's vision transformer."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encodes images, (B, S, S, 3) uint8, to (B, P) float32."""
        config = self.config
        width, patch = config.hidden_size, (config.patch_size, config.patch_size)
        x = ((pixels / np.float32(255) - MEAN) / DEVIATION).astype(self.dtype)
        x = nn.Conv(
            width,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="embeddings.patch_embedding",
        )(x)
        x = x.reshape(len(x), -1, width)  # (B, N, E)
        token = self.param("embeddings.class_embedding", nn.initializers.zeros, (width,))
        token = jnp.broadcast_to(token.astype(self.dtype), (len(x), 1, width))
        x = jnp.concatenate([token, x], axis=1)  # (B, 1 + N, E)
        positions = nn.Embed(x.shape[1], width, name="embeddings.position_embedding")
        x = x + positions(jnp.arange(x.shape[1]))
        x = make_norm(config, "pre_layrnorm")(x).astype(self.dtype)  # spelling of the weights
        x, _ = make_layers(config, self.dtype, causal=False)(x)
        pooled = make_norm(config, "post_layernorm")(x[:, 0].astype(jnp.float32))  # (B, E)
        return nn.Dense(config.projection_dim, use_bias=False, name="visual_projection")(pooled)


def crop_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side of frames to `size` and crops the center, as in CLIP's training.

    Equals transformers' CLIPImageProcessorPil except for the normalization, which is part of the network here: Pillow's
    antialiased bicubic filter on uint8, with the longer side rounded down.

    Args:
      frames: (N, H, W, 3) uint8.
      size: S, height and width in pixels.
    Returns:
      (N, S, S, 3) uint8.
    """
    height, width = frames.shape[1:3]
    shorter = min(height, width)
    new_height, new_width = size * height // shorter, size * width // shorter
    top, left = (new_height - size) // 2, (new_width - size) // 2
    squares = np.empty((len(frames), size, size, 3), np.uint8)
    for square, frame in zip(squares, frames, strict=True):
        resized = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BICUBIC)
        square[:] = np.asarray(resized)[top : top + size, left : left + size]
    return squares


def read_config(path: Path) -> Config:
    """Reads the image encoder's fields of transformers' config.json; missing ones have transformers' defaults.

    Raises:
      WeightsError: it is not JSON, or describes another network.
    """
    fields = read_fields(path, "vision", FULL_CLIP)
    return check_config(path, make_config(path, Config, fields))


def _load(path: str, abstract_params: Any) -> Any:
    found, tensors = read_weights(path)
    if not any(name.startswith("vision_model.") for name in tensors):
        raise WeightsError(f"{found} has no CLIP image encoder: give the weights of {FULL_CLIP}.")
    return place_tower(
        found,
        tensors,
        abstract_params,
        prefix="vision_model.",
        projection="visual_projection",
        ignored=TEXT,
        what="CLIP image encoder",
    )
