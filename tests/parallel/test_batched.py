"""Batched inference gives each row's result in order, on one device and on several."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from videogen_jax.parallel.batched import lay_out, make_batched


def check():
    traced = []

    def apply(params, x):
        traced.append(x.shape)
        return {"sum": x @ params, "row": x}

    rows = np.random.default_rng(0).standard_normal(
        (3 * jax.local_device_count() + 1, 4), np.float32
    )
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    parts = list(make_batched(apply, weights, 3)(rows))
    assert [len(part["sum"]) for part in parts] == [len(rows) - 1, 1]
    assert traced == [(len(rows) - 1, 4)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.testing.assert_array_equal(found["row"], rows)
    np.testing.assert_allclose(found["sum"], rows @ weights, rtol=1e-5, atol=1e-5)
    assert isinstance(parts[0]["sum"], np.ndarray)
    assert not list(make_batched(apply, weights, 3)(rows[:0]))


def test_rows_keep_their_order_and_one_program_is_compiled():
    check()


@pytest.mark.slow
def test_two_devices_share_the_rows():
    code = "import jax; from tests.parallel.test_batched import check; check(); assert jax.local_device_count() == 2"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_large_parameters_are_split_and_small_ones_are_copied():
    """Each of the eight devices holds an eighth of every matrix whose features divide by eight."""
    params = {
        "kernel": np.zeros((3, 5, 16), np.float32),
        "table": np.zeros((24, 6), np.float32),
        "odd": np.zeros((3, 5), np.float32),
        "scale": np.zeros(16, np.float32),
    }
    size = sum(leaf.nbytes for leaf in params.values())
    for limit in (None, size):
        shardings, _, _ = lay_out(params, jax.devices(), limit)
        assert all(one.is_fully_replicated for one in shardings.values())
    shardings, rows, results = lay_out(params, jax.devices(), size - 1)
    parts = {name: one.shard_shape(params[name].shape) for name, one in shardings.items()}
    assert parts == {"kernel": (3, 5, 2), "table": (3, 6), "odd": (3, 5), "scale": (16,)}
    assert rows.shard_shape((16, 4)) == (2, 4) and results.is_fully_replicated
