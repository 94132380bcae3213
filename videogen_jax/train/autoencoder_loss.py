"""The loss that an autoencoder descends.

    |x - y| + perceptual_weight d(x, y) + kl_weight KL(N(mean, var) || N(0, 1)),   y = decode(z), z ~ N(mean, var)

or (x - y)^2 in place of |x - y|, in which small objects of strong contrast weigh more. The first term is a mean over
the values of the video; the KL is summed over the latents and divided by the number of these values, so that its weight
against the first term does not depend on the sizes of either.

Source: Latent diffusion, arXiv:2112.10752, appendix G (without the discriminator); Kingma & Welling, arXiv:1312.6114,
appendix B.
"""

import math
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp

from videogen_jax.models import perceptual
from videogen_jax.train.loss import Batch, Loss, to_float

# (params, video, key or None) to reconstruction, mean and log variance of the latents
Reconstruct = Callable[[Any, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array, jax.Array]]


def make_loss(
    reconstruct: Reconstruct,
    *,
    kl_weight: float,
    distance: str = "l1",
    perceptual_weight: float = 0.0,
    perceptual_frames: int = 1,
    vgg: Any = None,
) -> Loss:
    """Builds the loss of a batch.

    Args:
      reconstruct: the autoencoder.
      kl_weight: see above.
      distance: l1 or l2, over the values of the video.
      perceptual_weight: see above; the term is left out where `vgg` is None.
      perceptual_frames: of each clip, drawn at random in each step, of which it is taken.
      vgg: parameters of `perceptual.load_vgg`, on the devices.
    Returns:
      (params, batch, rng) to the mean over the batch, () float32.
    Raises:
      ValueError: a weight is negative.
    """
    for name, weight in (("loss.kl_weight", kl_weight), ("perceptual.weight", perceptual_weight)):
        if weight < 0:
            raise ValueError(f"{name} is {weight}: a weight is 0 or more.")

    elementwise = {"l1": jnp.abs, "l2": jnp.square}[distance]

    def loss(params: Any, batch: Batch, rng: jax.Array, offset: Any = None) -> jax.Array:
        del offset  # of diffusion times, which an autoencoder has not
        rng_latents, rng_frames = jax.random.split(rng)
        video = to_float(batch["video"])  # (B, T, H, W, 3)
        made, mean, logvar = reconstruct(params, video, rng_latents)
        value = jnp.mean(elementwise(video - made))
        value += kl_weight * divergence(mean, logvar) / math.prod(video.shape[1:])
        if vgg is not None and perceptual_weight:
            pairs = pick_frames(jnp.stack([video, made]), rng_frames, perceptual_frames)
            value += perceptual_weight * perceptual.distance(vgg, *pairs)
        return value

    return loss


def divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)): sum over the latents of a clip, mean over clips.

    Args:
      mean: (B, ...).
      logvar: the same.
    Returns:
      () float32.
    """
    each = (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar) / 2
    return jnp.sum(each) / len(mean)


def pick_frames(videos: jax.Array, rng: jax.Array, count: int) -> jax.Array:
    """The same random frames of all videos, as pictures.

    Args:
      videos: (V, B, T, H, W, C).
      rng: of the choice.
      count: frames; all where the videos have no more.
    Returns:
      (V, B count, H, W, C).
    """
    length = videos.shape[2]
    chosen = jax.random.permutation(rng, length)[: min(count, length)]
    return einops.rearrange(videos[:, :, chosen], "v b t h w c -> v (b t) h w c")
