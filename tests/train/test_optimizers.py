"""Learning rate against its closed form; optimizers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import mesh as meshes
from videogen_jax.train import optimizers, training_run

pytestmark = pytest.mark.slow


def test_learning_rate_is_a_line_and_then_a_cosine():
    rate = optimizers.make_learning_rate(2.0, warmup_steps=10, steps=110, final_fraction=0.1)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(5)), 1.0, rtol=1e-6)
    for step in (10, 35, 60, 110):
        expected = 0.2 + 1.8 * (1 + np.cos(np.pi * (step - 10) / 100)) / 2
        np.testing.assert_allclose(float(rate(step)), expected, rtol=1e-5)


def test_a_final_fraction_of_one_is_a_constant_rate():
    rate = optimizers.make_learning_rate(2.0, warmup_steps=10, steps=110, final_fraction=1.0)
    np.testing.assert_allclose([rate(step) for step in (10, 35, 110, 200)], 2.0, rtol=1e-6)


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps of 100 is not below train\.steps of 100"):
        optimizers.make_learning_rate(1.0, warmup_steps=100, steps=100, final_fraction=0.1)


def test_unknown_optimizer_lists_the_known():
    with pytest.raises(ValueError, match="'sgd': choose one of adamw, adafactor, lion, muon, sch"):
        optimizers.make_optimizer("sgd", lambda step: 1e-3)
    with pytest.raises(ValueError, match="mu_dtype 'float8': choose one of float32, bfloat16"):
        optimizers.make_optimizer("adamw", lambda step: 1e-3, mu_dtype="float8")


def test_adamw_clips_and_decays_matrices_alone():
    params = {"layer": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 10.0), params)
    tx = optimizers.make_optimizer("adamw", lambda step: 0.1, b1=0.9, b2=0.99, weight_decay=0.5)
    updates, _ = tx.update(grads, tx.init(params), params)
    # Adam's first step is -lr * g / (|g| + 1e-8), whatever the size of g; decay adds -lr * wd * p.
    norm = np.sqrt(6 * 10.0**2)
    step = -0.1 * (10 / norm) / (10 / norm + 1e-8)
    np.testing.assert_allclose(updates["layer"]["bias"], step, rtol=1e-5)
    np.testing.assert_allclose(updates["layer"]["kernel"], step - 0.1 * 0.5 * 3.0, rtol=1e-5)


def test_muon_turns_each_block_matrix_into_a_nearly_orthogonal_update():
    config = tiny_config()
    config.optimizer.name = "muon"
    config.optimizer.weight_decay = 0.0
    run = make_run(config)
    params = jax.jit(run.init)().params
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
    update = jax.jit(run.optimizer.update)
    _, state = update(grads, jax.jit(run.optimizer.init)(params), params)  # the rate of step 0 is 0
    updates, _ = update(grads, state, params)
    width = config.model.width
    qkv = np.asarray(updates["blocks"]["spatial"]["attention"]["qkv"]["kernel"][0], np.float64)
    for i in range(3):
        singular = np.linalg.svd(qkv[:, i].reshape(width, width), compute_uv=False)
        assert singular.max() / np.median(singular) < 2
    up = np.asarray(updates["blocks"]["temporal"]["mlp"]["up"]["kernel"][0], np.float64)
    singular = np.linalg.svd(up, compute_uv=False)
    assert singular.max() / singular.min() < 2
    raw = np.linalg.svd(grads["blocks"]["temporal"]["mlp"]["up"]["kernel"][0], compute_uv=False)
    assert raw.max() / raw.min() > 2  # the gradient itself was not


PEAK, B1, B2, DECAY = 0.03, 0.9, 0.95, 0.1
SHAPES = {"adafactor": (40, 33), "muon": (2, 6, 4)}  # factored from 32 on; stacked layers


def rate(step):
    """Of a warm-up over three steps."""
    return PEAK * np.minimum(1.0, (step + 1) / 3)


def descend(name, steps=6, b1=B1, b2=B2, mu_dtype="float32"):
    """Parameters at each step on noisy slopes, the slopes, and the last state. Clipping never bites."""
    rng = np.random.default_rng(1)
    shape = SHAPES.get(name, (4, 3))
    params = {"blocks": {"up": {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)}}}
    tx = optimizers.make_optimizer(
        name,
        lambda step: PEAK * jnp.minimum(1.0, (step + 1) / 3),
        b1=b1,
        b2=b2,
        weight_decay=DECAY,
        clip_norm=1e6,
        mu_dtype=mu_dtype,
    )
    state = tx.init(params)
    update = jax.jit(tx.update)
    path, slopes, averages = [np.float64(params["blocks"]["up"]["kernel"])], [], []
    for _ in range(steps):
        slope = path[-1] + 0.5 * rng.standard_normal(shape)
        grads = {"blocks": {"up": {"kernel": jnp.asarray(slope, jnp.float32)}}}
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        average = optimizers.evaluation_params(state, params)
        path.append(np.float64(params["blocks"]["up"]["kernel"]))
        slopes.append(np.float64(grads["blocks"]["up"]["kernel"]))
        averages.append(np.float64(average["blocks"]["up"]["kernel"]))
    return path, slopes, averages, state


def adamw(p, slopes, b1=B1, b2=B2):
    """arXiv:1711.05101, algorithm 2."""
    m = v = 0.0
    for t, g in enumerate(slopes, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        p = p - rate(t - 1) * (step + DECAY * p)
        yield p


def lion(p, slopes, b1=B1, b2=B2):
    """arXiv:2302.06675, algorithm 2."""
    m = 0.0
    for t, g in enumerate(slopes, 1):
        step = np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        p = p - rate(t - 1) * (step + DECAY * p)
        yield p


def adafactor(p, slopes, b1=B1, b2=B2):
    """arXiv:1804.04235, algorithm 4 with section 7's decay up to b2, and a momentum."""
    m, rows, columns = 0.0, 0.0, 0.0
    for t, g in enumerate(slopes, 1):
        decay = min(1 - t**-0.8, b2)
        rows = decay * rows + (1 - decay) * (g**2 + 1e-30).mean(1)
        columns = decay * columns + (1 - decay) * (g**2 + 1e-30).mean(0)
        step = g / np.sqrt(np.outer(rows, columns) / rows.mean())
        step /= max(1.0, np.sqrt(np.mean(step**2)))
        m = b1 * m + (1 - b1) * step
        p = p - rate(t - 1) * (m + DECAY * p)
        yield p


