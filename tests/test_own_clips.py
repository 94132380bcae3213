"""The README's commands for clips of one's own, as they are written there, on a folder of three small clips."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import COMPILED, ROOT
from videogen_jax.data.video_writer import write_video

pytestmark = pytest.mark.slow

CAPTIONS = {
    "harbour": "Waves in a harbour",
    "skater": "a skater jumps",
    "moor": "fog over a moor",
    "night": "the city at night",
}
# What makes them small; the commands stay as they are.
SHORTER = {
    "pack": "--size=16 --frames=4 --workers=1 --validation_fraction=0",
    "launch.py": "--config.data.frames=4 --config.data.height=16 --config.data.width=16 --config.batch_size=2 "
    "--config.model.width=24 --config.model.depth=2 --config.model.num_heads=2 --config.train.steps=2 "
    "--config.learning_rate.warmup_steps=1 --config.sample.num_inference_steps=2 "
    "--config.train.validation_batches=0",
    "sample": "--num_inference_steps=2",
}


def readme_commands():
    """Those with runs/clips, in their order, without comments."""
    text = (ROOT / "README.md").read_text()
    block = next(b for b in re.findall(r"```sh\n(.*?)```", text, re.S) if "--input=CLIPS" in b)
    lines = [line.split(" #")[0] for line in block.splitlines() if "runs/clips" in line]
    assert len(lines) == 3 and all(line.startswith("python ") for line in lines)
    return lines


def test_clips_of_ones_own_are_packed_trained_and_sampled(tmp_path):
    (tmp_path / "CLIPS").mkdir()
    for i, (name, caption) in enumerate(CAPTIONS.items()):
        video = np.random.default_rng(i).integers(0, 256, (1, 24, 24, 3), np.uint8)
        write_video(tmp_path / "CLIPS" / f"{name}.mp4", np.repeat(video, 8, axis=0), fps=8)
        (tmp_path / "CLIPS" / f"{name}.txt").write_text(caption + "\n")
    for name in ("launch.py", "configs", "videogen_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    logs = []
    for command in readme_commands():
        verb = next(name for name in SHORTER if re.search(rf"(\.| ){re.escape(name)} ", command))
        words = [sys.executable, *shlex.split(command)[1:], *SHORTER[verb].split()]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr[-2000:])
        logs.append(done.stderr)
    run = tmp_path / "runs" / "clips"
    config = json.loads((run / "config.json").read_text())
    # a, at, city, fog, harbour, in, jumps, moor, night, over, skater, the, waves; and three special ones
    assert config["text"]["vocabulary_size"] == 16
    prompts = (run / "samples" / "prompts.txt").read_text().splitlines()
    assert 1 < len(prompts) == len(set(prompts)) and set(prompts) <= set(CAPTIONS.values())
    made = json.loads((run / "generated" / "samples.json").read_text())["videos"]
    assert [video["prompt"] for video in made] == prompts
    assert all((run / "generated" / video["file"]).stat().st_size for video in made)

    training = logs[1]
    assert re.search(r"\[2\] of 2 steps: loss [\d.]+, .* left", training)
    assert "parameters: " in training and (run / "parameters.txt").stat().st_size
    for unwanted in ("tpu", "| Name", "raw tensors", "loss/train", "Traceback"):
        assert unwanted not in training, unwanted
