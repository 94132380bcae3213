"""What a run shows while it trains: scalars and sample videos through CLU's writers, and the table of parameters."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from videogen_jax import config as configs
from videogen_jax.data import atomic_files
from videogen_jax.models.parameter_paths import combine
from videogen_jax.train.wandb_writer import WandbWriter


def make_writer(workdir: str | Path, *, project: str = "", mode: str = "online") -> Any:
    """A CLU `MetricWriter` into `workdir`/tensorboard, the log and W&B; processes but the first only log.

    Args:
      workdir: of the run.
      project: on W&B; empty: not there.
      mode: of W&B, see wandb_writer.py.
    Returns:
      The writer.
    Raises:
      ValueError: there is a project, but W&B cannot be written to.
    """
    from clu import metric_writers  # imports TensorFlow: seconds

    class Log(metric_writers.LoggingWriter):
        def write_scalars(self, step: int, scalars: Any) -> None:
            if text := describe_scores(scalars):
                logging.info("[%d] %s", step, text)

        def write_texts(self, step: int, texts: Any) -> None:
            pass  # the config alone, which would fill pages

        def write_hparams(self, hparams: Any) -> None:
            pass

        def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
            pass  # videos and histograms

    writers: list[Any] = [Log()]
    if jax.process_index() == 0:
        writers.append(metric_writers.SummaryWriter(str(Path(workdir) / "tensorboard")))
        if project:
            writers.append(WandbWriter(workdir, project, mode))
    return metric_writers.AsyncMultiWriter(writers)


def describe_scores(scalars: Mapping[str, Any]) -> str:
    """What the log says of a writer's scalars: validation losses and scores, "validation loss 0.0522, psnr 31.2".

    The training loss is in the line of progress.py; everything else is on the dashboard alone.
    """
    parts = []
    for tag, value in scalars.items():
        group, _, name = tag.partition("/")
        if group == "loss" and name.startswith("validation"):
            parts.append(
                f"{name.replace('_', ' ').replace('validation', 'validation loss', 1)} {float(value):.4g}"
            )
        elif group == "evaluation":
            parts.append(f"{name} {float(value):.4g}")
    return ", ".join(parts)


def show_config(writer: Any, step: int, workdir: str | Path, options: dict[str, Any]) -> None:
    """Shows the resolved config, as a table of hyper-parameters and as text, unless it is there already.

    Args:
      writer: of `make_writer`.
      step: at which the run starts or resumes.
      workdir: folder of the run; tensorboard/shown_config.json keeps what was shown.
      options: the config as nested dicts.
    """
    if jax.process_index() != 0:
        return
    text = json.dumps(options, indent=2, ensure_ascii=False)
    shown = Path(workdir) / "tensorboard" / "shown_config.json"
    if shown.is_file() and shown.read_text(encoding="utf-8") == text:
        return
    writer.write_hparams(to_hparams(options))
    writer.write_texts(step, {"config/resolved": f"```json\n{text}\n```"})
    writer.flush()
    shown.write_text(text, encoding="utf-8")


def to_hparams(options: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Dotted names to values; what is neither a number nor a text becomes one as Python writes it."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in configs.flatten(options)
    }


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


def write_bars(
    writer: Any, step: int, tag: str, heights: np.ndarray, span: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Shows bars of equal width as TensorBoard's histogram, whose heights need not be counts.

    Args:
      writer: of `make_writer`.
      step: of the run.
      tag: name on the dashboard.
      heights: (K,).
      span: of the horizontal axis.
    """
    from tensorboard.plugins.histogram.metadata import create_summary_metadata

    edges = np.linspace(*span, len(heights) + 1)
    writer.write_summaries(
        step,
        {tag: np.stack([edges[:-1], edges[1:], heights], axis=1)},
        metadata={tag: create_summary_metadata(tag, "")},
    )


def write_parameters(trained: Any, frozen: Any, workdir: str | Path) -> None:
    """Writes a table of all parameters, with shape, size and sharding, to parameters.txt; logs their number.

    Args:
      trained: tree of arrays.
      frozen: tree of those that are not trained; None if there are none.
      workdir: of the run.
    """
    from clu import parameter_overview

    if jax.process_index() != 0:
        return
    params = combine(trained, frozen)
    overview = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    path = Path(workdir) / "parameters.txt"
    atomic_files.write_text(path, overview + "\n")
    count, trains = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, trained))
    part = "" if frozen is None else f", of which {trains:,} are trained"
    logging.info("%s parameters%s: %s has the table.", f"{count:,}", part, path)


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is not a number any more."""


class Window:
    """The scalars of the steps since the last summary, read back one step behind the devices."""

    def __init__(self, wait_seconds: Callable[[], float], peak_flops: float | None = None) -> None:
        """Starts the clock.

        Args:
          wait_seconds: how long the run has waited for input so far.
          peak_flops: operations a second that the devices do at best, if known.
        """
        self._peak_flops = peak_flops
        self._wait_seconds = wait_seconds
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets the steps and the time until now."""
        self._steps: list[dict[str, float]] = []
        self._untimed = 0
        self._restart_clock()

    def skip_time(self) -> None:
        """Forgets the time until now, as that of steps that compiled: their metrics count, their speed does not."""
        self.flush()
        self._untimed = len(self._steps)
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._clips, self._flops = 0, 0
        self._start, self._wait_start = time.perf_counter(), self._wait_seconds()

    def add(
        self, step: int, metrics: dict[str, jax.Array], clips: int, flops: int | None = None
    ) -> None:
        """Takes a step that has just been dispatched, and waits for the one before it.

        Args:
          step: its number.
          metrics: () arrays, perhaps not computed yet.
          clips: of its batch.
          flops: operations of the model in it, if they are counted.
        Raises:
          TrainingDiverged: the step before it was not finite.
        """
        self.flush()
        self._pending = (step, metrics)
        self._clips += clips
        self._flops += flops or 0

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
          `loss/train`, the other metrics under `optimisation/`; `speed/clips_per_second`, `speed/step_seconds`, and
          `speed/input_wait`, the share of the time that was spent waiting for input; where operations are counted,
          `speed/model_tflops_per_second`, 10^12 of them a second on all devices together, and, where the devices'
          best is known, `speed/model_flops_share`, the share of it. No speeds if the time of all steps was
          skipped.
        """
        self.flush()
        seconds = time.perf_counter() - self._start
        count = len(self._steps)
        result = {}
        for name in self._steps[0]:
            tag = "loss/train" if name == "loss" else f"optimisation/{name}"
            result[tag] = sum(step[name] for step in self._steps) / count
        timed = count - self._untimed
        if not timed:
            return result
        result["speed/clips_per_second"] = self._clips / seconds
        result["speed/step_seconds"] = seconds / timed
        result["speed/input_wait"] = (self._wait_seconds() - self._wait_start) / seconds
        if self._flops:
            result["speed/model_tflops_per_second"] = self._flops / seconds / 1e12
            if self._peak_flops:
                result["speed/model_flops_share"] = self._flops / seconds / self._peak_flops
        return result
