"""The main job end to end, small: pack, train, kill, resume, sample; and every wrong way to start it."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import COMPILED, ROOT
from tests.tiny import make_run, tiny_config
from videogen_jax.data import packed_data, pipeline
from videogen_jax.run import checkpoint, saved_config
from videogen_jax.train import loop, metrics

pytestmark = pytest.mark.slow

STEPS = 24
# Programs compiled by one run serve the next.
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
OVERRIDES = {
    "batch_size": 4,
    "data.frames": 4,
    "data.height": 24,
    "data.width": 24,
    "model.width": 24,
    "model.depth": 2,
    "model.num_heads": 2,
    "mesh.data": 1,
    "mesh.fsdp": 2,
    "train.steps": STEPS,
    "train.log_every": 1,
    "learning_rate.warmup_steps": 4,
    "ema.decays": (0.999, 0.9),
    "ema.widths": (0.05, 0.1),
    "ema.snapshot_every": 5,
    "checkpoint.every": 5,
    "sample.every": 1000,
    "sample.num_inference_steps": 2,
    "train.validation_batches": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty-four packed clips of 8 frames, 24x24."""
    folder = tmp_path_factory.mktemp("packed")
    command = [sys.executable, "-m", "videogen_jax.pack", "--synthetic=moving_shapes", "--clips=24"]
    command += [f"--output={folder / 'data'}", "--size=24", "--frames=8", "--fps=8", "--workers=1"]
    command += ["--validation_fraction=0.2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder / "data"


def command(data, workdir, **changes):
    options = OVERRIDES | {"data.path": data} | changes
    return [
        sys.executable,
        "launch.py",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
    ] + [f"--config.{name}={value}" for name, value in options.items()]


def launch(data, workdir, **changes):
    return run_verb(command(data, workdir, **changes))


def run_verb(arguments):
    return subprocess.run(
        arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def small_config(data):
    """The config of OVERRIDES, for runs inside this process."""
    config = tiny_config()
    for name, value in (OVERRIDES | {"data.path": str(data)}).items():
        *parents, last = name.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    config.model.patch_size = (4, 6, 6)
    return config


def start_and_wait_for_step(data, workdir, step, **changes):
    """Starts a run and returns its process once it has logged `step`."""
    log = Path(f"{workdir}.log")
    with log.open("w") as out:
        process = subprocess.Popen(
            command(data, workdir, **changes),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    deadline = time.time() + 240
    while not re.search(rf"\[{step}\]", log.read_text()):
        assert process.poll() is None and time.time() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)
    return process


def read_state(workdir):
    """Every array of the newest checkpoint."""
    run = make_run(saved_config.read_config(Path(workdir)))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        state = checkpoint.restore(manager, run.abstract)
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def assert_same_to_the_bit(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run from the first step to the last, undisturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = launch(data, workdir)
    assert result.returncode == 0, result.stderr[-3000:]
    return workdir


def test_a_run_leaves_checkpoints_dashboard_samples_and_config(finished):
    assert int(read_state(finished).step) == STEPS
    assert list((finished / "tensorboard").glob("events.*"))
    assert list((finished / "samples").glob("*.mp4"))
    assert json.loads((finished / "config.json").read_text())["model"]["width"] == 24


def test_sigkill_at_a_random_step_and_resume_end_bit_identical(data, finished, tmp_path):
    workdir = tmp_path / "run"
    process = start_and_wait_for_step(
        data, workdir, random.randint(11, STEPS - 3)
    )  # 10 waits for 5
    process.kill()
    process.wait()
    result = launch(data, workdir)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Resuming from step" in result.stderr
    assert_same_to_the_bit(read_state(workdir), read_state(finished))


def test_sigterm_saves_and_leaves_within_thirty_seconds(data, finished, tmp_path):
    workdir = tmp_path / "run"
    process = start_and_wait_for_step(data, workdir, 7, **{"checkpoint.every": 1000})
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert int(read_state(workdir).step) >= 7
    assert "SIGTERM: saved step" in Path(f"{workdir}.log").read_text()
    assert launch(data, workdir).returncode == 0
    assert_same_to_the_bit(read_state(workdir), read_state(finished))


def test_sampling_from_the_checkpoint(finished, tmp_path):
    def sample(folder, *options):
        command = [sys.executable, "-m", "videogen_jax.sample", f"--workdir={finished}"]
        command += [f"--output_dir={tmp_path / folder}", "--num_inference_steps=3", *options]
        return run_verb(command)

    prompts = ["--prompts", "a red circle moving left", "a blue square moving up"]
    result = sample("a", "--format=gif", "--num_videos=2", *prompts)
    assert result.returncode == 0, result.stderr[-3000:]
    chosen = json.loads((finished / "config.json").read_text())["sample"]["guidance_scale"]
    recipe = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert [video["seed"] for video in recipe["videos"]] == [0, 1, 2, 3]
    assert recipe["step"] == STEPS and recipe["guidance_scale"] == chosen
    assert all((tmp_path / "a" / video["file"]).stat().st_size for video in recipe["videos"])
    assert (tmp_path / "a" / "contact_sheet.png").stat().st_size
    options = ["--sampler=heun", "--guidance_rescale=0.5", "--first_frame_guidance_scale=1"]
    options += ["--negative_prompt=a green square moving down", "--ema_width=0.08"]
    result = sample("c", "--format=gif", *options, *prompts)
    assert result.returncode == 0, result.stderr[-3000:]
    recipe = json.loads((tmp_path / "c" / "samples.json").read_text())
    assert recipe["weights"] == "width 0.08" and recipe["sampler"] == "heun"
    assert recipe["negative_prompt"] == "a green square moving down"
    result = sample("d", "--ema=decay_0.5", *prompts)
    assert result.returncode == 1 and "one of decay_0.9, decay_0.999, width_0.05" in result.stderr
    result = sample("b", "--prompts", "a purpel circle moving left")
    assert result.returncode == 1 and "'purpel'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--config.model.widht=3", "no option 'model.widht': did you mean 'model.width'"),
        ("--config.batch_size=3", "batch_size of 3 does not divide into 2 parts"),
        ("--config.data.path=/nowhere", "/nowhere"),
        ("--config.mesh.seq=60000", "devices, but there are 256 (cpu)"),
    ],
)
def test_wrong_options_end_in_one_sentence(data, tmp_path, option, sentence):
    result = run_verb([*command(data, tmp_path / "run"), option])
    assert result.returncode != 0
    assert sentence in result.stderr and "Traceback" not in result.stderr


