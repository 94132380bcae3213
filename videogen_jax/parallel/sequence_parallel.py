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
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.parallel.mesh import BATCH_AXES
from videogen_jax.parallel.sharding import gathered_shardings


class TokenSharding(NamedTuple):
    """The layout on a mesh, and the exchanges, each of which is the identity where `seq` is 1."""

    mesh: Mesh

    @property
    def parts(self) -> int:
        """Devices that share a clip."""
        return self.mesh.shape["seq"]

    def shard_frames(self, video: jax.Array) -> jax.Array:
        """Lays (B, T, ...) out with frames over `seq`; a picture has one, which stays whole."""
        axis = "seq" if video.shape[1] % self.parts == 0 else None
        layout = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES, axis))
        return jax.lax.with_sharding_constraint(video, layout)

    def frames_to_space(self, x: jax.Array) -> jax.Array:
        """(B, T, N, D): from parts of the frames to parts of the places."""
        return self._turn(x, 1, 2)

    def space_to_frames(self, x: jax.Array) -> jax.Array:
        """(B, T, N, D): from parts of the places to parts of the frames."""
        return self._turn(x, 2, 1)

    def gather_params(self, params: Any) -> Any:
        """Lays parameters out as they are used: whole, but for the parts of a layer that are on `tensor`."""
        return jax.lax.with_sharding_constraint(params, gathered_shardings(self.mesh, params))

    def shard_attention(
        self, attend: Callable[..., jax.Array], joint: bool
    ) -> Callable[..., jax.Array]:
        """Attention of what each device has, without a word to the others: XLA may not split sequences otherwise.

        Args:
          attend: (query, key, value, mask, lengths) of `models.attention`.
          joint: sequences (B, M, K, Dh) have their tokens over `seq`: they are exchanged for heads, and back.
        Returns:
          The same function of whole arrays.
        """

        def run(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            mask: jax.Array | None = None,
            lengths: jax.Array | None = None,
        ) -> jax.Array:
            def own(query: jax.Array, key: jax.Array, value: jax.Array, *rest: Any) -> jax.Array:
                options = dict(zip(options_given, rest, strict=True))
                if exchanged:
                    query, key, value = (_exchange(array, 1, 2) for array in (query, key, value))
                out = attend(query, key, value, **options)
                return _exchange(out, 2, 1) if exchanged else out

            exchanged = joint and self.parts > 1
            given = {"mask": mask, "lengths": lengths}
            options_given = [name for name, array in given.items() if array is not None]
            specs = [self._sequences(array, joint) for array in (query, key, value)]
            options = {"mask": PartitionSpec(), "lengths": PartitionSpec(BATCH_AXES)}
            return jax.shard_map(
                own,
                mesh=self.mesh,
                in_specs=(*specs, *(options[name] for name in options_given)),
                out_specs=specs[0],
                check_vma=False,  # cuDNN's kernel does not say over which axes it varies
            )(query, key, value, *(given[name] for name in options_given))

        return run

    def _sequences(self, array: jax.Array, joint: bool) -> PartitionSpec:
        """Of (B, N, K, Dh) or (B, G, N, K, Dh): clips, and groups (or tokens, if joint) over `seq`."""
        over = (joint or array.ndim == 5) and array.shape[1] % self.parts == 0
        axes: list[Any] = [BATCH_AXES, "seq" if over else None] + [None] * (array.ndim - 2)
        axes[-2] = "tensor"
        return PartitionSpec(*axes)

    def _turn(self, x: jax.Array, gather: int, split: int) -> jax.Array:
        if self.parts == 1:
            return x
        specs = [
            PartitionSpec(BATCH_AXES, *(None,) * (axis - 1), "seq") for axis in (gather, split)
        ]
        run = functools.partial(_exchange, gather=gather, split=split)
        return jax.shard_map(run, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1])(x)


def _exchange(x: jax.Array, gather: int, split: int) -> jax.Array:
    """On each device: its part of axis `gather` for its part of axis `split`."""
    return jax.lax.all_to_all(x, "seq", split_axis=split, concat_axis=gather, tiled=True)


def check_token_grid(
    mesh: Mesh, grid: tuple[int, int, int], attention: str, num_heads: int
) -> None:
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
