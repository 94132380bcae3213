"""Videos for any number of captions, in batches on a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.generate import guidance, sampler
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.models.chunks import to_pixels
from videogen_jax.parallel.mesh import BATCH, batch_parts

Generate = Callable[[Any, dict[str, Any], list[int]], np.ndarray]


class Programs(NamedTuple):
    """The jitted steps from seeds to videos, for a batch size and a mesh."""

    init: Callable[..., Any]  # (seeds (B,) uint32) to (x_T (B, T, H, W, C), keys (B,))
    denoise: Callable[..., jax.Array]  # (x_T, which is donated, params, keys, condition) to x_0
    finish: Callable[..., jax.Array]  # (x_0) to uint8
    batch_size: int  # B
    rows: NamedSharding  # of arrays with a row for each video
    calls: int  # of the model for each video, all branches of guidance counted

    def abstract_args(self, params: Any, condition: Any) -> dict[str, tuple[Any, ...]]:
        """The arguments of each program, abstract.

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
    settings: SamplerSettings,
    *,
    shape: tuple[int, int, int, int],
    prediction: str,
    pixels: bool = True,
) -> Programs:
    """Builds the sampler once for a batch size and a mesh.

    Args:
      apply: the model, (params, x_t, t, condition) to its output.
      schedule: the noise schedule.
      null_text: embedding of no caption, or of a negative prompt: tree of rows without the batch axis.
      mesh: whose devices share the batch, and on `seq` and `tensor` each video.
      param_shardings: of the params that will be handed in.
      settings: of the sampler; its batch size is rounded up to a multiple of the mesh's parts of a batch.
      shape: (T, H, W, C) of one video.
      prediction: what the model predicts, one of `objective.PREDICTIONS`.
      pixels: videos end as uint8; otherwise as what the model makes, float32.
    Returns:
      The programs.
    Raises:
      ValueError: the combination of options has no meaning.
    """
    parts = batch_parts(mesh)
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
    steps = settings.make_steps(schedule, prediction)

    def init(seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(jax.random.key)(seeds)
        return sampler.init_noise(schedule, steps, keys, shape), keys

    def denoise(x_t: jax.Array, params: Any, keys: jax.Array, condition: Any) -> jax.Array:
        def predict(x_t: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
            return apply(params, x_t, t, condition)

        guided = settings.guide(predict, schedule, jax.tree.map(jnp.asarray, null_text))
        return sampler.sample(
            guided,
            steps,
            x_t,
            keys,
            condition,
            prediction=prediction,
            sigma_data=schedule.sigma_data,
            clip_x0=settings.clip_x0,
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
        batch_size=-(-settings.batch_size // parts) * parts,
        rows=rows,
        calls=len(steps.t) * guidance.count_calls(*settings.scales),
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
