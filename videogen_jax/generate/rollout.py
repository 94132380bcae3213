"""Videos of any length: chunk after chunk of latent frames, each denoised ahead of a memory of constant size.

    memory: keys and values of the last P latent frames, of every temporal block (a KV cache: History of models/dit.py)

    noise --all steps, seeing the memory--> chunk --one pass, labelled clean--> its keys and values --> memory
                                              |                                 (the oldest ones fall out)
                                              v
                                            frames

A chunk sees as many frames as training has a prefix for: the largest one that there are frames for. The pass that
writes adds a little noise, as training did, against drift. All of this is one jitted function, whose shapes never
change.

What a chunk remembers was computed when it was written. So a video equals what the model makes of the whole of it at
once, where the frames of each chunk see from its memory's first frame up to themselves.

Source: ViD-GPT, arXiv:2406.10981; Ca2-VDM, arXiv:2411.16375, section 3.3.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.diffusion.times import place_times
from videogen_jax.generate import guidance, sampler
from videogen_jax.models.chunks import to_pixels
from videogen_jax.models.dit import History
from videogen_jax.parallel.mesh import BATCH, BATCH_AXES, batch_parts


class State(NamedTuple):
    """Where a rollout stands. Its size does not depend on the length of the video."""

    history: History  # rows of B times the calls of guidance
    frames: jax.Array  # () int32, latent frames made so far


class Rollout(NamedTuple):
    """The jitted steps of a rollout, for a batch size and a mesh."""

    start: Callable[[], State]
    # (state, which is donated, params, seeds (B,), condition) to (state, (B, F, H, W, C): the next chunk)
    extend: Callable[..., tuple[State, jax.Array]]
    # (state, which is donated, params, seeds, condition, (B, n pt, H, W, C): frames to begin with) to state
    write: Callable[..., State]
    batch_size: int  # B
    frames: int  # F, of a chunk
    rows: NamedSharding  # of all that has a row for each video
    layout: State  # of NamedSharding
    calls: int  # of the model for each chunk

    def abstract_args(self, params: Any, condition: Any) -> tuple[Any, ...]:
        """What `extend` takes, without a number in it.

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


