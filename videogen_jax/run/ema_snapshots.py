"""Power-function averages kept at intervals of training, of which an average of any width can be made afterwards.

Source: EDM2, arXiv:2312.02696, section 3.2.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from videogen_jax.run import ema
from videogen_jax.run.checkpoint import CheckpointError, restore_average, to_dict


def save_snapshot(
    checkpointer: ocp.StandardCheckpointer, workdir: str | Path, step: int, averages: dict[str, Any]
) -> None:
    """Starts writing `workdir`/snapshots/`step`; an existing one has the same bits and stays.

    Args:
      checkpointer: writes asynchronously; close it to wait for the last.
      workdir: of the run.
      step: optimizer steps taken.
      averages: name to tree, those of ema.widths.
    """
    path = _folder(workdir) / str(step)
    if not path.exists():
        checkpointer.save(path, to_dict(averages))


def list_snapshots(workdir: str | Path, step: int) -> list[int]:
    """The steps of the snapshots up to `step`, rising."""
    numbers = [int(path.name) for path in _folder(workdir).glob("*") if path.name.isdigit()]
    return sorted(number for number in numbers if number <= step)


def reconstruct(
    workdir: str | Path, abstract_params: Any, widths: tuple[float, ...], width: float, step: int
) -> Any:
    """The average of a width that was not tracked.

    Args:
      workdir: of the run.
      abstract_params: `jax.ShapeDtypeStruct`s with shardings.
      widths: that were tracked.
      width: relative width sigma_rel, e.g. 0.08.
      step: at which the average ends.
    Returns:
      The tree.
    Raises:
      CheckpointError: there are no snapshots.
      ValueError: the width is out of range.
    """
    steps = list_snapshots(workdir, step)
    if not steps or not widths:
        raise CheckpointError(
            f"There are no snapshots up to step {step} in {_folder(workdir)}: train with "
            "--config.ema.widths='(0.05, 0.1)' and --config.ema.snapshot_every."
        )
    grid = [(number, tracked) for number in steps for tracked in widths]
    weights = ema.solve_weights(
        [number for number, _ in grid], [tracked for _, tracked in grid], step, width
    )

    def read() -> Iterator[Any]:
        for number, tracked in grid:
            directory = _folder(workdir) / str(number)
            yield restore_average(directory, abstract_params, ema.width_name(tracked))

    return ema.reconstruct(read(), weights)


def _folder(workdir: str | Path) -> Path:
    return Path(workdir).resolve() / "snapshots"
