"""Blocks whose inputs wait on the host: JAX's own gradient of a plain loop, and what is copied and repeated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from tests.models.test_dit import inputs, make_model, random_params
from videogen_jax.models import lora
from videogen_jax.models.offloaded_scan import Stage, scan_offloaded

pytestmark = pytest.mark.slow

GROUPS, SHAPE = 4, (2, 3, 5, 4)


def make_stages():
    """Two blocks that are not linear, with a table that is added in group 0 and a transposition around the second."""

    def first(params, h, shared, constants):
        return h + jnp.tanh(h @ params["w"] + shared["a"]) * constants["count"]

    def second(params, h, shared, constants):
        return h * jax.nn.sigmoid(params["v"] * shared["b"]) + jnp.sin(h) * shared["a"]

    def enter(x, index, constants):
        return jnp.swapaxes(x + jnp.where(index == 0, constants["table"], 0).astype(x.dtype), 1, 2)

    return [
        Stage("first", lambda x, index, constants: x, first, lambda y: y),
        Stage("second", enter, second, lambda y: jnp.swapaxes(y, 1, 2)),
    ]


def arguments(dtype):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    params = {"first": {"w": draw(GROUPS, 4, 4)}, "second": {"v": draw(GROUPS, 4)}}
    shared = {"a": draw(4), "b": draw(4), "none": None}
    return params, draw(*SHAPE), shared, {"count": jnp.int32(2), "table": draw(1, 1, 4)}


def run_plainly(stages, params, x, shared, constants):
    for index in range(GROUPS):
        for stage in stages:
            own = jax.tree.map(lambda leaf, index=index: leaf[index], params[stage.name])
            h = stage.enter(x, jnp.int32(index), constants)
            x = stage.leave(stage.block(own, h, shared, constants))
    return x


def differentiate(run, params, x, shared, constants):
    def loss(params, x, shared):
        return jnp.sum(jnp.sin(run(params, x, shared, constants).astype(jnp.float32)))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(params, x, shared)


@pytest.mark.parametrize("count", [1, 2])
def test_value_and_gradients_are_those_of_a_plain_loop(count):
    stages, args = make_stages()[-count:], arguments(jnp.float32)
    args = ({stage.name: args[0][stage.name] for stage in stages}, *args[1:])
    got = differentiate(lambda *args: scan_offloaded(stages, *args), *args)
    wanted = differentiate(lambda *args: run_plainly(stages, *args), *args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def test_bfloat16_errs_no_more_than_the_plain_loop():
    stages, args = make_stages(), arguments(jnp.bfloat16)
    single = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, args
    )
    exact = differentiate(lambda *args: run_plainly(stages, *args), *single)
    rough = differentiate(lambda *args: run_plainly(stages, *args), *args)
    got = differentiate(lambda *args: scan_offloaded(stages, *args), *args)
    for a, b, c in zip(*map(jax.tree.leaves, (got, rough, exact)), strict=True):
        assert a.dtype == b.dtype
        errors = [np.linalg.norm(np.float32(leaf) - c) for leaf in (a, b)]
        assert errors[0] < 1.5 * errors[1] + 0.004 * np.linalg.norm(c)


def list_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation, jaxpr
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from list_equations(inner)


def test_each_input_is_stored_once_and_fetched_while_another_block_is_differentiated():
    """In the loop, what is fetched goes through the barrier behind another gradient, and no other way."""
    stages, (params, x, shared, constants) = make_stages(), arguments(jnp.float32)
    loss = lambda params: jnp.sum(scan_offloaded(stages, params, x, shared, constants))  # noqa: E731
    found = list(list_equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    spaces = [
        (equation, jaxpr, equation.outvars[0].aval.memory_space)
        for equation, jaxpr in found
        if equation.primitive.name == "device_put"
    ]
    assert sum(space == jax.memory.Space.Host for *_, space in spaces) == 2
    fetches = [
        (equation, jaxpr) for equation, jaxpr, space in spaces if space != jax.memory.Space.Host
    ]
    assert len(fetches) == 3  # one before the loop
    for equation, jaxpr in fetches[1:]:
        users = [user for user in jaxpr.eqns if equation.outvars[0] in user.invars]
        assert [user.primitive.name for user in users] == ["optimization_barrier"]
        assert len(users[0].invars) > 4
    scans = [equation for equation, _ in found if equation.primitive.name == "scan"]
    stacked = [var.aval for scan in scans for var in scan.outvars if var.aval.ndim == 5]
    assert len(stacked) == 2 and {aval.memory_space for aval in stacked} == {jax.memory.Space.Host}


MODELS = {
    "adaLN-Zero": {"depth": 4},
    "latte": {"depth": 4, "positions": "latte", "cross_attention": "none"},
    "PixArt": {"depth": 4, "modulation": "adaln_single", "cross_attention": "pixart"},
    "joint": {"depth": 3, "attention": "joint", "positions": "rope"},
}


@pytest.mark.parametrize("name", [*MODELS, "image", "LoRA"])
def test_the_transformer_has_the_same_loss_and_gradients(name):
    changes = MODELS.get(name, {"depth": 4})
    x, *rest = inputs()
    args = (x[:, :1] if name == "image" else x, *rest)
    options = lora.LoRA(2, 0.5, (".*",)) if name == "LoRA" else None
    plain, offloaded = make_model(**changes), make_model(remat="block", offload=True, **changes)
    init = lora.adapt(plain.init, options)
    params = randomise(jax.eval_shape(init, jax.random.key(0), *inputs())["params"], 0.3)
    results = []
    for model in (plain, offloaded):
        apply = lora.adapt(model.apply, options)

        def loss(params, apply=apply):
            return jnp.mean(jnp.square(apply({"params": params}, *args) - 1))

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-6)
    size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(results[0][1])))
    for got, wanted in zip(*(jax.tree.leaves(grads) for _, grads in results[::-1]), strict=True):
        assert np.linalg.norm(got - wanted) < 1e-6 * size


def test_frozen_parameters_cost_no_products():
    params, args = random_params(depth=4), inputs()
    model = make_model(depth=4, remat="block", offload=True)

    def loss(blocks):
        trained = params | {"blocks": params["blocks"] | blocks}
        return jnp.mean(jnp.square(model.apply({"params": trained}, *args)))

    counts = []
    for kinds in (("temporal",), ("spatial", "temporal")):
        trained = {kind: params["blocks"][kind] for kind in kinds}
        equations = list_equations(jax.make_jaxpr(jax.grad(loss))(trained).jaxpr)
        counts.append(sum(one.primitive.name == "dot_general" for one, _ in equations))
    layers = 1 + 2 + 3 + 2  # modulation, self-attention, cross-attention, MLP
    assert counts[1] - counts[0] >= layers
