"""The memory levers: each one's step gives the numbers of the plain step, and does what its name says."""

import jax
import numpy as np
import pytest

from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import checkpoint
from videogen_jax.train import training_run

pytestmark = pytest.mark.slow

LEVERS = {
    "block": {"remat": "block"},
    "activations on the host": {"remat": "block", "offload_activations": True},
    "moments on the host": {"offload_optimizer": True},
    "averages on the host": {"offload_ema": True},
    "pieces": {"pieces": 2},
    "unrolled": {"remat": "block", "unroll": 2},
    "all": {
        "remat": "block",
        "offload_activations": True,
        "offload_optimizer": True,
        "offload_ema": True,
        "pieces": 4,
    },
}


def lever_config(**levers):
    config = tiny_config()
    config.model.update({"cross_attention": "gated", "text_depth": 1, "depth": 4})
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 2, "tensor": 1})
    config.memory.update(levers)
    return config


def start(config):
    """A run, its state at parameters that are all at work, and a batch."""
    run = make_run(config)
    params = jax.device_put(randomise(run.abstract.params, 0.2), run.shardings.params)
    state = jax.jit(run.init, out_shardings=run.shardings)(params)
    rng = np.random.default_rng(0)
    shapes = run.abstract_batch(config.batch_size)
    batch = {
        "video": rng.integers(0, 256, shapes["video"].shape, np.uint8),
        "text": np.full(shapes["text"].shape, 3, np.int32),
    }
    return run, state, meshes.put_batch(run.mesh, batch)


def take_steps(run, state, batch, count=3):
    step = training_run.compile_step(run)
    for _ in range(count):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.fixture(scope="module")
def plain():
    return take_steps(*start(lever_config()))


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_changes_no_number(name, plain):
    config = lever_config(**LEVERS[name])
    run, state, batch = start(config)
    state, metrics = take_steps(run, state, batch)
    for got, wanted in zip(
        jax.tree.leaves((state.params, state.ema, state.opt_state, metrics)),
        jax.tree.leaves((plain[0].params, plain[0].ema, plain[0].opt_state, plain[1])),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-6)
    waiting = {
        field
        for field in ("params", "ema", "opt_state")
        for leaf in jax.tree.leaves(getattr(state, field))
        if leaf.sharding.memory_kind == "pinned_host"
    }
    levers = {"ema": config.memory.offload_ema, "opt_state": config.memory.offload_optimizer}
    assert waiting == {field for field, on in levers.items() if on}


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [({"seq": 1}, 2), ({"seq": 4}, 1), ({"data": 2, "fsdp": 2, "seq": 2}, 1)],
    ids=["one device, accumulation", "4 devices", "8 devices"],
)
def test_activations_on_the_host_change_no_number_on_more_devices(mesh, accumulation):
    results = []
    for levers in ({}, {"remat": "block", "offload_activations": True}):
        config = lever_config(**levers)
        config.mesh.update({"seq": 1} | mesh)
        config.train.accumulation = accumulation
        state, metrics = take_steps(*start(config), count=1)
        results.append(jax.tree.leaves((state.params, state.opt_state, metrics)))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-6)


def test_a_state_on_the_host_is_saved_and_restored_there(tmp_path):
    run, state, batch = start(lever_config(offload_optimizer=True, offload_ema=True))
    state, _ = take_steps(run, state, batch, count=1)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, state, {})
    with checkpoint.open_checkpoints(tmp_path, read_only=True) as manager:
        restored = checkpoint.restore(manager, run.abstract)
    for got, wanted in zip(jax.tree.leaves(restored.ema), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.sharding == wanted.sharding
    # And the step takes it.
    again, _ = training_run.compile_step(run)(restored, batch)
    assert int(again.step) == 2


@pytest.mark.parametrize(
    ("levers", "message"),
    [
        ({"remat": "blocks"}, "memory.remat 'blocks': choose one of none, block"),
        ({"offload_activations": True}, "memory.remat is 'none'"),
        ({"pieces": 3}, "memory.pieces of 3 does not divide the 4 "),
        ({"attention_kernel": "flash"}, "'flash': choose one of auto, cudnn, xla"),
        ({"attention_kernel": "cudnn"}, "NVIDIA GPUs"),
    ],
)
def test_levers_without_meaning_are_refused(levers, message):
    with pytest.raises(ValueError, match=message):
        make_run(lever_config(**levers))
