"""Damage to the files of a checkpoint: read to the bit or passed over by name, and never read as something else."""

import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.run import steps as small
from tests.tiny import tiny_config
from videogen_jax.run import checkpoint, ema_snapshots, saved_config, step_files
from videogen_jax.run.checkpoint import CheckpointError
from videogen_jax.train import loop


def restore(workdir):
    with checkpoint.open_checkpoints(workdir, keep=100) as manager:
        return checkpoint.restore(manager, small.abstract_state())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with the steps 3 and 7, and validation losses."""
    workdir = tmp_path_factory.mktemp("written")
    small.write_steps(workdir, (3, 7), losses={3: 0.5, 7: 0.4})
    return workdir


def files_of(step):
    return sorted(path.relative_to(step) for path in step.rglob("*") if path.is_file())


def test_every_file_has_its_size_and_hash(written):
    step = written / "checkpoints" / "7"
    sums = json.loads((step / "checksums.json").read_text())["files"]
    assert {str(name) for name in files_of(step)} == {*sums, "checksums.json"}
    assert sums["metadata/metadata"][0] == (step / "metadata" / "metadata").stat().st_size


def damage_file(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "empty":
        content = b""
    elif kind == "truncate":
        content = content[: len(content) // 2]
    elif kind == "braces":
        content = b"{}"
    elif kind == "flip" and content:
        content[len(content) * 2 // 3] ^= 16
    path.unlink()
    if kind != "remove":
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["empty", "truncate", "flip", "braces", "remove"])
def test_damage_to_any_file_costs_that_step_or_nothing(written, tmp_path, kind, caplog):
    passed_over = 0
    for number, name in enumerate(files_of(written / "checkpoints" / "7")):
        workdir = tmp_path / str(number)
        shutil.copytree(written, workdir)
        damage_file(workdir / "checkpoints" / "7" / name, kind)
        caplog.clear()
        step, kernel = small.read_ema(workdir)
        np.testing.assert_array_equal(kernel, small.small_state(step).ema["decay_0.9"]["kernel"])
        assert step == 7 or "Checkpoint 7 is damaged" in caplog.text
        state = restore(workdir)
        small.assert_same(state, small.small_state(int(state.step)))
        assert state.step == 7 or "Moved the damaged checkpoint 7" in caplog.text
        passed_over += state.step == 3
    assert passed_over > 10


@pytest.mark.parametrize("name", ["ema", "state"])
def test_a_flipped_bit_of_the_arrays_is_named(written, tmp_path, name, caplog):
    shutil.copytree(written, tmp_path / "run")
    item = tmp_path / "run" / "checkpoints" / "7" / name
    largest = max(item.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    damage_file(largest, "flip")
    assert restore(tmp_path / "run").step == 3
    assert f"{largest.relative_to(item.parent)} has other bytes than were written" in caplog.text


def test_a_step_that_is_asked_for_and_damaged_names_the_others(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    damage_file(tmp_path / "run" / "checkpoints" / "7" / "ema" / "_METADATA", "flip")
    with pytest.raises(CheckpointError, match=r"7 .* is damaged \(ema/_METADATA.*there are: 3"):
        small.read_ema(tmp_path / "run", 7)


def test_no_step_that_can_be_read_is_a_sentence(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    for step in ("3", "7"):
        damage_file(tmp_path / "run" / "checkpoints" / step / "metadata" / "metadata", "empty")
    for read in (small.read_ema, restore):
        with pytest.raises(CheckpointError, match="None of the checkpoints in .* can be read"):
            read(tmp_path / "run")


def test_odd_names_and_empty_folders_are_passed_over(written, tmp_path, caplog):
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(written, tmp_path / "run")
    (folder / "700").mkdir()
    for name in ("notes", "007", "٣", "7.backup", "-1"):
        (folder / name).mkdir()
    (folder / "800").write_text("a file")
    assert small.read_ema(tmp_path / "run")[0] == 7
    assert "Checkpoint 700 is damaged (its folder is empty)" in caplog.text
    assert restore(tmp_path / "run").step == 7
    assert not (folder / "700").exists()
    small.write_steps(tmp_path / "run", (700, 800))  # a file has one of the numbers
    assert small.read_ema(tmp_path / "run")[0] == 800
    assert list((tmp_path / "run" / "checkpoints_damaged").glob("800_*"))


def test_steps_of_earlier_versions_are_read_and_stay_beside_new_ones(tmp_path):
    small.write_old_steps(tmp_path, (3, 7))
    assert not (tmp_path / "checkpoints" / "7" / "checksums.json").exists()
    assert small.read_ema(tmp_path)[0] == 7
    small.assert_same(restore(tmp_path), small.small_state(7))
    small.write_steps(tmp_path, (9, 10), keep=1, losses={10: 5.0})
    assert step_files.list_steps(tmp_path / "checkpoints") == [7, 10]  # 7 is the best


@pytest.mark.parametrize("kind", ["empty", "braces", "remove"])
def test_small_files_of_earlier_versions_cost_their_step_alone(tmp_path, kind):
    small.write_old_steps(tmp_path / "whole", (3, 7))
    names = ("metadata/metadata", "metrics/metrics", "_CHECKPOINT_METADATA", "ema/_METADATA")
    for number, name in enumerate((*names, "state/_METADATA", "ema/manifest.ocdbt")):
        for step in (3, 7):
            workdir = tmp_path / f"{number}_{step}"
            shutil.copytree(tmp_path / "whole", workdir)
            damage_file(workdir / "checkpoints" / str(step) / name, kind)
            found, kernel = small.read_ema(workdir)
            truth = small.small_state(found).ema["decay_0.9"]["kernel"]
            np.testing.assert_array_equal(kernel, truth)
            state = restore(workdir)
            small.assert_same(state, small.small_state(int(state.step)))
            if step == 3:
                assert found == 7 and state.step == 7
            small.write_steps(workdir, (8,), keep=1)  # the training goes on


def test_a_snapshot_with_a_flipped_bit_is_named(tmp_path):
    averages = small.small_state(1).ema
    names = {"width_0.05": averages["decay_0.9"]}
    with ema_snapshots.open_writer(tmp_path) as writer:
        ema_snapshots.save_snapshot(writer, 1, names)
    folder = tmp_path / "snapshots" / "1"
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    damage_file(largest, "flip")
    with pytest.raises(CheckpointError, match=r"snapshots/1 is damaged \(ema/.*move it away"):
        ema_snapshots.reconstruct(tmp_path, small.abstract_state().params, (0.05,), 0.05, 1)


@pytest.mark.parametrize("name", ["x[1]", "*", "?", "%41", "#", "{x}", "a:b", "a b", "é", "'", "["])
def test_a_folder_of_any_name_keeps_checkpoints(tmp_path, name):
    workdir = tmp_path / name / "run"
    checkpoint.check_folder(workdir)
    small.write_steps(workdir, (1,))
    small.assert_same(restore(workdir), small.small_state(1))
    assert small.read_ema(workdir)[0] == 1


@pytest.mark.parametrize("name", ["a\\b", "gs:/x", "\udce9"])
def test_a_name_that_cannot_be_written_under_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="under which no checkpoint can be read: name another"):
        checkpoint.check_folder(tmp_path / name / "run")


def test_a_link_to_a_folder_that_is_not_there_is_named(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    for use in (saved_config.read_config, lambda workdir: loop.train(tiny_config(), workdir)):
        with pytest.raises(OSError, match="run is a link to .*disk/run, which is not there: make"):
            use(tmp_path / "run")


def test_a_step_that_is_deleted_while_it_is_read_is_replaced_by_the_newest(tmp_path):
    small.write_steps(tmp_path, (3,))
    seen = []

    def read(step, metadata):
        seen.append(step)
        if step == 3:  # meanwhile the training goes on
            small.write_steps(tmp_path, (4,), keep=1)
        with checkpoint.open_checkpoints(tmp_path, read_only=True) as manager:
            return checkpoint.restore_ema(manager, small.abstract_state().params, "decay_0.9", step)

    assert checkpoint.read_newest(tmp_path, None, read)[1] == 4
    assert seen == [3, 4]
    with pytest.raises(CheckpointError, match="no checkpoint of step 3 .* one of 4"):
        checkpoint.read_newest(tmp_path, 3, read)


def test_a_step_without_its_number_was_not_finished(tmp_path, monkeypatch, caplog):
    small.write_steps(tmp_path, (3,))
    with monkeypatch.context() as patch:
        patch.setattr(step_files, "publish", lambda *_: None)  # killed in the middle
        small.write_steps(tmp_path, (4,))
    assert small.read_ema(tmp_path)[0] == 3
    assert (tmp_path / "checkpoints" / "4.unfinished").exists()  # reading removes nothing
    assert restore(tmp_path).step == 3
    assert "Checkpoint 4 was never finished" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_a_write_that_fails_is_a_sentence_and_the_step_before_stays(tmp_path, monkeypatch):
    small.write_steps(tmp_path, (3,))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step_files, "write_json", fail)
    with pytest.raises(OSError, match=r"Checkpoint 4 could not .*\(.*No space left.* make room"):
        with checkpoint.open_checkpoints(tmp_path) as manager:
            checkpoint.save(manager, small.small_state(4), small.METADATA)
            for _ in range(2000):  # the steps that follow
                manager.check()
                time.sleep(0.01)
    assert small.read_ema(tmp_path)[0] == 3


def test_buffers_that_are_donated_at_once_are_saved_as_they_were(tmp_path):
    def draw(step):
        state = small.small_state(step)
        kernel = jnp.asarray(np.random.default_rng(0).standard_normal(2**22, np.float32)) + 0
        return state.replace(params={"kernel": kernel})

    state, truth = draw(1), jax.device_get(draw(1).params["kernel"])
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 + 7, state), donate_argnums=0)
    params = {"params": state.params}
    compiled = step.lower(params).compile()
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, state, small.METADATA)
        jax.block_until_ready(compiled(params))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kernel = jax.ShapeDtypeStruct(truth.shape, truth.dtype, sharding=here)
    abstract = small.abstract_state().replace(params={"kernel": kernel})
    with checkpoint.open_checkpoints(tmp_path, read_only=True) as manager:
        restored = checkpoint.restore(manager, abstract)
    np.testing.assert_array_equal(restored.params["kernel"], truth)


def test_arrays_on_other_devices_are_the_same(written):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=rows if leaf.ndim else whole
        ),
        small.abstract_state(),
    )
    with checkpoint.open_checkpoints(written, read_only=True) as manager:
        small.assert_same(checkpoint.restore(manager, abstract), small.small_state(7))


@pytest.mark.parametrize(
    "error", [RuntimeError("RESOURCE_EXHAUSTED"), PermissionError(13, "Permission denied")]
)
def test_no_step_that_is_whole_is_set_aside(written, tmp_path, monkeypatch, error):
    """Where memory or a permission is missing, going back would lose steps that are there."""
    shutil.copytree(written, tmp_path / "run")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.step_arrays, "load_item", fail)
    with pytest.raises(type(error)):
        restore(tmp_path / "run")
    with pytest.raises(type(error)):
        small.read_ema(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"3", "7"}
