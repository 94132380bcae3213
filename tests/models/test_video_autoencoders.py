"""Wan's and LTX's autoencoders: diffusers' results, streaming as the whole, tiles, and weights that do not fit."""

import functools
import json
import math
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models import torch_video_vae
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import chunks, ltx_vae, tiling, video_convolutions, wan_vae
from videogen_jax.models.autoencoder_interface import CONFIG_FILE, FILE
from videogen_jax.models.weights import WeightsError
from videogen_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow


@functools.cache
def saved(name, folder):
    kind, network = torch_video_vae.make_network(name)
    network.save_pretrained(folder)
    return kind, network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.fixture
def network(request, folders):
    """(diffusers' network, ours, its parameters)."""
    folder = folders / request.param
    kind, reference = saved(request.param, folder)
    autoencoder = autoencoders.make_autoencoder(kind, str(folder))
    return reference, autoencoder, autoencoder.load()


def every(*names):
    return pytest.mark.parametrize(
        "network", names or list(torch_video_vae.NETWORKS), indirect=True
    )


def make(name):
    """Ours alone, with random weights."""
    kind, fields = torch_video_vae.NETWORKS[name]
    module = {"wan": wan_vae, "ltx": ltx_vae}[kind]
    config = module.Config(
        **{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    )
    make_it = {"wan": autoencoders.make_wan, "ltx": autoencoders.make_ltx}[kind]
    autoencoder = make_it(config, "", jnp.float32)
    return autoencoder, jax.tree_util.tree_map_with_path(draw, autoencoder.abstract_params)


def draw(path, leaf):
    """Kernels that keep the size of activations; small values elsewhere, around 1 for scales."""
    rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    noise = rng.standard_normal(leaf.shape).astype(np.float32)
    if path[-1].key == "kernel":
        return 1.5 * noise / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))
    return 0.2 * noise + np.float32(path[-1].key in ("gamma", "scale", "latents_std"))