def muon(p, slopes, b1=B1, b2=B2):
    """arXiv:2502.16982, section 2, with the bias correction of optax: Nesterov's momentum as in NAdam."""
    m = 0.0
    for t, g in enumerate(slopes, 1):
        m = b1 * m + (1 - b1) * g
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        steps = []
        for x in ahead:  # a layer each
            x = x / np.linalg.norm(x)
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
            steps.append(x * 0.2 * np.sqrt(max(x.shape)))
        p = p - rate(t - 1) * (np.stack(steps) + DECAY * p)
        yield p


def schedule_free_pairs(p, slopes, b1=B1, b2=B2):
    """arXiv:2405.15682, algorithm 1 (AdamW); yields y, the parameters, and x, their average."""
    y = z = x = p
    v = total = 0.0
    for t, g in enumerate(slopes, 1):
        v = b2 * v + (1 - b2) * g**2
        z = z - rate(t - 1) * (g / (np.sqrt(v / (1 - b2**t)) + 1e-8) + DECAY * y)
        total += rate(t - 1) ** 2
        share = rate(t - 1) ** 2 / total
        x = (1 - share) * x + share * z
        y = (1 - b1) * z + b1 * x
        yield y, x


def schedule_free(p, slopes, b1=B1, b2=B2):
    for y, _ in schedule_free_pairs(p, slopes, b1, b2):
        yield y


