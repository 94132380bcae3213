"""What a run shows while it goes: scalars, sample videos and the parameter table, through CLU's writers."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging


def make_writer(workdir: str | Path) -> Any:
    """A CLU `MetricWriter` into `workdir`/tensorboard and the log; processes but the first only log.

    Args:
      workdir: of the run.
    Returns:
      The writer.
    """
    from clu import metric_writers  # imports TensorFlow: seconds

    return metric_writers.create_default_writer(
        str(Path(workdir) / "tensorboard"), just_logging=jax.process_index() > 0
    )


def write_animation(writer: Any, step: int, tag: str, gif: bytes, size: tuple[int, int]) -> None:
    """Shows an animated GIF under TensorBoard's images (its writers have no videos).

    Args:
      writer: of `make_writer`.
      step: of the run.
      tag: name on the dashboard.
      gif: the file's bytes.
      size: (width, height) in pixels.
    """
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

    width, height = (str(side).encode() for side in size)
    plugin = SummaryMetadata.PluginData(plugin_name="images")
    writer.write_summaries(
        step,
        {tag: np.array([width, height, gif], dtype=object)},
        metadata={tag: SummaryMetadata(plugin_data=plugin)},
    )


def log_parameters(params: Any) -> None:
    """Writes a table of all parameters, with shape, size and sharding, to the log."""
    from clu import parameter_overview

    overview = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    logging.info("Parameters:\n%s", overview)


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is not a number any more."""


class Window:
    """The scalars of the steps since the last summary, read back one step behind the devices."""

    def __init__(self, wait_seconds: Callable[[], float]) -> None:
        """Starts the clock.

        Args:
          wait_seconds: how long the run has waited for input so far.
        """
        self._wait_seconds = wait_seconds
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets the steps and the time until now."""
        self._steps: list[dict[str, float]] = []
        self._clips = 0
        self._start, self._wait_start = time.perf_counter(), self._wait_seconds()

    def add(self, step: int, metrics: dict[str, jax.Array], clips: int) -> None:
        """Takes a step that has just been dispatched, and waits for the one before it.

        Args:
          step: its number.
          metrics: () arrays, perhaps not computed yet.
          clips: of its batch.
        Raises:
          TrainingDiverged: the step before it was not finite.
        """
        self.flush()
        self._pending = (step, metrics)
        self._clips += clips

    def flush(self) -> None:
        """Waits for the last step added.

        Raises:
          TrainingDiverged: it was not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # A float16 gradient may overflow: that step is skipped and the loss scale lowered.
        checked = ["loss"] if "loss_scale" in values else ["loss", "gradient_norm"]
        for name in checked:
            if not math.isfinite(values[name]):
                raise TrainingDiverged(f"The {name} of step {step} is {values[name]}")
        self._steps.append(values)

    def summary(self) -> dict[str, float]:
        """Means over the window, and its speeds; at least one step must have been added.

        Returns:
          Every metric under `train/`; `speed/clips_per_second`, `speed/step_seconds`, and `speed/input_wait`, the
          share of the time that was spent waiting for input.
        """
        self.flush()
        seconds = time.perf_counter() - self._start
        count = len(self._steps)
        result = {
            f"train/{name}": sum(step[name] for step in self._steps) / count
            for name in self._steps[0]
        }
        result["speed/clips_per_second"] = self._clips / seconds
        result["speed/step_seconds"] = seconds / count
        result["speed/input_wait"] = (self._wait_seconds() - self._wait_start) / seconds
        return result
