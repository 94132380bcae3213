"""Makes videos from a trained model.

    python -m videogen_jax.sample --workdir=runs/quickstart --prompts "a red circle moving left"

Reads the EMA weights of an Orbax checkpoint without touching it, on however many devices there
are. Writes to --output_dir each video when it is made, `contact_sheet.png` (not of long ones), and `samples.json` with
all that is needed to make them again. After a stop the same command makes what is missing.

From an image, or from any known frames, by a model that was trained with them:

    python -m videogen_jax.sample --workdir=... --image=first.png --prompts "it moves left"
    python -m videogen_jax.sample --workdir=... --known=0-7:begin.mp4 --known=15:end.png --prompts "..."

Of any length, by a model that was trained to continue videos; the video is never whole in memory:

    python -m videogen_jax.sample --workdir=... --num_frames=480 --prompts "a red circle moving left"
    python -m videogen_jax.sample --workdir=... --num_frames=480 --prompts_schedule=lines.txt

where each line of the schedule names a frame and the prompt from there on: `240: a blue circle`. A chunk follows the
prompt of its first frame.
"""

import contextlib
import datetime
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from videogen_jax import command
from videogen_jax import config as configs
from videogen_jax.data import image_io, output_folder, progress, video_writer
from videogen_jax.diffusion.times import SPACINGS
from videogen_jax.generate import frame_flags, from_checkpoint, sample_folder
from videogen_jax.generate import prompts as captions
from videogen_jax.generate.sample_folder import SampleFolder
from videogen_jax.generate.sampler import SAMPLERS
from videogen_jax.run import checkpoint, export_folder, saved_config
from videogen_jax.run.state import PRECISIONS

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or of an export, or name of one on the hub.", required=True
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest by default.", lower_bound=0)
_PROMPTS = flags.DEFINE_multi_string("prompts", [], "A caption; may be given several times.")
_PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "Text file, one caption a line.")
_NUM_VIDEOS = flags.DEFINE_integer("num_videos", 1, "Videos per caption.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Videos at a time.", lower_bound=1)
_NUM_INFERENCE_STEPS = flags.DEFINE_integer("num_inference_steps", None, "Default: the config's.")
_GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "Default: the config's.")
_FIRST_FRAME_GUIDANCE_SCALE = flags.DEFINE_float(
    "first_frame_guidance_scale", None, "Guidance grows from here to --guidance_scale."
)
_KNOWN_GUIDANCE_SCALE = flags.DEFINE_float(
    "known_guidance_scale", None, "Of known frames; by default they condition both branches."
)
_GUIDANCE_RESCALE = flags.DEFINE_float("guidance_rescale", None, "0 to 1. Default: the config's.")
_NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", "", "What the videos should not show.")
_MOTION = flags.DEFINE_float(
    "motion", None, "Bucket of the motion score.", lower_bound=0, upper_bound=255
)
_SAMPLER = flags.DEFINE_enum("sampler", None, SAMPLERS, "Default: the config's.")
_SPACING = flags.DEFINE_enum("spacing", None, SPACINGS, "Of the steps. Default: the config's.")
_ETA = flags.DEFINE_float("eta", None, "Fresh noise of DDIM, 0 to 1.")
_EMA = flags.DEFINE_string("ema", None, "Moving average, e.g. decay_0.999; the first by default.")
_EMA_WIDTH = flags.DEFINE_float(
    "ema_width", None, "Relative width of a power average, made of the run's snapshots."
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Of the first video; the next ones count on.",
    lower_bound=0,
    upper_bound=command.MAX_SEED,
)
_FORMAT = flags.DEFINE_enum("format", "mp4", ("mp4", "gif", "webm"), "Of the files.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, tuple(PRECISIONS), "Of the matrix products. Default: the config's."
)
_IMAGE = flags.DEFINE_multi_string(
    "image", [], "First frame: one for all videos, or one for each caption."
)
_KNOWN = flags.DEFINE_multi_string(
    "known", [], "Known frames of all videos, N:PICTURE or N-M:VIDEO; may be given several times."
)
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", None, "Frames of a long video, made chunk by chunk.", lower_bound=1
)
_CHUNK = flags.DEFINE_integer(
    "chunk", None, "Latent frames generated at a time. Default: the config's."
)
_PREFIX = flags.DEFINE_integer("prefix", None, "Latent frames in the KV cache. Default: the most.")
_PROMPTS_SCHEDULE = flags.DEFINE_string(
    "prompts_schedule", None, "Text file, `FRAME: caption` a line: one long video for each seed."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: WORKDIR/generated.")

command.want_finite(
    *("guidance_scale", "first_frame_guidance_scale", "known_guidance_scale"),
    *("guidance_rescale", "motion", "eta", "ema_width"),
)


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    command.log_progress()
    # `--prompts "a" "b"`: what follows the first caption arrives here.
    _PROMPTS.value.extend(arguments)
    captions.warn_of_words(_PROMPTS.value, arguments)
    write_samples()


def write_samples() -> None:
    """Makes the videos that the flags ask for and that are not there yet, and writes each when it is made.

    Raises:
      ValueError: a flag, prompt or checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read or written.
    """
    check_flags()
    if _NUM_FRAMES.value is not None:
        write_long_samples()
        return
    for name in ("chunk", "prefix", "prompts_schedule"):
        if flags.FLAGS[name].value is not None:
            raise ValueError(f"--{name} is of long videos: give --num_frames too, or leave it out.")
    prompts = captions.read_prompts(_PROMPTS.value, _PROMPTS_FILE.value)
    entries = list_entries(prompts)
    path = make_folder()
    model = load_model(path, entries)
    known = frame_flags.read_frames(_IMAGE.value, _KNOWN.value, len(prompts), model.fps)
    if len(known) > 1:
        known = [frames for frames in known for _ in range(_NUM_VIDEOS.value)]
    settings = model.choose_settings(len(entries), **sampler_flags())
    recipe = model.describe(settings, **options()) | {"shape": list(model.shape)}
    recipe |= given_frames() | identify_inputs(model.step)
    batches = model.plan_batches(
        [entry["prompt"] for entry in entries],
        seeds=[entry["seed"] for entry in entries],
        known_frames=known or None,
        **options(),
        **sampler_flags(),
    )
    folder = SampleFolder(path, recipe, model.fps, entries, model_flags())
    if folder.is_finished and (path / "contact_sheet.png").is_file():
        logging.info("All %d videos are in %s already: nothing to do.", len(entries), path)
        return

    def write(part: range, make: Callable[[], np.ndarray]) -> None:
        for index, video in zip(part, make(), strict=True):
            video_writer.write_video(folder.paths[index], video, model.fps)

    make_missing(folder, batches, write)
    folder.finish(sheet=True)
    logging.info("Wrote %d videos, contact_sheet.png and samples.json to %s.", len(entries), path)


def write_long_samples() -> None:
    """Makes long videos, and writes each chunk as it comes.

    Raises:
      ValueError: a flag, prompt or checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read or written.
    """
    timelines = read_timelines()
    prompts = [format_timeline(timeline) for timeline in timelines]
    names = [timeline[0][1] for timeline in timelines]
    entries = list_entries(prompts, names)
    timelines = [timeline for timeline in timelines for _ in range(_NUM_VIDEOS.value)]
    path = make_folder()
    model = load_model(path, entries)
    model.embed(sorted({caption for timeline in timelines for _, caption in timeline}))
    rollout = {"chunk": _CHUNK.value, "prefix": _PREFIX.value}
    image = image_io.read_image(_IMAGE.value[0]) if _IMAGE.value else None
    settings = model.choose_settings(len(entries), **sampler_flags())
    recipe = model.describe(settings, **options())
    recipe |= model.describe_rollout(_NUM_FRAMES.value, **rollout)
    recipe |= given_frames() | identify_inputs(model.step)

    def stream(part: range) -> Iterator[np.ndarray]:
        return model.stream(
            [timelines[index] for index in part],
            _NUM_FRAMES.value,
            seeds=[entries[index]["seed"] for index in part],
            first_frame=image,
            **(rollout | options() | sampler_flags()),
        )

    rows, count = model.batch_size, len(entries)
    parts = [range(start, min(start + rows, count)) for start in range(0, count, rows)]
    first = stream(parts[0])  # what does not fit the model is an error before the folder changes
    folder = SampleFolder(path, recipe, model.fps, entries, model_flags())
    if folder.is_finished:
        logging.info("All %d videos are in %s already: nothing to do.", len(entries), path)
        return

    def write(part: range, make: Callable[[], Iterator[np.ndarray]]) -> None:
        write_chunks(make(), [folder.paths[index] for index in part], model.fps, part.start)

    batches = [(part, functools.partial(stream, part)) for part in parts]
    make_missing(folder, [(parts[0], lambda: first), *batches[1:]], write)
    folder.finish(sheet=False)
    logging.info("Wrote %d videos and samples.json to %s.", len(entries), path)


def make_missing(
    folder: SampleFolder,
    batches: list[tuple[range, Callable[[], Any]]],
    write: Callable[[range, Callable[[], Any]], None],
) -> None:
    """Makes and writes the batches of which a video is missing, under a progress bar.

    A batch is made whole, so that its videos have the bits of a call that was not stopped.

    Args:
      folder: of the videos.
      batches: (numbers of the videos, function that makes them).
      write: makes one batch and writes its files.
    """
    total = len(folder.entries)
    if folder.num_made:
        logging.info("%d of %d videos are in %s already.", folder.num_made, total, folder.folder)
    missing = [(part, make) for part, make in batches if not folder.has(part)]
    if not missing:
        return
    count = sum(len(part) for part, _ in missing)
    with progress.show_progress("Sampling", count, "video") as advance:
        for part, make in missing:
            write(part, make)
            folder.add(part)
            advance(len(part))


def write_chunks(chunks: Iterator[np.ndarray], paths: list[Path], fps: float, start: int) -> None:
    """Writes a batch of long videos chunk by chunk, under a progress bar.

    Args:
      chunks: the next frames of all of them, (B, n, H, W, 3) uint8.
      paths: B files.
      fps: frames per second.
      start: number of the first video, for the bar.
    """
    with contextlib.ExitStack() as stack:
        name = f"Videos {start} to {start + len(paths) - 1}"
        bar = progress.show_progress(name, _NUM_FRAMES.value, "frame")
        advance = stack.enter_context(bar)
        writers = [stack.enter_context(video_writer.open_writer(path, fps)) for path in paths]
        for videos in chunks:
            for write, video in zip(writers, videos, strict=True):
                write(video)
            advance(videos.shape[1])


def check_flags() -> None:
    """Checks what can be checked before weights are read.

    Raises:
      ValueError: names the flag.
    """
    for name, value in sampler_flags().items():
        if name != "eta":
            configs.check_option(f"sample.{name}", value)
    captions.check_text(_NEGATIVE_PROMPT.value, "--negative_prompt")


def list_entries(prompts: list[str], names: list[str] | None = None) -> list[dict[str, Any]]:
    """What samples.json says of each video: {"file", "prompt", "seed"}.

    Args:
      prompts: of the videos, --num_videos of each.
      names: captions that files are named by; by default the prompts.
    Raises:
      ValueError: the seeds end above the last one, or a name cannot be written.
    """
    pairs = list(zip(prompts, names or prompts, strict=True))
    pairs = [pair for pair in pairs for _ in range(_NUM_VIDEOS.value)]
    command.check_seeds(_SEED.value, len(pairs))
    return [
        {
            "file": sample_folder.name_file(i, name, _FORMAT.value),
            "prompt": prompt,
            "seed": _SEED.value + i,
        }
        for i, (prompt, name) in enumerate(pairs)
    ]


def read_timelines() -> list[list[tuple[int, str]]]:
    """Captions of long videos, with the frames from which on they hold.

    Raises:
      ValueError: the flags do not go together, or a file cannot be understood.
      OSError: a file cannot be read.
    """
    if _FORMAT.value == "gif":
        raise ValueError(
            "A long video is written as it comes, which a GIF cannot be: give --format=mp4 or webm."
        )
    if _KNOWN.value or len(_IMAGE.value) > 1:
        raise ValueError(
            "A long video begins with one --image, or with none: leave the other frames out."
        )
    if not _PROMPTS_SCHEDULE.value:
        prompts = captions.read_prompts(_PROMPTS.value, _PROMPTS_FILE.value)
        return [[(0, prompt)] for prompt in prompts]
    if _PROMPTS.value or _PROMPTS_FILE.value:
        raise ValueError("--prompts_schedule says it all: leave --prompts and --prompts_file out.")
    return [captions.read_schedule(Path(_PROMPTS_SCHEDULE.value))]


def format_timeline(timeline: list[tuple[int, str]]) -> str:
    """The prompt that samples.json gives a long video."""
    if len(timeline) == 1:
        return timeline[0][1]
    return "; ".join(f"{at}: {text}" for at, text in timeline)


def make_folder() -> Path:
    """The folder of the videos, created if missing.

    Raises:
      ValueError, FileNotFoundError: there is no run to sample, see `saved_config.read_config`.
      OSError: the folder cannot be written to.
    """
    workdir = Path(_WORKDIR.value)
    if not export_folder.is_export(workdir):
        saved_config.read_config(workdir)  # what is no run is an error, and no place for videos
    elif not (workdir.is_dir() or _OUTPUT_DIR.value):
        raise ValueError(
            f"--workdir={workdir} is not here, but may be a name on the hub: name a folder for its videos with "
            "--output_dir."
        )
    folder = _OUTPUT_DIR.value or workdir / "generated"
    return output_folder.make_output_folder(folder, "--output_dir")


def load_model(folder: Path, entries: list[dict[str, Any]]) -> from_checkpoint.VideoModel:
    """The model that the flags name.

    Without --step it is that of the newest checkpoint, or where the same call was stopped in this folder, of its
    checkpoint: the run may have gone on training.

    Args:
      folder: of the videos.
      entries: of `list_entries`.
    Raises:
      ValueError, OSError: see `from_checkpoint.load`.
    """
    step = _STEP.value
    begun = sample_folder.find_unfinished_step(folder, model_flags(), entries)
    if step is None and begun is not None:
        logging.info("Continuing with step %d, as the videos in %s were begun.", begun, folder)
        step = begun
    try:
        return from_checkpoint.load(
            _WORKDIR.value,
            step=step,
            ema=_EMA.value,
            ema_width=_EMA_WIDTH.value,
            dtype=_DTYPE.value,
            batch_size=min(_BATCH_SIZE.value, len(entries)),
        )
    except checkpoint.CheckpointError as error:
        if _STEP.value is not None or begun is None:
            raise
        raise ValueError(
            f"The videos in {folder} were begun with step {begun}, which cannot be read ({error}): give another "
            "--output_dir or a --step."
        ) from error


def model_flags() -> dict[str, Any]:
    """The flags that decide what videos look like, besides prompts and seeds: JSON values."""
    chosen = {"ema": _EMA.value, "ema_width": _EMA_WIDTH.value, "dtype": _DTYPE.value}
    rollout = {"num_frames": _NUM_FRAMES.value, "chunk": _CHUNK.value, "prefix": _PREFIX.value}
    return (
        {"workdir": _WORKDIR.value, "step": _STEP.value} | chosen | rollout
        | options() | sampler_flags() | given_frames()
    )  # fmt: skip


def options() -> dict[str, Any]:
    """The arguments of sampling that are no settings of the sampler."""
    return {"negative_prompt": _NEGATIVE_PROMPT.value, "motion": _MOTION.value}


def sampler_flags() -> dict[str, Any]:
    """The sampler settings that flags replace."""
    given = {
        "num_inference_steps": _NUM_INFERENCE_STEPS.value,
        "guidance_scale": _GUIDANCE_SCALE.value,
        "first_frame_guidance_scale": _FIRST_FRAME_GUIDANCE_SCALE.value,
        "known_guidance_scale": _KNOWN_GUIDANCE_SCALE.value,
        "guidance_rescale": _GUIDANCE_RESCALE.value,
        "sampler": _SAMPLER.value,
        "spacing": _SPACING.value,
        "eta": _ETA.value,
    }
    return {name: value for name, value in given.items() if value is not None}


def given_frames() -> dict[str, Any]:
    """What samples.json says of the frames that were known."""
    given = {"image": list(_IMAGE.value), "known": list(_KNOWN.value)}
    return {name: files for name, files in given.items() if files}


def identify_inputs(step: int) -> dict[str, Any]:
    """By what samples.json knows that a file of the same name has other content now.

    Args:
      step: of the checkpoint.
    """
    files = [*_IMAGE.value, *(text.partition(":")[2] for text in _KNOWN.value)]
    given = {}
    if files:
        given = {"given_sha256": [sample_folder.hash_file(Path(path)) for path in files]}
    try:
        saved = (Path(_WORKDIR.value) / "checkpoints" / str(step)).stat().st_mtime
    except FileNotFoundError:  # training has gone on and removed it since it was read
        return given
    time = datetime.datetime.fromtimestamp(saved, datetime.UTC)
    return given | {"saved_at": time.isoformat()}


if __name__ == "__main__":
    command.start("sample", main)
