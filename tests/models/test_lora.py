"""LoRA's update: against its formula, against peft, merged and beside the frozen layer."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from tests.models.test_dit import make_model
from videogen_jax.models import linear, lora
from videogen_jax.models.parameter_paths import list_paths

RANK, SCALE = 2, 1.5


class Layers(nn.Module):
    """Input and output of several axes, as attention has them."""

    @nn.compact
    def __call__(self, x):
        value = linear.split(linear.Linear((3, 2, 4), name="qkv")(6))[2]
        x = linear.multiply(linear.fold(value, jnp.float32), x)
        out = linear.Linear((6,), name="out")(2, 4)
        return linear.multiply(linear.fold(out, jnp.float32), x)


class Stack(nn.Module):
    """Two of them under `nn.scan`, as the blocks are."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(5, name="last")(scan(name="blocks")(x, None)[0])


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Layers(name="inner")(x), None


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def make_stack(*layers):
    """(shapes of the parameters, function of parameters and input)."""
    options = lora.LoRA(RANK, SCALE, layers)
    x = jax.ShapeDtypeStruct((3, 6), jnp.float32)
    shapes = jax.eval_shape(lora.adapt(Stack().init, options), jax.random.key(0), x)["params"]
    return shapes, lambda params, x: lora.adapt(Stack().apply, options)({"params": params}, x)


def test_the_update_is_its_formula_layer_by_layer():
    shapes, apply = make_stack("qkv", "inner/out")
    tree = randomise(shapes)
    inner = jax.tree.map(np.float64, tree["blocks"]["inner"])
    x = y = normal(3, 6)
    for i in range(2):
        for name, outputs in (("qkv", (3, 8)), ("out", (6,))):
            layer = {key: leaf[i] for key, leaf in inner[name].items()}
            size = y.shape[-1]
            kernel = layer["kernel"].reshape(size, -1)
            update = layer["lora_a"].reshape(size, RANK) @ layer["lora_b"].reshape(RANK, -1)
            y = y @ (kernel + SCALE * update) + layer["bias"].ravel()
            y = y.reshape(3, *outputs)[:, 2] if name == "qkv" else y
    y = y @ np.float64(tree["last"]["kernel"]) + tree["last"]["bias"]
    found = jax.jit(apply)(tree, np.float32(x))
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-4)
    merged = Stack().apply({"params": lora.merge(tree, SCALE)}, np.float32(x))
    np.testing.assert_allclose(merged, y, rtol=1e-4, atol=1e-4)


def test_updates_are_where_the_patterns_say_and_nowhere_outside_the_blocks():
    def adapted(*layers):
        paths = list_paths(make_stack(*layers)[0])
        return [path for path in paths if lora.is_adapter(path)]

    qkv = ["blocks/inner/qkv/lora_a", "blocks/inner/qkv/lora_b"]
    assert adapted("qkv") == qkv
    assert adapted(".*") == ["blocks/inner/out/lora_a", "blocks/inner/out/lora_b", *qkv]
    shapes = make_stack("qkv")[0]["blocks"]["inner"]["qkv"]
    assert shapes["lora_a"].shape == (2, 6, RANK) and shapes["lora_b"].shape == (2, RANK, 3, 2, 4)


def test_the_first_factor_is_uniform_and_the_second_zero():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linear.Linear((40,), name="out")(8, 50)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Wide(name="blocks")(x)

    init = lora.adapt(Outer().init, lora.LoRA(32, 1.0, ("out",)))
    params = init(jax.random.key(0), jnp.ones((1, 8, 50)))["params"]["blocks"]["out"]
    values = np.asarray(params["lora_a"])
    assert values.shape == (8, 50, 32) and not params["lora_b"].any()
    assert 0.99 / 20 < np.abs(values).max() <= 1 / 20  # 1 / sqrt(400)
    np.testing.assert_allclose(values.std(), 1 / 20 / 3**0.5, rtol=0.02)
    plain = Outer().init(jax.random.key(0), jnp.ones((1, 8, 50)))["params"]["blocks"]["out"]
    np.testing.assert_array_equal(params["kernel"], plain["kernel"])


