"""Sequence parallelism: the tokens of a clip sharded over the mesh axis `seq`.

    spatial attention   sharded over frames                          (B, T / seq, N, D)
    temporal attention  sharded over space                           (B, T, N / seq, D)
    joint attention     sharded over frames; inside attention, over heads

An all-to-all switches between the first two, and surrounds the third; besides it, only parameters and gradients are
communicated along `seq`.

Source: DeepSpeed-Ulysses, arXiv:2309.14509; switching between frames and space as in DSP, arXiv:2403.10266.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.parallel.mesh import BATCH_AXES
from videogen_jax.parallel.sharding import gathered_shardings


class TokenSharding(NamedTuple):
    """Sharding of tokens over a mesh, and its all-to-alls, which are the identity if `seq` is 1."""

    mesh: Mesh

    @property
    def parts(self) -> int:
        """Number of devices that share a clip: the size of `seq`."""
        return self.mesh.shape["seq"]

    def shard_frames(self, video: jax.Array) -> jax.Array:
        """Shards (B, T, ...) over frames; replicates it along `seq` if T does not divide, as for images."""
        axis = "seq" if video.shape[1] % self.parts == 0 else None
        layout = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES, axis))
        return jax.lax.with_sharding_constraint(video, layout)

    def frames_to_space(self, x: jax.Array) -> jax.Array:
        """Reshards (B, T, N, D) from frames to space."""
        return self._all_to_all(x, 1, 2)

    def space_to_frames(self, x: jax.Array) -> jax.Array:
        """Reshards (B, T, N, D) from space to frames."""
        return self._all_to_all(x, 2, 1)

    def gather_weights(self, weights: Any) -> Any:
        """Gathers weights for use: replicated, except along `tensor` and, with a matrix per clip, over clips."""
        return jax.lax.with_sharding_constraint(weights, gathered_shardings(self.mesh, weights))

    def shard_attention(
        self, attend: Callable[..., jax.Array], joint: bool
    ) -> Callable[..., jax.Array]:
        """Wraps attention in `shard_map`, so that XLA cannot shard it differently.

        Args:
          attend: (query, key, value, mask, lengths) of `models.attention`.
          joint: sequences (B, M, K, Dh) are sharded over tokens: an all-to-all reshards them to heads, and back.
        Returns:
          The same function on global arrays.
        """

        def run(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            mask: jax.Array | None = None,
            lengths: jax.Array | None = None,
        ) -> jax.Array:
            def attend_shard(
                query: jax.Array, key: jax.Array, value: jax.Array, *rest: Any
            ) -> jax.Array:
                options = dict(zip(names, rest, strict=True))
                if over_heads:
                    query, key, value = (_all_to_all(array, 1, 2) for array in (query, key, value))
                out = attend(query, key, value, **options)
                return _all_to_all(out, 2, 1) if over_heads else out

            over_heads = joint and self.parts > 1
            given = {"mask": mask, "lengths": lengths}
            names = [name for name, array in given.items() if array is not None]
            specs = [self._sequence_spec(array, joint) for array in (query, key, value)]
            option_specs = {"mask": PartitionSpec(), "lengths": PartitionSpec(BATCH_AXES)}
            return jax.shard_map(
                attend_shard,
                mesh=self.mesh,
                in_specs=(*specs, *(option_specs[name] for name in names)),
                out_specs=specs[0],
                check_vma=False,  # cuDNN's kernel does not declare the axes over which it varies
            )(query, key, value, *(given[name] for name in names))

        return run

    def _sequence_spec(self, array: jax.Array, joint: bool) -> PartitionSpec:
        """Spec of (B, N, K, Dh) or (B, G, N, K, Dh), with groups (tokens if joint) over `seq`."""
        over = (joint or array.ndim == 5) and array.shape[1] % self.parts == 0
        axes: list[Any] = [BATCH_AXES, "seq" if over else None] + [None] * (array.ndim - 2)
        axes[-2] = "tensor"
        return PartitionSpec(*axes)

    def _all_to_all(self, x: jax.Array, gather: int, split: int) -> jax.Array:
        if self.parts == 1:
            return x
        specs = [
            PartitionSpec(BATCH_AXES, *(None,) * (axis - 1), "seq") for axis in (gather, split)
        ]
        run = functools.partial(_all_to_all, gather=gather, split=split)
        return jax.shard_map(run, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1])(x)


def _all_to_all(x: jax.Array, gather: int, split: int) -> jax.Array:
    """Per device: gathers axis `gather` and splits axis `split`."""
    return jax.lax.all_to_all(x, "seq", split_axis=split, concat_axis=gather, tiled=True)


def check_token_grid(
    mesh: Mesh, grid: tuple[int, int, int], attention: str, num_heads: int
) -> None:
    """Checks that tokens and heads divide evenly over `seq` and `tensor`.

    Args:
      mesh: from `mesh.make_mesh`.
      grid: (T, H, W) in tokens.
      attention: factorized or joint.
      num_heads: attention heads of the model.
    Raises:
      ValueError: names the number that does not divide.
    """
    seq, tensor = mesh.shape["seq"], mesh.shape["tensor"]
    frames, spatial = grid[0], grid[1] * grid[2]
    divisions = {"latent frames": (frames, seq, "mesh.seq")}
    if attention == "factorized":
        divisions["tokens of a frame"] = (spatial, seq, "mesh.seq")
        divisions["heads"] = (num_heads, tensor, "mesh.tensor")
    else:
        divisions["heads"] = (num_heads, seq * tensor, "mesh.seq times mesh.tensor")
    for what, (count, parts, name) in divisions.items():
        if count % parts:
            raise ValueError(
                f"The {count} {what} do not divide by {name}={parts}: change the number or the mesh."
            )