@pytest.mark.parametrize("paper", [adamw, lion, adafactor, muon, schedule_free])
@pytest.mark.parametrize("b2", [0.5, 0.95])
def test_optimizers_are_those_of_their_papers(paper, b2):
    path, slopes, _, _ = descend(paper.__name__, b2=b2)
    for ours, expected in zip(path[1:], paper(path[0], slopes, b2=b2), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def test_schedule_free_is_evaluated_at_its_average():
    path, slopes, averages, _ = descend("schedule_free")
    pairs = schedule_free_pairs(path[0], slopes)
    for ours, (_, expected) in zip(averages, pairs, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)
    assert np.abs(averages[-1] - path[-1]).max() > 1e-4


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_the_parameters_of_all_others_are_evaluated_as_they_are(name):
    path, _, averages, _ = descend(name, steps=2)
    np.testing.assert_array_equal(averages[-1], path[-1])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_a_bfloat16_moment_is_half_as_large_and_nearly_as_good(name):
    exact, _, _, full = descend(name)
    rough, _, _, half = descend(name, mu_dtype="bfloat16")
    kinds = [leaf.dtype for leaf in jax.tree.leaves(half) if leaf.shape == exact[0].shape]
    assert kinds.count(jnp.bfloat16) == 1
    assert jnp.bfloat16 not in [leaf.dtype for leaf in jax.tree.leaves(full)]
    moved = np.abs(exact[-1] - exact[0]).max()
    assert np.abs(rough[-1] - exact[-1]).max() < 0.05 * moved


def test_adafactor_without_momentum_keeps_none():
    path, slopes, _, state = descend("adafactor", b1=0.0)
    for ours, expected in zip(path[1:], adafactor(path[0], slopes, b1=0.0), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)
    assert path[0].shape not in [leaf.shape for leaf in jax.tree.leaves(state)]


def test_adafactor_factors_the_matrices_of_attention_too():
    """Beside the momentum there is a row and a column for each head, and not a number for each parameter."""
    shapes = {"qkv": (2, 256, 3, 4, 64), "out": (2, 4, 64, 256), "up": (2, 256, 1024)}
    params = {
        "blocks": {
            name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
            for name, shape in shapes.items()
        }
    }
    tx = optimizers.make_optimizer("adafactor", lambda step: 1e-3, b1=0.0)
    kept = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params)))
    assert kept < sum(np.prod(shape) for shape in shapes.values()) / 40


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_is_on_matrices_alone(name):
    """Without slopes matrices shrink by the learning rate times the decay, and nothing else moves."""
    leaf = jnp.full((2, 4, 4), 3.0)
    params = {
        "blocks": {
            "up": {"kernel": leaf, "bias": leaf[0], "lora_a": leaf, "lora_b": leaf},
            "modulation": {"kernel": leaf},
            "query_norm": {"scale": leaf[0]},
            "text_gate": leaf[0],
            "scale_shift_table": leaf,
        },
        "words": {"embedding": leaf[0]},
    }
    tx = optimizers.make_optimizer(name, lambda step: 0.1, weight_decay=0.5)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        shrinks = path[-1].key in ("kernel", "embedding", "lora_a", "lora_b")
        np.testing.assert_allclose(update, -0.1 * 0.5 * 3 if shrinks else 0.0, atol=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_descends_on_a_quadratic(name):
    rng = np.random.default_rng(2)
    goal = {
        "blocks": {"up": {"kernel": rng.standard_normal((2, 8, 6)), "bias": np.ones((2, 6))}},
        "head": {"kernel": rng.standard_normal((6, 3))},
    }
    goal = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), goal)
    tx = optimizers.make_optimizer(name, lambda step: 0.03, b2=0.99)

    def distance(params):
        squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, goal)
        return sum(jax.tree.leaves(squares))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(distance)(params), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    start = jax.tree.map(jnp.zeros_like, goal)
    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), length=300)
    assert distance(optimizers.evaluation_params(state, params)) < 0.05 * distance(start)


