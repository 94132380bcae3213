"""Power-function averages kept at intervals of training, of which an average of any width can be made afterwards.

Source: EDM2, arXiv:2312.02696, section 3.2.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videogen_jax.run import ema, step_files
from videogen_jax.run.checkpoint import CheckpointError, restore_average, to_dict
from videogen_jax.run.step_arrays import StepWriter
from videogen_jax.run.step_files import DamagedError


def open_writer(workdir: str | Path) -> StepWriter:
    """What writes to `workdir`/snapshots; a context manager, which waits for the last at its end."""
    return StepWriter(_folder(workdir))


def save_snapshot(writer: StepWriter, step: int, averages: dict[str, Any]) -> None:
    """Starts writing a snapshot; an existing one has the same bits and stays.

    Args:
      writer: of `open_writer`.
      step: optimizer steps taken.
      averages: name to tree, those of ema.widths.
    """
    writer.wait_until_finished()  # so that all processes see the same
    if step not in step_files.list_steps(writer.folder):
        writer.save(step, {"ema": to_dict(averages)}, {})


def list_snapshots(workdir: str | Path, step: int) -> list[int]:
    """The steps of the snapshots up to `step`, rising."""
    return [number for number in step_files.list_steps(_folder(workdir)) if number <= step]


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
      CheckpointError: there are no snapshots, or one is damaged.
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
            try:
                yield restore_average(directory, abstract_params, ema.width_name(tracked))
            except DamagedError as error:
                raise CheckpointError(
                    f"The snapshot {directory} is damaged ({error}): move it away, and the others will do."
                ) from error

    return ema.reconstruct(read(), weights)


def _folder(workdir: str | Path) -> Path:
    return Path(workdir).resolve() / "snapshots"
