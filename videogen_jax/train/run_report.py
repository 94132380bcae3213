"""The report of a run: curves, samples and config of its folder, for `evaluation.report`."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from videogen_jax import config as configs
from videogen_jax.data import text_files
from videogen_jax.evaluation import report

NEWEST = 3  # videos of each kind, so that one sees whether they still get better
MOST_BYTES = 48 * 2**20  # of all videos: a page beyond that opens slowly


def is_due(workdir: Path, step: Path) -> bool:
    """Whether a run has no report of a checkpoint, or an older one.

    Args:
      workdir: of the run.
      step: folder of the checkpoint.
    """
    report_file = workdir / "report.html"
    return not report_file.is_file() or report_file.stat().st_mtime < step.stat().st_mtime


def read_curves(logdir: str | Path) -> dict[str, report.Curve]:
    """Reads all scalars that a run has written for TensorBoard, over all its event files.

    A run that was killed and went on has written some steps twice: the last written value counts. Pictures, texts and
    histograms are passed over, and nothing but scalars is kept in memory.

    Args:
      logdir: folder of event files, or of folders of them; none at all is no curves.
    Returns:
      Tag to (steps, ascending; values).
    """
    # Imports TensorFlow: seconds.
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found: dict[str, dict[int, tuple[float, float]]] = {}  # to step to (time written, value)
    for path in sorted(Path(logdir).rglob("*.tfevents.*")):
        plugins: dict[str, str] = {}  # of tags; only a tag's first entry in a file has it
        for event in EventFileLoader(str(path)).Load():
            for entry in event.summary.value:
                plugins.setdefault(entry.tag, entry.metadata.plugin_data.plugin_name)
                if plugins[entry.tag] != "scalars":
                    continue
                curve = found.setdefault(entry.tag, {})
                if event.step not in curve or event.wall_time >= curve[event.step][0]:
                    curve[event.step] = (event.wall_time, float(make_ndarray(entry.tensor)))
    return {
        tag: (sorted(curve), [curve[step][1] for step in sorted(curve)])
        for tag, curve in found.items()
    }


def read_videos(folder: str | Path) -> list[dict[str, Any]]:
    """Reads the newest videos of each kind, the newest first; `kind_00000100.mp4` is the kind's of step 100.

    Args:
      folder: of mp4 files, or GIFs of earlier versions; a .txt of the same name has a caption of each tile a line.
    Returns:
      {"title", "mp4" or "gif": bytes, "captions"} of each; those that would make the page too large are named in the
      log.
    """
    kinds: dict[str, list[tuple[int, Path]]] = {}  # to steps, -1 where the name has none
    for path in filter(is_video, Path(folder).rglob("*")):
        kind = path.relative_to(folder).with_suffix("").as_posix()
        step = re.search(r"\d+$", kind)
        steps = kinds.setdefault(kind[: step.start()] if step else kind, [])
        steps.append((int(step[0]) if step else -1, path))
    videos, room = [], MOST_BYTES
    for kind in sorted(kinds):
        for step, path in sorted(kinds[kind], reverse=True)[:NEWEST]:
            if path.stat().st_size > room:
                logging.warning("%s is too large for the report: left out.", path)
                continue
            room -= path.stat().st_size
            title = " ".join(re.split(r"[_/]+", kind)).strip()
            title = title if step < 0 else f"{title} {step:,}"
            video = {"title": title, path.suffix[1:]: path.read_bytes()}
            captions = path.with_suffix(".txt")
            try:
                video["captions"] = text_files.read_lines(captions)
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                logging.warning("The report lacks the captions of %s: %s", path, error)
            videos.append(video)
    return videos


def is_video(path: Path) -> bool:
    """Whether a file is an mp4 or GIF that can be read; one that only has the name is named in the log."""
    signatures = {".gif": (0, (b"GIF87a", b"GIF89a")), ".mp4": (4, (b"ftyp",))}
    if path.suffix not in signatures:
        return False
    start, wanted = signatures[path.suffix]
    try:
        with path.open("rb") as file:
            found = file.read(16)[start:].startswith(wanted)
    except OSError:
        found = False
    if not found:
        logging.warning("%s is no video that can be read: left out of the report.", path)
    return found


def write_run_report(
    workdir: str | Path,
    path: Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
    videos: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes `workdir`/report.html: scores and protocol, samples, curves, config, as far as there are.

    Args:
      workdir: of a run of either kind.
      path: of the page; by default the one above.
      evaluation: {"scores", "protocol"} of evaluate; by default the newest evaluation.json in the workdir or its folder
        generated/.
      videos: to show ahead of the samples, see `report.write_report`.
    Returns:
      Path of the report.
    Raises:
      ValueError: a JSON file or a video of the run is damaged.
      OSError: the report cannot be written.
    """
    workdir = Path(workdir)
    if evaluation is None:
        files = [workdir / "evaluation.json", workdir / "generated" / "evaluation.json"]
        files = sorted(filter(Path.is_file, files), key=lambda path: path.stat().st_mtime)
        evaluation = read_json(files[-1]) if files else {}
    config = workdir / "config.json"
    path = workdir / "report.html" if path is None else path
    report.write_report(
        path,
        title=workdir.resolve().name,
        scores=evaluation.get("scores", []),
        protocol=evaluation.get("protocol", {}),
        options=dict(configs.flatten(read_json(config))) if config.is_file() else {},
        curves=read_curves(workdir / "tensorboard"),
        videos=[*videos, *read_videos(workdir / "samples")],
    )
    logging.info("The report of the run: %s", path)
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, or write it again.") from error