def clip(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def to_float(frames):
    return frames / np.float32(127.5) - 1


def latents(autoencoder, *shape, seed=1):
    shape = (*shape, autoencoder.channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --------------------------------------------------------------------------- diffusers' results


def agree(network, groups, rows, columns):
    """Mean, deviation and decoded video, of 1 + groups x stride frames."""
    reference, autoencoder, params = network
    stride, y, x = autoencoder.downsample
    video = to_float(clip(2, 1 + groups * stride, rows * y, columns * x))
    key = jax.random.key(3)
    mean, drawn = (
        np.asarray(jax.jit(autoencoder.encode)(params, video, key)) for key in (None, key)
    )
    shift, scale = torch_video_vae.statistics(reference)
    expected, deviation = torch_video_vae.encode(reference, video)
    assert expected.std() > 0.05 and deviation.std() > 0.01
    np.testing.assert_allclose(mean, (expected - shift) / scale, atol=1e-4)
    noise = np.asarray(jax.random.normal(key, mean.shape))
    np.testing.assert_allclose(drawn, mean + deviation / scale * noise, atol=1e-4)
    z = latents(autoencoder, *mean.shape[:-1])
    expected = torch_video_vae.decode(reference, z)
    assert expected.shape == video.shape and expected.std() > 0.05
    made = jax.jit(autoencoder.decode)(params, (z - shift) / scale)
    np.testing.assert_allclose(made, expected, atol=1e-4)


@every("wan", "ltx")
@pytest.mark.parametrize(
    ("groups", "rows", "columns"), [(0, 1, 2), (1, 2, 1), (2, 2, 3), (4, 1, 1)]
)
def test_lengths_and_sizes_agree_with_diffusers(network, groups, rows, columns):
    agree(network, groups, rows, columns)


@every("wan 2.2", "ltx 0.9.5", "ltx timed", "ltx causal")
def test_variants_agree_with_diffusers(network):
    agree(network, 2, 1, 2)


@pytest.mark.parametrize(
    ("kind", "changes", "downsample", "channels"),
    [
        ("wan", {}, (4, 8, 8), 16),
        (
            "wan",
            torch_video_vae.WAN_22
            | {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48}
            | {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
            (4, 16, 16),
            48,
        ),
        ("ltx", {}, (8, 32, 32), 128),
        (
            "ltx",
            torch_video_vae.NEWER | {
                "block_out_channels": [128, 256, 512, 1024, 2048],
                "decoder_block_out_channels": [256, 512, 1024],
                "layers_per_block": [4, 6, 6, 2, 2],
                "decoder_layers_per_block": [5, 5, 5, 5],
                "upsample_residual": [True] * 3,
                "upsample_factor": [2] * 3,
                "timestep_conditioning": True,
            },
            (8, 32, 32),
            128,
        ),
    ],
    ids=["wan 2.1", "wan 2.2", "ltx 0.9", "ltx 0.9.5"],
)  # fmt: skip
def test_published_networks_have_the_tensors_of_diffusers(
    tmp_path, kind, changes, downsample, channels
):
    torch = pytest.importorskip("torch", reason="diffusers' networks need PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the reference implementation")
    network = {"wan": diffusers.AutoencoderKLWan, "ltx": diffusers.AutoencoderKLLTXVideo}[kind]
    with torch.device("meta"):
        reference = network(**changes)
    reference.save_config(tmp_path)
    autoencoder = autoencoders.make_autoencoder(kind, str(tmp_path))
    assert (autoencoder.downsample, autoencoder.channels) == (downsample, channels)
    count = sum(leaf.size for leaf in jax.tree.leaves(autoencoder.abstract_params))
    timed = "timestep_conditioning" in changes  # its factor of the time is not used
    assert count == sum(tensor.numel() for tensor in reference.state_dict().values()) - timed


# ------------------------------------------------------------------------------------ streaming


def stream(autoencoder, params, z, cuts):
    """Decodes latents in parts, and what is behind in single latents."""
    decode = jax.jit(autoencoder.decode_stream)
    group = autoencoder.downsample[0]
    flushed = -(-autoencoder.delay // group)
    padded = np.concatenate([z, np.repeat(z[:, -1:], flushed, axis=1)], axis=1)
    state, parts = None, []
    for part in np.split(padded, [*cuts, *range(z.shape[1], padded.shape[1])][:-1], axis=1):
        if state is None and autoencoder.delay:
            state = jax.eval_shape(autoencoder.decode_stream, params, None, part)[1]
            state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
        if autoencoder.delay:
            state = video_convolutions.set_length(state, z.shape[1])
        video, state = decode(params, state, part)
        parts.append(video)
    video = np.concatenate(parts, axis=1)[:, autoencoder.delay + group - 1 :]
    return np.clip(video[:, : autoencoder.video_frames(z.shape[1])], -1, 1)


@pytest.mark.parametrize("name", ["wan", "wan 2.2", "ltx", "ltx timed", "ltx causal"])
def test_decoding_in_parts_equals_the_whole(name):
    autoencoder, params = make(name)
    assert (autoencoder.delay > 0) == (name in ("ltx", "ltx timed"))
    whole = jax.jit(
        lambda params, z: jnp.clip(
            autoencoder.decode_tail(params, autoencoder.decode_head(params, z)), -1, 1
        )
    )
    for frames, cuts in ((5, (1, 2, 3, 4)), (5, (2, 3)), (1, ())):
        z = latents(autoencoder, 1, frames, 1, 2)
        expected = np.asarray(whole(params, z))
        assert expected.std() > 0.05
        np.testing.assert_allclose(stream(autoencoder, params, z, cuts), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["wan", "ltx shallow"])
@pytest.mark.parametrize("mesh", [{}, {"data": 2}], ids=["one", "two"])
def test_chunks_on_a_mesh_equal_the_whole(name, mesh):
    """Sharded over rows with halo exchange; attention is over all rows."""
    autoencoder, params = make(name)
    group, y, x = autoencoder.downsample
    video, mesh = clip(2, 1 + 3 * group, 2 * y, 3 * x), make_mesh(**mesh)
    whole = np.asarray(jax.jit(autoencoder.encode)(params, to_float(video)))
    encoder = chunks.make_encoder(autoencoder, mesh, 2 * group, video.shape[2:4])
    z = np.concatenate(list(chunks.encode_chunks(encoder, params, video))).reshape(whole.shape)
    np.testing.assert_allclose(z, whole, atol=1e-5)
    pixels = np.asarray(jax.jit(autoencoder.decode)(params, whole))
    decoder = chunks.make_decoder(autoencoder, mesh, 2 * group, (2, 3))
    shard = decoder.abstract_args[2].sharding.shard_shape(decoder.abstract_args[2].shape)
    assert shard[1] == 2 // mesh.size
    made = chunks.decode_videos(decoder, params, whole)
    assert made.shape == video.shape and pixels.std() > 0.05
    # Half a uint8 level; and a value between two levels may be rounded either way.
    assert np.abs(to_float(made) - pixels).max() <= 1 / 255 + 1e-5
    arriving = list(chunks.decode_arriving(decoder, params, [whole[:, :2], whole[:, 2:]]))
    np.testing.assert_array_equal(np.concatenate(arriving, axis=1), made)
    assert decoder.program._cache_size() == encoder.program._cache_size() == 1
    with jax.transfer_guard("disallow"):
        list(chunks.decode_chunks(decoder, decoder.put_params(params), whole[0]))


def test_latents_do_not_depend_on_later_frames():
    for name in ("wan", "ltx"):
        autoencoder, params = make(name)
        group, y, x = autoencoder.downsample
        video = to_float(clip(1, 1 + 2 * group, y, x))
        other = np.concatenate([video[:, : 1 + group], -video[:, 1 + group :]], axis=1)
        encode = jax.jit(autoencoder.encode)
        z, changed = np.asarray(encode(params, video)), np.asarray(encode(params, other))
        np.testing.assert_array_equal(changed[:, :2], z[:, :2])
        assert np.abs(changed[:, 2] - z[:, 2]).max() > 1e-3


# ---------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("name", ["wan", "wan 2.2", "ltx", "ltx 0.9.5"])
def test_the_receptive_field_is_within_the_margin(name):
    """What changes in the pixels when a row of features does: the margin is at most two latents too large."""
    autoencoder, params = make(name)
    rows, place = 2 * autoencoder.tile_margin + 3, autoencoder.tile_margin + 1
    features = jax.eval_shape(autoencoder.decode_head, params, latents(autoencoder, 1, 1, rows, 1))
    features = np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)
    other = np.array(features)
    other[:, :, place] *= -1
    tail = jax.jit(autoencoder.decode_tail)
    changed = np.abs(np.asarray(tail(params, features)) - tail(params, other)).max((0, 1, 3, 4)) > 0
    seen = np.flatnonzero(changed)
    side = autoencoder.downsample[1]
    reach = max(place * side - seen[0], seen[-1] + 1 - (place + 1) * side) / side
    assert autoencoder.tile_margin - 2 < reach <= autoencoder.tile_margin


def test_wan_in_tiles_equals_the_whole_picture():
    autoencoder, params = make("wan")
    tile = tiling.tile_overlap(autoencoder) + 3
    z = latents(autoencoder, 1, 2, tile + 6, 2)
    whole = jax.jit(autoencoder.decode)(params, z)
    decode = jax.jit(lambda params, z: tiling.decode_in_tiles(autoencoder, params, z, tile))
    np.testing.assert_allclose(decode(params, z), whole, atol=1e-5)
    with pytest.raises(ValueError, match=f"set vae.tile to 0 instead of {tile}"):
        chunks.make_decoder(autoencoder, make_mesh(), 4, z.shape[2:4], tile=tile)


@every("wan", "ltx")
def test_bfloat16_is_close_and_latents_are_float32(network, folders):
    _, autoencoder, params = network
    half = autoencoders.make_autoencoder(
        autoencoder.name,
        str(folders / ("wan" if autoencoder.name == "wan" else "ltx")),
        dtype="bfloat16",
    )
    group, y, x = autoencoder.downsample
    video = to_float(clip(1, 1 + group, y, x))
    exact, rough = (np.asarray(jax.jit(one.encode)(params, video)) for one in (autoencoder, half))
    assert rough.dtype == np.float32 and 0 < np.abs(rough - exact).max() < 0.2 * exact.std()
    exact, rough = (np.asarray(jax.jit(one.decode)(params, exact)) for one in (autoencoder, half))
    assert rough.dtype == np.float32 and 0 < np.abs(rough - exact).max() < 0.3 * exact.std()


# ------------------------------------------------------------------------ weights and their config


@every("wan")
def test_weights_in_several_files_and_in_the_folder_of_a_pipeline_load(network, folders, tmp_path):
    _, autoencoder, params = network
    tensors = load_file(folders / "wan" / FILE)
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    inside = tmp_path / "vae"
    inside.mkdir()
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, inside / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (inside / f"{FILE}.index.json").write_text(json.dumps(index))
    (inside / CONFIG_FILE).write_text((folders / "wan" / CONFIG_FILE).read_text())
    for path in (inside, tmp_path):
        again = autoencoders.make_autoencoder("wan", str(path))
        assert again.channels == autoencoder.channels
        jax.tree.map(np.testing.assert_array_equal, again.load(), params)


@every("wan", "ltx")
def test_weights_that_do_not_fit_are_listed_and_pickles_rejected(network, tmp_path, folders):
    _, autoencoder, _ = network
    name = autoencoder.name
    (tmp_path / CONFIG_FILE).write_text((folders / name / CONFIG_FILE).read_text())
    tensors = load_file(folders / name / FILE)
    lost = next(tensor for tensor in tensors if tensor.startswith("decoder.conv_in"))
    del tensors[lost]
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(WeightsError, match=re.escape(f"autoencoder {name!r}: 1 missing ({lost})")):
        autoencoders.make_autoencoder(name, str(tmp_path)).load()
    (tmp_path / FILE).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="is a pickle, which can execute code"):
        autoencoders.make_autoencoder(name, str(tmp_path)).load()
    with pytest.raises(ValueError, match=f"{name!r} has no weights: set vae.path to {FILE}"):
        autoencoders.make_autoencoder(name).load()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("wan", {"_class_name": "AutoencoderKL"}, "config of AutoencoderKL: give the folder of an AutoencoderKLWan"),
        ("wan", {"attn_scales": [0.5]}, r"attn_scales \[0.5\]: only \[\] is supported"),
        ("wan", {"base_dim": 0}, "base_dim is 0, which should be a positive whole number"),
        ("wan", {"temperal_downsample": [True]}, "temperal_downsample has 1 entries for 4 levels"),
        ("wan", {"patch_size": 2}, "in_channels 3 and out_channels 3 are not those of RGB in patches"),
        ("wan", {"latents_std": [1.0]}, "latents_std has 1 entries for z_dim 3"),
        ("wan", {"window": 2}, "window is not supported: use weights without it"),
        ("ltx", {"_class_name": "AutoencoderKLLTX2Video"}, "config of AutoencoderKLLTX2Video: give the folder"),
        ("wan", {"is_residual": True, "dim_mult": [1, 2, 3, 4]}, "sizes in config.json do not fit one another"),
        ("ltx", {"encoder_causal": False}, "encoder_causal False: only True is supported"),
        ("ltx", {"decoder_inject_noise": [True] * 5}, r"decoders that draw noise .*0\.9\.1.* are not supported"),
        ("ltx", {"down_block_types": ["Conv"] * 4}, "down_block_types 'Conv': only LTXVideoDownBlock3D and"),
        ("ltx", {"layers_per_block": [1, 1]}, "layers_per_block has 2 entries for 5 blocks"),
        ("ltx", {"decoder_spatio_temporal_scaling": [True, True, False, False]}, "goes back by 4"),
    ],
)  # fmt: skip
def test_configs_of_other_networks_are_rejected(tmp_path, name, changes, message):
    kind, fields = torch_video_vae.NETWORKS[name]
    module = {"wan": wan_vae, "ltx": ltx_vae}[kind]
    fields = json.loads(json.dumps({"_class_name": module.CLASS} | fields))
    (tmp_path / CONFIG_FILE).write_text(json.dumps(fields))
    autoencoders.make_autoencoder(kind, str(tmp_path))
    (tmp_path / CONFIG_FILE).write_text(json.dumps(fields | changes))
    with pytest.raises(WeightsError, match=f"^{re.escape(str(tmp_path))}.*{message}"):
        autoencoders.make_autoencoder(kind, str(tmp_path))


def test_what_ltx_sees_ahead_is_its_delay():
    """LTX-Video 0.9: 41 convolutions at the latents' frame rate and up to eight times that."""
    config = ltx_vae.Config()
    at_rate = {1: 1 + 8 + 6 + 1, 2: 6 + 2 + 1, 4: 6 + 2 + 1, 8: 8 + 1}
    assert config.delay == sum(8 // rate * count for rate, count in at_rate.items())
    assert math.ceil(config.delay / 8) == 24
