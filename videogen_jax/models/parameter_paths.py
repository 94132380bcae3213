"""Parameters by their paths, such as blocks/spatial/mlp/up/kernel: found by patterns, split into two trees, combined.

Blocks of a kind are stacked by `nn.scan`: a path stands for the parameter of all of them.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
from flax import traverse_util

from videogen_jax.parallel.sharding import path_name

SHOWN = 6  # paths in a sentence


def list_paths(params: Any) -> list[str]:
    """The paths of all leaves of a tree, in order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether a regular expression matches the path, or what follows one of its slashes, to the end."""
    return any(re.search(f"(^|/)({pattern})$", path) for pattern in patterns)


def find_matches(option: str, patterns: Sequence[str], paths: Sequence[str]) -> frozenset[str]:
    """The paths that patterns match.

    Args:
      option: the patterns' name, for the sentence.
      patterns: see `matches`.
      paths: that there are.
    Returns:
      Those of `paths` that some pattern matches.
    Raises:
      ValueError: a pattern matches no path; the sentence lists some.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = {path for path in paths if matches((pattern,), path)}
        if not matched:
            some = paths[:: -(-len(paths) // SHOWN)]  # evenly among all
            more = f" and {len(paths) - len(some)} more" if len(some) < len(paths) else ""
            raise ValueError(
                f"{option} has {pattern!r}, which matches none of {', '.join(some)}{more}: write a regular expression "
                "for such a path, or for its last parts."
            )
        found |= matched
    return frozenset(found)


def split(params: Any, taken: Collection[str]) -> tuple[Any, Any]:
    """Divides a tree of nested dicts in two.

    Args:
      params: the tree, of any leaves.
      taken: paths of leaves.
    Returns:
      (tree of the other leaves, tree of the taken ones or None if there are none).
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    there = {path: leaf for path, leaf in flat.items() if path in taken}
    if not there:
        return params, None
    here = {path: leaf for path, leaf in flat.items() if path not in taken}
    return tuple(traverse_util.unflatten_dict(part, sep="/") for part in (here, there))


def combine(params: Any, taken: Any) -> Any:
    """The inverse of `split`."""
    if taken is None:
        return params
    flat = [traverse_util.flatten_dict(part, sep="/") for part in (params, taken)]
    return traverse_util.unflatten_dict(flat[0] | flat[1], sep="/")
