"""Tiled decoding agrees with decoding the whole image, up to norms over a tile."""

import jax
import numpy as np
import pytest

from tests.models.autoencoders import random_sd, random_taef2, taef2_weights
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import tiling

pytestmark = pytest.mark.slow

STEP = 2 / 255  # one uint8 level in [-1, 1]


def decode(autoencoder, params, latents, tile):
    function = jax.jit(lambda params, z: tiling.decode_in_tiles(autoencoder, params, z, tile))
    return np.asarray(function(params, latents))


def latents(autoencoder, rows, columns):
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, 2, rows, columns, autoencoder.channels)).astype(np.float32)


def test_published_taef2_in_tiles_equals_the_whole_image():
    autoencoder = autoencoders.make_autoencoder("taef2", str(taef2_weights()))
    params = autoencoder.load()
    z = latents(autoencoder, 42, 24)
    whole, tiled = decode(autoencoder, params, z, 0), decode(autoencoder, params, z, 24)
    assert whole.std() > 0.1
    np.testing.assert_allclose(tiled, whole, atol=STEP / 10)


@pytest.mark.parametrize(("rows", "columns"), [(26, 24), (33, 8), (10, 24)])
def test_taef2_in_tiles_equals_the_whole_image(rows, columns):
    autoencoder, params = random_taef2()
    z = latents(autoencoder, rows, columns)
    whole = decode(autoencoder, params, z, 0)
    assert whole.std() > 0.05
    np.testing.assert_allclose(decode(autoencoder, params, z, 22), whole, atol=1e-5)


def test_the_receptive_field_is_within_the_margin():
    """By gradients: the margin is not too small, and at most two latents too large."""
    autoencoder, params = random_taef2()
    features = np.random.default_rng(0).standard_normal((1, 1, 48, 1, 64)).astype(np.float32)

    def pixel(features):
        return autoencoder.decode_tail(params, features)[0, 0, 8 * 24, 4].sum()

    reach = np.abs(np.asarray(jax.jit(jax.grad(pixel))(features))).sum(axis=(0, 1, 3, 4))
    seen = np.flatnonzero(reach)
    assert autoencoder.tile_margin - 2 < 24 - seen[0] <= autoencoder.tile_margin


def test_sd_in_tiles_has_no_seams(tmp_path):
    """Norms are over a tile, so values differ everywhere, but not more at a seam than elsewhere."""
    autoencoder, params = random_sd(tmp_path)
    z = latents(autoencoder, 48, 20)
    whole, tiled = decode(autoencoder, params, z, 0), decode(autoencoder, params, z, 32)
    error = tiled - whole
    assert 0 < np.abs(error).mean() < 0.1 * whole.std()
    starts, weights = tiling.tile_axis(autoencoder, 48, 32, 8)
    assert list(starts) == [0, 16]
    jumps = np.abs(np.diff(error, axis=2)).mean(axis=(0, 1, 3, 4))  # between neighbouring rows
    # Rows where a tile's weight starts or ends.
    edges = [
        start * 8 + int(np.flatnonzero(w)[i])
        for start, w in zip(starts, weights, strict=True)
        for i in (0, -1)
    ]
    inner = [edge for edge in edges if 8 < edge < 48 * 8 - 8]
    assert len(inner) == 2
    assert max(jumps[edge - 1 : edge + 1].max() for edge in inner) < 1.5 * np.median(jumps)


def test_sd_in_tiles_equals_the_whole_image_with_equal_norm_statistics(tmp_path, monkeypatch):
    """With fixed statistics only convolutions are left, with a radius of 12.3 latents."""
    from videogen_jax.models import sd_vae

    monkeypatch.setattr(sd_vae, "group_norm", lambda groups, epsilon, name: lambda x: x / 4)
    autoencoder, params = random_sd(tmp_path)
    autoencoder = autoencoder._replace(tile_margin=13)
    z = latents(autoencoder, 50, 8)
    whole, tiled = decode(autoencoder, params, z, 0), decode(autoencoder, params, z, 40)
    assert whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("length", [5, 22, 23, 40, 41, 100])
@pytest.mark.parametrize("tile", [22, 30])
def test_weights_sum_to_one_and_tiles_cover_the_axis(length, tile):
    autoencoder = autoencoders.make_autoencoder("taef2")
    starts, weights = tiling.tile_axis(autoencoder, length, tile, 8)
    total = np.zeros(length * 8)
    size = min(tile, length)
    for start, weight in zip(starts, weights, strict=True):
        assert start >= 0 and start + size <= length and weight.shape == (size * 8,)
        total[start * 8 : (start + size) * 8] += weight
        # The margin at an inner edge has no weight.
        margin = autoencoder.tile_margin * 8
        assert start == 0 or (weight[:margin] == 0).all()
        assert start + size == length or (weight[-margin:] == 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert np.diff(starts).max(initial=0) <= tile - tiling.tile_overlap(autoencoder)


def test_tiles_not_larger_than_their_overlap_are_rejected():
    autoencoder = autoencoders.make_autoencoder("taef2")
    for tile in (-1, 1, 20):
        with pytest.raises(ValueError, match=f"tile of {tile} latents .* 20: use 40 or more, or 0"):
            tiling.check_tile(autoencoder, tile)
    for tile in (0, 21):
        tiling.check_tile(autoencoder, tile)
