"""The train step: accumulation, EMA, loss scale, and one device against two."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run.state import LossScale, compute_dtype, init_state
from videogen_jax.train import diffusion_run, loss, optimizers, step, training_run

pytestmark = pytest.mark.slow


def make_batch(config, seed=0):
    rng = np.random.default_rng(seed)
    data = config.data
    shape = (config.batch_size, data.frames, data.height, data.width, 3)
    return {
        "video": rng.integers(0, 256, shape, np.uint8),
        "text": rng.integers(3, 8, (config.batch_size, config.text.length)).astype(np.int32),
    }


def run_steps(config, count):
    """Trains on random pixels; returns (run, state, losses)."""
    run = make_run(config)
    state = jax.jit(run.init, out_shardings=run.shardings)()
    train_step = training_run.compile_step(run)
    losses = []
    for i in range(count):
        state, values = train_step(state, meshes.put_batch(run.mesh, make_batch(config, i)))
        losses.append(float(values["loss"]))
    return run, state, losses


def test_pixels_to_float_and_back():
    pixels = np.arange(256, dtype=np.uint8)
    video = loss.to_float(jnp.asarray(pixels))
    np.testing.assert_allclose(video, pixels / 255.0 * 2 - 1, atol=1e-6)


def test_accumulated_gradient_is_the_mean_over_all_rows():
    def loss(params, batch, rng, offset):
        return jnp.mean(jnp.square(batch["x"] @ params["w"]))

    x = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    params = {"w": jnp.arange(5.0)}
    # gradient of mean((x w)^2) is 2 x^T (x w) / n
    expected = 2 * x.astype(np.float64).T @ (x.astype(np.float64) @ np.arange(5.0)) / 12
    for parts in (1, 2, 3, 4):
        value, grads = step.accumulate_gradients(
            loss, params, {"x": jnp.asarray(x)}, jax.random.key(0), parts, scale=64.0
        )
        np.testing.assert_allclose(grads["w"], expected, rtol=1e-5)
        np.testing.assert_allclose(value, np.mean((x @ np.arange(5.0)) ** 2), rtol=1e-5)


def test_each_part_of_accumulation_has_its_own_random_numbers():
    def loss(params, batch, rng, offset):
        drawn = jnp.stack([jax.random.normal(rng), offset])
        return jnp.sum(params["w"] * batch["x"].mean(0)[:, None] * drawn)

    # The row of part p selects row p of the gradient.
    params, batch = {"w": jnp.zeros((4, 2))}, {"x": jnp.eye(4)}
    _, grads = step.accumulate_gradients(loss, params, batch, jax.random.key(0), 4, 1.0)
    drawn = 4 * np.asarray(grads["w"])
    assert len(np.unique(drawn[:, 0])) == 4
    np.testing.assert_allclose(np.diff(np.sort(drawn[:, 1])), 1 / 4, rtol=1e-5)


def test_one_device_and_two_agree_for_twenty_steps():
    config = tiny_config()
    config.train.steps = 20
    losses = {}
    for data, fsdp in ((1, 1), (1, 2), (2, 1), (2, 2)):
        config.mesh.data, config.mesh.fsdp = data, fsdp
        losses[data, fsdp] = run_steps(config, 20)[2]
    assert losses[1, 1][-1] < losses[1, 1][0]
    for other in losses.values():
        np.testing.assert_allclose(other, losses[1, 1], rtol=2e-5)


def test_ema_follows_its_warm_up_decay():
    config = tiny_config()
    config.ema.decays = (0.2,)  # the warm-up gives 1/10, 2/11 and 3/12: the third is bounded
    config.learning_rate.warmup_steps = 1
    run = make_run(config)
    state = jax.jit(run.init, out_shardings=run.shardings)()
    train_step = training_run.compile_step(run)
    ema = np.asarray(state.ema["decay_0.2"]["unembed"]["bias"], np.float64)
    for i, decay in enumerate((1 / 10, 2 / 11, 0.2)):
        state, _ = train_step(state, meshes.put_batch(run.mesh, make_batch(config, i)))
        ema = decay * ema + (1 - decay) * np.asarray(state.params["unembed"]["bias"], np.float64)
        np.testing.assert_allclose(
            state.ema["decay_0.2"]["unembed"]["bias"], ema, rtol=1e-5, atol=1e-9
        )
    assert np.abs(ema).max() > 0


def test_dropped_captions_are_the_null_caption():
    config = tiny_config()
    run = make_run(config)
    seen = []

    def apply(params, x_t, t, condition):
        seen.append(condition["text"])
        return x_t

    batch = {name: jnp.asarray(rows) for name, rows in make_batch(config).items()}
    for dropout in (0.0, 1.0):
        model = run.model._replace(apply=apply)
        config.text.dropout = dropout
        diffusion_run.make_run_loss(model)(None, batch, jax.random.key(0))
    np.testing.assert_array_equal(seen[0], batch["text"])
    np.testing.assert_array_equal(
        seen[1], np.broadcast_to(run.model.null_text, batch["text"].shape)
    )


def test_validation_keeps_the_captions():
    config = tiny_config()
    config.text.dropout = 1.0
    run = make_run(config)
    seen = []

    def apply(params, x_t, t, condition):
        seen.append(condition["text"])
        return x_t

    measure = diffusion_run.make_measure(run._replace(model=run.model._replace(apply=apply)))
    batch = {name: jnp.asarray(rows) for name, rows in make_batch(config).items()}
    with jax.disable_jit():  # the noise levels are a loop
        values = measure(None, batch, jax.random.key(0))
    assert len(seen) == 1 + len(values["loss_by_noise_level"])
    for text in seen:
        np.testing.assert_array_equal(text, batch["text"])


@pytest.fixture(scope="module")
def exact():
    """The losses of eight steps in float32."""
    config = tiny_config()
    config.train.steps = 8
    return run_steps(config, 8)[2]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_trains_like_float32(precision, exact):
    config = tiny_config()
    config.train.steps = 8
    config.train.precision = precision
    _, state, losses = run_steps(config, 8)
    np.testing.assert_allclose(losses, exact, rtol=2e-2)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))}
    assert kinds == {jnp.dtype(jnp.float32)}


def test_float16_overflow_changes_nothing_but_the_scale():
    config = tiny_config()
    config.train.precision = "float16"
    run = make_run(config)
    state = jax.jit(run.init, out_shardings=run.shardings)()
    scale = jax.device_put(jnp.float32(np.inf), run.shardings.loss_scale.scale)
    state = state.replace(loss_scale=state.loss_scale.replace(scale=scale))
    before = jax.device_get((state.params, state.ema, state.opt_state))
    state, values = training_run.compile_step(run)(
        state, meshes.put_batch(run.mesh, make_batch(config))
    )
    after = jax.device_get((state.params, state.ema, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert int(state.step) == 1
    assert float(values["loss_scale"]) == 2.0**24  # half of infinity, clamped


def test_the_learning_rate_shown_is_that_of_the_update_where_steps_were_skipped():
    """Lion moves each parameter by the learning rate."""

    def loss(params, batch, rng, offset):
        return jnp.sum(params["w"] * batch["x"])

    rates = optax.piecewise_interpolate_schedule("linear", 1e-3, {8: 9.0})
    optimizer = optimizers.make_optimizer("lion", rates, clip_norm=1e9)
    make = step.make_train_step(loss, optimizer, rates, accumulation=1, ema_decays={})
    take_step = jax.jit(make)
    state = init_state({"w": jnp.zeros(3)}, optimizer.init, (), jax.random.key(0), "float16")
    shown = []
    for number, x in enumerate([1.0, np.inf, np.nan, 1.0, 1.0, np.inf, 1.0]):
        before = state.params["w"]
        state, values = take_step(state, {"x": jnp.full((1, 3), x, jnp.float32)})
        moved = np.abs(np.asarray(state.params["w"] - before))
        assert int(state.step) == number + 1
        if np.isfinite(x):
            np.testing.assert_allclose(moved, values["learning_rate"], rtol=1e-4)
            shown.append(float(values["learning_rate"]))
        else:
            assert np.all(moved == 0)
    np.testing.assert_allclose(shown, [1e-3, 2e-3, 3e-3, 4e-3], rtol=1e-5)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_the_updates_of_every_optimizer_are_counted(name):
    optimizer = optimizers.make_optimizer(name, optax.constant_schedule(0.1))
    params = {"blocks": {"up": {"kernel": jnp.ones((1, 4, 4))}}}
    state = optimizer.init(params)
    for count in range(3):
        assert int(optimizers.count_updates(state)) == count
        _, state = optimizer.update(params, state, params)


def test_loss_scale_halves_on_overflow_and_doubles_after_a_thousand_good_steps():
    scale = LossScale(jnp.float32(8.0), jnp.int32(998))
    scale = step.adjust_loss_scale(scale, jnp.bool_(True))
    assert (float(scale.scale), int(scale.good_steps)) == (8.0, 999)
    scale = step.adjust_loss_scale(scale, jnp.bool_(True))
    assert (float(scale.scale), int(scale.good_steps)) == (16.0, 0)
    scale = step.adjust_loss_scale(scale, jnp.bool_(False))
    assert (float(scale.scale), int(scale.good_steps)) == (8.0, 0)


def test_unknown_precision_lists_the_known():
    with pytest.raises(ValueError, match="'fp8': choose one of float32, bfloat16, float16"):
        compute_dtype("fp8")