def test_clips_of_another_size_are_refused(data, tmp_path):
    config = small_config(data)
    config.data.height = 36
    with pytest.raises(ValueError, match=r"data\.height is 36, but the clips .* packed with 24"):
        loop.train(config, tmp_path)


def test_a_run_on_windows_at_speeds_of_their_own(data, tmp_path):
    config = small_config(data)
    config.data.update({"height": 12, "width": 18})
    config.augment.update({"fps_min": 4.0, "fps_max": 8.0, "jitter": 0.2})
    with pytest.raises(
        ValueError, match="model is not conditioned on the rate: add 'fps' to model.micro"
    ):
        loop.train(config, tmp_path / "untold")
    config.model.micro_conditions = ("fps",)
    config.train.steps, config.learning_rate.warmup_steps = 2, 1
    config.sample.every = 0
    loop.train(config, tmp_path / "run")
    assert int(read_state(tmp_path / "run").step) == 2


def test_a_workdir_of_another_architecture_is_refused(data, finished):
    config = small_config(data)
    config.model.width = 36
    with pytest.raises(ValueError, match=r"cannot be resumed .*model\.width was 24, is 36"):
        loop.train(config, finished)
    assert json.loads((finished / "config.json").read_text())["model"]["width"] == 24


def test_a_loss_that_is_no_number_stops_with_step_and_last_good_checkpoint(data, tmp_path):
    config = small_config(data)
    config.checkpoint.every = 2
    config.learning_rate.peak = 1e30
    config.learning_rate.warmup_steps = 1
    config.optimizer.clip_norm = 1e9
    with pytest.raises(metrics.TrainingDiverged, match=r"of step \d+ is (nan|inf); last good"):
        loop.train(config, tmp_path)


def test_the_state_is_saved_when_the_data_vanishes(data, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    config = small_config(folder)
    config.train.steps, config.checkpoint.every = 12, 100
    monkeypatch.setattr(pipeline, "SECONDS_BETWEEN_CHECKS", 0.0)
    monkeypatch.setattr(pipeline, "SHARE_OF_CHECKS", float("inf"))
    check, calls = packed_data.check_unchanged, []

    def move_away_and_check(stamps):
        if threading.current_thread() is not threading.main_thread():  # reads batches ahead
            calls.append(1)
        if len(calls) == 5:  # of twelve batches, some of which are read ahead
            folder.rename(tmp_path / "moved")
        check(stamps)

    monkeypatch.setattr(packed_data, "check_unchanged", move_away_and_check)
    with pytest.raises(pipeline.DataError, match="vanished while it was in use: bring it back"):
        loop.train(config, tmp_path / "run")
    with checkpoint.open_checkpoints(tmp_path / "run", read_only=True) as manager:
        assert 1 <= manager.latest_step() < 12
    assert saved_config.read_config(tmp_path / "run").data.path == str(folder)
