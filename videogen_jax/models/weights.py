"""Loading of published weights, from safetensors only: nothing is unpickled.

Parameters without tensors in a layout (weight_layouts.py) keep their values. New temporal blocks are the identity, so a
video model with positions "dit" initially equals the image model applied to each frame.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import einops
import jax  # imports ml_dtypes, which safetensors needs for bfloat16
import numpy as np

from videogen_jax.models.positions import sincos_2d
from videogen_jax.models.weight_layouts import LAYOUTS, Layout, Source
from videogen_jax.parallel.sharding import path_name

INDEX = ".safetensors.index.json"  # end of the name of the index of a model in several files
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
# Types of safetensors that NumPy and ml_dtypes hold as they are stored. 8-bit floats and smaller ones need scales.
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
# What NumPy raises for damaged files, beside safetensors' own error.
READ_ERRORS = (
    *(ValueError, TypeError, KeyError, AttributeError),
    *(OverflowError, MemoryError, RecursionError),
)
LISTED = 10  # tensors of each kind that an error lists


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit the model."""


def load_weights(path: str | Path, layout: str, params: Any) -> Any:
    """Reads weights and converts them to parameters: `read_tensors`, then `convert_tensors`."""
    tensors = read_tensors(path)
    try:
        return convert_tensors(tensors, layout, params)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a model; arguments, order and errors are those of `open_tensors`."""
    return dict(open_tensors(path))


class StoredTensors(Mapping):
    """Tensors of safetensors files by name; each is read when it is asked for, in the type of its file."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = files

    def __getitem__(self, name: str) -> np.ndarray:
        with _open_file(self._files[name]) as opened:
            return opened.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._files  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_tensors(path: str | Path) -> StoredTensors:
    """Opens safetensors, whose tensors need not fit in memory together.

    Args:
      path: a file, or a folder with one model in one or several *.safetensors.
    Returns:
      Name -> array.
    Raises:
      FileNotFoundError: there is no such file, or the folder has none.
      WeightsError: a file is a pickle or damaged, or two files contain the same tensor.
    """
    path = Path(path)
    files: dict[str, Path] = {}
    for file in _list_files(path) if path.is_dir() else [path]:
        if file.suffix.lower() in PICKLES:
            raise WeightsError(
                f"{file} is a pickle, which can execute code when it is read: convert it with "
                f"safetensors.torch.save_file(torch.load({file.name!r}, weights_only=True), 'model.safetensors')."
            )
        if not file.is_file():
            raise FileNotFoundError(
                f"There is no {file}: give a .safetensors file, or a folder with all files of the model."
            )
        names = read_shapes(file)  # raises if NumPy could not hold the tensors
        if duplicates := sorted(set(names) & set(files)):
            raise WeightsError(
                f"{path} contains {duplicates[0]} twice, the second time in {file.name}: give the file of one model."
            )
        files |= dict.fromkeys(names, file)
    return StoredTensors(files)


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Reads the names and shapes of a safetensors file, and checks that NumPy can hold its tensors.

    Raises:
      WeightsError: the file is damaged, or has a tensor of another type or with a side of 0.
    """
    shapes = {}
    with _open_file(file) as opened:
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            tensor = opened.get_slice(name)
            kind, shape = tensor.get_dtype(), tuple(tensor.get_shape())
            if kind not in TYPES:
                raise WeightsError(
                    f"{file} has the tensor {name} of type {kind}, which cannot be read: convert it to one of "
                    "F32, F16 and BF16."
                )
            if 0 in shape:
                raise WeightsError(
                    f"{file} has the tensor {name} of shape {shape}, which holds nothing: download it again."
                )
            shapes[name] = shape
    return shapes


@contextlib.contextmanager
def _open_file(file: Path) -> Iterator[Any]:
    """Opens a safetensors file; raises WeightsError where it is damaged."""
    from safetensors import SafetensorError, safe_open  # late: new models need no weights

    try:
        with safe_open(file, "np") as opened:
            yield opened
    except WeightsError:
        raise
    except (SafetensorError, *READ_ERRORS) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{file} is not a valid safetensors file ({error}): download it again.")


def _list_files(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob(f"*{INDEX}"))
    if len(indexes) == 1:
        return [folder / name for name in read_index(indexes[0])]
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
    if not files:
        raise FileNotFoundError(f"{folder} has no *.safetensors: give the folder that does.")
    return files


def read_index(path: Path) -> list[str]:
    """Reads the names of the files that an index of safetensors lists, all of them in its folder.

    Raises:
      WeightsError: it is damaged, or names files elsewhere.
    """
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not an index of safetensors ({error}): download it again."
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise WeightsError(
                f"{path} names {name!r}, which is no file of its folder: download it again."
            )
    return sorted(names)


def convert_tensors(tensors: Mapping[str, np.ndarray], layout: str, params: Any) -> Any:
    """Converts published weights to parameters.

    Learned variances are dropped if the model has half the outputs, and class embeddings if it has none.

    Args:
      tensors: name -> array of any float type, with PyTorch's names and shapes.
      layout: one of LAYOUTS.
      params: parameters of a `VideoDiT`, or their shapes.
    Returns:
      A tree like `params`: float32 NumPy arrays where the layout has tensors, else the given leaves.
    Raises:
      ValueError: the layout is unknown.
      WeightsError: tensors are missing, unexpected or misshapen, or use other position embeddings.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown init.layout {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    plan = _adapt(LAYOUTS[layout], leaves)
    if layout == "dit":
        _check_positions(tensors)
    tensors = _drop_variances(tensors, plan, leaves)

    return place_tensors(
        tensors,
        plan.sources,
        params,
        what=f"the model in the layout {layout!r}",
        remedy=f"Build the model with the fields of models/weight_layouts.py's {plan.fields_function}, or choose "
        f"another init.layout of {', '.join(LAYOUTS)}.",
        optional=plan.optional,
        ignored=plan.ignored,
    )


def name_sources(params: Any) -> dict[str, Source]:
    """Sources of parameters whose modules are named like their tensors: `a/b.0/kernel` is `a.b.0.weight`.

    Args:
      params: parameters of dense layers, convolutions and norms, or their shapes.
    Returns:
      Parameter path -> source.
    """
    kernels = {1: "o -> o", 2: "o i -> i o", 4: "o i h w -> h w i o", 5: "o i t h w -> t h w i o"}
    sources = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        tensor = re.sub(r"\.(kernel|scale)$", ".weight", name.replace("/", "."))
        sources[name] = Source((tensor,), kernels[len(leaf.shape)])
    return sources


def place_tensors(
    tensors: Mapping[str, np.ndarray],
    sources: Mapping[str, Source],
    params: Any,
    *,
    what: str,
    remedy: str,
    optional: str = r"(?!)",
    ignored: Iterable[str] = (),
) -> Any:
    """Converts tensors to parameters, or lists what does not fit.

    Args:
      tensors: name -> array of any float type, each read once.
      sources: parameter path -> source.
      params: parameters, or their shapes. Those under `blocks/` are stacked.
      what: name of the model in the error.
      remedy: last sentence of the error.
      optional: regular expression of parameter paths that may lack a source and then keep their values.
      ignored: names of tensors that may be present and are not used.
    Returns:
      A tree like `params`: NumPy arrays of the leaf's type where there are sources, else the given leaves.
    Raises:
      WeightsError: tensors are missing, unexpected or misshapen.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    new, missing, misshapen = {}, [], []
    unexpected = set(tensors) - set(ignored)
    for leaf, value in leaves.items():
        if leaf not in sources:
            if not re.match(optional, leaf):
                missing.append(f"{leaf} (not in this layout)")
            continue
        names, pattern = sources[leaf]
        stacked = leaf.startswith("blocks/")  # one tensor per block, along the first axis
        shape = value.shape[1:] if stacked else value.shape
        rows = []
        for i in range(value.shape[0] if stacked else 1):
            found = [name.format(i=i) for name in names]
            unexpected -= set(found)
            if absent := [name for name in found if name not in tensors]:
                missing += absent
                continue
            arrays = [np.asarray(tensors[name], value.dtype) for name in found]
            rows.append(_rearrange(arrays, pattern, shape))
            if rows[-1] is None:
                sizes = " + ".join(f"{n} {a.shape}" for n, a in zip(found, arrays, strict=True))
                misshapen.append(f"{sizes} for {leaf} {shape}")
        if not (missing or misshapen):
            new[leaf] = np.stack(rows) if stacked else rows[0]

    problems = {"missing": missing, "unexpected": sorted(unexpected), "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(_list(kind, names) for kind, names in problems.items() if names)
        raise WeightsError(f"These weights do not fit {what}: {listed}. {remedy}")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: new.get(path_name(path), leaf), params
    )


def _list(kind: str, names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind} ({', '.join(names[:LISTED])}{more})"


def _adapt(plan: Layout, leaves: Mapping[str, Any]) -> Layout:
    """The layout adapted to a model without classes, or with joint instead of spatial blocks."""
    sources, labels = dict(plan.sources), "label_embed/embedding"
    if labels in sources and labels not in leaves:
        plan = plan._replace(ignored=plan.ignored + sources.pop(labels).names)
    if any(leaf.startswith("blocks/joint/") for leaf in leaves):
        sources = {leaf.replace("/spatial/", "/joint/"): source for leaf, source in sources.items()}
    return plan._replace(sources=sources)


def _rearrange(arrays: list[np.ndarray], pattern: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Arrays concatenated and rearranged; None if the result does not have the given shape."""
    right = pattern.split("->")[1]
    # Sizes of heads must be given to einops; those of patches follow from the array.
    lengths = {} if "(" in right else dict(zip(right.split(), shape, strict=False))
    try:
        array = einops.rearrange(np.concatenate(arrays), pattern, **lengths)
    except (einops.EinopsError, ValueError):
        return None
    return array if array.shape == tuple(shape) else None


def _drop_variances(
    tensors: Mapping[str, np.ndarray], plan: Layout, leaves: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Keeps the first half of the output channels (the mean) if the model has half as many outputs."""
    tensors = dict(tensors)
    weight, bias = f"{plan.output_layer}.weight", f"{plan.output_layer}.bias"
    patch = f"{plan.patch_layer}.weight"
    if not {weight, bias, patch} <= set(tensors):
        return tensors
    if np.ndim(tensors[weight]) == 0 or np.ndim(tensors[bias]) == 0:
        return tensors  # misshapen, which `place_tensors` reports
    outputs, pixels = len(tensors[weight]), math.prod(tensors[patch].shape[2:])
    if outputs == 2 * leaves["unembed/bias"].size and outputs % (2 * pixels) == 0:
        for name in (weight, bias):
            halves = einops.rearrange(
                tensors[name], "(p two c) ... -> two (p c) ...", p=pixels, two=2
            )
            tensors[name] = halves[0]
    return tensors


def _check_positions(tensors: Mapping[str, np.ndarray]) -> None:
    """Checks that DiT's table of positions, if present, equals the one that the model computes."""
    if "pos_embed" not in tensors:
        return
    table = np.asarray(tensors["pos_embed"], np.float32)
    if table.ndim != 3 or len(table) != 1:
        raise WeightsError(f"pos_embed has the shape {table.shape}, but DiT's is (1, N, D).")
    table = table[0]  # (N, D)
    side = math.isqrt(len(table))
    expected = sincos_2d((side, side), table.shape[1])
    # Up to the precision of bfloat16.
    if side**2 != len(table) or not np.allclose(table, expected, atol=1e-2):
        raise WeightsError(
            "pos_embed is not DiT's table of sines and cosines over a square, the only one supported: "
            "use weights that were trained with it."
        )


def hash_params(params: Any) -> str:
    """SHA-256 of a tree of arrays, by content: equal parameters have equal hashes, whatever file they came from."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path_name(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own
    return digest.hexdigest()
