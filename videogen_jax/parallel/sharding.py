"""Where each number of the train state lives: two tables.

1. a parameter's path -> the logical names of its axes. The path recurs in the EMA and in the optimizer's moments, so
   one line places them all. Parameters under `blocks/` are stacked by `nn.scan` and get `layers` in front.
2. a logical axis -> a mesh axis or several, or None for a whole copy on every device.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PARAMETER_AXES = {
    r"patch_embed/kernel": ("patch", "embed"),
    r"unembed/kernel": ("embed", "patch"),
    r"unembed/bias": ("patch",),
    r"embed/(hidden|out)/kernel": ("features", "embed"),
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
}

# What a model has besides, by the options that bring it.
WORDS_AXES = {r"words/embedding": ("vocabulary", "embed")}
CLASS_AXES = {r"label_embed/embedding": ("vocabulary", "embed")}
PROJECTION_AXES = {r"caption_encoder/(hidden|out)/kernel": ("features", "embed")}
CROSS_ATTENTION_AXES = {
    r"text_attention/query/kernel": ("embed", "heads", "head"),
    r"text_attention/query/bias": ("heads", "head"),
    r"text_attention/key_value/kernel": ("embed", "qkv", "heads", "head"),
    r"text_attention/key_value/bias": ("qkv", "heads", "head"),
}
GATE_AXES = {r"text_gate": ("vector",)}
NORM_AXES = {r"norm(_\d+)?/scale": ("vector",)}
TABLE_AXES = {r"scale_shift_table": ("parts", "vector")}

# The whole table of an autoencoder.
AUTOENCODER_AXES = {
    r"spatial/kernel": ("place", "place", "vector", "filters"),
    r"(mix|enter_\d+|leave_\d+)/kernel": ("vector", "filters"),
    r"(spatial|mix|enter_\d+|leave_\d+)/bias": ("vector",),
    r"norm_\d+/scale": ("vector",),
}

# Constants that an optimizer keeps beside its moments (Muon's polynomial), and moments with axes averaged away
# (Adafactor's).
COPIED = {"ns_coeffs", "v_row", "v_col"}

MeshAxes = str | tuple[str, ...] | None

MESH_AXES: dict[str, MeshAxes] = {
    "embed": ("fsdp", "seq"),  # the devices of one clip share its parameters too
    "patch": None,
    "features": None,
    "vocabulary": None,
    "modulation": None,
    "qkv": None,
    "heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "vector": None,
    "parts": None,
    "layers": None,
    "place": None,
    "filters": ("fsdp", "seq"),
}


def parameter_rules(
    *, modulation: str, qk_norm: bool, cross_attention: str, text_encoder: str
) -> dict[str, tuple[str, ...]]:
    """The first table for a model, without a rule that would match none of its parameters.

    Args:
      modulation: field of `VideoDiT`, like the others.
      qk_norm: see there.
      cross_attention: see there.
      text_encoder: see there.
    Returns:
      Regular expression for the end of a path -> logical axes.
    """
    reads, gated = cross_attention != "none", cross_attention == "gated"
    options = (
        (text_encoder == "words", WORDS_AXES),
        (text_encoder == "class", CLASS_AXES),
        (text_encoder == "embeddings" and reads, PROJECTION_AXES),
        (reads, CROSS_ATTENTION_AXES),
        (gated, GATE_AXES),
        (qk_norm or gated or text_encoder == "words", NORM_AXES),
        (modulation == "adaln_single", TABLE_AXES),
    )
    rules = dict(PARAMETER_AXES)
    for present, axes in options:
        rules |= axes if present else {}
    return rules


def make_shardings(
    mesh: Mesh,
    tree: Any,
    rules: dict[str, tuple[str, ...]],
    mesh_axes: dict[str, MeshAxes] = MESH_AXES,
) -> Any:
    """Places every leaf of a tree by the two tables.

    Scalars, random keys, leaves of one number, and what optimizers keep in other shapes than the parameters' are copied
    to every device.

    Args:
      mesh: of `mesh.make_mesh`.
      tree: arrays or `jax.ShapeDtypeStruct`s: parameters, or a train state around them.
      rules: regular expression for the end of a path -> logical axes.
      mesh_axes: logical axis -> mesh axis, several, or None.
    Returns:
      The same tree of `NamedSharding`s.
    Raises:
      ValueError: a leaf matches no rule, or several; a rule matches no leaf, has another rank, or names a logical axis
        or a mesh axis that does not exist; a mesh axis occurs twice in one leaf, or does not divide the leaf's size.
    """
    used = set()

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        if leaf.ndim == 0 or COPIED & set(name.split("/")):
            return NamedSharding(mesh, PartitionSpec())
        pattern = _match(name, rules)
        used.add(pattern)
        if leaf.size == 1:  # a stand-in: Adafactor keeps one for each of the two forms of a moment
            return NamedSharding(mesh, PartitionSpec())
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


def gathered_shardings(mesh: Mesh, params: Any) -> Any:
    """Where parameters lie while they are used: those of the rules that every model has, whole along `embed`.

    Args:
      mesh: of `mesh.make_mesh`.
      params: tree whose paths end as PARAMETER_AXES has them, without the axis of stacked layers.
    Returns:
      Tree of `NamedSharding`.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        axes = PARAMETER_AXES[_match(name, PARAMETER_AXES)]
        return NamedSharding(
            mesh,
            PartitionSpec(*_to_mesh(name, axes, leaf.shape, mesh, MESH_AXES | {"embed": None})),
        )

    return jax.tree_util.tree_map_with_path(place, params)


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
    mesh_axes: dict[str, MeshAxes],
) -> list[MeshAxes]:
    if len(axes) != len(shape):
        raise ValueError(
            f"The sharding rule of {name} names {len(axes)} axes {axes}, but its shape is {shape}: "
            "mend the rule in parallel/sharding.py."
        )
    spec: list[MeshAxes] = []
    used: list[str] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in mesh_axes:
            raise ValueError(
                f"The logical axis {axis!r} of {name} is not in MESH_AXES of parallel/sharding.py: add it."
            )
        mesh_axis = mesh_axes[axis]
        names = (mesh_axis,) if isinstance(mesh_axis, str) else mesh_axis or ()
        for one in names:
            if one not in mesh.shape:
                raise ValueError(
                    f"The logical axis {axis!r} goes to mesh axis {one!r}, but the mesh has "
                    f"{', '.join(mesh.shape)}: mend MESH_AXES in parallel/sharding.py."
                )
            if one in used:
                raise ValueError(
                    f"{name} {axes} would use the mesh axis {one!r} twice: "
                    "give its logical axes different ones in MESH_AXES of parallel/sharding.py."
                )
            used.append(one)
        parts = math.prod(mesh.shape[one] for one in names)
        if size % parts:
            raise ValueError(
                f"{name} of shape {shape} does not divide by mesh.{' x mesh.'.join(names)}={parts} "
                f"along its axis {axis!r} of {size}: change that size or the mesh."
            )
        spec.append(mesh_axis)
    return spec
