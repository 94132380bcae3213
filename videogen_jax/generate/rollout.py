"""Videos of any length, chunk by chunk of latent frames, with a sliding-window KV cache.

    cache: keys and values of the last P latent frames, of every temporal block (models/dit.py)

    noise --sampling steps, attending to the cache--> chunk --one pass, labelled clean--> keys and values --> cache
                                                        |                                 (the oldest leave it)
                                                        v
                                                      frames

A chunk attends to as many cached frames as the longest prefix of training that is filled. The pass that fills the cache
adds a little noise, as training did, against drift. All of it is one jitted function with constant shapes.

Cached keys and values are computed once. So a video equals the output of the model on all of it at once under a banded
mask: the frames of a chunk attend to those from the first cached frame up to themselves.

Source: ViD-GPT, arXiv:2406.10981; Ca2-VDM, arXiv:2411.16375, section 3.3.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.diffusion.times import times_at_fraction
from videogen_jax.generate import guidance, sampler
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.models.chunks import to_pixels
from videogen_jax.models.kv_cache import KVCache
from videogen_jax.parallel.mesh import BATCH, BATCH_AXES, batch_parts


class State(NamedTuple):
    """The state of a rollout; its size does not depend on the length of the video."""

    kv_cache: KVCache  # rows of B times the calls of guidance
    frames: jax.Array  # () int32, latent frames made so far


class Rollout(NamedTuple):
    """The jitted steps of a rollout, for a batch size and a mesh."""

    start: Callable[[], State]
    # (state, which is donated, params, seeds (B,), condition) to (state, (B, F, H, W, C): the next chunk)
    extend: Callable[..., tuple[State, jax.Array]]
    # (state, which is donated, params, seeds, condition, given frames (B, n pt, H, W, C)) to state
    write: Callable[..., State]
    batch_size: int  # B
    frames: int  # F, of a chunk
    rows: NamedSharding  # of arrays with a row for each video
    layout: State  # of NamedSharding
    calls: int  # of the model for each chunk

    def abstract_args(self, params: Any, condition: Any) -> tuple[Any, ...]:
        """The arguments of `extend`, abstract.

        Args:
          params: tree of jax.ShapeDtypeStruct with shardings.
          condition: the same without, rows of B.
        Returns:
          (state, params, seeds, condition).
        """

        def place(leaf: Any, layout: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

        state = jax.tree.map(place, jax.eval_shape(self.start), self.layout)
        seeds = place(jax.ShapeDtypeStruct((self.batch_size,), np.uint32), self.rows)
        return state, params, seeds, jax.tree.map(lambda leaf: place(leaf, self.rows), condition)


class Window(NamedTuple):
    """The sizes of a rollout."""

    shape: tuple[int, int, int, int]  # (F, H, W, C) of a chunk
    cache: tuple[
        int, int, int, int
    ]  # (G, N, K, Dh): temporal blocks, tokens of a frame, heads, head dimension
    dtype: jnp.dtype  # of the keys and values
    patch_frames: int  # pt, frames of a latent frame
    lengths: tuple[
        int, ...
    ]  # prefixes in training, in latent frames; the largest is the size of the cache
    prefix_noise: float  # on frames that enter the cache, as a share of the schedule's clock


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The functions that `make_rollout` jits."""

    apply: Callable[..., Any]
    schedule: Schedule
    null_text: Any
    window: Window
    settings: SamplerSettings
    prediction: str
    pixels: bool
    batch_size: int
    layout: NamedSharding  # of keys and values
    noise_time: jax.Array  # () time of the noise on frames that enter the cache

    def start(self) -> State:
        """An empty cache, with rows for every call of guidance."""
        blocks, tokens, heads, head_dim = self.window.cache
        rows = self.batch_size * guidance.count_calls(*self._scales)
        shape = (blocks, rows, tokens, max(self.window.lengths), heads, head_dim)
        empty = jnp.zeros(shape, self.window.dtype)
        return State(KVCache(empty, empty, jnp.int32(0)), jnp.int32(0))

    def extend(
        self, state: State, params: Any, seeds: jax.Array, condition: dict[str, Any]
    ) -> tuple[State, jax.Array]:
        """Samples the next chunk behind the cached frames, then appends it to the cache."""
        keys, condition = self._draw_keys(state, seeds), self._set_start(state, condition)

        def predict(x_t: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
            # The cache has a row for each call of guidance; outside of its interval only the first is made.
            every = len(state.kv_cache.keys[0]) // len(x_t)
            cached = [array[:, ::every] for array in state.kv_cache[:2]]
            kv_cache = KVCache(*cached, state.kv_cache.length)
            return self.apply(params, x_t, t, condition, kv_cache=kv_cache)[0]

        steps = self.settings.make_steps(self.schedule, self.prediction)
        x0 = sampler.sample(
            self.settings.guide(predict, self.schedule, self.null_text),
            steps,
            sampler.init_noise(self.schedule, steps, keys, self.window.shape),
            keys,
            condition,
            prediction=self.prediction,
            sigma_data=self.schedule.sigma_data,
            clip_x0=self.settings.clip_x0,
        )
        frames = self.window.shape[0] // self.window.patch_frames
        state = self._append(state, params, keys, condition, x0, frames)
        return state, to_pixels(x0) if self.pixels else x0

    def write(
        self,
        state: State,
        params: Any,
        seeds: jax.Array,
        condition: dict[str, Any],
        frames: jax.Array,
    ) -> State:
        """Appends given frames to the cache."""
        # Padded to a chunk, so that the mesh can share its tokens; causal attention hides the padding from the frames.
        fill = jnp.repeat(frames[:, -1:], self.window.shape[0] - frames.shape[1], axis=1)
        x0 = jnp.concatenate([frames, fill], axis=1)
        keys, condition = self._draw_keys(state, seeds), self._set_start(state, condition)
        count = frames.shape[1] // self.window.patch_frames
        return self._append(state, params, keys, condition, x0, count)

    @property
    def _scales(self) -> tuple[float, None, float | None]:
        return self.settings.guidance_scale, None, self.settings.known_guidance_scale

    def _set_start(self, state: State, condition: dict[str, Any]) -> dict[str, Any]:
        """The condition with the number of the chunk's first latent frame, for cyclic positions."""
        if "start" not in condition:
            return condition
        return condition | {"start": jnp.full_like(condition["start"], state.frames)}

    def _draw_keys(self, state: State, seeds: jax.Array) -> jax.Array:
        """A random key for each video, of this chunk."""
        keys = jax.vmap(jax.random.key)(seeds)
        return jax.vmap(lambda key: jax.random.fold_in(key, state.frames))(keys)

    def _append(
        self,
        state: State,
        params: Any,
        keys: jax.Array,
        condition: dict[str, Any],
        x0: jax.Array,
        n: int,
    ) -> State:
        """The state with the first n latent frames of x0 in the cache."""
        schedule, window = self.schedule, self.window
        cleanest = schedule.time_of_step(np.float64(0))
        # As prefixes are in training: known by the mask, nearly clean in x_t, and none beside it.
        prefix = {"mask": jnp.ones(x0.shape[:2]), "known": jnp.zeros(x0.shape)}
        prefix = {name: array for name, array in prefix.items() if name in condition}
        # Each call of guidance attends to a cache of its own condition.
        conditions = [
            one | prefix
            for one in guidance.guidance_conditions(condition, self.null_text, *self._scales)
        ]
        noise = sampler.draw_noise(keys, schedule.num_steps + 1, x0.shape[1:])
        levels = [
            jnp.full(x0.shape[0], level, x0.dtype)
            for level in schedule.alpha_sigma(self.noise_time)
        ]
        x = objective.add_noise(x0, noise, *levels)
        t = jnp.full(x.shape[0], cleanest)  # labelled clean in spite of the noise, against drift
        inputs = jax.tree.map(guidance.interleave, *((x, t, one) for one in conditions))
        _, keys_values = self.apply(params, *inputs, kv_cache=state.kv_cache)

        frames = state.frames + n
        # A chunk attends to as many cached frames as some prefix of training had.
        trained = jnp.array([0, *window.lengths])
        length = jnp.max(jnp.where(trained <= frames, trained, 0))
        cache = state.kv_cache.append(*(array[:, :, :, :n] for array in keys_values))
        cached = jax.lax.with_sharding_constraint((cache.keys, cache.values), self.layout)
        return State(KVCache(*cached, length), frames)


def make_rollout(
    apply: Callable[..., Any],
    schedule: Schedule,
    null_text: Any,
    mesh: Mesh,
    param_shardings: Any,
    window: Window,
    settings: SamplerSettings,
    *,
    prediction: str,
    pixels: bool = True,
) -> Rollout:
    """Builds the rollout once for a batch size and a mesh.

    Args:
      apply: the model, (params, x_t, t, condition, kv_cache) to (its output, keys and values).
      schedule: the noise schedule.
      null_text: embedding of no caption, or of a negative prompt: tree of rows without the batch axis.
      mesh: whose devices share the batch, and on `seq` and `tensor` each video.
      param_shardings: of the params that will be handed in.
      window: sizes.
      settings: of the sampler; its batch size is rounded up to a multiple of the mesh's parts of a batch. The guidance
        scale does not grow over frames: a video has no last one.
      prediction: what the model predicts, one of `objective.PREDICTIONS`.
      pixels: chunks end as uint8; otherwise as what the model makes, float32.
    Returns:
      The rollout.
    Raises:
      ValueError: the combination of options has no meaning.
    """
    settings = settings.replace(first_frame_guidance_scale=None)
    parts = batch_parts(mesh)
    batch_size = -(-settings.batch_size // parts) * parts
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
    tokens = window.cache[1]
    over = "seq" if tokens % mesh.shape["seq"] == 0 else None
    layout = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, over, None, "tensor"))
    steps = _Steps(
        apply=apply,
        schedule=schedule,
        null_text=jax.tree.map(jnp.asarray, null_text),
        window=window,
        settings=settings,
        prediction=prediction,
        pixels=pixels,
        batch_size=batch_size,
        layout=layout,
        noise_time=times_at_fraction(jnp.float32(window.prefix_noise), schedule),
    )
    state = State(KVCache(layout, layout, whole), whole)
    inputs = (state, param_shardings, rows, rows)
    calls = len(settings.make_steps(schedule, prediction).t) + 1
    return Rollout(
        start=jax.jit(steps.start, out_shardings=state),
        extend=jax.jit(
            steps.extend, donate_argnums=0, in_shardings=inputs, out_shardings=(state, whole)
        ),
        write=jax.jit(
            steps.write, donate_argnums=0, in_shardings=(*inputs, rows), out_shardings=state
        ),
        batch_size=batch_size,
        frames=window.shape[0],
        rows=rows,
        layout=state,
        calls=calls * guidance.count_calls(*settings.scales),
    )


