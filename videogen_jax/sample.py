"""Makes videos from a trained model.

    python -m videogen_jax.sample --workdir=runs/quickstart --prompts "a red circle moving left"

Reads the EMA weights of an Orbax checkpoint without touching it, on however many devices there
are. Writes to --output_dir each video, `contact_sheet.png`, and `samples.json` with all that is
needed to make them again.
"""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from videogen_jax import __version__, command
from videogen_jax.data import video_io
from videogen_jax.data.captions import Vocabulary
from videogen_jax.generate import contact_sheet
from videogen_jax.generate.generator import make_generator
from videogen_jax.generate.sampler import SAMPLERS, SPACINGS
from videogen_jax.parallel import mesh as meshes
from videogen_jax.train import checkpoint, setup
from videogen_jax.train.state import PRECISIONS

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest by default.")
_PROMPTS = flags.DEFINE_multi_string("prompts", [], "A caption; may be given several times.")
_PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "Text file, one caption a line.")
_NUM_VIDEOS = flags.DEFINE_integer("num_videos", 1, "Videos per caption.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Videos at a time.", lower_bound=1)
_NUM_INFERENCE_STEPS = flags.DEFINE_integer("num_inference_steps", None, "Default: the config's.")
_GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "Default: the config's.")
_SAMPLER = flags.DEFINE_enum("sampler", None, SAMPLERS, "Default: the config's.")
_SPACING = flags.DEFINE_enum("spacing", None, SPACINGS, "Of the steps. Default: the config's.")
_ETA = flags.DEFINE_float("eta", None, "Fresh noise of DDIM, 0 to 1.")
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
    """Restores, samples, writes.

    Raises:
      ValueError: a flag, prompt or checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read or written.
    """
    prompts = [prompt for prompt in read_prompts() for _ in range(_NUM_VIDEOS.value)]
    workdir = Path(_WORKDIR.value)
    config = setup.read_config(workdir)
    if _DTYPE.value is not None:
        with config.unlocked():
            config.train.precision = _DTYPE.value
    options = sampling_options(config)
    run = setup.make_run(config, meshes.make_mesh(data=choose_devices(len(prompts))))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        ema, step = checkpoint.restore_ema(manager, run.abstract.ema, _STEP.value)
        vocabulary = Vocabulary(tuple(checkpoint.restore_metadata(manager, step)["vocabulary"]))
    for prompt in prompts:
        vocabulary.check(prompt)
    text = vocabulary.encode(prompts, config.text.length)
    seeds = [_SEED.value + i for i in range(len(prompts))]
    generate = make_generator(
        run.apply,
        run.schedule,
        run.null_text,
        run.mesh,
        run.shardings.ema,
        shape=run.video_shape,
        prediction=config.objective.prediction,
        batch_size=min(_BATCH_SIZE.value, len(prompts)),
        **options,
    )
    logging.info("Sampling %d videos from step %d on %d devices.", len(seeds), step, run.mesh.size)
    videos = generate(ema, text, seeds)
    folder = Path(_OUTPUT_DIR.value or workdir / "generated")
    recipe = {
        "workdir": str(workdir),
        "step": step,
        "weights": "ema",
        "dtype": config.train.precision,
        "version": __version__,
        **options,
    }
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


def sampling_options(config: Any) -> dict[str, Any]:
    """The config's options of `sampler.sample` and its guidance, with the flags' in their place."""
    options = dict(config.sample)
    for name in ("every", "prompts", "batch_size"):
        options.pop(name)
    flags_given = {
        "num_inference_steps": _NUM_INFERENCE_STEPS.value,
        "guidance_scale": _GUIDANCE_SCALE.value,
        "sampler": _SAMPLER.value,
        "spacing": _SPACING.value,
        "eta": _ETA.value,
    }
    return options | {name: value for name, value in flags_given.items() if value is not None}


def choose_devices(count: int) -> int:
    """How many devices share the batch: all, but no more than there are videos."""
    return min(jax.device_count(), count)


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
    setup.write_json(folder / "samples.json", content)


if __name__ == "__main__":
    command.start("sample", main)
