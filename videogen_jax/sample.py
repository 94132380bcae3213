"""Makes videos from a trained model.

    python -m videogen_jax.sample --workdir=runs/quickstart --prompts "a red circle moving left"

Reads the EMA weights of an Orbax checkpoint without touching it, on however many devices there
are. Writes to --output_dir each video, `contact_sheet.png` (not of long ones), and `samples.json` with
all that is needed to make them again.

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
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from absl import flags, logging
from tqdm import tqdm

from videogen_jax import command
from videogen_jax.data import image_io, video_io, video_writer
from videogen_jax.data.atomic_files import write_json
from videogen_jax.diffusion.times import SPACINGS
from videogen_jax.generate import contact_sheet, from_checkpoint
from videogen_jax.generate.sampler import SAMPLERS
from videogen_jax.run.state import PRECISIONS

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest by default.")
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
    "seed", 0, "Of the first video; the next ones count on.", lower_bound=0, upper_bound=2**31
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


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))
    # `--prompts "a" "b"`: what follows the first caption arrives here.
    _PROMPTS.value.extend(arguments)
    write_samples()


def write_samples() -> None:
    """Makes the videos that the flags ask for, and writes them.

    Raises:
      ValueError: a flag, prompt or checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read or written.
    """
    if _NUM_FRAMES.value is not None:
        write_long_samples()
        return
    for name in ("chunk", "prefix", "prompts_schedule"):
        if flags.FLAGS[name].value is not None:
            raise ValueError(f"--{name} is of long videos: give --num_frames too, or leave it out.")
    prompts = read_prompts()
    model = load_model(len(prompts) * _NUM_VIDEOS.value)
    known = read_known(len(prompts), model.fps)
    if len(known) > 1:
        known = [frames for frames in known for _ in range(_NUM_VIDEOS.value)]
    prompts = [prompt for prompt in prompts for _ in range(_NUM_VIDEOS.value)]
    seeds = [_SEED.value + i for i in range(len(prompts))]
    made = model(prompts, seeds=seeds, known_frames=known or None, **options(), **sampler_flags())
    folder = output_folder()
    entries = []
    for i, (video, prompt, seed) in enumerate(zip(made, prompts, seeds, strict=True)):
        name = file_name(i, prompt)
        video_writer.write_video(folder / name, video, model.fps)
        entries.append({"file": name, "prompt": prompt, "seed": seed})
    sheet = contact_sheet.contact_sheet(made, prompts)
    iio.imwrite(folder / "contact_sheet.png", sheet, plugin="pillow")
    settings = model.choose_settings(len(prompts), **sampler_flags())
    recipe = model.describe(settings, **options()) | {"shape": list(made.shape[1:])}
    write_recipe(folder, recipe | given_frames(), model.fps, entries)
    logging.info("Wrote %d videos, contact_sheet.png and samples.json to %s.", len(made), folder)


def write_long_samples() -> None:
    """Makes long videos, and writes each chunk as it comes.

    Raises:
      ValueError: a flag, prompt or checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read or written.
    """
    if _FORMAT.value == "gif":
        raise ValueError(
            "A long video is written as it comes, which a GIF cannot be: give --format=mp4 or webm."
        )
    if _KNOWN.value or len(_IMAGE.value) > 1:
        raise ValueError(
            "A long video begins with one --image, or with none: leave the other frames out."
        )
    if _PROMPTS_SCHEDULE.value:
        if _PROMPTS.value or _PROMPTS_FILE.value:
            raise ValueError(
                "--prompts_schedule says it all: leave --prompts and --prompts_file out."
            )
        timelines = [read_schedule(Path(_PROMPTS_SCHEDULE.value))]
    else:
        timelines = [[(0, prompt)] for prompt in read_prompts()]
    timelines = [timeline for timeline in timelines for _ in range(_NUM_VIDEOS.value)]
    seeds = [_SEED.value + i for i in range(len(timelines))]
    model = load_model(len(timelines))
    model.embed(sorted({caption for timeline in timelines for _, caption in timeline}))
    rollout = {"chunk": _CHUNK.value, "prefix": _PREFIX.value}
    image = image_io.read_image(_IMAGE.value[0]) if _IMAGE.value else None
    folder = None
    entries = []
    for start in range(0, len(timelines), model.batch_size):
        part = slice(start, start + model.batch_size)
        chunks = model.stream(
            timelines[part],
            _NUM_FRAMES.value,
            seeds=seeds[part],
            first_frame=image,
            **(rollout | options() | sampler_flags()),
        )
        folder = output_folder()
        for timeline, seed in zip(timelines[part], seeds[part], strict=True):
            name = file_name(len(entries), timeline[0][1])
            entry = {"file": name, "prompt": timeline[0][1], "seed": seed}
            if len(timeline) > 1:
                entry["prompt"] = "; ".join(f"{at}: {text}" for at, text in timeline)
            entries.append(entry)
        write_chunks(chunks, [folder / entry["file"] for entry in entries[part]], model.fps, start)
    settings = model.choose_settings(len(timelines), **sampler_flags())
    recipe = model.describe(settings, **options())
    recipe |= model.describe_rollout(_NUM_FRAMES.value, **rollout) | given_frames()
    write_recipe(folder, recipe, model.fps, entries)
    logging.info("Wrote %d videos and samples.json to %s.", len(entries), folder)


def write_chunks(chunks: Iterator[np.ndarray], paths: list[Path], fps: float, start: int) -> None:
    """Writes a batch of long videos chunk by chunk, under a progress bar.

    Args:
      chunks: the next frames of all of them, (B, n, H, W, 3) uint8.
      paths: B files.
      fps: frames per second.
      start: number of the first video, for the bar.
    """
    with contextlib.ExitStack() as stack:
        total = {"total": _NUM_FRAMES.value, "unit": "frame", "disable": None}
        bar = stack.enter_context(tqdm(desc=f"from video {start}", **total))
        writers = [stack.enter_context(video_writer.open_writer(path, fps)) for path in paths]
        for videos in chunks:
            for write, video in zip(writers, videos, strict=True):
                write(video)
            bar.update(videos.shape[1])


def load_model(count: int) -> from_checkpoint.VideoModel:
    """The model that the flags name, for batches of at most `count` videos."""
    return from_checkpoint.load(
        _WORKDIR.value,
        step=_STEP.value,
        ema=_EMA.value,
        ema_width=_EMA_WIDTH.value,
        dtype=_DTYPE.value,
        batch_size=min(_BATCH_SIZE.value, count),
    )


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


def read_known(prompts: int, fps: float) -> list[dict[int, np.ndarray]]:
    """The frames of --image and --known: of each prompt's video, or of all of them if there is one; none of none.

    Raises:
      ValueError: a flag cannot be understood, or there are not as many pictures as prompts.
      OSError: a file cannot be read.
    """
    images = _IMAGE.value
    if len(images) > 1 and len(images) != prompts:
        raise ValueError(
            f"There are {len(images)} pictures for {prompts} captions: give one --image for all, or one for each."
        )
    shared: dict[int, np.ndarray] = {}
    for text in _KNOWN.value:
        for number, frame in read_known_frames(text, fps):
            if number in shared:
                raise ValueError(f"Frame {number} is given twice by --known: name it once.")
            shared[number] = frame
    if images and 0 in shared:
        raise ValueError("Frame 0 is given by --image and by --known: leave one of them out.")
    if images:
        return [shared | {0: image_io.read_image(path)} for path in images]
    return [shared] if shared else []


def read_known_frames(text: str, fps: float) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of `5:picture.png`, or `0-7:video.mp4`, whose first frames they are.

    Args:
      text: of the flag.
      fps: frames per second that are taken of a video.
    Yields:
      (number of the frame, (h, w, 3) uint8).
    Raises:
      ValueError: the text is neither, or the video is too short.
      OSError: the file cannot be read.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?:(.+)", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if last < first:
        raise ValueError(
            f"--known does not understand {text!r}: write it like 15:last.png or 0-7:begin.mp4."
        )
    if image_io.is_image(match[3]):
        if last > first:
            raise ValueError(
                f"--known={text} names several frames, but {match[3]} is one picture: give its number."
            )
        yield first, image_io.read_image(match[3])
        return
    wanted = last - first + 1
    frames = [frame for _, frame in video_io.read_frames(match[3], fps, count=wanted)]
    if len(frames) < wanted:
        raise ValueError(
            f"--known={text} wants {wanted} frames, but {match[3]} has {len(frames)} at {fps:g} a second: name fewer."
        )
    yield from enumerate(frames, first)


def read_schedule(path: Path) -> list[tuple[int, str]]:
    """Captions and the frames from which on they hold.

    Raises:
      ValueError: a line cannot be understood, or the frames do not begin with 0 and rise.
      OSError: the file cannot be read.
    """
    timeline = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(.+?)\s*", line)
        if not match:
            raise ValueError(f"{path} has the line {line!r}: write each like `240: a blue circle`.")
        timeline.append((int(match[1]), match[2]))
    numbers = [number for number, _ in timeline]
    if not numbers or numbers[0] != 0 or sorted(set(numbers)) != numbers:
        raise ValueError(
            f"The frames in {path} are {', '.join(map(str, numbers)) or 'none'}: begin with 0, and let them rise."
        )
    return timeline


def given_frames() -> dict[str, Any]:
    """What samples.json says of the frames that were known."""
    given = {"image": list(_IMAGE.value), "known": list(_KNOWN.value)}
    return {name: files for name, files in given.items() if files}


def read_prompts() -> list[str]:
    """The captions of --prompts and --prompts_file, in that order.

    Raises:
      ValueError: there are none.
      OSError: the file cannot be read.
    """
    prompts = list(_PROMPTS.value)
    if _PROMPTS_FILE.value:
        lines = Path(_PROMPTS_FILE.value).read_text(encoding="utf-8").splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError("There is no prompt: give --prompts or --prompts_file.")
    return prompts


def output_folder() -> Path:
    """The folder of the videos, created if missing; files of the same names are replaced."""
    folder = Path(_OUTPUT_DIR.value or Path(_WORKDIR.value) / "generated")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def file_name(number: int, prompt: str) -> str:
    """Of a video: its number and the words of its prompt."""
    words = re.sub(r"\W+", "_", prompt).strip("_")[:60]
    return f"{number:04d}_{words}.{_FORMAT.value}"


def write_recipe(
    folder: Path, recipe: dict[str, Any], fps: float, entries: list[dict[str, Any]]
) -> None:
    """Writes samples.json: what made the videos, and which they are."""
    write_json(folder / "samples.json", recipe | {"fps": fps, "videos": entries})


if __name__ == "__main__":
    command.start("sample", main)
