"""Runs that are stopped at the end, started twice, or lose their dashboard."""

import contextlib
import shutil
import signal

import pytest

from tests.data.packed import random_clips, write_records
from tests.tiny import tiny_vae_config
from videogen_jax.data import locking
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import processes
from videogen_jax.run import checkpoint
from videogen_jax.train import dashboard, loop, run_report
from videogen_jax.train.wandb_writer import find_run_id


def test_a_run_stopped_in_its_last_step_gets_what_it_lacks(tmp_path, monkeypatch, caplog):
    clips = random_clips((9, 16, 16), 6)
    config = tiny_vae_config()
    config.data.path = str(write_records(tmp_path / "data", clips, 9, 3))
    config.train.steps, config.learning_rate.warmup_steps = 1, 0
    workdir = tmp_path / "run[1]"

    @contextlib.contextmanager
    def stop_at_once(mesh):
        yield lambda: signal.SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(processes, "catch_signals", stop_at_once)
        with pytest.raises(loop.Interrupted, match="SIGINT: saved step 1") as caught:
            loop.train(config, workdir)
    assert caught.value.signal == signal.SIGINT
    assert not (workdir / "report.html").exists() and not (workdir / "samples").exists()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_report.report, "write_report", fail)
        with pytest.raises(OSError, match="trained and saved, but its report cannot be written"):
            loop.train(config, workdir)
    assert (workdir / "samples" / "step_00000001.mp4").is_file()
    assert "loss/validation" in run_report.read_curves(workdir / "tensorboard")
    (workdir / "samples" / "odd.gif").mkdir()
    (workdir / "samples" / "empty.gif").touch()
    loop.train(config, workdir)
    assert "data:video/mp4" in (workdir / "report.html").read_text()
    assert "empty.gif is no video" in caplog.text
    written = (workdir / "report.html").stat().st_mtime_ns
    loop.train(config, workdir)
    assert (workdir / "report.html").stat().st_mtime_ns == written
    with locking.lock_folder(workdir), pytest.raises(ValueError, match=r"process \d+ on .* is wri"):
        loop.train(config, workdir)


def test_signals_stop_a_run_and_are_given_back():
    for number in (signal.SIGHUP, signal.SIGINT):  # under nohup they are ignored, and stay so
        signal.signal(number, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    with processes.catch_signals(meshes.make_mesh(data=1)) as stop:
        assert stop() == 0
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.raise_signal(number)
            assert stop() == number
        with pytest.raises(KeyboardInterrupt):  # the second one does not wait
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with processes.catch_signals(meshes.make_mesh(data=1)) as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop() == 0
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_a_dashboard_that_was_deleted_is_made_again(tmp_path, caplog):
    config = tiny_vae_config()
    with dashboard.open_dashboard(tmp_path, 0, config) as writer:
        writer.write_scalars(1, {"loss/train": 3.0})
        writer.flush()
        shutil.rmtree(tmp_path / "tensorboard")
        writer.write_scalars(2, {"loss/train": 2.0})
    assert run_report.read_curves(tmp_path / "tensorboard") == {"loss/train": ([2], [2.0])}
    assert "tensorboard was deleted: made again" in caplog.text


def test_a_copied_workdir_gets_a_wandb_run_of_its_own(tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    first.mkdir()
    (first / "wandb_run_id.txt").write_text("0123\n")  # of an earlier version
    assert find_run_id(first) == find_run_id(first) == "0123"
    shutil.copytree(first, tmp_path / "copy")
    own = find_run_id(tmp_path / "copy")
    assert own != "0123" and find_run_id(tmp_path / "copy") == own
    first.rename(moved)
    assert find_run_id(moved) == "0123"


def test_a_checkpoint_that_is_being_written_is_said_to_be(tmp_path):
    (tmp_path / "checkpoints" / "4.unfinished").mkdir(parents=True)
    with checkpoint.open_checkpoints(tmp_path, read_only=True) as manager:
        with locking.lock_folder(tmp_path):
            with pytest.raises(ValueError, match="4 in .* is being written by process .*: try ag"):
                checkpoint.find_step(manager, None)
        with pytest.raises(ValueError, match="no checkpoint in .*: train first"):
            checkpoint.find_step(manager, None)
