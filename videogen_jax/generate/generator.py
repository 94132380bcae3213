"""Videos for any number of captions, in batches on a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.generate import guidance, sampler
from videogen_jax.parallel.mesh import BATCH

Generate = Callable[[Any, np.ndarray, list[int]], np.ndarray]


def make_generator(
    apply: Callable[..., jax.Array],
    schedule: Schedule,
    null_text: np.ndarray,
    mesh: Mesh,
    param_shardings: Any,
    *,
    shape: tuple[int, int, int, int],
    batch_size: int,
    guidance_scale: float,
    **options: Any,
) -> Generate:
    """Compiles the sampler once for a batch size and a mesh.

    Args:
      apply: the model, (params, x_t, t, text) to its output.
      schedule: the noise schedule.
      null_text: (L,) ids that stand for no caption.
      mesh: whose devices share the batch.
      param_shardings: of the params that will be handed in.
      shape: (T, H, W, C) of a video.
      batch_size: videos at a time; rounded up to a multiple of the devices.
      guidance_scale: of classifier-free guidance.
      **options: of `sampler.sample`.
    Returns:
      (params, text (N, L) int32, N seeds) to (N, T, H, W, C) uint8.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())

    def run(params: Any, text: jax.Array, seeds: jax.Array) -> jax.Array:
        def predict(x_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
            return apply(params, x_t, t, text)

        guided = guidance.guide(predict, jnp.asarray(null_text), guidance_scale)
        keys = jax.vmap(jax.random.key)(seeds)
        video = sampler.sample(guided, schedule, text, keys, shape=shape, **options)
        return to_pixels(video)

    run = jax.jit(run, in_shardings=(param_shardings, rows, rows), out_shardings=whole)

    def generate(params: Any, text: np.ndarray, seeds: list[int]) -> np.ndarray:
        videos = []
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            count = len(seeds[part])
            index = np.arange(batch_size) % count  # fills the last batch up
            batch = (text[part][index], np.asarray(seeds[part], np.uint32)[index])
            videos.append(jax.device_get(run(params, *jax.device_put(batch, rows)))[:count])
        return np.concatenate(videos)

    return generate


def to_pixels(video: jax.Array) -> jax.Array:
    """Float in [-1, 1] to uint8, rounded; values outside are clamped.

    Args:
      video: any shape.
    Returns:
      Same shape, uint8.
    """
    return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)
