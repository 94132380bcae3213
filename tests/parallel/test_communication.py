"""The lower bound on sent bytes, against sums by hand and against compiled steps."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import collectives, communication, hlo
from videogen_jax.parallel.mesh import make_mesh
from videogen_jax.train import training_run


def params(mesh):
    def leaf(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    return {"a": leaf((8, 6), ("fsdp", "seq"), "tensor"), "b": leaf((10,))}


COMMON = {"width": 16, "depth": 4, "branches": 12, "item_bytes": 2, "accumulation": 1}
COMMON["residual_bytes"] = 2


@pytest.mark.parametrize(
    ("mesh", "attention", "expected"),
    [
        ({}, "factorized", 0),
        # 48 elements of 2 bytes: two all-gathers and a reduce-scatter in halves; 10 in an all-reduce.
        ({"fsdp": 2}, "factorized", 3 * 48 + 2 * 10),
        ({"data": 2}, "factorized", 96 + 2 * 10),
        # 100 tokens of hidden size 16 on two devices; two pairs of blocks.
        ({"seq": 2}, "factorized", 3 * 48 + 20 + 8 * 0.5 * 50 * 32),
        ({"seq": 2}, "joint", 3 * 48 + 20 + 32 * 0.5 * 50 * 32),
        ({"tensor": 2}, "factorized", 12 * 4 * 0.5 * 100 * 32),
        ({"data": 2, "fsdp": 2}, "factorized", 3 * 48 + 2 * 0.5 * 48 + 2 * 0.75 * 20),
    ],
)
def test_the_bound_is_the_sum_of_its_parts(mesh, attention, expected):
    mesh = make_mesh(**mesh)
    got = communication.min_sent_bytes(
        params(mesh), mesh.shape, tokens=100, attention=attention, **COMMON
    )
    assert got == expected


def test_frozen_parameters_are_gathered_and_have_no_gradients_to_reduce():
    mesh = make_mesh(data=2, fsdp=2)
    options = COMMON | {"attention": "factorized", "tokens": 100}
    none = jax.tree.map(lambda leaf: None, params(mesh))
    got = communication.min_sent_bytes(none, mesh.shape, frozen=params(mesh), **options)
    assert got == 2 * 48  # in the forward and the backward pass


def test_a_residual_stream_in_float32_doubles_what_goes_around_temporal_blocks():
    mesh = make_mesh(seq=2)
    options = COMMON | {"residual_bytes": 4, "attention": "factorized", "tokens": 100}
    got = communication.min_sent_bytes(params(mesh), mesh.shape, **options)
    assert got == 3 * 48 + 20 + 8 * 0.5 * 50 * 64


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("attention", ["factorized", "joint"])
def test_a_compiled_step_makes_the_expected_all_to_alls(attention, offload):
    """With rematerialization, joint blocks repeat their all-to-alls and factorized ones do not."""
    config = tiny_config()
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 2, "tensor": 1})
    config.model.update({"attention": attention, "depth": 4, "cross_attention": "gated"})
    config.batch_size = 2
    config.memory.update({"remat": "block", "offload_activations": offload})
    run = make_run(config)
    text = training_run.trace_step(run).lower().compile().as_text()
    tokens = 2 * 4 * 4 // 2  # of two clips, per device
    x = tokens * 12 * 4 // 2  # float32 bytes sent to the other device
    all_to_alls = {"factorized": 4 * 2, "joint": 8 * 4}[attention]
    sent = collectives.count_sent_bytes(hlo.parse(text), 2)
    again = {"factorized": 0, "joint": 4 * 4}[attention]  # inside the block
    assert sent["all-to-all"] == (all_to_alls + again) * x


@pytest.mark.parametrize("mesh", [{"seq": 2}, {"fsdp": 2}], ids=str)
def test_pieces_do_not_gather_parameters_again(mesh):
    """Weights, with the modulation of one clip a device in them, are gathered before the loop over pieces."""

    def gathered(pieces):
        config = tiny_config()
        config.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "tensor": 1} | mesh)
        config.memory.update({"remat": "block", "pieces": pieces})
        config.batch_size = mesh.get("fsdp", 1)
        text = training_run.trace_step(make_run(config)).lower().compile().as_text()
        return collectives.count_sent_bytes(hlo.parse(text), 2)["all-gather"]

    assert gathered(2) <= 1.1 * gathered(1)
