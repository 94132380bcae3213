"""The dashboard of a run while it trains, which outlives the folder that it is written to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import logging

from videogen_jax.parallel import processes
from videogen_jax.train import metrics


class Dashboard:
    """A CLU `MetricWriter` that makes `workdir`/tensorboard again where someone has deleted it."""

    def __init__(self, workdir: Path, step: int, config: ml_collections.ConfigDict):
        self._workdir, self._step, self._config = workdir, step, config
        with processes.propagate_errors():
            self._open()

    def _open(self) -> None:
        self._writer = metrics.make_writer(self._workdir, **self._config.wandb)
        metrics.show_config(self._writer, self._step, self._workdir, self._config.to_dict())

    def __getattr__(self, name: str) -> Any:
        folder = self._workdir / "tensorboard"
        if name.startswith("write_") and jax.process_index() == 0 and not folder.is_dir():
            logging.warning("%s was deleted: made again, without what it held.", folder)
            self._writer.close()
            self._open()
        return getattr(self._writer, name)


@contextlib.contextmanager
def open_dashboard(
    workdir: Path, step: int, config: ml_collections.ConfigDict
) -> Iterator[Dashboard]:
    """Opens the dashboard and shows the config there.

    Args:
      workdir: of the run.
      step: at which the run starts or resumes.
      config: of the run.
    Yields:
      The writer; it is closed at the end.
    Raises:
      ValueError: W&B cannot be written to.
    """
    writer = Dashboard(workdir, step, config)
    try:
        yield writer
    finally:
        writer.close()
