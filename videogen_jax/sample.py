"""Makes videos from a trained model.

    python -m videogen_jax.sample --workdir=runs/quickstart --prompts "a red circle moving left"

Reads the EMA weights of an Orbax checkpoint without touching it, on however many devices there
are. Writes to --output_dir each video, `contact_sheet.png`, and `samples.json` with all that is
needed to make them again.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from videogen_jax import command
from videogen_jax.data import video_io
from videogen_jax.data.records import write_json
from videogen_jax.diffusion.times import SPACINGS
from videogen_jax.generate import contact_sheet
from videogen_jax.generate.sampler import SAMPLERS
from videogen_jax.train import trained
from videogen_jax.train.state import PRECISIONS

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
_GUIDANCE_RESCALE = flags.DEFINE_float("guidance_rescale", None, "0 to 1. Default: the config's.")
_NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", "", "What the videos shall not show.")
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
    prompts = [prompt for prompt in read_prompts() for _ in range(_NUM_VIDEOS.value)]
    workdir = Path(_WORKDIR.value)
    seeds = [_SEED.value + i for i in range(len(prompts))]
    batches, recipe, config = trained.make_videos(
        workdir,
        prompts,
        seeds,
        step=_STEP.value,
        ema=_EMA.value,
        ema_width=_EMA_WIDTH.value,
        dtype=_DTYPE.value,
        motion=_MOTION.value,
        negative_prompt=_NEGATIVE_PROMPT.value,
        batch_size=_BATCH_SIZE.value,
        **sampling_options(),
    )
    videos = np.concatenate(list(batches))
    folder = Path(_OUTPUT_DIR.value or workdir / "generated")
    write_folder(folder, videos, prompts, seeds, config.data.fps, recipe)
    logging.info("Wrote %d videos, contact_sheet.png and samples.json to %s.", len(videos), folder)


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


def sampling_options() -> dict[str, Any]:
    """The lines of config.sample that flags replace."""
    flags_given = {
        "num_inference_steps": _NUM_INFERENCE_STEPS.value,
        "guidance_scale": _GUIDANCE_SCALE.value,
        "first_frame_guidance_scale": _FIRST_FRAME_GUIDANCE_SCALE.value,
        "guidance_rescale": _GUIDANCE_RESCALE.value,
        "sampler": _SAMPLER.value,
        "spacing": _SPACING.value,
        "eta": _ETA.value,
    }
    return {name: value for name, value in flags_given.items() if value is not None}


def write_folder(
    folder: Path,
    videos: np.ndarray,
    prompts: list[str],
    seeds: list[int],
    fps: float,
    recipe: dict[str, Any],
) -> None:
    """Writes videos, contact sheet and samples.json.

    Args:
      folder: made if missing; files of the same names are replaced.
      videos: (N, T, H, W, 3) uint8.
      prompts: N captions.
      seeds: N seeds.
      fps: frames per second.
      recipe: JSON-able, what made them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, (video, prompt, seed) in enumerate(zip(videos, prompts, seeds, strict=True)):
        words = re.sub(r"\W+", "_", prompt).strip("_")[:60]
        name = f"{i:04d}_{words}.{_FORMAT.value}"
        video_io.write_video(folder / name, video, fps)
        entries.append({"file": name, "prompt": prompt, "seed": seed})
    contact_sheet.contact_sheet(videos, prompts).save(folder / "contact_sheet.png")
    content = recipe | {"fps": fps, "shape": list(videos.shape[1:]), "videos": entries}
    write_json(folder / "samples.json", content)


if __name__ == "__main__":
    command.start("sample", main)
