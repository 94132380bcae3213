"""Trains a video diffusion transformer.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

The same command again goes on from the newest checkpoint. Any line of the config can be overridden:
--config.train.steps=1000. On a machine without GPU the mesh is made of host devices.
"""

import jax
from absl import flags, logging
from ml_collections import config_flags

from videogen_jax import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "File in configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, dashboard and samples.")


def main(arguments: list[str]) -> int:
    """Runs the training; returns the exit code."""
    command.refuse(arguments)
    config = _CONFIG.value
    # Takes effect only where there is no GPU or TPU; there the mesh needs as many host devices.
    jax.config.update("jax_num_cpu_devices", config.mesh.data * config.mesh.fsdp)
    logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))

    from videogen_jax.train import loop, metrics  # TensorFlow: only once the flags are right

    try:
        loop.train(config, _WORKDIR.value)
    except metrics.TrainingDiverged as error:
        raise ValueError(str(error)) from error
    except loop.Interrupted as interrupted:
        logging.warning("%s", interrupted)
        return 128 + 15
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.start("launch", main)
