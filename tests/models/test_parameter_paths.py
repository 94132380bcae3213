"""Parameters found by patterns, split into two trees and combined again."""

import numpy as np
import pytest

from videogen_jax.models import parameter_paths

PATHS = [
    "blocks/spatial/attention/out/bias",
    "blocks/spatial/attention/out/kernel",
    "blocks/spatial/mlp/up/kernel",
    "time_embed/out/kernel",
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("blocks/spatial/.*", [0, 1, 2]),
        ("kernel", [1, 2, 3]),
        ("out/kernel", [1, 3]),
        (".*attention/.*", [0, 1]),
        ("mlp/.*", [2]),
        ("up/kernel|bias", [0, 2]),
        ("embed/out/kernel", []),  # time_embed is another name
        ("blocks/spatial", []),  # not to the end
        ("ernel", []),
    ],
)
def test_a_pattern_matches_whole_names_to_the_end_of_the_path(pattern, found):
    assert [i for i in range(4) if parameter_paths.matches([pattern], PATHS[i])] == found


def test_a_pattern_that_matches_nothing_is_refused_with_paths_that_there_are():
    assert parameter_paths.find_matches("train.frozen", ("mlp/.*", "bias"), PATHS) == {
        PATHS[0],
        PATHS[2],
    }
    assert parameter_paths.find_matches("train.frozen", (), PATHS) == frozenset()
    with pytest.raises(ValueError, match=r"train.frozen has 'mpl/.\*', which matches none of bl.*"):
        parameter_paths.find_matches("train.frozen", ("mlp/.*", "mpl/.*"), PATHS)
    many = [f"layer_{i}/kernel" for i in range(50)]
    with pytest.raises(ValueError, match=r"none of layer_0/kernel, .* and 44 more: write a"):
        parameter_paths.find_matches("train.frozen", ("mlp/.*",), many)


def test_a_tree_is_split_and_combined():
    tree = {"a": {"kernel": np.ones(2), "bias": np.zeros(2)}, "b": {"kernel": np.full(2, 7.0)}}
    assert parameter_paths.list_paths(tree) == ["a/bias", "a/kernel", "b/kernel"]
    rest, taken = parameter_paths.split(tree, {"a/kernel", "b/kernel"})
    assert rest == {"a": {"bias": tree["a"]["bias"]}}
    assert parameter_paths.list_paths(taken) == ["a/kernel", "b/kernel"]
    assert parameter_paths.combine(rest, taken) == tree
    assert parameter_paths.split(tree, ()) == (tree, None)
    assert parameter_paths.combine(tree, None) is tree
