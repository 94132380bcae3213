"""Trains a run: a video diffusion transformer, or a video autoencoder.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
    videogen train --config=quickstart --workdir=runs/quickstart

The same command again resumes from the newest checkpoint. Any option can be overridden: --config.train.steps=1000
(docs/config.md lists them). On a machine without GPU the mesh is made of host devices. Compiled programs are kept in
the workdir. Several hosts: docs/scaling.md.
"""

import math
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import config_flags

from videogen_jax import command
from videogen_jax import config as configs
from videogen_jax.parallel import processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of a run, or a name in configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, dashboard and samples.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where several processes train together."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0.", lower_bound=0
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Take the three flags above from SLURM, Open MPI or Kubernetes."
)


MOST_HOST_DEVICES = (
    256  # a larger mesh is refused for its lack of devices, instead of starting that many threads
)


def main(arguments: list[str]) -> int:
    """Runs the training; returns the exit code."""
    command.refuse(arguments)
    config = configs.validate(_CONFIG.value)
    # Takes effect only where there is no GPU or TPU; there the mesh needs as many host devices.
    devices = math.prod(config.mesh.values()) // (_NUM_PROCESSES.value or 1)
    if (
        not _DISTRIBUTED.value
    ):  # there each process has one device, and their number is not known yet
        jax.config.update("jax_num_cpu_devices", min(max(devices, 1), MOST_HOST_DEVICES))
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(_WORKDIR.value) / "compiled"))
    processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value)
    if jax.process_index() == 0:
        command.log_progress()
    else:  # one process speaks for all
        logging.set_verbosity(logging.WARNING)

    from videogen_jax.train import loop, metrics  # TensorFlow: only once the flags are right

    try:
        loop.train(config, _WORKDIR.value)
    except metrics.TrainingDiverged as error:
        raise ValueError(str(error)) from error
    except loop.Interrupted as interrupted:
        logging.warning("%s", interrupted)
        return 128 + interrupted.signal
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.start("launch", main)
