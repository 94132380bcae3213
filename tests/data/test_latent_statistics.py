"""Streaming statistics of latents against NumPy over all latents at once."""

import numpy as np
import pytest

from videogen_jax.data.latent_statistics import (
    add_latents,
    check_deviation,
    empty_statistics,
    merge_statistics,
)


def latents(seed=0, clips=7):
    rng = np.random.default_rng(seed)
    # A large mean, with which E[x^2] - E[x]^2 in float32 would lose the deviation.
    return (rng.standard_normal((clips, 3, 4, 5, 2)) * [0.01, 3] + [100, -5]).astype(np.float32)


def check(statistics, rows):
    rows = rows.reshape(-1, 2).astype(np.float64)
    assert statistics.count == len(rows)
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.deviation, rows.std(axis=0), rtol=1e-9)
    assert statistics.mean.dtype == statistics.squares.dtype == np.float64


def test_streamed_batches_match_the_whole():
    rows = latents()
    statistics = empty_statistics(2)
    for part in np.split(rows, [1, 1, 4]):  # one of them empty
        statistics = add_latents(statistics, part)
    check(statistics, rows)


def test_parts_merge_in_any_order():
    a, b = latents(1), latents(2, clips=2) + 3
    one, other = (add_latents(empty_statistics(2), rows) for rows in (a, b))
    check(merge_statistics(one, other), np.concatenate([a, b]))
    check(merge_statistics(other, one), np.concatenate([a, b]))
    check(merge_statistics(empty_statistics(2), one), a)
    assert merge_statistics(empty_statistics(2), empty_statistics(2)).count == 0


def test_float16_latents_are_accumulated_in_float64():
    rows = latents().astype(np.float16)
    check(add_latents(empty_statistics(2), rows), rows)


def test_other_channels_and_nonfinite_latents_are_refused():
    with pytest.raises(
        ValueError, match="Latents of 2 channels cannot be added to statistics of 4"
    ):
        add_latents(empty_statistics(4), latents())
    rows = latents()
    rows[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        add_latents(empty_statistics(2), rows)


def test_constant_channels_are_refused():
    rows = np.random.default_rng(0).standard_normal((4, 3))
    rows[:, 1] = 0.5
    with pytest.raises(ValueError, match="Channel 1 of the latents is constant over 4 positions"):
        check_deviation(add_latents(empty_statistics(3), rows))
    with pytest.raises(ValueError, match="Channel 0 .* over 0 positions"):
        check_deviation(empty_statistics(3))
