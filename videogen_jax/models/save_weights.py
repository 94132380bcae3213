"""Parameters written as safetensors: the inverse of weights.py, by the same tables of sources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import einops
import jax
import numpy as np

from videogen_jax.data.atomic_files import write_json
from videogen_jax.models.weight_layouts import Source
from videogen_jax.parallel.sharding import path_name

SHARD_BYTES = 5 * 10**9  # of a file, Hugging Face's limit


def name_parameters(params: Any) -> dict[str, Source]:
    """Sources of parameters as they are: `blocks/spatial/mlp/up/kernel` is `blocks.{i}.spatial.mlp.up.kernel`.

    Args:
      params: parameters, or their shapes. Those under `blocks/` are stacked, and become a tensor for each block.
    Returns:
      Parameter path -> source.
    """
    sources = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        stacked = name.startswith("blocks/")
        axes = " ".join(f"a{i}" for i in range(len(leaf.shape) - stacked))
        tensor = name.replace("blocks/", "blocks.{i}.", 1) if stacked else name
        sources[name] = Source((tensor.replace("/", "."),), f"{axes} -> {axes}")
    return sources


def extract_tensors(
    params: Any, sources: Mapping[str, Source], patch: tuple[int, int] = (1, 1)
) -> dict[str, np.ndarray]:
    """Converts parameters to tensors: the inverse of `weights.place_tensors`.

    Args:
      params: parameters, on the host or on devices of this process.
      sources: parameter path -> source, of every parameter.
      patch: rows and columns of a patch, p and q in the patterns of patch embeddings.
    Returns:
      Tensor name -> array of the parameters' type.
    """
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf_name = path_name(path)
        names, pattern = sources[leaf_name]
        left, right = (side.strip() for side in pattern.split("->"))
        # Sizes inside a composed axis must be given to einops.
        lengths = dict(zip("pq", patch, strict=True)) if "(" in right else {}
        stacked = leaf_name.startswith("blocks/")
        value = np.asarray(leaf)
        for i, row in enumerate(value if stacked else [value]):
            tensor = einops.rearrange(row, f"{right} -> {left}", **lengths)
            for name, part in zip(names, np.split(tensor, len(names)), strict=True):
                tensors[name.format(i=i)] = np.ascontiguousarray(part)
    return tensors


def write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, np.ndarray], shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Writes tensors as `stem`.safetensors, or in several files with an index, as Hugging Face's libraries do.

    Args:
      folder: exists.
      stem: of the files' names: "model", or "diffusion_pytorch_model" of diffusers.
      tensors: name -> array.
      shard_bytes: most bytes of a file, unless a single tensor has more.
    Returns:
      Names of the safetensors files.
    Raises:
      OSError: the files cannot be written.
    """
    # Late, as a model in training needs neither. The hub's client is a dependency of tokenizers.
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.numpy import save_file

    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: tensors[name] for name in names}
        path = folder / file
        path.touch()
        mode = path.stat().st_mode  # safetensors lets the owner alone read what it writes
        save_file(part, path, metadata={"format": "pt"})  # which their readers ask for
        path.chmod(mode)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    return list(split.filename_to_tensors)
