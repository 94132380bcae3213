"""Learning rate against its closed form; optimizers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import tiny_config
from videogen_jax.train import optim, setup


def test_learning_rate_is_a_line_and_then_a_cosine():
    rate = optim.make_learning_rate(2.0, warmup_steps=10, steps=110, final_fraction=0.1)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(5)), 1.0, rtol=1e-6)
    for step in (10, 35, 60, 110):
        expected = 0.2 + 1.8 * (1 + np.cos(np.pi * (step - 10) / 100)) / 2
        np.testing.assert_allclose(float(rate(step)), expected, rtol=1e-5)


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps of 100 is not below train\.steps of 100"):
        optim.make_learning_rate(1.0, warmup_steps=100, steps=100, final_fraction=0.1)


def test_unknown_optimizer_lists_the_known():
    with pytest.raises(ValueError, match="'sgd': choose one of adamw, muon"):
        optim.make_optimizer("sgd", lambda step: 1e-3)


def test_adamw_clips_and_decays_matrices_alone():
    params = {"layer": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 10.0), params)
    tx = optim.make_optimizer("adamw", lambda step: 0.1, b1=0.9, b2=0.99, weight_decay=0.5)
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
    run = setup.make_run(config)
    params = jax.jit(run.init)().params
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
    state = run.optimizer.init(params)
    _, state = run.optimizer.update(grads, state, params)  # the rate of step 0 is 0
    updates, _ = run.optimizer.update(grads, state, params)
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
