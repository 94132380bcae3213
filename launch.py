"""Trains a video diffusion transformer.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

The same command again goes on from the newest checkpoint. Any line of the config can be overridden:
--config.train.steps=1000. On a machine without GPU the mesh is made of host devices.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "File in configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, dashboard and samples.")


def main(argv: list[str]) -> int:
    """Runs the training; returns the exit code."""
    if len(argv) > 1:
        return fail(f"unknown argument {argv[1]!r}: flags start with --config or --workdir.")
    config = _CONFIG.value
    # Takes effect only where there is no GPU or TPU; there the mesh needs as many host devices.
    jax.config.update("jax_num_cpu_devices", config.mesh.data * config.mesh.fsdp)
    logging.set_verbosity(logging.INFO)

    from videogen_jax.train import loop, metrics  # TensorFlow: only once the flags are right

    try:
        loop.train(config, _WORKDIR.value)
    except (ValueError, OSError, metrics.TrainingDiverged) as error:
        return fail(str(error))
    except loop.Interrupted as interrupted:
        logging.warning("%s", interrupted)
        return 128 + 15
    return 0


def fail(sentence: str) -> int:
    """Prints one sentence of error; returns the exit code."""
    print(f"launch: error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
