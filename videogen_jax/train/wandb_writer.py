"""A CLU `MetricWriter` for Weights & Biases."""

import html
import io
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from videogen_jax.data.atomic_files import write_text

MODES = ("online", "offline")


def find_run_id(workdir: Path) -> str:
    """The name of the workdir's run on W&B; a copy of a workdir gets one of its own.

    wandb_run_id.txt keeps it with the folder's path and inode: a copy has others, and a folder that was moved or
    mounted elsewhere still has one of them.
    """
    note = workdir / "wandb_run_id.txt"
    here = (str(workdir), str(workdir.stat().st_ino))
    lines = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
    if len(lines) == 3 and lines[1] != here[0] and lines[2] != here[1]:
        logging.warning("%s is a copy of %s: it gets a run of its own on W&B.", workdir, lines[1])
        lines = []
    name = lines[0].strip() if lines else secrets.token_hex(8)
    write_text(note, "\n".join((name, *here)) + "\n")
    return name


class WandbWriter:
    """Stands among the writers of a CLU `MultiWriter`; has those methods of its `MetricWriter` that a run calls.

    (It is no subclass, for importing CLU takes seconds.) Steps are an axis of ours, for wandb's own never goes back,
    as a run does that was killed after its last checkpoint.
    """

    def __init__(self, workdir: str | Path, project: str, mode: str) -> None:
        """Starts the workdir's run on W&B, or resumes it.

        Args:
          workdir: of the run; keeps the name of its W&B run in wandb_run_id.txt, and wandb's files in wandb/.
          project: on W&B.
          mode: one of MODES; of offline runs `wandb sync` uploads the folder.
        Raises:
          ValueError: the mode is unknown, wandb is not installed, or W&B does not let the run start.
        """
        if mode not in MODES:
            raise ValueError(f"Unknown wandb.mode {mode!r}: choose one of {', '.join(MODES)}.")
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"wandb.project is {project!r}, but wandb is not installed: pip install 'wandb>=0.20', or set "
                "--config.wandb.project=''."
            ) from error
        self._wandb = wandb
        workdir = Path(workdir).absolute()
        try:
            self._run = wandb.init(
                project=project,
                mode=mode,
                id=find_run_id(workdir),
                # Offline the same id will do: wandb knows nothing of the run's earlier parts there, and would warn.
                resume="allow" if mode == "online" else None,
                name=workdir.name,
                dir=workdir,
            )
        except wandb.Error as error:
            raise ValueError(
                f"W&B does not start the run ({error}): run `wandb login`, or set --config.wandb.mode=offline."
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Numbers by tag."""
        self._log(step, {tag: float(value) for tag, value in scalars.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts by tag, as they are."""
        pages = {tag: f"<pre>{html.escape(text)}</pre>" for tag, text in texts.items()}
        self._log(step, {tag: self._wandb.Html(page) for tag, page in pages.items()})

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """(H, W, C) or (N, H, W, C) by tag."""
        rows = {tag: np.asarray(image) for tag, image in images.items()}
        rows = {tag: image[None] if image.ndim == 3 else image for tag, image in rows.items()}
        self._log(
            step, {tag: [self._wandb.Image(one) for one in image] for tag, image in rows.items()}
        )

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, Any],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """The distribution of the numbers in an array, by tag."""
        counts = num_buckets or {}
        self._log(
            step,
            {
                tag: self._wandb.Histogram(np.asarray(array), num_bins=counts.get(tag) or 64)
                for tag, array in arrays.items()
            },
        )

    def write_summaries(
        self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """What `metrics.write_animation` and `metrics.write_bars` make for TensorBoard's plug-ins."""
        media = {}
        for tag, value in values.items():
            plugin = metadata[tag].plugin_data.plugin_name
            if plugin == "images":
                media[tag] = self._wandb.Video(io.BytesIO(value[2]), format="gif")
            elif plugin == "histograms":
                edges = np.append(value[:, 0], value[-1, 1])
                bars = (value[:, 2].tolist(), edges.tolist())
                media[tag] = self._wandb.Histogram(np_histogram=bars)
            else:
                raise ValueError(f"{tag} is for TensorBoard's plug-in {plugin!r}, W&B has none.")
        self._log(step, media)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Into the run's config."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def flush(self) -> None:
        """Nothing: wandb writes by itself."""

    def close(self) -> None:
        """Waits until all is written, or uploaded."""
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step} | values)
