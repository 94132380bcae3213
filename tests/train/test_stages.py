"""A run in stages: pictures, short clips, longer and larger ones, each from the parameters of the one before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.packed import random_clips, write_records
from tests.saved_runs import CAPTIONS, write_run
from tests.tiny import make_run, tiny_config
from videogen_jax.data import pipeline
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run import checkpoint, saved_config
from videogen_jax.train import init_params, loop
from videogen_jax.train.run_kinds import DIFFUSION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    clips = random_clips((8, 16, 16), 8)
    return write_records(tmp_path_factory.mktemp("data") / "data", clips, 8, 2, CAPTIONS * 4)


def stage_config(data, frames, side, former=None, **changes):
    config = tiny_config()
    config.data.update({"path": str(data), "frames": frames, "height": side, "width": side})
    config.batch_size = 16 // frames
    config.mesh.fsdp = 1
    config.train.update({"steps": 2, "log_every": 1})
    config.learning_rate.update({"peak": 5e-2, "warmup_steps": 0})
    config.checkpoint.every = 2
    config.sample.every = 0
    config.model.update({"detailer_width": 4, "detailer_blocks": 1, "position_grid": (4, 4)})
    if former is not None:
        config.init.update({"path": str(former), "layout": "run"})
    config.update_from_flattened_dict(changes)
    return config


def begin(config):
    run = make_run(config)
    texts = DIFFUSION.open_texts(config, pipeline.open_data(config.data.path))
    return run, init_params.init_params(run.model, texts)


def read_average(workdir):
    run = make_run(saved_config.read_config(workdir))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        return run, checkpoint.restore_ema(manager, run.abstract.params, run.ema_name)[0]


def by_name(tree):
    return {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_each_stage_begins_with_the_parameters_of_the_former(data, tmp_path):
    """To the bit, though frames, size, batch and mesh change."""
    stages = [
        stage_config(data, 1, 8),
        stage_config(data, 4, 8, tmp_path / "0"),
        stage_config(data, 8, 16, tmp_path / "1", **{"mesh.seq": 2}),
    ]
    for number, config in enumerate(stages):
        if number:
            _, params = begin(config)
            former = by_name(read_average(tmp_path / str(number - 1))[1])
            found = by_name(params)
            assert set(found) == set(former)
            for name, leaf in found.items():
                np.testing.assert_array_equal(leaf, former[name], err_msg=name)
        if number < 2:
            loop.train(config, tmp_path / str(number))


def test_longer_patches_start_with_the_output_of_pictures_on_frames_that_are_alike(data, tmp_path):
    write_run(tmp_path / "pictures", stage_config(data, 1, 8))
    other, params = read_average(tmp_path / "pictures")
    config = stage_config(data, 4, 8, tmp_path / "pictures", **{"model.patch_size": (4, 4, 4)})
    run, longer = begin(config)
    before, after = by_name(params), by_name(longer)
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {*init_params.FRAMES_IN, *init_params.FRAMES_OUT}
    for name in set(before) - changed:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    picture = np.random.default_rng(0).standard_normal((2, 1, 8, 8, 3)).astype(np.float32)
    clip = np.repeat(picture, 4, axis=1)

    def predict(run, params, x_t):
        text = jnp.full((2, config.text.length), 4, jnp.int32)
        return np.asarray(
            jax.jit(run.model.apply)(params, x_t, jnp.array([300, 700]), {"text": text})
        )

    expected = predict(other, params, picture)
    assert np.abs(expected).max() > 1e-2
    found = predict(run, longer, clip)
    np.testing.assert_allclose(found, np.repeat(expected, 4, axis=1), atol=1e-5)
    # What it reads is the mean of the frames.
    noise = np.random.default_rng(1).standard_normal(clip.shape).astype(np.float32)
    noise -= noise.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(run, longer, clip + noise), found, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 4, 4)])
def test_other_patches_are_refused(data, tmp_path, size):
    write_run(tmp_path / "run", stage_config(data, 4, 8, **{"model.patch_size": (4, 4, 4)}))
    config = stage_config(data, 4, 8, tmp_path / "run", **{"model.patch_size": size})
    with pytest.raises(ValueError, match=r"model\.patch_size is .*, but \(4, 4, 4\)"):
        begin(config)