def roll(
    rollout: Rollout,
    params: Any,
    condition_of: Callable[[int], dict[str, Any]],
    seeds: np.ndarray,
    chunks: int,
    beginning: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Makes a batch of long videos, a chunk at a time; the next one is computed while the caller has this one.

    Args:
      rollout: of `make_rollout`.
      params: laid out on its mesh.
      condition_of: number of a chunk to its condition, rows of B; the prompt may change from chunk to chunk.
      seeds: (B,) uint32.
      chunks: how many.
      beginning: (B, n pt, H, W, C) float32, frames that the video continues, at most a chunk; they are not yielded.
    Yields:
      (B, F, H, W, C) of a chunk, uint8 where the rollout ends in pixels.
    """
    put = lambda tree: jax.device_put(tree, rollout.rows)  # noqa: E731
    seeds = put(np.asarray(seeds, np.uint32))
    state = rollout.start()
    if beginning is not None:
        state = rollout.write(state, params, seeds, put(condition_of(0)), put(beginning))
    ahead = None
    for chunk in range(chunks):
        state, video = rollout.extend(state, params, seeds, put(condition_of(chunk)))
        if ahead is not None:
            yield jax.device_get(ahead)
        ahead = video
    if ahead is not None:
        yield jax.device_get(ahead)
