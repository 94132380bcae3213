"""Means and their errors."""

import numpy as np
import pytest

from videogen_jax.evaluation.means import estimate_mean


def test_closed_form():
    """1, 2, 3, 4: variance 5/3 over 4 values."""
    found = estimate_mean([1, 2, 3, 4])
    assert found == (2.5, pytest.approx(np.sqrt(5 / 12), rel=1e-12), 4)
    assert estimate_mean(np.float32([7])) == (7, None, 1)
    with pytest.raises(ValueError, match="no scores to take the mean of"):
        estimate_mean([])


def test_float32_is_summed_in_float64():
    values = np.full(1_000_001, 0.1, np.float32)
    found = estimate_mean(values)
    assert found.value == pytest.approx(float(values[0]), rel=1e-12)
    assert found.standard_error < 1e-12
