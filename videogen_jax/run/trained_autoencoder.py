"""The autoencoder of a run, by its newest checkpoint's moving average, or of an export, for `vae.name=workdir`."""

from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from videogen_jax import config as configs
from videogen_jax.models.autoencoder import Autoencoder, make_video_autoencoder
from videogen_jax.models.causal_vae import Network, check_network
from videogen_jax.run import checkpoint, ema, export_folder, saved_config, step_files


def read_autoencoder(path: str, dtype: str) -> Autoencoder:
    """Describes the autoencoder of a run or an export; `load` reads the newest checkpoint, or the export's weights.

    Args:
      path: workdir of a run of a config for autoencoders, or an export of one: a folder, or a name on the hub.
      dtype: of the convolutions, see `autoencoder.make_video_autoencoder`.
    Returns:
      The autoencoder.
    Raises:
      FileNotFoundError: there is no run.
      ValueError: the run is of something else.
    """
    exported = export_folder.is_export(path)
    export = export_folder.open_export(path) if exported else None
    config = export.config if exported else _read_config(Path(path))
    if not configs.is_autoencoder(config):
        what = "an export" if exported else "the run"
        raise ValueError(
            f"{path} is {what} of a diffusion model, not of an autoencoder: name in vae.path the --workdir of a run of "
            "configs/vae_*.py."
        )
    network = make_network(**config.autoencoder)
    average = next(iter(ema.make_decays(config.ema.decays, config.ema.widths)))
    autoencoder = make_video_autoencoder(network, load=lambda: params(), dtype=dtype)

    def params() -> Any:
        shapes = autoencoder.abstract_params
        return export.read_params(shapes) if exported else load_newest(Path(path), shapes, average)

    return autoencoder


def _read_config(workdir: Path) -> ml_collections.ConfigDict:
    file = workdir / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}: name in vae.path the --workdir of a run of configs/vae_*.py."
        )
    return saved_config.read_config(workdir)


def make_network(**sizes: Any) -> Network:
    """The network of the options of `config.autoencoder`.

    Raises:
      ValueError: the sizes make none.
    """
    network = Network(**sizes)
    check_network(network)
    return network


def load_newest(workdir: Path, abstract_params: Any, average: str) -> Any:
    """Reads a moving average of the newest checkpoint, on this process alone.

    Args:
      workdir: of the run.
      abstract_params: shapes.
      average: its name.
    Returns:
      The tree, float32 NumPy.
    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, or it is another model's.
    """
    folder = workdir.resolve() / "checkpoints"
    if not step_files.list_steps(folder):
        raise step_files.CheckpointError(
            f"There is no checkpoint in {folder}: train the autoencoder first, or name another run in vae.path."
        )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract_params
    )

    def read(step: int, metadata: dict[str, Any]) -> Any:
        del metadata
        with jax.transfer_guard("allow"):
            return checkpoint.restore_average(folder / str(step), placed, average)

    params = checkpoint.read_newest(workdir, None, read)
    return jax.tree.map(np.asarray, params)
