"""Commands small enough to be repeated a thousand times, and what they must leave behind."""

import hashlib
import warnings
from pathlib import Path

import numpy as np

from tests.campaign import commands
from tests.campaign.commands import Ended

STEPS = 24
PROMPTS = tuple(
    f"a {color} circle moving {way}" for color in ("red", "blue", "green") for way in ("left", "up")
)
WEIGHTS = commands.ROOT.parent / "shared" / "weights" / "taef2.safetensors"

_TRAINING = {
    "batch_size": 4,
    "model.width": 24,
    "model.depth": 2,
    "model.num_heads": 2,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "train.steps": STEPS,
    "train.log_every": 4,
    "train.validation_batches": 1,
    "learning_rate.warmup_steps": 4,
    "checkpoint.every": 4,
    "checkpoint.keep": 3,
    "sample.every": 12,
    "sample.num_inference_steps": 2,
    "sample.prompts": repr(PROMPTS[:1]),
}


def succeed(ended: Ended) -> None:
    """Raises RuntimeError with the command's output unless it ended well."""
    if ended.code != 0:
        raise RuntimeError(f"The set-up failed (exit code {ended.code}): {ended.output[-4000:]}")


def pack_synthetic(output: Path) -> Ended:
    """Packs 40 generated clips of 8 frames of 24x24 pixels."""
    flags = ("--synthetic=moving_shapes", "--clips=40", "--size=24", "--frames=8", "--workers=1")
    split = "--validation_fraction=0.2"
    return commands.run("pack", *flags, split, "--clips_per_shard=8", f"--output={output}")


def pack(videos: Path, output: Path, *more: str, **options) -> Ended:
    """Packs a folder of videos of 64x48 pixels in shards of four."""
    flags = ("--size=48x64", "--fps=8", "--frames=8", "--validation_fraction=0.2", "--workers=2")
    folders = (f"--input={videos}", f"--output={output}")
    return commands.run("pack", *folders, *flags, "--clips_per_shard=4", *more, **options)


def encode(clips: Path, output: Path, **options) -> Ended:
    """Encodes packed clips to latents of 24x24 pixels."""
    flags = ("--config=configs/real_clips_128.py", f"--config.vae.path={WEIGHTS}")
    size = ("--config.data.height=24", "--config.data.width=24")
    return commands.run(
        "encode", *flags, *size, f"--input={clips}", f"--output={output}", **options
    )


def train(data: Path, workdir: Path, *more: str, **options) -> Ended:
    """Trains 24 steps, with a checkpoint after each four."""
    flags = ["--config=configs/quickstart.py", f"--workdir={workdir}", f"--config.data.path={data}"]
    flags += [f"--config.{name}={value}" for name, value in _TRAINING.items()]
    return commands.run("launch", *flags, *more, **options)


def sample(workdir: Path, output: Path, *more: str, **options) -> Ended:
    """Samples six videos, two at a time."""
    flags = ("--num_inference_steps=2", "--batch_size=2", "--seed=3")
    folders = (f"--workdir={workdir}", f"--output_dir={output}")
    return commands.run("sample", *folders, *flags, *more, "--prompts", *PROMPTS, **options)


def hash_files(folder: Path, *patterns: str) -> str:
    """SHA-256 of the names and bytes of all files below a folder that match."""
    digest = hashlib.sha256()
    files = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    for path in sorted(files):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def hash_data(folder: Path) -> str:
    """SHA-256 of a data set: shards and what training reads beside them."""
    return hash_files(folder, "*.tfrecord*", "statistics.json", "motion_scores.npy")


def hash_state(workdir: Path, step: int = STEPS) -> str:
    """SHA-256 of all arrays of a checkpoint, read by Orbax itself and not by this project."""
    return commands.call(_hash_state, workdir, step)


def _hash_state(workdir: Path, step: int) -> str:
    import jax
    import orbax.checkpoint as ocp

    warnings.simplefilter("ignore")  # the shardings are those of the file, as wanted
    digest = hashlib.sha256()
    for item in ("ema", "state"):
        folder = workdir.resolve() / "checkpoints" / str(step) / item
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(folder)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            value = (
                jax.random.key_data(leaf)
                if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                else leaf
            )
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(value).tobytes())
    return digest.hexdigest()
