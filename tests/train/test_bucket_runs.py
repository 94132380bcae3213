"""Training on buckets: one state, a step for each shape, pictures beside videos, on any mesh."""

from pathlib import Path

import jax
import numpy as np
import pytest

from tests.data.packed import random_clips, write_buckets
from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.data import bucketed_data
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import checkpoint, saved_config
from videogen_jax.train import loop, run_kinds, setup, training_run

pytestmark = pytest.mark.slow

SHAPES = {"4x16x16": (4, 16, 16), "2x16x24": (2, 16, 24), "1x16x16": (1, 16, 16)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    clips = {name: random_clips(shape, 24, seed=len(name)) for name, shape in SHAPES.items()}
    return write_buckets(tmp_path_factory.mktemp("buckets") / "data", clips)


def bucket_config(path, **mesh):
    config = tiny_config()
    config.data.update({"path": str(path), "height": 16, "width": 16})
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "tensor": 1} | mesh)
    config.train.update({"steps": 8, "log_every": 1})
    config.checkpoint.every = 4
    config.sample.every = 100
    config.sample.every = 0
    return config


def make_runs(config):
    run = make_run(config)
    shapes = setup.bucket_shapes(config, bucketed_data.open_buckets(config.data.path))
    runs = setup.make_bucket_runs(run, shapes, run_kinds.DIFFUSION)
    return run, {Path(folder).name: one for folder, one in runs.items()}


def test_batches_have_about_the_same_tokens(data):
    """256 tokens: 4 clips of 4 x 4 x 4; 5 of 2 x 4 x 6; 16 of 1 x 4 x 4, a multiple of both devices."""
    _, runs = make_runs(bucket_config(data, seq=2))
    sizes = {name: run.config.batch_size for name, run in runs.items()}
    assert sizes == {"4x16x16": 4, "2x16x24": 5, "1x16x16": 16}
    _, runs = make_runs(bucket_config(data, data=2, fsdp=2))
    sizes = {name: run.config.batch_size for name, run in runs.items()}
    assert sizes == {"4x16x16": 4, "2x16x24": 4, "1x16x16": 16}


def test_pictures_spread_over_the_devices_that_share_a_video(data):
    run, runs = make_runs(bucket_config(data, seq=2))
    assert run.mesh.shape["seq"] == runs["2x16x24"].mesh.shape["seq"] == 2
    assert runs["1x16x16"].mesh.shape["fsdp"] == 2
    assert runs["1x16x16"].mesh.shape["seq"] == 1
    assert list(runs["1x16x16"].mesh.devices.flat) == list(run.mesh.devices.flat)


@pytest.mark.parametrize("name", ["1x16x16", "2x16x24"])
def test_a_step_on_the_mesh_is_that_of_one_device(data, name):
    def take_step(**mesh):
        config = bucket_config(data, **mesh)
        run, runs = make_runs(config)
        params = jax.device_put(randomise(run.abstract.params, 0.2), run.shardings.params)
        state = jax.jit(run.init, out_shardings=run.shardings)(params)
        bucket = runs[name]
        rng = np.random.default_rng(0)
        shapes = bucket.abstract_batch(16)
        video = rng.integers(0, 256, shapes["video"].shape, np.uint8)
        batch = {"video": video, "text": np.full(shapes["text"].shape, 3, np.int32)}
        with bucket.config.unlocked():
            bucket.config.batch_size = 16
        state, values = training_run.compile_step(bucket)(
            state, meshes.put_batch(bucket.mesh, batch)
        )
        return jax.device_get((state.params, values))

    for a, b in zip(jax.tree.leaves(take_step()), jax.tree.leaves(take_step(seq=2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def read_state(workdir):
    run = make_run(saved_config.read_config(workdir))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        state = checkpoint.restore(manager, run.abstract)
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def test_a_run_on_buckets_goes_on_to_the_bit(data, tmp_path):
    config = bucket_config(data, seq=2)
    config.learning_rate.final_fraction = 1.0  # the rate does not know when the run ends
    loop.train(config, tmp_path / "whole")
    for steps in (5, 8):
        config.train.steps = steps
        loop.train(config, tmp_path / "parts")
    parts, whole = read_state(tmp_path / "parts"), read_state(tmp_path / "whole")
    assert int(whole.step) == 8
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_a_shape_that_is_no_bucket_is_refused(data, tmp_path):
    config = bucket_config(data)
    config.data.frames = 3
    with pytest.raises(ValueError, match="are 3x16x16, but the buckets in .* are 4x16x16, 2x16x24"):
        loop.train(config, tmp_path)


def test_a_bucket_that_the_model_cannot_take_is_named(data, tmp_path):
    config = bucket_config(data)
    config.model.patch_size = (2, 4, 4)
    with pytest.raises(ValueError, match="Bucket .*1x16x16: "):
        loop.train(config, tmp_path)