@pytest.mark.parametrize("layers", [1, 3])
def test_muon_takes_every_matrix_of_the_blocks_as_width_by_width_or_its_multiple(layers):
    """All kernels that blocks have: heads are put together, queries, keys and values and layers are not."""
    width, heads = 12, (4, 3)
    shapes = {
        "qkv": (layers, width, 3, *heads),
        "key_value": (layers, width, 2, *heads),
        "query": (layers, width, *heads),
        "out": (layers, *heads, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
        "modulation": (layers, width, 6 * width),
    }
    block = {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}
    block["text_gate"] = jnp.zeros((layers, width))
    block["scale_shift_table"] = jnp.zeros((layers, 6, width))
    block["query_norm"] = {"scale": jnp.zeros((layers, 3))}
    kinds = {kind: block for kind in ("spatial", "temporal", "joint")}
    params = {"blocks": kinds, "patch_embed": {"kernel": jnp.zeros((8, width))}}
    axes = optimizers.muon_axes(params)
    for kind in kinds:
        for name in set(shapes) - {"modulation"}:
            found = axes["blocks"][kind][name]["kernel"]
            sides = [
                np.prod([shapes[name][i] for i in side])
                for side in (found.reduction_axis, found.output_axis)
            ]
            expected = {"up": [width, 4 * width], "down": [4 * width, width]}
            assert sides == expected.get(name, [width, width])
        assert axes["blocks"][kind]["modulation"]["kernel"] is None
        assert axes["blocks"][kind]["text_gate"] is None
        assert axes["blocks"][kind]["scale_shift_table"] is None
        assert axes["blocks"][kind]["query_norm"]["scale"] is None
    assert axes["patch_embed"]["kernel"] is None


def test_muon_makes_a_convolution_orthogonal_as_the_matrix_of_what_it_sees():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 6)).astype(np.float32)
    kernel *= np.arange(1, 7, dtype=np.float32)  # far from orthogonal
    params = {
        "encoder": {
            "block_0_0": {"spatial": {"kernel": kernel}, "norm": {"scale": kernel[0, 0, 0]}}
        }
    }
    axes = optimizers.muon_axes(params)["encoder"]["block_0_0"]
    assert axes["norm"]["scale"] is None
    tx = optimizers.make_optimizer("muon", lambda step: 1.0, weight_decay=0.0)
    updates, _ = tx.update(params, tx.init(params), params)
    matrix = np.asarray(updates["encoder"]["block_0_0"]["spatial"]["kernel"]).reshape(36, 6)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert values.max() / values.min() < 2
    before = np.linalg.svd(kernel.reshape(36, 6), compute_uv=False)
    assert before.max() / before.min() > 4
    assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2, rel=0.2)


def test_schedule_free_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="lost in bfloat16"):
        optimizers.make_optimizer("schedule_free", lambda step: 1e-3, mu_dtype="bfloat16")
    with pytest.raises(ValueError, match="b1 is 0"):
        optimizers.make_optimizer("schedule_free", lambda step: 1e-3, b1=0)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_trains_the_model_sharded(name):
    config = tiny_config()
    config.optimizer.name = name
    config.learning_rate.final_fraction = 1.0
    run = make_run(config)
    state = jax.jit(run.init, out_shardings=run.shardings)()
    step = training_run.compile_step(run)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (config.batch_size, *run.model.video_shape), np.uint8),
        "text": np.full((config.batch_size, config.text.length), 4, np.int32),
    }
    losses = []
    for _ in range(8):
        state, values = step(state, meshes.put_batch(run.mesh, batch))
        losses.append(float(values["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[1]
