"""The autoencoder's loss against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.models import perceptual
from videogen_jax.train import autoencoder_loss


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_divergence_is_the_integral():
    mean, logvar = draws(2, 3), draws(2, 3, seed=1)
    z = np.linspace(-30, 30, 200_001)
    total = 0.0
    for m, lv in zip(mean.ravel().astype(float), logvar.ravel().astype(float), strict=True):
        log_q = -((z - m) ** 2) / (2 * np.exp(lv)) - lv / 2
        log_p = -(z**2) / 2
        q = np.exp(log_q) / np.sqrt(2 * np.pi)
        total += np.sum(q * (log_q - log_p)) * (z[1] - z[0])
    assert autoencoder_loss.divergence(mean, logvar) == pytest.approx(total / 2, rel=1e-5)


@pytest.mark.parametrize(("distance", "of_error"), [("l1", np.abs), ("l2", np.square)])
def test_loss_is_what_float64_says(distance, of_error):
    video = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 4, 3), np.uint8)
    mean, logvar, noise = draws(2, 2, 3), draws(2, 2, 3, seed=1), draws(2, 5, 4, 4, 3, seed=2)

    def reconstruct(params, x, key):
        assert key is not None
        return x + params * noise, mean, logvar

    loss = autoencoder_loss.make_loss(reconstruct, kl_weight=0.3, distance=distance)
    value = loss(jnp.float32(0.5), {"video": video}, jax.random.key(0))
    m, lv = mean.astype(float), logvar.astype(float)
    kl = 0.5 * np.sum(m**2 + np.exp(lv) - 1 - lv) / 2 / (5 * 4 * 4 * 3)
    pixels = np.mean(of_error(0.5 * noise.astype(float)))
    assert value == pytest.approx(pixels + 0.3 * kl, rel=1e-5)
    with pytest.raises(ValueError, match=r"loss\.kl_weight is -1"):
        autoencoder_loss.make_loss(reconstruct, kl_weight=-1)


def test_perceptual_term_takes_the_same_frames_of_both():
    shapes = perceptual.abstract_vgg()
    vgg = jax.tree.map(lambda leaf: 0.05 * draws(*leaf.shape), shapes)
    video = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16, 3), np.uint8)
    other = draws(1, 3, 16, 16, 3)

    def value(made, **options):
        loss = autoencoder_loss.make_loss(
            lambda p, x, k: (made(x), x * 0, x * 0), kl_weight=0, **options
        )
        return float(loss({}, {"video": video}, jax.random.key(0)))

    options = {"perceptual_weight": 2.0, "perceptual_frames": 9, "vgg": vgg}
    assert value(lambda x: x, **options) == 0
    x = video[0] / np.float32(127.5) - 1
    expected = value(lambda x: other) + 2 * float(perceptual.distance(vgg, x, other[0]))
    assert value(lambda x: other, **options) == pytest.approx(expected, rel=1e-4)
    picked = autoencoder_loss.pick_frames(
        jnp.arange(12.0).reshape(2, 1, 6, 1, 1, 1), jax.random.key(3), 4
    )
    assert picked.shape == (2, 4, 1, 1, 1) and len(np.unique(picked)) == 8
    np.testing.assert_array_equal(picked[1] - picked[0], 6)