def make_rollout(
    apply: Callable[..., Any],
    schedule: Schedule,
    null_text: Any,
    mesh: Mesh,
    param_shardings: Any,
    *,
    shape: tuple[int, int, int, int],
    memory: tuple[int, int, int, int],
    dtype: jnp.dtype,
    patch_frames: int,
    lengths: tuple[int, ...],
    prefix_noise: float,
    prediction: str,
    batch_size: int,
    guidance_scale: float,
    known_guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, ...] = (),
    clip_x0: bool = True,
    pixels: bool = True,
    **options: Any,
) -> Rollout:
    """Builds the rollout once for a batch size and a mesh.

    Args:
      apply: the model, (params, x_t, t, condition, history) to (its output, keys and values).
      schedule: the noise schedule.
      null_text: tree of text without the batch axis: no caption, or a negative one.
      mesh: whose devices share the batch, and on `seq` and `tensor` each video.
      param_shardings: of the params that will be handed in.
      shape: (F, H, W, C) of a chunk.
      memory: (G, N, K, Dh): temporal blocks, tokens of a frame, heads, numbers per head.
      dtype: of the keys and values.
      patch_frames: pt, frames of a latent frame.
      lengths: prefixes that the model was trained with, in latent frames; the largest is the memory's size.
      prefix_noise: on frames that are remembered, as a share of the schedule's clock.
      prediction: what the model predicts, one of `objective.PREDICTIONS`.
      batch_size: videos at a time; rounded up to a multiple of the mesh's parts of a batch.
      guidance_scale: see `guidance.guide`, as the next three. It cannot grow over frames that have no end.
      known_guidance_scale: of known frames.
      guidance_rescale: 0 to 1.
      guidance_interval: noise levels, or empty.
      clip_x0: clamp x0 to [-1, 1] at every call.
      pixels: chunks end as uint8; otherwise as what the model makes, float32.
      **options: of `sampler.make_steps`.
    Returns:
      The rollout.
    Raises:
      ValueError: an option is unknown or the combination has no meaning.
    """
    scales = (guidance_scale, None, known_guidance_scale)
    guidance.check_guidance(*scales, guidance_rescale, guidance_interval)
    calls = guidance.count_calls(*scales)
    steps = sampler.make_steps(schedule, prediction, **options)
    batch_size = -(-batch_size // batch_parts(mesh)) * batch_parts(mesh)
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
    groups, places, heads, head_width = memory
    slots = max(lengths)
    over = "seq" if places % mesh.shape["seq"] == 0 else None
    layout = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, over, None, "tensor"))
    state_layout = State(History(layout, layout, whole), whole)
    cleanest, noisy = schedule.at(np.float64(0)), place_times(jnp.float32(prefix_noise), schedule)
    null_text = jax.tree.map(jnp.asarray, null_text)

    def start() -> State:
        empty = jnp.zeros((groups, batch_size * calls, places, slots, heads, head_width), dtype)
        return State(History(empty, empty, jnp.int32(0)), jnp.int32(0))

    def place(state: State, condition: dict[str, Any]) -> dict[str, Any]:
        if "start" not in condition:
            return condition
        return condition | {"start": jnp.full_like(condition["start"], state.frames)}

    def draw_keys(state: State, seeds: jax.Array) -> jax.Array:
        """One key for each video, of this chunk."""
        keys = jax.vmap(jax.random.key)(seeds)
        return jax.vmap(lambda key: jax.random.fold_in(key, state.frames))(keys)

    def remember(
        state: State, params: Any, keys: jax.Array, condition: dict[str, Any], x0: jax.Array, n: int
    ) -> State:
        """The state behind the first n latent frames of x0."""
        told = {"mask": jnp.ones(x0.shape[:2]), "known": jnp.zeros(x0.shape)}
        told = {name: array for name, array in told.items() if name in condition}
        asked = [one | told for one in guidance.ask(condition, null_text, *scales)]
        noise = sampler.draw_noise(keys, schedule.num_steps + 1, x0.shape[1:])
        levels = [jnp.full(x0.shape[0], level, x0.dtype) for level in schedule.pair(noisy)]
        x = objective.add_noise(x0, noise, *levels)
        t = jnp.full(x.shape[0], cleanest)
        inputs = jax.tree.map(guidance.interleave, *((x, t, one) for one in asked))
        _, own = apply(params, *inputs, history=state.history)

        def push(old: jax.Array, new: jax.Array) -> jax.Array:
            queue = jnp.concatenate([old, new[:, :, :, :n].astype(old.dtype)], axis=3)
            return jax.lax.with_sharding_constraint(queue[:, :, :, n:], layout)

        frames = state.frames + n
        trained = jnp.array([0, *lengths])
        length = jnp.max(jnp.where(trained <= frames, trained, 0))
        keys_and_values = (push(*pair) for pair in zip(state.history[:2], own, strict=True))
        return State(History(*keys_and_values, length), frames)

    def extend(
        state: State, params: Any, seeds: jax.Array, condition: dict[str, Any]
    ) -> tuple[State, jax.Array]:
        keys, condition = draw_keys(state, seeds), place(state, condition)

        def predict(x_t: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
            # Outside of the guidance's interval only the first of the calls is made.
            every = len(state.history.keys[0]) // len(x_t)
            own = [array[:, ::every] for array in state.history[:2]]
            return apply(params, x_t, t, condition, history=History(*own, state.history.length))[0]

        guided = guidance.guide(
            predict,
            schedule,
            null_text,
            guidance_scale,
            known_scale=known_guidance_scale,
            rescale=guidance_rescale,
            interval=guidance_interval,
        )
        x0 = sampler.sample(
            guided,
            steps,
            sampler.init_noise(schedule, steps, keys, shape),
            keys,
            condition,
            prediction=prediction,
            sigma_data=schedule.sigma_data,
            clip_x0=clip_x0,
        )
        state = remember(state, params, keys, condition, x0, shape[0] // patch_frames)
        return state, to_pixels(x0) if pixels else x0

    def write(
        state: State,
        params: Any,
        seeds: jax.Array,
        condition: dict[str, Any],
        frames: jax.Array,
    ) -> State:
        # Behind the frames, which do not see it, stands what fills a chunk up, so that it lies on the mesh as others.
        fill = jnp.repeat(frames[:, -1:], shape[0] - frames.shape[1], axis=1)
        x0 = jnp.concatenate([frames, fill], axis=1)
        keys, condition = draw_keys(state, seeds), place(state, condition)
        return remember(state, params, keys, condition, x0, frames.shape[1] // patch_frames)

    inputs = (state_layout, param_shardings, rows, rows)
    return Rollout(
        start=jax.jit(start, out_shardings=state_layout),
        extend=jax.jit(
            extend, donate_argnums=0, in_shardings=inputs, out_shardings=(state_layout, whole)
        ),
        write=jax.jit(
            write, donate_argnums=0, in_shardings=(*inputs, rows), out_shardings=state_layout
        ),
        batch_size=batch_size,
        frames=shape[0],
        rows=rows,
        layout=state_layout,
        calls=(len(steps.t) + 1) * calls,
    )


def roll(
    rollout: Rollout,
    params: Any,
    condition_of: Callable[[int], dict[str, Any]],
    seeds: np.ndarray,
    chunks: int,
    beginning: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Makes a batch of long videos, a chunk at a time: the next one is under way while this one is looked at.

    Args:
      rollout: of `make_rollout`.
      params: laid out on its mesh.
      condition_of: number of the chunk to what the model is told of it, rows of B: the prompt may change on the way.
      seeds: (B,) uint32.
      chunks: how many.
      beginning: (B, n pt, H, W, C) float32, frames to go on from, at most a chunk; they are not yielded.
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
