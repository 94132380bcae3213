"""A train state of a few small arrays, and its checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from videogen_jax.run import checkpoint
from videogen_jax.run.state import TrainState

METADATA = {"config": {"seed": 3}, "vocabulary": ["red"]}


def small_state(step):
    """A state of random numbers at a step."""
    rng = np.random.default_rng(step)

    def draw():
        return {"kernel": rng.standard_normal((40, 25)).astype(np.float32)}

    state = TrainState(
        step=jnp.int32(step),
        params=draw(),
        ema={"decay_0.9": draw(), "decay_0.99": draw()},
        opt_state={"mu": draw()},
        rng=jax.random.key(step),
        loss_scale=None,
    )
    return jax.tree.map(jnp.asarray, state)


def abstract_state():
    """Its shapes, on the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: small_state(1))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
    )


def write_steps(workdir, steps, keep=100, losses=()):
    """Writes small states as checkpoints."""
    losses = dict(losses)
    with checkpoint.open_checkpoints(workdir, keep=keep) as manager:
        for step in steps:
            checkpoint.save(manager, small_state(step), METADATA, losses.get(step))


def write_old_steps(workdir, steps):
    """Writes small states as earlier versions did: by Orbax's CheckpointManager, without checksums."""
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["validation_loss"], best_mode="min"
    )
    names = ("ema", "state", "metadata")
    with ocp.CheckpointManager(
        (workdir / "checkpoints").resolve(), options=options, item_names=names
    ) as manager:
        for step in steps:
            state = small_state(step)
            items = ocp.args.Composite(
                ema=ocp.args.StandardSave(state.ema),
                state=ocp.args.StandardSave(checkpoint.to_dict(state.replace(ema=None))),
                metadata=ocp.args.JsonSave(METADATA),
            )
            manager.save(step, args=items, metrics={"validation_loss": 1.0 / step})


def words(state):
    """All arrays of a state, the key as its words."""
    return jax.device_get(state.replace(rng=jax.random.key_data(state.rng)))


def assert_same(a, b):
    """Raises unless two states are the same to the bit."""
    jax.tree.map(np.testing.assert_array_equal, words(a), words(b))


def read_ema(workdir, step=None):
    """(step, kernel of the first average), as sampling reads it."""

    def read(number, metadata):
        assert metadata == METADATA
        with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
            params = abstract_state().params
            return number, checkpoint.restore_ema(manager, params, "decay_0.9", number)[0]["kernel"]

    return checkpoint.read_newest(workdir, step, read)
