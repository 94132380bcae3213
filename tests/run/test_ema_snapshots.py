"""Averages made after training against those tracked during it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.run import ema, ema_snapshots
from videogen_jax.run.checkpoint import CheckpointError

TRACKED = (0.05, 0.1)
WANTED = 0.08
STEPS = 400


def abstract():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"layer": {"kernel": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of 400 steps with a snapshot every 20; also its average of the width WANTED."""
    workdir = tmp_path_factory.mktemp("run")
    decays = ema.make_decays((), (*TRACKED, WANTED))
    rng = np.random.default_rng(0)
    params = {"layer": {"kernel": jnp.zeros(8)}}
    averages = {name: params for name in decays}
    update = jax.jit(lambda averages, params, step: ema.update(averages, params, step, decays))
    at = {}
    with ema_snapshots.open_writer(workdir) as writer:
        for step in range(STEPS):
            drift = 0.02 + 0.3 * rng.standard_normal(8).astype(np.float32)
            params = jax.tree.map(lambda leaf, d=drift: leaf + d, params)
            averages = update(averages, params, jnp.int32(step))
            if (step + 1) % 20 == 0:
                kept = {name: averages[name] for name in map(ema.width_name, TRACKED)}
                ema_snapshots.save_snapshot(writer, step + 1, kept)
                writer.wait_until_finished()
                at[step + 1] = np.asarray(averages[ema.width_name(WANTED)]["layer"]["kernel"])
    return workdir, at


@pytest.mark.parametrize("step", [400, 300])
def test_any_width_can_be_made_afterwards(tracked, step):
    workdir, at = tracked
    got = ema_snapshots.reconstruct(workdir, abstract(), TRACKED, WANTED, step)["layer"]["kernel"]
    error = np.linalg.norm(np.asarray(got) - at[step]) / np.linalg.norm(at[step])
    assert error < 0.01
    assert list(ema_snapshots.list_snapshots(workdir, step)) == list(range(20, step + 1, 20))


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path):
    with pytest.raises(CheckpointError, match="snapshot_every"):
        ema_snapshots.reconstruct(tmp_path, abstract(), TRACKED, WANTED, 10)
