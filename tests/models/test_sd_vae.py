"""Stable Diffusion's autoencoder against diffusers' class with the same random weights; decoding in chunks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from videogen_jax.models import vae
from videogen_jax.models.sd_vae import AutoencoderKL
from videogen_jax.parallel.mesh import make_mesh
from videogen_jax.parallel.sharding import path_name

LEVELS = (32, 64, 64)


def small():
    return AutoencoderKL(latent_channels=3, levels=LEVELS, blocks=1)


def params_of(module, size=16):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return randomise(shapes["params"], 0.08)


def torch_name(leaf):
    """`encoder/down_blocks_0_resnets_1/conv1/kernel` as diffusers has it."""
    name = re.sub(r"_(\d+)(_?)", lambda m: f".{m[1]}" + ("." if m[2] else ""), leaf)
    name = name.replace("/", ".")
    return re.sub(r"\.(kernel|scale)$", ".weight", name)


@pytest.fixture(scope="module")
def twins():
    """(ours, parameters, diffusers')."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=LEVELS,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=3,
    ).eval()
    params = params_of(small())
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, range(leaf.ndim))
        state[torch_name(path_name(path))] = torch.tensor(np.transpose(leaf, order).copy())
    theirs.load_state_dict(state)  # refuses what is missing or unexpected
    return small(), params, theirs


def run(module, params, x, method):
    return jax.jit(lambda params, x: module.apply({"params": params}, x, method=method))(params, x)


def test_latents_are_those_of_diffusers(twins):
    import torch

    module, params, theirs = twins
    frames = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    mean, logvar = run(module, params, frames, "encode")
    with torch.no_grad():
        wanted = theirs.encode(torch.tensor(frames.transpose(0, 3, 1, 2))).latent_dist
    assert mean.shape == (2, 4, 6, 3)
    for got, expected in ((mean, wanted.mean), (logvar, wanted.logvar)):
        expected = expected.numpy().transpose(0, 2, 3, 1)
        assert expected.std() > 0.05
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_frames_are_those_of_diffusers(twins):
    import torch

    module, params, theirs = twins
    latents = np.random.default_rng(1).standard_normal((2, 4, 6, 3)).astype(np.float32)
    got = run(module, params, latents, "decode")
    with torch.no_grad():
        wanted = theirs.decode(torch.tensor(latents.transpose(0, 3, 1, 2))).sample
    assert got.shape == (2, 16, 24, 3)
    np.testing.assert_allclose(got, wanted.numpy().transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_video_decoded_in_chunks_is_the_whole(devices, monkeypatch):
    monkeypatch.setattr(vae, "make_module", lambda name, dtype: small())
    monkeypatch.setitem(vae.AUTOENCODERS, "sd", vae.Strides(1, 4, 4, 3))
    decoder = vae.make_decoder("sd", make_mesh(data=devices), (5, 4, 4, 3), 2, jnp.float32)
    params = params_of(small())
    latents = np.random.default_rng(2).standard_normal((5, 4, 4, 3)).astype(np.float32)
    chunks = list(vae.decode_chunks(decoder, params, latents))
    assert [len(chunk) for chunk in chunks] == {1: [2, 2, 1], 2: [4, 1]}[devices]
    whole = vae.to_pixels(run(small(), params, latents, "decode"))
    difference = np.concatenate(chunks).astype(int) - np.asarray(whole, int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sd", (8, 60, 64), "data.height is 60, but the autoencoder sd makes one latent of 8"),
        ("vq", (8, 64, 64), "Unknown vae.name 'vq': choose one of identity, sd"),
    ],
)
def test_sizes_and_names_that_do_not_fit_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        vae.latent_shape(name, *size)


def test_latents_have_an_eighth_of_the_pixels():
    assert vae.latent_shape("sd", 480, 512, 384) == (480, 64, 48, 4)
    assert vae.latent_shape("identity", 8, 24, 20) == (8, 24, 20, 3)
