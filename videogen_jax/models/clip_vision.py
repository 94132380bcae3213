"""CLIP's image encoder: pictures to one vector, which the text encoder's pooled vector of a fitting caption is near.

| weights                         | pixels | patch | width | layers | vector | activation |
| ------------------------------- | ------ | ----- | ----- | ------ | ------ | ---------- |
| openai/clip-vit-base-patch32    | 224    | 32    | 768   | 12     | 512    | quick_gelu |
| openai/clip-vit-large-patch14   | 224    | 14    | 1024  | 24     | 768    | quick_gelu |
| laion/CLIP-ViT-B-32-laion2B-... | 224    | 32    | 768   | 12     | 512    | gelu       |

And any other size in the layout of transformers' `CLIPModel`. The other tower is clip_text.py, and clip_common.py is
what both share.

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
    find_weights,
    make_layers,
    make_norm,
    place_tower,
    read_fields,
)
from videogen_jax.models.hub import find_file
from videogen_jax.models.weights import WeightsError

WHOLE = "a whole CLIP (transformers' CLIPModel), text and image encoder"
TEXT = r"text_model\..*|text_projection\..*"  # of the other tower: is not read
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of pixels in [0, 1]
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Config(NamedTuple):
    """Fields of transformers' config.json that shape the network; the defaults are transformers' own (ViT-B/32)."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224  # pixels of a side
    patch_size: int = 32  # of the same
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512


class ImageEncoder(NamedTuple):
    """An image encoder without its parameters, which `load` reads."""

    name: str  # the path that it was made from
    width: int  # P, of the vector
    size: int  # S, pixels of a side
    abstract_params: Any  # tree of shapes, float32
    load: Callable[[], Any]  # () to the tree of parameters, float32 NumPy
    encode: Callable[[Any, jax.Array], jax.Array]  # (params, (B, S, S, 3) uint8) to (B, P) float32


def make_image_encoder(path: str, *, dtype: str = "float32") -> ImageEncoder:
    """Makes an image encoder; its weights are read when `load` is called.

    `encode` gives the state of the class token behind the last norm, through `visual_projection`.

    Args:
      path: a safetensors file of a whole CLIP, its folder, or a name on the Hugging Face hub (hub.py), with config.json
        beside the weights: the tensors do not tell the activation.
      dtype: of the computation, float32 or bfloat16. Parameters, norms and results are float32.
    Returns:
      The image encoder.
    Raises:
      ValueError: the dtype is unknown.
      FileNotFoundError: there is nothing at the path, nor on the hub, or no config.json.
      WeightsError: config.json is of another network.
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
    """The network."""

    config: Config
    dtype: Any

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encodes pictures.

        Args:
          pixels: (B, S, S, 3) uint8.
        Returns:
          (B, P) float32.
        """
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
        x = make_norm(config, "pre_layrnorm")(x).astype(self.dtype)  # so spelt in the weights
        x, _ = make_layers(config, self.dtype, causal=False)(x)
        pooled = make_norm(config, "post_layernorm")(x[:, 0].astype(jnp.float32))  # (B, E)
        return nn.Dense(config.projection_dim, use_bias=False, name="visual_projection")(pooled)


def crop_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """Makes squares of frames, as CLIP was trained on: the shorter side resized, then the middle.

    Equals transformers' CLIPImageProcessorPil up to its normalisation, which is the network's part here: Pillow's own
    bicubic filter, antialiased, on bytes; the longer side rounded down.

    Args:
      frames: (N, H, W, 3) uint8.
      size: S, pixels of a side.
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
    """Reads transformers' config.json of a whole CLIP.

    Args:
      path: the file.
    Returns:
      The fields that matter to the image encoder. What it leaves out is as in transformers.
    Raises:
      WeightsError: it is no JSON, or of another network.
    """
    fields = read_fields(path, "vision", WHOLE)
    config = Config(**{name: fields[name] for name in Config._fields if name in fields})
    return check_config(path, config)


def _load(path: str, abstract_params: Any) -> Any:
    found, tensors = find_weights(path)
    if not any(name.startswith("vision_model.") for name in tensors):
        raise WeightsError(f"{found} holds no CLIP image encoder: name the weights of {WHOLE}.")
    return place_tower(
        found,
        tensors,
        abstract_params,
        prefix="vision_model.",
        projection="visual_projection",
        unread=TEXT,
        what="CLIP image encoder",
    )
