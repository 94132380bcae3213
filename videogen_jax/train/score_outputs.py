"""Where the scores of `evaluate` go besides its JSON report: the dashboard and the HTML report."""

import re
from pathlib import Path
from typing import Any

from absl import logging

from videogen_jax.evaluation import json_report, report
from videogen_jax.train import run_report


def log_scores(scores: list[dict[str, Any]], logdir: Path, step: int) -> None:
    """Writes the scores to TensorBoard, as evaluation/NAME.

    Raises:
      ValueError: clu or TensorBoard is not installed.
    """
    try:
        from clu import metric_writers  # imports TensorFlow: seconds
    except ImportError as error:
        raise ValueError(
            f"--logdir needs the module {error.name}: pip install -r requirements.txt."
        ) from None
    writer = metric_writers.SummaryWriter(str(logdir))
    lines = [line for score in scores for line in json_report.spread(score).values()]
    values = {
        "evaluation/" + re.sub(r"\W+", "_", line["name"]).lower(): line["value"] for line in lines
    }
    writer.write_scalars(step, values)
    writer.flush()
    writer.close()


def write_html(
    path: Path,
    folder: Path,
    document: dict[str, Any],
    animations: list[dict[str, Any]],
    is_run: bool,
) -> None:
    """Writes the HTML report: scores and videos, for a run also its samples, curves and config.

    Scores of a run's folder generated/, where `sample` writes by default, go to the report of the run too.

    Args:
      path: of the page.
      folder: of the videos or run.
      document: scores and protocol.
      animations: result of `report.animate_sets`.
      is_run: whether the folder is that of a run.
    """
    if is_run:
        run_report.write_run_report(folder, path, document, animations)
        return
    report.write_report(
        path,
        title=folder.resolve().name,
        scores=document["scores"],
        protocol=document["protocol"],
        options={},
        curves={},
        videos=animations,
    )
    workdir = folder.resolve().parent
    if not (workdir / "config.json").is_file():
        return
    try:
        run_report.write_run_report(workdir, None, document, animations)
    except (OSError, ValueError) as error:
        logging.warning("The report of the run in %s was not written: %s", workdir, error)
