"""A trained model as a folder to hand on: safetensors, config.json, README.md. Nothing in it is executed.

| file                        | holds                                                                        |
| --------------------------- | ---------------------------------------------------------------------------- |
| config.json                 | the fields of `CONFIG_FIELDS`: the run's options, and what sampling needs    |
| model.safetensors           | a moving average of the parameters; above 5 GB in several files              |
| transformer/                | these in diffusers' layout instead, with a config.json of diffusers          |
| vae/                        | an export of the autoencoder, where that was trained here                    |
| README.md, samples/         | the model card, for readers                                                  |
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import ml_dtypes
import numpy as np

from videogen_jax import __version__
from videogen_jax import config as configs
from videogen_jax.data import json_files
from videogen_jax.data.atomic_files import write_json
from videogen_jax.data.latent_records import LatentInfo, TextInfo
from videogen_jax.models import hub, latte_export, save_weights, weights
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run import saved_config

LIBRARY = "videogen_jax"
VERSION = 1  # of the format; a reader refuses later ones
CONFIG = "config.json"
VAE = "vae"  # folder of the autoencoder's export
NATIVE = "native"
LAYOUTS = (NATIVE, latte_export.LAYOUT)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FILE_NAME = rf"({latte_export.FOLDER}/)?\w[\w.-]*\.safetensors"
MADE_BY = "library_name"  # the key by which an export is known

METADATA_FIELDS = {
    "vocabulary": [str],
    "text": json_files.Optional(TextInfo),
    "latents": json_files.Optional(LatentInfo),
}
CONFIG_FIELDS = {
    MADE_BY: str,
    "format_version": int,
    "package_version": str,  # that wrote it
    "step": int,  # optimizer steps that the weights were trained for
    "weights": str,  # name of the moving average
    "dtype": str,  # of the tensors
    "layout": str,  # of the tensors
    "files": [{"name": str, "bytes": int, "sha256": str}],  # with the tensors
    "config": {str: object},  # all options of the run
    "metadata": {str: object},  # of the run's checkpoint: METADATA_FIELDS; empty for an autoencoder
}


class Export(NamedTuple):
    """An export, its weights not read."""

    folder: Path
    config: ml_collections.ConfigDict  # of the run; vae.path is that of the autoencoder inside
    step: int
    weights: str
    dtype: str
    layout: str
    metadata: dict[str, Any]
    files: list[dict[str, Any]]

    @property
    def is_autoencoder(self) -> bool:
        """Whether it is a video autoencoder, and not a diffusion model."""
        return configs.is_autoencoder(self.config)

    def read_params(self, abstract_params: Any) -> Any:
        """Reads the parameters.

        Args:
          abstract_params: their shapes.
        Returns:
          A tree like `abstract_params`: float32 NumPy arrays.
        Raises:
          ValueError: a file is not what was written, or the weights are another model's.
          FileNotFoundError: a file is missing.
        """
        tensors: dict[str, np.ndarray] = {}
        for file in self.files:
            path = self.folder / file["name"]
            if not path.is_file():
                weights.read_tensors(path.parent)  # a pickle in its place has a sentence of its own
            read = weights.read_tensors(path)
            _check_bytes(path, file)
            tensors |= read
        try:
            params = self._convert(tensors, abstract_params)
        except weights.WeightsError as error:
            raise weights.WeightsError(f"{self.folder}: {error}") from None
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not isinstance(leaf, np.ndarray):
                raise weights.WeightsError(
                    f"{self.folder} has no tensor for {path_name(path)}: export the run again."
                )
        return params

    def put_params(self, model: Any) -> Any:
        """The parameters, laid out on the mesh of a `run.model.Model`; errors as `read_params`."""
        return jax.device_put(self.read_params(model.abstract_params), model.param_shardings)

    def check_choice(self, step: int | None, ema: str | None, ema_width: float | None) -> None:
        """Raises ValueError where another step or average is wanted than the one that it holds."""
        if step in (None, self.step) and ema in (None, self.weights) and ema_width is None:
            return
        raise ValueError(
            f"{self.folder} is an export and holds the average {self.weights!r} of step {self.step} alone: leave out "
            "step, ema and ema_width, or name the --workdir of the run."
        )

    def _convert(self, tensors: Mapping[str, np.ndarray], abstract_params: Any) -> Any:
        if self.layout != NATIVE:
            return weights.convert_tensors(tensors, self.layout, abstract_params)
        return weights.place_tensors(
            tensors,
            save_weights.name_parameters(abstract_params),
            abstract_params,
            what=f"the model that {CONFIG} describes",
            remedy="Export the run again, or bring back the files as they were written.",
        )


def write_export(
    folder: Path,
    *,
    config: ml_collections.ConfigDict,
    params: Any,
    step: int,
    average: str,
    metadata: Mapping[str, Any],
    dtype: str = "float32",
    transformer: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and the weights.

    Args:
      folder: exists, and is empty.
      config: of the run, with paths that hold wherever the folder goes.
      params: parameters, on the host or on devices of this process.
      step: optimizer steps.
      average: name of the moving average.
      metadata: as saved with checkpoints.
      dtype: of the tensors, one of DTYPES.
      transformer: config.json of diffusers (`latte_export.describe`), to write its layout; by default the native one.
    Raises:
      OSError: it cannot be written.
    """
    if transformer is None:
        layout, below, stem = NATIVE, "", "model"
        tensors = save_weights.extract_tensors(params, save_weights.name_parameters(params))
    else:
        layout, below, stem = latte_export.LAYOUT, latte_export.FOLDER, latte_export.STEM
        tensors = latte_export.to_tensors(params, config.model.patch_size)
        (folder / below).mkdir()
        write_json(folder / below / CONFIG, dict(transformer))
    tensors = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tensors.items()}
    names = save_weights.write_tensors(folder / below, stem, tensors)
    files = [_describe_file(folder, (Path(below) / name).as_posix()) for name in names]
    content = {
        MADE_BY: LIBRARY,
        "format_version": VERSION,
        "package_version": __version__,
        "step": step,
        "weights": average,
        "dtype": dtype,
        "layout": layout,
        "files": files,
        "config": config.to_dict(),
        "metadata": {name: value for name, value in metadata.items() if name in METADATA_FIELDS},
    }
    write_json(folder / CONFIG, content)


