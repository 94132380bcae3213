"""Checkpoints: to the bit and back, refused when they do not fit, passed over when damaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import checkpoint


def make_state(config, step=1):
    """A state of random numbers at a step."""
    run = make_run(config)
    state = jax.jit(run.init, out_shardings=run.shardings)()
    rng = np.random.default_rng(step)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            value = rng.standard_normal(leaf.shape).astype(leaf.dtype)
            return jax.device_put(value, leaf.sharding)
        return leaf

    return run, jax.tree.map(fill, state).replace(step=jnp.int32(step))


def assert_same(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_returns_to_the_bit_with_its_sharding(tmp_path, optimizer):
    config = tiny_config()
    config.optimizer.name, config.train.precision = optimizer, "float16"
    run, state = make_state(config, step=7)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, state, {"vocabulary": ["red"]}, 0.5)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        restored = checkpoint.restore(manager, run.abstract)
        assert checkpoint.restore_metadata(manager, 7) == {"vocabulary": ["red"]}
    assert_same(restored, state)
    kernel = restored.params["patch_embed"]["kernel"]
    assert kernel.sharding == run.shardings.params["patch_embed"]["kernel"]


def test_one_ema_alone_restores_on_another_mesh(tmp_path):
    config = tiny_config()
    config.ema.widths = (0.05,)
    _, state = make_state(config)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, state, {})
    other = make_run(config, meshes.make_mesh(data=1))
    with checkpoint.open_checkpoints(tmp_path, read_only=True) as manager:
        for name in ("decay_0.9", "width_0.05"):
            ema, step = checkpoint.restore_ema(manager, other.abstract.params, name)
            assert step == 1
            assert_same(ema, state.ema[name])
        with pytest.raises(
            checkpoint.CheckpointError, match="'best'.* one of decay_0.9, width_0.05"
        ):
            checkpoint.restore_ema(manager, other.abstract.params, "best")


def test_no_checkpoint_is_none_for_training_and_an_error_for_sampling(tmp_path):
    run, _ = make_state(tiny_config())
    with checkpoint.open_checkpoints(tmp_path) as manager:
        assert checkpoint.restore(manager, run.abstract) is None
        with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
            checkpoint.restore_ema(manager, run.abstract.params, "decay_0.9")


def test_the_newest_and_the_best_stay(tmp_path):
    config = tiny_config()
    with checkpoint.open_checkpoints(tmp_path, keep=2) as manager:
        for step, loss in ((1, 0.9), (2, 0.1), (3, 0.5)):
            checkpoint.save(manager, make_state(config, step)[1], {}, loss)
    with checkpoint.open_checkpoints(tmp_path, keep=2) as manager:  # the run goes on
        for step, loss in ((4, None), (5, 0.7)):
            checkpoint.save(manager, make_state(config, step)[1], {}, loss)
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [2, 4, 5]


def test_another_architecture_is_refused_with_what_differs(tmp_path):
    config = tiny_config()
    _, state = make_state(config)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, state, {})
    config.model.text_depth += 1
    config.text.vocabulary_size += 2
    other = make_run(config)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        with pytest.raises(checkpoint.CheckpointError) as caught:
            checkpoint.restore(manager, other.abstract)
    text = str(caught.value)
    assert "another model's" in text and "is missing" in text and "mlp_" in text
    assert "caption_encoder/words/embedding has shape" in text


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_newest_step_is_set_aside_for_the_one_before(tmp_path, damage, caplog):
    config = tiny_config()
    run, first = make_state(config, 1)
    _, second = make_state(config, 2)
    with checkpoint.open_checkpoints(tmp_path, keep=5) as manager:
        checkpoint.save(manager, first, {})
        checkpoint.save(manager, second, {})
    for path in sorted((tmp_path / "checkpoints" / "2" / "state").rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10]) if damage == "truncate" else path.unlink()
    with checkpoint.open_checkpoints(tmp_path, keep=5) as manager:
        restored = checkpoint.restore(manager, run.abstract)
        assert_same(restored, first)
        checkpoint.save(manager, second, {})  # its number is free again
    with checkpoint.open_checkpoints(tmp_path) as manager:
        assert_same(checkpoint.restore(manager, run.abstract), second)
    assert list((tmp_path / "checkpoints_damaged").glob("2_*"))


def test_a_step_that_is_not_there_names_those_that_are(tmp_path):
    run, state = make_state(tiny_config(), 3)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, state, {})
        manager.wait_until_finished()
        with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of step 4.* one of 3"):
            checkpoint.restore_ema(manager, run.abstract.params, "decay_0.9", 4)
