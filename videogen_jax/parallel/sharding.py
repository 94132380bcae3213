"""Sharding of the train state by two tables.

1. Parameter path -> logical axis names. The same path occurs in the EMA and in the optimizer's moments, so one rule
   shards them all. Parameters under `blocks/` are stacked by `nn.scan` and get a leading axis `layers`.
2. Logical axis -> mesh axis or axes, or None for replicated.

The factors of LoRA beside a kernel follow its rule: the first has its input axes, the second its output axes.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.parallel.mesh import BATCH_AXES

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
    # Vectors of the hidden size are replicated: too small to be worth gathering.
    r"(patch_embed|hidden|out|down)/bias": ("vector",),
}

# Further parameters, by the options that add them.
WORDS_AXES = {r"words/embedding": ("vocabulary", "embed")}
IMPORTANCE_AXES = {r"caption_encoder/importance": ("vocabulary",)}
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
# Few parameters: replicated.
DETAILER_AXES = {
    r"detailer/block_\d+/spatial/kernel": ("space", "space", "vector", "vector"),
    r"detailer/(context|enter|leave|block_\d+/temporal/mix)/kernel": ("vector", "vector"),
    r"detailer/(context|enter|leave|block_\d+/(spatial|temporal/mix))/bias": ("vector",),
}

# All rules of an autoencoder.
AUTOENCODER_AXES = {
    r"spatial/kernel": ("space", "space", "vector", "filters"),
    r"(mix|enter_\d+|leave_\d+)/kernel": ("vector", "filters"),
    r"(spatial|mix|enter_\d+|leave_\d+)/bias": ("vector",),
    r"norm_\d+/scale": ("vector",),
}

# The factors of LoRA beside a kernel, see models/lora.py.
ADAPTERS = ("lora_a", "lora_b")

# Optimizer state that is replicated: constants (Muon's polynomial) and Adafactor's factored moments.
REPLICATED = {"ns_coeffs", "v_row", "v_col"}

MeshAxes = str | tuple[str, ...] | None

MESH_AXES: dict[str, MeshAxes] = {
    "embed": ("fsdp", "seq"),  # devices that share a clip also shard the parameters
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
    "space": None,
    "filters": ("fsdp", "seq"),
    "rank": None,
}


def parameter_rules(
    *,
    modulation: str,
    qk_norm: bool,
    cross_attention: str,
    text_encoder: str,
    detailer: bool,
    text_pooling: str = "mean",
) -> dict[str, tuple[str, ...]]:
    """Sharding rules for a model; every rule matches at least one of its parameters.

    Args:
      modulation: field of `VideoDiT`, as the other arguments.
      qk_norm: see `VideoDiT`.
      cross_attention: see `VideoDiT`.
      text_encoder: see `VideoDiT`.
      detailer: whether there is a patch detailer head.
      text_pooling: see `VideoDiT`.
    Returns:
      Regular expression for the end of a path -> logical axes.
    """
    reads, gated = cross_attention != "none", cross_attention == "gated"
    options = (
        (text_encoder == "words", WORDS_AXES),
        (text_pooling == "weighted", IMPORTANCE_AXES),
        (text_encoder == "class", CLASS_AXES),
        (text_encoder == "embeddings" and reads, PROJECTION_AXES),
        (reads, CROSS_ATTENTION_AXES),
        (gated, GATE_AXES),
        (qk_norm or gated or detailer or text_encoder == "words", NORM_AXES),
        (detailer, DETAILER_AXES),
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
    """Shardings of every leaf of a tree by the two tables.

    Scalars, random keys, leaves with one element, and optimizer state of other shapes than the parameters' are
    replicated.

    Args:
      mesh: from `mesh.make_mesh`.
      tree: arrays or `jax.ShapeDtypeStruct`s: parameters, or a train state around them.
      rules: regular expression for the end of a path -> logical axes.
      mesh_axes: logical axis -> mesh axis, several, or None.
    Returns:
      Tree of `NamedSharding`, of the same structure.
    Raises:
      ValueError: a leaf matches no rule, or several; a rule matches no leaf, has another rank, or names a logical axis
        or a mesh axis that does not exist; a mesh axis occurs twice in one leaf, or does not divide the leaf's size.
    """
    used = set()

    def shard(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        if leaf.ndim == 0 or REPLICATED & set(name.split("/")):
            return NamedSharding(mesh, PartitionSpec())
        pattern = _match(name, rules)
        used.add(pattern)
        if leaf.size == 1:  # Adafactor's placeholder for the unused form of a moment
            return NamedSharding(mesh, PartitionSpec())
        stacked = "blocks/" in name
        axes = ("layers",) * stacked + _leaf_axes(name, leaf.ndim - stacked, rules[pattern])
        spec = _to_mesh(name, axes, leaf.shape, mesh, mesh_axes)
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree_util.tree_map_with_path(shard, tree)
    if dead := sorted(set(rules) - used):
        raise ValueError(
            f"The sharding rules {', '.join(map(repr, dead))} match no parameter: "
            "remove them from parallel/sharding.py."
        )
    return shardings


def gathered_shardings(mesh: Mesh, weights: Any) -> Any:
    """Shardings of weights while they are used: as PARAMETER_AXES, but gathered along `embed`.

    Args:
      mesh: from `mesh.make_mesh`.
      weights: tree whose paths match PARAMETER_AXES: matrices and vectors, or one per clip, with clips first.
    Returns:
      Tree of `NamedSharding`.
    """

    def shard(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        rank = 1 if name.endswith("bias") else 2
        clips = leaf.ndim - rank
        axes = _leaf_axes(name, rank, PARAMETER_AXES[_match(name, PARAMETER_AXES)])
        gathered = _to_mesh(name, axes, leaf.shape[clips:], mesh, MESH_AXES | {"embed": None})
        return NamedSharding(mesh, PartitionSpec(*[BATCH_AXES] * clips, *gathered))

    return jax.tree_util.tree_map_with_path(shard, weights)


def path_name(path: tuple) -> str:
    """A tree path as names with slashes: `params/blocks/spatial/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _leaf_axes(name: str, rank: int, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Logical axes of a leaf of `rank` axes from those of its rule, which for a factor of LoRA is the kernel's."""
    last = name.rpartition("/")[2]
    if last not in ADAPTERS:
        return axes
    # As vectors, too small to be worth gathering along the hidden size.
    axes = tuple("vector" if axis == "embed" else axis for axis in axes)
    count = rank - 1
    return (*axes[:count], "rank") if last == ADAPTERS[0] else ("rank", *axes[-count:])


def _match(name: str, rules: dict[str, tuple[str, ...]]) -> str:
    if name.endswith(ADAPTERS):
        name = f"{name.rpartition('/')[0]}/kernel"
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
            "fix the rule in parallel/sharding.py."
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
                    f"The logical axis {axis!r} maps to the mesh axis {one!r}, but the mesh has "
                    f"{', '.join(mesh.shape)}: fix MESH_AXES in parallel/sharding.py."
                )
            if one in used:
                raise ValueError(
                    f"{name} {axes} would use the mesh axis {one!r} twice: "
                    "map its logical axes to different ones in MESH_AXES of parallel/sharding.py."
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
