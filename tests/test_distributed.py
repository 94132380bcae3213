"""Two processes on one machine: they train, save and go on as one process with the same devices does."""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import quickstart
from tests.conftest import COMPILED, ROOT
from tests.data.packed import pack_moving_shapes
from tests.tiny import make_run
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import processes
from videogen_jax.run import checkpoint, saved_config
from videogen_jax.train import loop

pytestmark = pytest.mark.slow

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
    "model.patch_size": (2, 6, 6),
    "train.log_every": 1,
    "learning_rate.warmup_steps": 4,
    "ema.widths": (0.05,),
    "sample.every": 1000,
    "sample.num_inference_steps": 2,
    "train.validation_batches": 1,
}
SHORT = {"train.steps": 8, "checkpoint.every": 3, "ema.snapshot_every": 5}
LONG = {"train.steps": 40, "checkpoint.every": 10, "ema.snapshot_every": 25}  # time for a signal
MESHES = {  # of two devices, one in each process
    "data": SHORT | {"mesh.data": 2},
    "fsdp": LONG | {"mesh.data": 1, "mesh.fsdp": 2},
    "seq, one clip": SHORT | {"mesh.data": 1, "mesh.seq": 2, "batch_size": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pack_moving_shapes(tmp_path_factory.mktemp("packed"), clips=24, size=24, frames=8)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(data, workdir, count, last=None, **changes):
    """`count` processes of launch.py, whose output goes to files; the last one with flags of its own."""
    options = OVERRIDES | {"data.path": data} | changes
    command = [sys.executable, "launch.py", "--config=configs/quickstart.py"]
    command += [f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in options.items()]
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(count):
        joined = []
        if count > 1:
            joined = [f"--coordinator_address={address}", f"--num_processes={count}"]
            joined += [f"--process_id={index}"]
            joined += (last or []) if index == count - 1 else []
        with Path(f"{workdir}.{index}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    command + joined,
                    cwd=ROOT,
                    env=ENVIRONMENT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def finish(started, workdir):
    """Exit codes, and what each process wrote."""
    try:
        codes = [process.wait(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    return codes, [Path(f"{workdir}.{i}.log").read_text() for i in range(len(started))]


def train_in_two(data, workdir, **changes):
    codes, logs = finish(start(data, workdir, 2, **changes), workdir)
    assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    return logs


def train_in_one(data, workdir, **changes):
    """As launch.py does, in the process of the tests."""
    config = quickstart.get_config()
    options = OVERRIDES | {"data.path": str(data)} | changes
    config.update_from_flattened_dict(options)
    loop.train(config, workdir)


@pytest.fixture(scope="module")
def in_two(data, tmp_path_factory):
    """Workdir and logs of an undisturbed run of two processes on one of MESHES, which several tests look at."""
    folder = tmp_path_factory.mktemp("in_two")

    @functools.cache
    def find(name):
        workdir = folder / name
        return workdir, train_in_two(data, workdir, **MESHES[name])

    return find


def read_state(workdir):
    run = make_run(saved_config.read_config(Path(workdir)))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        state = checkpoint.restore(manager, run.abstract)
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def assert_close(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", MESHES)
def test_two_processes_equal_one(name, data, in_two, tmp_path):
    train_in_one(data, tmp_path, **MESHES[name])
    workdir, logs = in_two(name)
    assert_close(read_state(workdir), read_state(tmp_path))
    # One process speaks and writes.
    assert ": loss " in logs[0] and ": loss " not in logs[1]
    assert len(list((workdir / "tensorboard").glob("events.*"))) == 1
    saved = {MESHES[name][key] for key in ("ema.snapshot_every", "train.steps")}
    assert {int(path.name) for path in (workdir / "snapshots").iterdir()} == saved


def test_a_signal_to_one_process_stops_both_and_they_go_on(data, in_two, tmp_path):
    changes = MESHES["fsdp"]
    workdir = tmp_path / "stopped"
    started = start(data, workdir, 2, **changes)
    log = Path(f"{workdir}.0.log")
    deadline = time.time() + 600
    while not re.search(r"\[4\]", log.read_text()):
        assert started[0].poll() is None and time.time() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)
    started[1].send_signal(signal.SIGTERM)
    codes, logs = finish(started, workdir)
    assert codes == [143, 143], logs[0][-3000:] + logs[1][-3000:]
    stopped = read_state(workdir)
    assert 4 <= stopped.step < 40
    train_in_two(data, workdir, **changes)
    whole, _ = in_two("fsdp")
    jax.tree.map(np.testing.assert_array_equal, read_state(workdir), read_state(whole))


def test_an_error_of_one_process_ends_both(data, tmp_path):
    """A data set that one of them does not see, and a workdir on a disk of its own."""
    workdir = tmp_path / "run"
    wrong = {
        f"--config.data.path={tmp_path / 'elsewhere'}": "There is no data set in",
        f"--workdir={tmp_path / 'own'}": "put the workdir on a file system that all hosts share",
    }
    for flag, sentence in wrong.items():
        codes, logs = finish(start(data, workdir, 2, [flag], **MESHES["data"]), workdir)
        assert codes == [1, 1], logs[0][-3000:] + logs[1][-3000:]
        assert sentence in logs[1]
        assert "Process 1 of 2 failed: see its log" in logs[0]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num_processes=2"], "give --coordinator_address and --process_id too"),
        (["--distributed", "--num_processes=2"], "give it or them, not both"),
        (
            ["--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 is not among --num_processes=2",
        ),
        (
            ["--coordinator_address=127.0.0.1", "--num_processes=2", "--process_id=0"],
            "--coordinator_address=127.0.0.1 is not host:port",
        ),
        (["--distributed"], "start the processes with srun, mpirun or a Kubernetes Job"),
    ],
)
def test_half_an_address_is_refused(flags, sentence, tmp_path):
    command = [sys.executable, "launch.py", "--config=configs/quickstart.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}", *flags],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and sentence in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("mesh", "batch_size"), [({"data": 2, "fsdp": 2}, 8), ({"seq": 4}, 1), ({"fsdp": 8}, 16)]
)
def test_one_process_reads_every_row(mesh, batch_size):
    assert processes.find_share(meshes.make_mesh(**mesh), batch_size) == (0, 1)


@pytest.mark.parametrize(
    ("mesh", "own", "expected"),
    [
        ({"data": 4}, (0, 1), (0, 2)),
        ({"data": 4}, (2, 3), (1, 2)),
        ({"fsdp": 2, "seq": 2}, (2, 3), (1, 2)),
        ({"seq": 2, "tensor": 2}, (2, 3), (0, 1)),
        ({"data": 2, "seq": 4}, (4, 5), (1, 2)),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(mesh, own, expected, monkeypatch):
    mesh = meshes.make_mesh(**mesh)
    devices = list(mesh.devices.flat)

    class Rows:
        def __init__(self, *_):
            pass

        def addressable_devices_indices_map(self, shape):
            whole = jax.sharding.NamedSharding(mesh, meshes.BATCH).devices_indices_map(shape)
            return {device: whole[device] for device in (devices[i] for i in own)}

    monkeypatch.setattr(processes, "NamedSharding", Rows)
    assert processes.find_share(mesh, 8) == expected