def test_a_rank_that_saves_nothing_is_refused():
    options = lora.LoRA(6, 1.0, ("qkv",))
    with pytest.raises(
        ValueError, match=r"rank is 6, but the matrix of blocks/inner/qkv is 6 x 24"
    ):
        lora.adapt(Stack().init, options)(jax.random.key(0), jnp.ones((3, 6)))


def test_output_and_gradients_are_those_of_peft():
    torch = pytest.importorskip("torch", reason="runs peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft", reason="the implementation to compare with")

    class Torch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(6, 24)

        def forward(self, x):
            return self.qkv(x)

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Inner(name="blocks")(x)

    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            weights = linear.Linear((3, 2, 4), name="qkv")(6)
            return linear.multiply(linear.fold(weights, jnp.float32), x)

    settings = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["qkv"])
    layer = peft.get_peft_model(Torch(), settings).base_model.model.qkv
    x, target = np.float32(normal(5, 6)), np.float32(normal(5, 24, seed=1))
    options = lora.LoRA(4, 10 / 4, ("qkv",))
    shapes = jax.eval_shape(lora.adapt(One().init, options), jax.random.key(0), x)["params"]
    tree = randomise(shapes)
    leaves = tree["blocks"]["qkv"]
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.from_numpy(leaves["kernel"].reshape(6, 24).T.copy()))
        layer.base_layer.bias.copy_(torch.from_numpy(leaves["bias"].ravel()))
        layer.lora_A["default"].weight.copy_(torch.from_numpy(leaves["lora_a"].T.copy()))
        layer.lora_B["default"].weight.copy_(
            torch.from_numpy(leaves["lora_b"].reshape(4, 24).T.copy())
        )
    theirs = layer(torch.from_numpy(x))
    torch.sum(theirs * torch.from_numpy(target)).backward()

    def value(params):
        return jnp.sum(
            lora.adapt(One().apply, options)({"params": params}, x).reshape(5, 24) * target
        )

    ours = lora.adapt(One().apply, options)({"params": tree}, x).reshape(5, 24)
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
    grads = jax.grad(value)(tree)["blocks"]["qkv"]
    a, b = (getattr(layer, name)["default"].weight.grad for name in ("lora_A", "lora_B"))
    np.testing.assert_allclose(grads["lora_a"], a.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["lora_b"].reshape(4, 24), b.T, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        ((".*attention/.*",), {"cross_attention": "gated"}),
        ((".*",), {"remat": "block", "pieces": 2, "cross_attention": "pixart"}),
    ],
    ids=["attention", "everything"],
)
def test_the_transformer_merged_equals_unmerged(layers, changes):
    model, options = make_model(**changes), lora.LoRA(8, 0.5, layers)
    text = np.array([[3, 4, 5, 0], [6, 7, 0, 0]], np.int32)
    inputs = np.float32(normal(2, 4, 8, 8, 3)), np.array([100.0, 700.0], np.float32), text
    init = lora.adapt(model.init, options)
    params = randomise(jax.eval_shape(init, jax.random.key(0), *inputs)["params"], 0.2)
    adapted = sum(path.endswith("lora_a") for path in list_paths(params))
    # qkv, out, query, key_value and out of two blocks; or with up, down and modulation, less one cross-attention.
    assert adapted == (10 if len(layers[0]) > 2 else 13)

    @functools.partial(jax.jit, static_argnums=0)
    def run(apply, params):
        return apply({"params": params}, *inputs)

    with jax.default_matmul_precision("highest"):
        unmerged = run(lora.adapt(model.apply, options), params)
        merged = run(model.apply, lora.merge(params, options.scale))
        without = run(model.apply, lora.merge(params, 0.0))
    size = np.abs(merged).max()
    assert np.abs(merged - without).max() > 0.05 * size
    np.testing.assert_allclose(unmerged, merged, atol=1e-5 * size)
