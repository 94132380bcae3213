"""A disk that fills up while checkpoints are written: one sentence, and the step before stays."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.run import steps as small

VERB = """
import sys, pathlib
from tests.run import steps
from videogen_jax import command
command.start("verb", lambda arguments: steps.write_steps(pathlib.Path(arguments[0]), (1, 2, 3)))
"""


@pytest.fixture
def disk(tmp_path):
    """A disk of two MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("room", [10_000, 60_000])
def test_a_full_disk_is_one_sentence_and_costs_no_finished_step(disk, room):
    small.write_steps(disk / "run", (0,))
    space = os.statvfs(disk)
    (disk / "other").write_bytes(bytes(space.f_bavail * space.f_bsize - room))
    result = subprocess.run(
        [sys.executable, "-c", VERB, str(disk / "run")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 1
    sentence, *others = result.stderr.splitlines()
    assert "could not be written" in sentence and "(No space left on device): make r" in sentence
    assert not others
    (disk / "other").unlink()
    step, _ = small.read_ema(disk / "run")
    assert step in (0, 1, 2)
    small.write_steps(disk / "run", (step + 1,))  # there is room again
    assert small.read_ema(disk / "run")[0] == step + 1
