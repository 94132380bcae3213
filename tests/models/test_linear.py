"""Linear layers with modulation in their weights: against float64 NumPy, Flax's layers, and modulated tokens."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import random_params
from tests.models.test_blocks import new_block
from videogen_jax.models import linear, positions
from videogen_jax.parallel.mesh import make_mesh
from videogen_jax.parallel.sequence_parallel import TokenSharding


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((6,), (3, 2, 4)), ((2, 4), (6,)), ((6,), (5,))], ids=str
)
def test_parameters_are_those_of_flax(inputs, outputs):
    """Names, shapes and initial values, on which saved runs and other libraries' layouts rely."""
    axes = tuple(range(-len(inputs), 0))
    key, x = jax.random.key(3), jnp.zeros((1, *inputs))
    theirs = nn.DenseGeneral(outputs, axis=axes, kernel_init=linear.KERNEL_INIT).init(key, x)
    ours = linear.Linear(outputs).init(key, *inputs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("rows", [(), (2,)], ids=["one condition", "a condition per clip"])
@pytest.mark.parametrize("inputs", [(6,), (2, 3)], ids=str)
@pytest.mark.parametrize("lora", [False, True])
def test_folded_weights_are_the_layer_between_its_modulations(rows, inputs, lora):
    """gate * (W ((1 + scale) x + shift) + b) in float64; with LoRA, W + A B."""
    weights = {"kernel": normal(*inputs, 4, 5), "bias": normal(4, 5, seed=1)}
    matrix = np.float64(weights["kernel"]).reshape(6, 20)
    if lora:
        weights |= {"lora_a": normal(*inputs, 2, seed=2), "lora_b": normal(2, 4, 5, seed=3)}
        factors = [np.float64(weights[name]) for name in ("lora_a", "lora_b")]
        matrix = matrix + factors[0].reshape(6, 2) @ factors[1].reshape(2, 20)
    x = normal(2, 3, 7, 6, seed=4)
    shift, scale = normal(*rows, 6, seed=5), normal(*rows, 6, seed=6)
    gate = normal(*rows, 20, seed=7)
    folded = linear.fold(weights, jnp.float32, linear.Modulation(shift, scale, gate))
    got = linear.multiply(folded, x)
    expand = {0: (), 1: (slice(None), None, None)}[len(rows)]
    shift, scale, gate = (np.float64(part)[expand] for part in (shift, scale, gate))
    expected = gate * (((1 + scale) * np.float64(x) + shift) @ matrix + weights["bias"].ravel())
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


def test_parts_of_a_layer_are_those_of_its_output():
    weights = {"kernel": normal(6, 3, 2, 4), "bias": normal(3, 2, 4, seed=1)}
    weights |= {"lora_a": normal(6, 1, seed=2), "lora_b": normal(1, 3, 2, 4, seed=3)}
    x = normal(5, 6, seed=4)
    whole = linear.multiply(linear.fold(weights, jnp.float32), x).reshape(5, 3, 8)
    for i, part in enumerate(linear.split(weights)):
        got = linear.multiply(linear.fold(part, jnp.float32), x)
        np.testing.assert_allclose(got, whole[:, i], atol=1e-5)


@pytest.mark.parametrize(
    ("clips", "times", "mesh", "shape"),
    [
        (1, 1, None, (4,)),
        (2, 1, None, None),  # two clips on a device
        (1, 3, None, None),  # a time per frame
        (1, 1, {"seq": 2}, (4,)),
        (2, 1, {"data": 2, "seq": 2}, (2, 4)),
        (4, 1, {"data": 2, "fsdp": 2}, (4, 4)),
        (4, 1, {"data": 2, "tensor": 2}, None),
        (4, 2, {"fsdp": 4}, None),
    ],
)
def test_weights_are_modulated_where_a_device_has_one_condition(clips, times, mesh, shape):
    part = jnp.arange(clips * times * 4.0).reshape(clips, times, 1, 4)
    modulation = linear.Modulation(part, part + 1, part + 2)
    sharding = None if mesh is None else TokenSharding(make_mesh(**mesh))
    assert linear.place(modulation, sharding, jnp.float16) == (modulation, linear.NO_MODULATION)
    of_tokens, of_weights = linear.place(modulation, sharding, jnp.bfloat16)
    if shape is None:
        assert of_tokens == modulation and of_weights == linear.NO_MODULATION
    else:
        assert of_tokens == linear.NO_MODULATION
        for got, wanted in zip(of_weights, modulation, strict=True):
            np.testing.assert_array_equal(got, wanted.reshape(shape))


def run_block(kind, clips, dtype, pieces=1):
    """Output and gradients of a block for equal clips on one device, of one of the clips, as one vector."""
    block = new_block(kind, dtype=dtype, pieces=pieces)
    x, condition = normal(1, 4, 4, 12), normal(1, 1, 12, seed=1)
    text, lengths = normal(1, 5, 12, seed=2), np.array([3], np.int32)
    coordinates = np.asarray(positions.coordinates((4, 2, 2)))
    params = random_params(block, x, condition, text, lengths, coordinates)
    target = normal(1, 4, 4, 12, seed=3)
    inputs = [np.concatenate([leaf] * clips) for leaf in (x, condition, text, lengths)]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def run(params, x, condition):
        y = block.apply({"params": params}, x, condition, *inputs[2:], coordinates)
        return jnp.sum(y * target), y

    (of_params, *of_inputs), y = run(params, *inputs[:2])
    leaves = [leaf / clips for leaf in jax.tree.leaves(of_params)]
    leaves += [leaf[0] for leaf in (*of_inputs, y)]
    return np.concatenate([np.ravel(leaf) / np.linalg.norm(leaf) for leaf in leaves])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spatial", "temporal", "joint"])
def test_modulated_weights_equal_modulated_tokens_in_output_and_gradients(kind):
    """Two clips on a device modulate the tokens: those of test_blocks.py, held against float64 there."""
    of_tokens = run_block(kind, 2, jnp.float32)
    size = np.linalg.norm(of_tokens)
    for pieces in (1, 2):
        of_weights = run_block(kind, 1, jnp.float32, pieces)
        assert np.linalg.norm(of_weights - of_tokens) < 1e-6 * size
    rounded = [run_block(kind, clips, jnp.bfloat16) - of_tokens for clips in (1, 2)]
    errors = [np.linalg.norm(error) for error in rounded]
    assert 1e-4 * size < errors[0] < 1.5 * errors[1] < 0.05 * size


def test_gates_too_small_for_weights_in_float16_still_count():
    """Their product with gates of 1e-8 would be zero; the residual stream is float32."""
    block = new_block("spatial", dtype=jnp.float16)
    x, condition = 1e-3 * normal(1, 4, 4, 12), normal(1, 1, 12, seed=1)
    text, lengths = normal(1, 5, 12, seed=2), np.array([3], np.int32)
    inputs = (x, condition, text, lengths, np.asarray(positions.coordinates((4, 2, 2))))
    params = random_params(block, *inputs)
    params["modulation"] = jax.tree.map(lambda leaf: 0 * leaf, params["modulation"])  # closed gates
    params["text_gate"] = jnp.full(12, 1e-8, jnp.float32)
    change = np.float64(block.apply({"params": params}, *inputs)) - x
    params["text_gate"] = jnp.full(12, 1.0, jnp.float32)
    wanted = 1e-8 * (np.float64(block.apply({"params": params}, *inputs)) - x)
    assert np.linalg.norm(change - wanted) < 0.2 * np.linalg.norm(wanted)
