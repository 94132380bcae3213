"""How far two pictures are apart for an image classifier: VGG16's features, torchvision's weights.

    d(x, y) = mean over layers l of  mean over places of  |n(f_l(x)) - n(f_l(y))|^2,   n(f) = f / |f| over channels

with f_l behind the last ReLU before each pooling. It is LPIPS without its learned weights of channels.

Source: Johnson et al., arXiv:1603.08155; LPIPS, arXiv:1801.03924, eq. 1 with w = 1; VGG16, arXiv:1409.1556.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models.convolutions import conv
from videogen_jax.models.hub import find_file
from videogen_jax.models.weights import WeightsError, name_sources, place_tensors, read_tensors

FILE = "model.safetensors"
# (number that torchvision gives the convolution, its channels); a new row after each pooling.
LAYERS = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
LEAST_SIZE = 16  # pixels, that the last row still has a place
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet's pixels in [0, 1]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
EPSILON = 1e-10  # added to the length of a feature


class Vgg16(nn.Module):
    """The convolutions of VGG16. Modules carry the names of torchvision's."""

    @nn.compact
    def __call__(self, frames: jax.Array) -> list[jax.Array]:
        """Computes features.

        Args:
          frames: (N, H, W, 3) in [-1, 1].
        Returns:
          Five arrays (N, H / 2^i, W / 2^i, D), not negative.
        """
        x = ((frames + 1) / 2 - MEAN) / DEVIATION
        features = []
        for i, row in enumerate(LAYERS):
            if i:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for number, width in row:
                x = nn.relu(conv(width, f"features.{number}", jnp.float32)(x))
            features.append(x)
        return features


def distance(params: Any, frames: jax.Array, others: jax.Array) -> jax.Array:
    """The distance of pictures.

    Args:
      params: of `load_vgg`.
      frames: (N, H, W, 3) in [-1, 1], H and W at least LEAST_SIZE.
      others: the same shape.
    Returns:
      () float32, the mean over pictures.
    """
    network = Vgg16()

    def normed(frames: jax.Array) -> list[jax.Array]:
        features = network.apply({"params": params}, frames)
        # The root of a sum that starts above 0: where no feature is active its gradient is not infinite.
        length = [
            jnp.sqrt(jnp.sum(jnp.square(f), axis=-1, keepdims=True) + EPSILON) for f in features
        ]
        return [f / norm for f, norm in zip(features, length, strict=True)]

    parts = [
        jnp.mean(jnp.sum(jnp.square(a - b), axis=-1))
        for a, b in zip(normed(frames), normed(others), strict=True)
    ]
    return jnp.mean(jnp.stack(parts))


def abstract_vgg() -> Any:
    """The shapes of VGG16's parameters."""
    frame = jax.ShapeDtypeStruct((1, LEAST_SIZE, LEAST_SIZE, 3), jnp.float32)
    return jax.eval_shape(Vgg16().init, jax.random.key(0), frame)["params"]


def load_vgg(path: str) -> Any:
    """Reads VGG16's weights.

    Args:
      path: a safetensors file, a folder with model.safetensors, or a name on the Hugging Face hub, such as
        timm/vgg16.tv_in1k. Its classifier is left out.
    Returns:
      Parameters, float32 NumPy.
    Raises:
      FileNotFoundError: there is nothing at the path, nor on the hub.
      WeightsError: it is no VGG16.
    """
    found = find_file(path, FILE)
    tensors = drop_classifier(read_tensors(found))
    shapes = abstract_vgg()
    try:
        return place_tensors(
            tensors,
            name_sources(shapes),
            shapes,
            what="VGG16",
            remedy="Name torchvision's weights, such as timm/vgg16.tv_in1k, or set perceptual.weight to 0.",
        )
    except WeightsError as error:
        raise WeightsError(f"{found}: {error}") from None


def drop_classifier(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the layers behind the convolutions, under torchvision's names of them or timm's."""
    behind = ("classifier.", "pre_logits.", "head.")
    return {name: array for name, array in tensors.items() if not name.startswith(behind)}
