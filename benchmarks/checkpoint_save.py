"""How long saving a checkpoint blocks training, and how long its writing and its checksums take.

python benchmarks/checkpoint_save.py --megabytes=1024 --folder=/tmp/save
"""

import shutil
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from videogen_jax.run import checkpoint, step_files
from videogen_jax.run.state import TrainState

_MEGABYTES = flags.DEFINE_integer("megabytes", 1024, "Size of the state.")
_LEAVES = flags.DEFINE_integer("leaves", 60, "Arrays in each of parameters, average and moments.")
_SAVES = flags.DEFINE_integer("saves", 5, "Saves to measure.")
_FOLDER = flags.DEFINE_string("folder", None, "Empty folder to write to.", required=True)


def make_state(step: int) -> TrainState:
    """A state of random numbers: parameters, an average and two moments."""
    size = _MEGABYTES.value * 2**20 // 4 // 4 // _LEAVES.value
    rng = np.random.default_rng(step)

    def draw() -> dict[str, jax.Array]:
        leaves = (rng.standard_normal(size, np.float32) for _ in range(_LEAVES.value))
        return {f"leaf_{i}": jnp.asarray(leaf) for i, leaf in enumerate(leaves)}

    return TrainState(
        step=jnp.int32(step),
        params=draw(),
        ema={"decay_0.999": draw()},
        opt_state={"mu": draw(), "nu": draw()},
        rng=jax.random.key(0),
        loss_scale=None,
    )


def main(_: list[str]) -> None:
    """Measures and prints."""
    folder = Path(_FOLDER.value)
    blocked, worked, written = [], [], []
    with checkpoint.open_checkpoints(folder, keep=1) as manager:
        for step in range(1, _SAVES.value + 1):
            state = make_state(step)
            started, own = time.perf_counter(), time.thread_time()
            checkpoint.save(manager, state, {})
            blocked.append(time.perf_counter() - started)
            worked.append(time.thread_time() - own)
            manager.wait_until_finished()
            written.append(time.perf_counter() - started)
    print(f"blocked {statistics.median(blocked):.3f} s {[round(t, 3) for t in blocked]}")
    print(f"of that at work {statistics.median(worked):.3f} s {[round(t, 3) for t in worked]}")
    print(f"written {statistics.median(written):.2f} s {[round(t, 2) for t in written]}")
    started = time.perf_counter()
    step = folder / "checkpoints" / str(_SAVES.value)
    step_files.verify(step, ("ema", "state", "metadata"))
    size = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
    print(f"verified {size / 2**20:.0f} MiB in {time.perf_counter() - started:.2f} s")
    shutil.rmtree(folder)


if __name__ == "__main__":
    app.run(main)
