"""Where each number of the train state lives: two tables.

1. a parameter's path -> the logical names of its axes. The path recurs in the EMA and in the optimizer's moments, so
   one line places them all. Parameters under `blocks/` are stacked by `nn.scan` and get `layers` in front.
2. a logical axis -> a mesh axis, or None for a whole copy on every device.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PARAMETER_AXES = {
    r"patch_embed/kernel": ("patch", "embed"),
    r"unembed/kernel": ("embed", "patch"),
    r"unembed/bias": ("patch",),
    r"(time_embed|text_embed)/hidden/kernel": ("features", "embed"),
    r"(time_embed|text_embed)/out/kernel": ("features", "embed"),
    r"words/embedding": ("vocabulary", "embed"),
    r"modulation/kernel": ("embed", "modulation"),
    r"modulation/bias": ("modulation",),
    r"qkv/kernel": ("embed", "qkv", "heads", "head"),
    r"qkv/bias": ("qkv", "heads", "head"),
    r"attention(_\d+)?/out/kernel": ("heads", "head", "embed"),
    r"mlp(_\d+)?/up/kernel": ("embed", "mlp"),
    r"mlp(_\d+)?/up/bias": ("mlp",),
    r"mlp(_\d+)?/down/kernel": ("mlp", "embed"),
    # Vectors of the model's width: too small to be worth a gather.
    r"(patch_embed|hidden|out|down)/bias": ("vector",),
    r"norm(_\d+)?/scale": ("vector",),
}

# Present only in models with text cross-attention.
CROSS_ATTENTION_AXES = {
    r"text_attention/query/kernel": ("embed", "heads", "head"),
    r"text_attention/query/bias": ("heads", "head"),
    r"text_attention/key_value/kernel": ("embed", "qkv", "heads", "head"),
    r"text_attention/key_value/bias": ("qkv", "heads", "head"),
    r"text_gate": ("vector",),
}

# Constants that an optimizer keeps beside its moments (Muon's polynomial).
COPIED = ("ns_coeffs",)

MESH_AXES = {
    "embed": "fsdp",
    "patch": None,
    "features": None,
    "vocabulary": None,
    "modulation": None,
    "qkv": None,
    "heads": None,
    "head": None,
    "mlp": None,
    "vector": None,
    "layers": None,
}


def parameter_rules(cross_attention: bool) -> dict[str, tuple[str, ...]]:
    """The first table, for models with or without text cross-attention."""
    return PARAMETER_AXES | (CROSS_ATTENTION_AXES if cross_attention else {})


def make_shardings(
    mesh: Mesh,
    tree: Any,
    rules: dict[str, tuple[str, ...]],
    mesh_axes: dict[str, str | None] = MESH_AXES,
) -> Any:
    """Places every leaf of a tree by the two tables.

    Scalars, random keys and optimizers' constants are copied to every device.

    Args:
      mesh: of `mesh.make_mesh`.
      tree: arrays or `jax.ShapeDtypeStruct`s: parameters, or a train state around them.
      rules: regular expression for the end of a path -> logical axes.
      mesh_axes: logical axis -> mesh axis or None.
    Returns:
      The same tree of `NamedSharding`s.
    Raises:
      ValueError: a leaf matches no rule, or several; a rule matches no leaf, has another rank, or names a logical axis
        or a mesh axis that does not exist; a mesh axis occurs twice in one leaf, or does not divide the leaf's size.
    """
    used = set()

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        if leaf.ndim == 0 or name.endswith(COPIED):
            return NamedSharding(mesh, PartitionSpec())
        pattern = _match(name, rules)
        used.add(pattern)
        axes = (("layers",) if "blocks/" in name else ()) + rules[pattern]
        spec = _to_mesh(name, axes, leaf.shape, mesh, mesh_axes)
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree_util.tree_map_with_path(place, tree)
    if dead := sorted(set(rules) - used):
        raise ValueError(
            f"The sharding rules {', '.join(map(repr, dead))} match no parameter: "
            "remove them from parallel/sharding.py."
        )
    return shardings


def path_name(path: tuple) -> str:
    """A tree path as names with slashes: `params/blocks/spatial/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _match(name: str, rules: dict[str, tuple[str, ...]]) -> str:
    found = [pattern for pattern in rules if re.search(rf"(^|/|_){pattern}$", name)]
    if len(found) != 1:
        problem = (
            f"{len(found)} sharding rules ({', '.join(found)})" if found else "no sharding rule"
        )
        raise ValueError(
            f"The parameter {name} matches {problem}: give it exactly one in parallel/sharding.py."
        )
    return found[0]


def _to_mesh(
    name: str,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    mesh: Mesh,
    mesh_axes: dict[str, str | None],
) -> list[str | None]:
    if len(axes) != len(shape):
        raise ValueError(
            f"The sharding rule of {name} names {len(axes)} axes {axes}, but its shape is {shape}: "
            "mend the rule in parallel/sharding.py."
        )
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in mesh_axes:
            raise ValueError(
                f"The logical axis {axis!r} of {name} is not in MESH_AXES of parallel/sharding.py: add it."
            )
        mesh_axis = mesh_axes[axis]
        if mesh_axis is not None:
            if mesh_axis not in mesh.shape:
                raise ValueError(
                    f"The logical axis {axis!r} goes to mesh axis {mesh_axis!r}, but the mesh has "
                    f"{', '.join(mesh.shape)}: mend MESH_AXES in parallel/sharding.py."
                )
            if mesh_axis in spec:
                raise ValueError(
                    f"{name} {axes} would use the mesh axis {mesh_axis!r} twice: "
                    "give its logical axes different ones in MESH_AXES of parallel/sharding.py."
                )
            if size % mesh.shape[mesh_axis]:
                raise ValueError(
                    f"{name} of shape {shape} does not divide by mesh.{mesh_axis}={mesh.shape[mesh_axis]} "
                    f"along its axis {axis!r} of {size}: change that size or the mesh."
                )
        spec.append(mesh_axis)
    return spec
