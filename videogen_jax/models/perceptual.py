"""Perceptual distance between images: VGG16 features with torchvision's weights.

    d(x, y) = mean over layers l of  mean over positions of  |n(f_l(x)) - n(f_l(y))|^2,   n(f) = f / |f| over channels

with f_l the output of the last ReLU before each pooling. It is LPIPS without learned channel weights.

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
# (index of the convolution in torchvision, its channels); one row per stage between poolings.
LAYERS = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
LEAST_SIZE = 16  # pixels, so that the last stage has at least one position
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet statistics of pixels in [0, 1]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
EPSILON = 1e-10  # added to the squared norm of a feature


class Vgg16(nn.Module):
    """The convolutions of VGG16, named as in torchvision."""

    @nn.compact
    def __call__(self, frames: jax.Array) -> list[jax.Array]:
        """Computes features.

        Args:
          frames: (N, H, W, 3) in [-1, 1].
        Returns:
          Five arrays (N, H / 2^i, W / 2^i, D), nonnegative.
        """
        x = ((frames + 1) / 2 - MEAN) / DEVIATION
        features = []
        for i, stage in enumerate(LAYERS):
            if i:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for index, width in stage:
                x = nn.relu(conv(width, f"features.{index}", jnp.float32)(x))
            features.append(x)
        return features


def distance(params: Any, frames: jax.Array, others: jax.Array) -> jax.Array:
    """Perceptual distance between two batches of frames.

    Args:
      params: from `load_vgg`.
      frames: (N, H, W, 3) in [-1, 1], H and W at least LEAST_SIZE.
      others: the same shape.
    Returns:
      () float32, the mean over frames.
    """
    network = Vgg16()

    def normalized_features(frames: jax.Array) -> list[jax.Array]:
        features = network.apply({"params": params}, frames)
        # EPSILON keeps the gradient of the square root finite where no feature is active.
        norms = [
            jnp.sqrt(jnp.sum(jnp.square(f), axis=-1, keepdims=True) + EPSILON) for f in features
        ]
        return [f / norm for f, norm in zip(features, norms, strict=True)]

    parts = [
        jnp.mean(jnp.sum(jnp.square(a - b), axis=-1))
        for a, b in zip(normalized_features(frames), normalized_features(others), strict=True)
    ]
    return jnp.mean(jnp.stack(parts))


def abstract_vgg() -> Any:
    """VGG16's parameters as a tree of jax.ShapeDtypeStruct."""
    frame = jax.ShapeDtypeStruct((1, LEAST_SIZE, LEAST_SIZE, 3), jnp.float32)
    return jax.eval_shape(Vgg16().init, jax.random.key(0), frame)["params"]


def load_vgg(path: str) -> Any:
    """Reads VGG16's weights.

    Args:
      path: a safetensors file, a folder with model.safetensors, or a name on the Hugging Face hub, such as
        timm/vgg16.tv_in1k. The classifier is ignored.
    Returns:
      Parameters, float32 NumPy.
    Raises:
      FileNotFoundError: the path exists neither here nor on the hub.
      WeightsError: the weights are not VGG16's.
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
            remedy="Use torchvision's weights, such as timm/vgg16.tv_in1k, or set perceptual.weight to 0.",
        )
    except WeightsError as error:
        raise WeightsError(f"{found}: {error}") from None


def drop_classifier(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes the layers after the convolutions, named as in torchvision or timm."""
    classifier = ("classifier.", "pre_logits.", "head.")
    return {name: array for name, array in tensors.items() if not name.startswith(classifier)}
