"""How the tokens of a clip lie on the mesh axis `seq`, and the one exchange that turns them over.

    spatial attention   each device has some frames whole        (B, T / seq, N, D)
    temporal attention  each device has all frames of some places (B, T, N / seq, D)
    joint attention     each device has some frames, and in attention all tokens for some heads

Between the first two, and around the third, each device sends every other one its share: an all-to-all, and nothing
else travels along `seq` but parameters and gradients.

Source: DeepSpeed-Ulysses, arXiv:2309.14509; the turn between frames and places as in DSP, arXiv:2403.10266.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.parallel.mesh import BATCH_AXES


class Tokens(NamedTuple):
    """The layout on a mesh, and the exchanges, each of which is the identity where `seq` is 1."""

    mesh: Mesh

    @property
    def parts(self) -> int:
        """Devices that share a clip."""
        return self.mesh.shape["seq"]

    def by_frames(self, video: jax.Array) -> jax.Array:
        """Lays (B, T, ...) out with frames over `seq`; a picture has one, which stays whole."""
        axis = "seq" if video.shape[1] % self.parts == 0 else None
        layout = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES, axis))
        return jax.lax.with_sharding_constraint(video, layout)

    def frames_to_places(self, x: jax.Array) -> jax.Array:
        """(B, T, N, D): from parts of the frames to parts of the places."""
        return self._exchange(x, 1, 2)

    def places_to_frames(self, x: jax.Array) -> jax.Array:
        """(B, T, N, D): from parts of the places to parts of the frames."""
        return self._exchange(x, 2, 1)

    def tokens_to_heads(self, x: jax.Array) -> jax.Array:
        """(B, M, K, Dh): from parts of the tokens to parts of the heads."""
        return self._exchange(x, 1, 2, tensor_axis=2)

    def heads_to_tokens(self, x: jax.Array) -> jax.Array:
        """(B, M, K, Dh): from parts of the heads to parts of the tokens."""
        return self._exchange(x, 2, 1, tensor_axis=2)

    def _exchange(
        self, x: jax.Array, gather: int, split: int, tensor_axis: int | None = None
    ) -> jax.Array:
        if self.parts == 1:
            return x
        exchange = functools.partial(
            jax.lax.all_to_all, axis_name="seq", split_axis=split, concat_axis=gather, tiled=True
        )
        specs = [_spec(x.ndim, axis, tensor_axis) for axis in (gather, split)]
        run: Callable[[jax.Array], jax.Array] = jax.shard_map(
            exchange, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1]
        )
        return run(x)


def _spec(ndim: int, seq_axis: int, tensor_axis: int | None) -> PartitionSpec:
    axes: list[tuple[str, ...] | None] = [BATCH_AXES] + [None] * (ndim - 1)
    if tensor_axis is not None:
        axes[tensor_axis] = ("tensor",)
    axes[seq_axis] = (*(axes[seq_axis] or ()), "seq")
    return PartitionSpec(*axes)


def check_tokens(mesh: Mesh, grid: tuple[int, int, int], attention: str, num_heads: int) -> None:
    """Refuses a clip that does not lie evenly on `seq` and `tensor`.

    Args:
      mesh: of `mesh.make_mesh`.
      grid: (T, H, W) of tokens.
      attention: factorized or joint.
      num_heads: of the model.
    Raises:
      ValueError: names the number that does not divide.
    """
    seq, tensor = mesh.shape["seq"], mesh.shape["tensor"]
    frames, places = grid[0], grid[1] * grid[2]
    wanted = {"latent frames": (frames, seq, "mesh.seq")}
    if attention == "factorized":
        wanted["tokens of a frame"] = (places, seq, "mesh.seq")
        wanted["heads"] = (num_heads, tensor, "mesh.tensor")
    else:
        wanted["heads"] = (num_heads, seq * tensor, "mesh.seq times mesh.tensor")
    for what, (count, parts, name) in wanted.items():
        if count % parts:
            raise ValueError(
                f"The {count} {what} do not divide by {name}={parts}: change the number or the mesh."
            )