def is_export(path: str | Path) -> bool:
    """Whether a path is that of an export, here or by its name on the hub, and not that of a run."""
    folder = Path(path)
    if not folder.exists():
        return hub.is_name(str(path))
    if not (folder / CONFIG).is_file() or (folder / "checkpoints").is_dir():
        return False
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return True  # whose damage `open_export` names
    return not isinstance(content, dict) or MADE_BY in content or "train" not in content


def open_export(path: str | Path) -> Export:
    """Opens an export; of one on the hub, downloads config.json, the safetensors that it names, and vae/.

    Args:
      path: folder, or name on the Hugging Face hub, `owner/repository` or a folder in it.
    Returns:
      The export; its weights are read by `read_params`.
    Raises:
      FileNotFoundError: there is none, or the hub cannot be reached.
      ValueError: config.json is damaged, of another package or of a later format.
    """
    export = _read_config(hub.find_file(str(path), CONFIG))
    local = Path(path).is_dir()
    for file in () if local else export.files:
        hub.find_file(str(path), file["name"])
    if not configs.is_autoencoder(export.config) and export.config.vae.name == "workdir":
        inside = open_export(export.folder / VAE if local else f"{path}/{VAE}")
        if not inside.is_autoencoder:
            raise ValueError(f"{inside.folder} holds no autoencoder: export the run again.")
        with export.config.unlocked():
            export.config.vae.path = str(inside.folder)
    return export


def _read_config(path: Path) -> Export:
    """The export of a config.json, by itself.

    Raises:
      ValueError: it is damaged, of another package or of a later format.
    """
    way_out = "export the run again, or bring back the file as it was written."
    content = json_files.read(path, {str: object}, way_out)
    if content.get(MADE_BY) != LIBRARY:
        raise ValueError(
            f"{path} is not of an export of {LIBRARY}: name a folder that videogen_jax.export wrote, the --workdir of "
            "a run, or give other weights to init.path with their init.layout."
        )
    version = content.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"{path} has the format {version} of {LIBRARY} {content.get('package_version')}, and this version "
            f"({__version__}) reads formats up to {VERSION}: install a later one."
        )
    content = json_files.parse(path, json.dumps(content), CONFIG_FIELDS, way_out)
    for name, found, known in (
        ("layout", content["layout"], LAYOUTS),
        ("dtype", content["dtype"], tuple(DTYPES)),
    ):
        if found not in known:
            raise ValueError(f"{path} is damaged ({name} is none of {', '.join(known)}): {way_out}")
    if wrong := [file for file in content["files"] if not re.fullmatch(FILE_NAME, file["name"])]:
        raise ValueError(
            f"{path} names {wrong[0]['name']!r}, which is no safetensors file of its folder: {way_out}"
        )
    unknown = (
        f"which this version of videogen_jax ({__version__}) does not have: install the version that wrote it, or a "
        "later one"
    )
    config = saved_config.convert_options(path, content["config"], configs.validate_values, unknown)
    metadata = content["metadata"]
    if not configs.is_autoencoder(config):
        metadata = _read_metadata(path, metadata, way_out)
    return Export(
        folder=path.parent,
        config=config,
        step=content["step"],
        weights=content["weights"],
        dtype=content["dtype"],
        layout=content["layout"],
        metadata=metadata,
        files=content["files"],
    )


def _read_metadata(path: Path, metadata: dict[str, Any], way_out: str) -> dict[str, Any]:
    """The metadata, its fields checked, as checkpoints hold them."""
    checked = json_files.parse(path, json.dumps(metadata), METADATA_FIELDS, way_out)
    return {
        name: value._asdict() if hasattr(value, "_asdict") else value
        for name, value in checked.items()
    }


def _describe_file(folder: Path, name: str) -> dict[str, Any]:
    with (folder / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": name, "bytes": file.tell(), "sha256": digest}


def _check_bytes(path: Path, file: Mapping[str, Any]) -> None:
    found = _describe_file(path.parent, path.name)
    for name in ("bytes", "sha256"):
        if found[name] != file[name]:
            raise weights.WeightsError(
                f"{path} is not the file that {CONFIG} names ({name} {found[name]} instead of {file[name]}): download "
                "or export it again."
            )
