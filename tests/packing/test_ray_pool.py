"""Packing on Ray: the bytes of the process pool, also when workers are killed; and one sentence for what goes wrong."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import types
from unittest.mock import ANY

import psutil
import pytest

from tests.packing.test_pack import command, run, shard_bytes
from videogen_jax.data import synthetic
from videogen_jax.data.workers import TaskDied, explain_death
from videogen_jax.packing import pack_folder, ray_pool


@pytest.fixture
def _ray():
    pytest.importorskip("ray", reason="needs Ray, whose workers are killed")


needs_ray = pytest.mark.usefixtures("_ray")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    settings = dict(clips=60, seed=0, size=96, frames=24)
    synthetic.write_shapes(folder / "videos", "moving_shapes", **settings, workers=1)
    options = dict(input=folder / "videos", size=96, frames=8, clips_per_shard=10)
    run(**options, output=folder / "packed", workers=1)
    return folder, options


def busy_workers(process):
    """Ids of the Ray workers, started by a process, that run a call."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.name().startswith("ray::_call") or child.cmdline()[:1] == ["ray::_call"]:
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@needs_ray
def test_killing_two_workers_in_the_middle_gives_the_same_bytes(shapes, tmp_path):
    folder, options = shapes
    output = tmp_path / "packed"
    process = subprocess.Popen(
        command(**options, output=output, workers=2, engine="ray"), stdout=subprocess.PIPE
    )
    killed = []
    try:
        while len(killed) < 2 and process.poll() is None:
            for worker in busy_workers(process)[:1]:
                if worker not in killed:
                    psutil.Process(worker).send_signal(signal.SIGKILL)
                    killed.append(worker)
            time.sleep(0.01)
        told = process.communicate(timeout=240)[0].decode()
    finally:
        process.kill()
    assert len(killed) == 2 and process.returncode == 0 and "packed 180 clips" in told
    assert shard_bytes(output) == shard_bytes(folder / "packed")
    assert json.loads((output / "pack_report.json").read_text())["skipped"] == []


CALLS = """
import os, pathlib
from videogen_jax.data.workers import WorkerDied
from videogen_jax.packing import per_file, ray_pool
from videogen_jax.packing.bucket_assignment import Shape
from videogen_jax.packing.sources import Source

if __name__ == "__main__":
    with ray_pool.connect("local", 1, ["."]) as pool:
        print(pool.workers, pool.submit(max, 3, 4).result())
        for call in ((int, "x"), (os.remove, "missing")):
            try:
                pool.submit(*call).result()
            except (ValueError, FileNotFoundError) as error:
                print(type(error).__name__, error)
        try:
            ray_pool.RayPool(["elsewhere"]).submit(max, 3, 4).result()
        except ValueError as error:
            print(error)
        task = per_file.FileTask("Probing", os._exit, (), Shape)
        tasks = [("fatal.mp4", pool.submit(os._exit, 1)), ("good.mp4", pool.submit(max, 3, 4))]
        pool.submit = lambda *call: dict(tasks)[os.path.basename(call[1])]
        found = [Source(name, (((0, "a"),),), 0.0, 1) for name in dict(tasks)]
        try:
            list(per_file.run(".", found, task, 2, pool, pathlib.Path(".")))
        except WorkerDied as error:
            print(error)
"""


@pytest.mark.slow
@needs_ray
def test_errors_of_calls_come_back_and_a_deadly_file_is_named():
    process = subprocess.run(
        [sys.executable, "-c", CALLS], capture_output=True, text=True, timeout=240
    )
    lines = process.stdout.splitlines()
    assert process.returncode == 0, process.stderr
    assert lines[0] == "1 4"
    assert lines[1].startswith("ValueError invalid literal for int()")
    assert lines[2].startswith("FileNotFoundError [Errno 2]")
    assert "of the Ray cluster has no folder /" in lines[3] and "same path" in lines[3]
    died = "a worker process died while probing fatal.mp4 (out of memory"
    assert any(line.startswith(died) for line in lines[4:])  # Ray says so too, at length


@needs_ray
def test_a_cluster_that_is_not_there_is_told_at_once(shapes, tmp_path):
    folder, options = shapes
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        address = "127.0.0.1:{1}".format(*unused.getsockname())
        for form in (address, f"ray://{address}"):
            with pytest.raises(
                ValueError, match=f"no Ray cluster at --ray_address={form} .*refused"
            ):
                run(**options, output=tmp_path / "data", engine="ray", ray_address=form)


def test_only_a_task_known_to_be_deadly_is_blamed_alone():
    names = ["a.mp4", "b.mp4"]
    assert "reading a.mp4 (" in str(explain_death(TaskDied(), "reading", names))
    error = explain_death(ray_pool.BrokenProcessPool(), "reading", names)
    assert "reading a.mp4 or b.mp4 (" in str(error)


def test_workers_get_absolute_paths(shapes, tmp_path, monkeypatch):
    calls = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    pool = types.SimpleNamespace(workers=3)
    monkeypatch.setattr(
        ray_pool, "connect", lambda *given: contextlib.nullcontext(calls.append(given) or pool)
    )
    monkeypatch.setattr(
        pack_folder, "pack", lambda *given, **options: calls.append(given) or options
    )
    options = run(
        input="clips.csv", output="data", video_folder="films", engine="ray", workers=2, size=16
    )
    films, output = str(tmp_path / "films"), str(tmp_path / "data")
    assert calls == [(None, 2, [films, output]), (str(tmp_path / "clips.csv"), output, ANY)]
    assert options["video_folder"] == films and options["pool"] is pool


def test_options_of_ray_are_refused_where_they_have_no_effect(shapes, tmp_path, monkeypatch):
    folder, options = shapes
    with pytest.raises(ValueError, match="--ray_address has no effect without --engine=ray"):
        run(**options, output=tmp_path / "data", ray_address="auto")
    with pytest.raises(ValueError, match="--synthetic and --engine=ray are mutually exclusive"):
        run(synthetic="moving_shapes", output=tmp_path / "data", engine="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="--engine=ray needs Ray .*pip install"):
        run(**options, output=tmp_path / "data", engine="ray")
