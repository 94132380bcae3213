"""Sequence parallelism: the all-to-alls, and one device against many on every mesh axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import collectives, hlo
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.sequence_parallel import TokenSharding, check_token_grid
from videogen_jax.train import diffusion_run

pytestmark = pytest.mark.slow

MESHES = [
    {"seq": 2},
    {"seq": 8},
    {"tensor": 4},
    {"fsdp": 8},
    {"data": 2, "seq": 4},
    {"fsdp": 2, "seq": 2, "tensor": 2},
]


def config_of(attention, **mesh):
    """8 frames of 16 tokens and 8 heads, all of which divide by eight devices."""
    config = tiny_config()
    config.batch_size = 8
    config.data.update({"frames": 8, "height": 16, "width": 16})
    config.model.update({"width": 48, "num_heads": 8, "attention": attention})
    config.model.update({"cross_attention": "gated", "text_depth": 1, "positions": "rope"})
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "tensor": 1} | mesh)
    return config


def gradient_of(config):
    """Loss and gradients of fixed clips at random parameters, on the host; and the compiled program."""
    run = make_run(config)
    params = jax.device_put(randomise(run.abstract.params, 0.2), run.shardings.params)
    rng = np.random.default_rng(0)
    batch = meshes.put_batch(
        run.mesh,
        {
            "video": rng.integers(0, 256, (config.batch_size, *run.model.video_shape), np.uint8),
            "text": rng.integers(3, 9, (config.batch_size, config.text.length)).astype(np.int32),
        },
    )
    loss = jax.value_and_grad(diffusion_run.make_run_loss(run.model, dropout=False))
    compiled = jax.jit(loss).lower(params, batch, jax.random.key(0)).compile()
    value, grads = compiled(params, batch, jax.random.key(0))
    return float(value), jax.device_get(grads), compiled


@pytest.fixture(scope="module", params=["factorized", "joint"])
def one_device(request):
    return request.param, gradient_of(config_of(request.param))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_many_devices_agree_with_one_in_loss_and_gradients(mesh, one_device):
    attention, (value, grads, _) = one_device
    got_value, got_grads, compiled = gradient_of(config_of(attention, **mesh))
    assert got_value == pytest.approx(value, rel=2e-6)
    for got, expected in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads), strict=True):
        scale = np.abs(expected).max() + 1e-6
        np.testing.assert_allclose(got / scale, expected / scale, atol=5e-5)
    if "seq" in mesh:
        assert "all-to-all" in compiled.as_text()


def test_one_clip_is_sharded_over_two_devices():
    """Each has half of the frames and half of the parameters."""
    config = config_of("factorized", seq=2)
    config.batch_size = 1
    assert meshes.batch_parts(meshes.make_mesh(**config.mesh)) == 1
    _, _, compiled = gradient_of(config)
    text = compiled.as_text()
    assert "f32[1,4,16,48]" in text and "f32[1,8,8,48]" in text  # 4 of 8 frames, 8 of 16 tokens
    assert "f32[1,8,16,48]" not in text


@pytest.fixture(scope="module")
def one_clip():
    config = config_of("factorized")
    config.batch_size = 1
    return gradient_of(config)


@pytest.mark.parametrize("mesh", [{"seq": 2}, {"seq": 4}, {"tensor": 2}], ids=str)
def test_one_clip_on_many_devices_agrees_with_one(mesh, one_clip):
    """Its modulation is part of the weights, whose inputs are sharded over `seq` and whose heads are over `tensor`."""
    config = config_of("factorized", **mesh)
    config.batch_size = 1
    value, grads, compiled = gradient_of(config)
    assert value == pytest.approx(one_clip[0], rel=2e-6)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(one_clip[1]), strict=True):
        scale = np.abs(expected).max() + 1e-6
        np.testing.assert_allclose(got / scale, expected / scale, atol=5e-5)
    if "tensor" in mesh:  # heads stay where they are: only partial sums are exchanged
        assert set(collectives.count_sent_bytes(hlo.parse(compiled.as_text()), 2)) == {"all-reduce"}


def test_all_to_alls_switch_between_frames_and_space():
    token_sharding = TokenSharding(meshes.make_mesh(fsdp=2, seq=4))
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    over_space = jax.jit(token_sharding.frames_to_space)(x)
    np.testing.assert_array_equal(over_space, x)
    assert over_space.sharding.shard_shape(x.shape) == (1, 8, 3, 3)
    back = jax.jit(token_sharding.space_to_frames)(over_space)
    np.testing.assert_array_equal(back, x)
    assert back.sharding.shard_shape(x.shape) == (1, 2, 12, 3)


def test_without_sequence_parallelism_resharding_is_the_identity():
    token_sharding = TokenSharding(meshes.make_mesh(fsdp=2))
    x = jnp.zeros((1, 3, 5, 2))
    assert token_sharding.frames_to_space(x) is x and token_sharding.space_to_frames(x) is x


@pytest.mark.parametrize(
    ("mesh", "attention", "message"),
    [
        ({"seq": 4}, "factorized", "6 latent frames do not divide by mesh.seq=4"),
        ({"seq": 2}, "factorized", "15 tokens of a frame do not divide by mesh.seq=2"),
        ({"tensor": 4}, "factorized", "6 heads do not divide by mesh.tensor=4"),
        ({"seq": 2, "tensor": 2}, "joint", "6 heads do not divide by mesh.seq times mesh.tensor=4"),
    ],
)
def test_sizes_that_do_not_divide_are_rejected(mesh, attention, message):
    with pytest.raises(ValueError, match=message):
        check_token_grid(meshes.make_mesh(**mesh), (6, 3, 5), attention, num_heads=6)
