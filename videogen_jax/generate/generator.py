"""Videos for any number of captions, in batches on a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.generate import guidance, sampler
from videogen_jax.models.chunks import to_pixels
from videogen_jax.parallel.mesh import BATCH, batch_parts

Generate = Callable[[Any, dict[str, Any], list[int]], np.ndarray]


class Programs(NamedTuple):
    """The jitted steps from seeds to videos, for a batch size and a mesh."""

    init: Callable[..., Any]  # (seeds (B,) uint32) to (x_T (B, T, H, W, C), keys (B,))
    denoise: Callable[..., jax.Array]  # (x_T, which is donated, params, keys, condition) to x_0
    finish: Callable[..., jax.Array]  # (x_0) to uint8
    batch_size: int  # B
    rows: NamedSharding  # of all that has a row for each video
    calls: int  # of the model for each video, both halves of guidance counted

    def abstract_args(self, params: Any, condition: Any) -> dict[str, tuple[Any, ...]]:
        """What each program takes, without a number in it.

        Args:
          params: tree of jax.ShapeDtypeStruct.
          condition: the same, rows of B.
        Returns:
          Name of the program to its arguments.
        """

        def place(tree: Any) -> Any:
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.rows), tree
            )

        seeds = place(jax.ShapeDtypeStruct((self.batch_size,), np.uint32))
        x_t, keys = place(jax.eval_shape(self.init, seeds))
        return {
            "init": (seeds,),
            "denoise": (x_t, params, keys, place(condition)),
            "finish": (x_t,),
        }


def make_programs(
    apply: Callable[..., jax.Array],
    schedule: Schedule,
    null_text: Any,
    mesh: Mesh,
    param_shardings: Any,
    *,
    shape: tuple[int, int, int, int],
    prediction: str,
    batch_size: int,
    guidance_scale: float,
    first_frame_guidance_scale: float | None = None,
    known_guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, ...] = (),
    clip_x0: bool = True,
    pixels: bool = True,
    **options: Any,
) -> Programs:
    """Builds the sampler once for a batch size and a mesh.

    Args:
      apply: the model, (params, x_t, t, condition) to its output.
      schedule: the noise schedule.
      null_text: tree of text without the batch axis: no caption, or a negative one.
      mesh: whose devices share the batch.
      param_shardings: of the params that will be handed in.
      shape: (T, H, W, C) of a video.
      prediction: what the model predicts, one of `objective.PREDICTIONS`.
      batch_size: videos at a time; rounded up to a multiple of the mesh's parts of a batch.
      guidance_scale: of classifier-free guidance.
      first_frame_guidance_scale: see `guidance.guide`, as the next three.
      known_guidance_scale: of known frames.
      guidance_rescale: 0 to 1.
      guidance_interval: noise levels, or empty.
      clip_x0: clamp x0 to [-1, 1] at every call.
      pixels: videos end as uint8; otherwise as what the model makes, float32.
      **options: of `sampler.make_steps`.
    Returns:
      The programs.
    Raises:
      ValueError: an option is unknown or the combination has no meaning.
    """
    scales = (guidance_scale, first_frame_guidance_scale, known_guidance_scale)
    guidance.check_guidance(*scales, guidance_rescale, guidance_interval)
    parts = batch_parts(mesh)
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
    steps = sampler.make_steps(schedule, prediction, **options)

    def init(seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(jax.random.key)(seeds)
        return sampler.init_noise(schedule, steps, keys, shape), keys

    def denoise(x_t: jax.Array, params: Any, keys: jax.Array, condition: Any) -> jax.Array:
        def predict(x_t: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
            return apply(params, x_t, t, condition)

        guided = guidance.guide(
            predict,
            schedule,
            jax.tree.map(jnp.asarray, null_text),
            guidance_scale,
            first_frame_scale=first_frame_guidance_scale,
            known_scale=known_guidance_scale,
            rescale=guidance_rescale,
            interval=guidance_interval,
        )
        return sampler.sample(
            guided,
            steps,
            x_t,
            keys,
            condition,
            prediction=prediction,
            sigma_data=schedule.sigma_data,
            clip_x0=clip_x0,
        )

    return Programs(
        init=jax.jit(init, in_shardings=rows, out_shardings=rows),
        # The noise's memory becomes the video's.
        denoise=jax.jit(
            denoise,
            donate_argnums=0,
            in_shardings=(rows, param_shardings, rows, rows),
            out_shardings=rows,
        ),
        finish=jax.jit(
            to_pixels if pixels else lambda x: x, in_shardings=rows, out_shardings=whole
        ),
        batch_size=-(-batch_size // parts) * parts,
        rows=rows,
        calls=len(steps.t) * guidance.count_calls(*scales),
    )


def make_generator(programs: Programs) -> Generate:
    """Makes any number of videos, in batches.

    Args:
      programs: of `make_programs`.
    Returns:
      (params, condition: tree of (N, ...), N seeds) to (N, T, H, W, C), uint8 where the programs end in pixels.
    """

    def generate(params: Any, condition: dict[str, Any], seeds: list[int]) -> np.ndarray:
        videos = []
        for start in range(0, len(seeds), programs.batch_size):
            part = slice(start, start + programs.batch_size)
            count = len(seeds[part])
            index = np.arange(programs.batch_size) % count  # fills the last batch up
            batch = (np.asarray(seeds, np.uint32), condition)
            batch = jax.tree.map(lambda column: column[part][index], batch)  # noqa: B023
            own_seeds, own_condition = jax.device_put(batch, programs.rows)
            x_t, keys = programs.init(own_seeds)
            video = programs.finish(programs.denoise(x_t, params, keys, own_condition))
            videos.append(jax.device_get(video)[:count])
        return np.concatenate(videos)

    return generate
