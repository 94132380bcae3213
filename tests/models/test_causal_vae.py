"""The causal video VAE: streaming equals the whole, causality in time, and the first frame as an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import causal_vae, chunks, tiling
from videogen_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow

NETWORK = causal_vae.Network(
    channels=3, patch=(2, 2, 2), strides=((2, 2, 2), (1, 2, 2)), widths=(6, 8, 10), blocks=1
)
SMALL = causal_vae.Network(
    channels=2, patch=(2, 4, 4), strides=((2, 2, 2),), widths=(8, 8), blocks=2
)


def make(network=NETWORK):
    autoencoder = autoencoders.make_video_autoencoder(network, load=lambda: params)
    params = randomise(autoencoder.abstract_params, 0.3)
    return autoencoder, params


def clip(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def to_float(frames):
    return frames / np.float32(127.5) - 1


def latents(autoencoder, *shape):
    rng = np.random.default_rng(0)
    return rng.standard_normal((*shape, autoencoder.channels)).astype(np.float32)


def test_sizes():
    assert NETWORK.downsample == (4, 8, 8) and causal_vae.Network().downsample == (4, 8, 8)
    autoencoder, _ = make()
    assert autoencoder.latent_shape(13, 24, 16) == (4, 3, 2, 3)
    assert autoencoder.latent_shape(1, 8, 8) == (1, 1, 1, 3)
    assert [autoencoder.video_frames(n) for n in (1, 2, 4)] == [1, 5, 13]


@pytest.mark.parametrize(("frames", "ways"), [(12, "9 or 13"), (16, "13 or 17"), (0, "1 or 5")])
def test_the_error_for_other_numbers_of_frames_names_both_neighbours(frames, ways):
    with pytest.raises(ValueError, match=f"use {ways} frames"):
        make()[0].latent_shape(frames, 8, 8)


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (causal_vae.Network(widths=(8,)), "autoencoder.widths"),
        (causal_vae.Network(patch=(4, 4, 2)), "not square"),
        (causal_vae.Network(patch=(4, 4)), "three numbers"),
        (causal_vae.Network(blocks=0), "below 1"),
        (causal_vae.Network(temporal_kernel=0), "below 1"),
        (causal_vae.Network(temporal_kernel=1), "give them 1 in time"),
    ],
)
def test_invalid_sizes_are_rejected(network, line):
    with pytest.raises(ValueError, match=line):
        causal_vae.check_network(network)


def test_temporal_convolution_is_pytorchs_with_causal_padding():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4, 6)).astype(np.float32)
    module = causal_vae.TemporalConv(7, 3, jnp.float32)
    params = randomise(jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x))["params"])
    ours = module.apply({"params": params}, x)
    kernel = params["mix"]["kernel"].reshape(3, 6, 7).transpose(2, 1, 0)[..., None, None]
    padded = np.pad(x, ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0))).transpose(0, 4, 1, 2, 3)
    theirs = torch.nn.functional.conv3d(
        *map(torch.from_numpy, (padded, np.ascontiguousarray(kernel), params["mix"]["bias"]))
    )
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 4, 1), atol=1e-5)


def test_space_to_depth_folds_blocks_and_is_inverted():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 8, 3)).astype(np.float32)
    y = np.asarray(causal_vae.space_to_depth(jnp.asarray(x), (4, 2, 2)))
    assert y.shape == (2, 1, 3, 4, 48)
    np.testing.assert_array_equal(y[1, 0, 2, 1].reshape(4, 2, 2, 3), x[1, :, 4:6, 2:4])
    np.testing.assert_array_equal(causal_vae.depth_to_space(jnp.asarray(y), (4, 2, 2)), x)


def test_later_frames_do_not_change_earlier_latents_or_pixels():
    autoencoder, params = make()
    encode, decode = jax.jit(autoencoder.encode), jax.jit(autoencoder.decode)
    video = to_float(clip(1, 13, 16, 16))
    other = np.array(video)
    other[:, 5:] = -other[:, 5:]
    z, changed = np.asarray(encode(params, video)), np.asarray(encode(params, other))
    np.testing.assert_array_equal(changed[:, :2], z[:, :2])
    assert np.abs(changed[:, 2] - z[:, 2]).max() > 1e-3
    other = np.array(z)
    other[:, 2:] += 1
    pixels, changed = np.asarray(decode(params, z)), np.asarray(decode(params, other))
    np.testing.assert_array_equal(changed[:, :5], pixels[:, :5])
    assert np.abs(changed[:, 5] - pixels[:, 5]).max() > 1e-3


def test_a_temporal_kernel_of_one_encodes_each_frame_by_itself():
    network = SMALL._replace(patch=(1, 4, 4), strides=((1, 2, 2),), temporal_kernel=1)
    autoencoder, params = make(network)
    assert not autoencoder.causal and autoencoder.latent_shape(3, 16, 16) == (3, 2, 2, 2)
    encode, decode = jax.jit(autoencoder.encode), jax.jit(autoencoder.decode)
    video = to_float(clip(1, 3, 16, 16))
    z = np.asarray(encode(params, video))
    pixels = np.asarray(decode(params, z))
    assert pixels.shape == video.shape
    for i in range(3):
        alone = np.asarray(encode(params, video[:, i : i + 1]))
        np.testing.assert_allclose(alone, z[:, i : i + 1], atol=1e-5)
        np.testing.assert_allclose(decode(params, alone), pixels[:, i : i + 1], atol=1e-5)


def test_the_first_frame_is_encoded_as_an_image():
    autoencoder, params = make()
    encode, decode = jax.jit(autoencoder.encode), jax.jit(autoencoder.decode)
    video = to_float(clip(2, 9, 16, 8))
    z = encode(params, video)
    assert z.shape == (2, 3, 2, 1, 3)
    image = encode(params, video[:, :1])
    np.testing.assert_allclose(image, z[:, :1], atol=1e-5)
    pixels = decode(params, z)
    assert pixels.shape == video.shape
    np.testing.assert_allclose(decode(params, image), pixels[:, :1], atol=1e-5)


def test_latents_are_sampled_with_a_key():
    autoencoder, params = make()
    video = to_float(clip(1, 5, 8, 8))
    params["encoder"]["leave_0"]["bias"] = np.r_[np.zeros(3), np.log([4.0, 1.0, 0.25])].astype("f")
    params["encoder"]["leave_0"]["kernel"][:, 3:] = 0
    draw = jax.jit(autoencoder.encode)
    mean = draw(params, video)
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.stack([draw(params, video, key) for key in keys]) - mean
    np.testing.assert_allclose(drawn.std(axis=(0, 1, 2, 3, 4)), [2, 1, 0.5], rtol=0.05)
    np.testing.assert_allclose(drawn.mean(axis=(0, 1, 2, 3, 4)), [0, 0, 0], atol=0.1)


@pytest.mark.parametrize("frames", [4, 8, 12, 40])
@pytest.mark.parametrize("mesh", [{}, {"data": 2}, {"fsdp": 2, "seq": 2}], ids=["1", "2", "4"])
def test_streaming_equals_the_whole(frames, mesh):
    """Also on several devices, sharded over rows (here 4 latents) with halo exchange."""
    autoencoder, params = make()
    video = clip(2, 25, 32, 16)
    mesh = make_mesh(**mesh)
    whole = np.asarray(jax.jit(autoencoder.encode)(params, to_float(video)))  # (2, 7, 4, 2, 3)
    encoder = chunks.make_encoder(autoencoder, mesh, frames, (32, 16))
    z = np.concatenate(list(chunks.encode_chunks(encoder, params, video)))
    np.testing.assert_allclose(z.reshape(whole.shape), whole, atol=1e-5)
    pixels = np.asarray(jax.jit(autoencoder.decode)(params, whole))
    decoder = chunks.make_decoder(autoencoder, mesh, frames, (4, 2))
    parts = list(chunks.decode_chunks(decoder, params, whole))
    assert max(map(len, parts)) <= frames
    streamed = np.concatenate(parts).reshape(pixels.shape)
    assert streamed.dtype == np.uint8
    # Half a uint8 level; and a value between two levels may be rounded either way.
    assert np.abs(to_float(streamed) - pixels).max() <= 1 / 255 + 1e-5


def test_states_carry_a_stream_exactly():
    autoencoder, params = make()
    z = latents(autoencoder, 2, 7, 3, 2)
    whole = np.asarray(jax.jit(autoencoder.decode_tail)(params, z))
    decode_stream = jax.jit(autoencoder.decode_stream)
    for cuts in ([1, 2, 3, 4, 5, 6], [3], [2, 3, 6]):
        state, parts = None, []
        for part in np.split(z, cuts, axis=1):
            pixels, state = decode_stream(params, state, part)
            parts.append(pixels)
        np.testing.assert_allclose(np.concatenate(parts, axis=1)[:, 3:], whole, atol=1e-5)


def test_rows_or_columns_are_sharded_if_they_divide():
    autoencoder, _ = make()
    for size, shard in {(4, 3): (2, 2, 3), (3, 4): (2, 3, 2), (3, 3): (2, 3, 3)}.items():
        decoder = chunks.make_decoder(autoencoder, make_mesh(data=2), 8, size)
        _, state, z = decoder.abstract_args
        assert z.sharding.shard_shape(z.shape) == (*shard, 3)
        for leaf in jax.tree.leaves(state):
            here = leaf.sharding.shard_shape(leaf.shape)
            assert np.prod(here) == np.prod(leaf.shape) * np.prod(shard) / (2 * np.prod(size))


def test_memory_does_not_grow_with_the_video():
    autoencoder, params = make()
    decoder = chunks.make_decoder(autoencoder, make_mesh(data=2), 4, (2, 2))
    calls, program = [], decoder.program

    def count(params, state, z):
        calls.append(z.shape)
        return program(params, state, z)

    z = latents(autoencoder, 121, 2, 2)
    parts = list(chunks.decode_chunks(decoder._replace(program=count), params, z))
    assert [len(part) for part in parts] == [1] + 120 * [4]
    assert calls == [(1, 2, 2, 3)] * 121 and program._cache_size() == 1
    params = decoder.put_params(params)
    with jax.transfer_guard("disallow"):
        assert sum(len(part) for part in chunks.decode_chunks(decoder, params, z[:3])) == 9


def test_tiles_equal_the_whole_image_and_chunks_reject_them():
    autoencoder, params = make(SMALL)
    assert autoencoder.tile_margin == 3
    z = latents(autoencoder, 2, 2, 20, 11)
    whole = jax.jit(autoencoder.decode)(params, z)
    tiled = jax.jit(lambda params, z: tiling.decode_in_tiles(autoencoder, params, z, 10))(params, z)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    with pytest.raises(ValueError, match="set vae.tile to 0 instead of 10"):
        chunks.make_decoder(autoencoder, make_mesh(), 4, (20, 11), tile=10)


def test_remat_does_not_change_gradients():
    video = jnp.asarray(to_float(clip(1, 4, 8, 8)))
    _, params = make()
    plain, again = (
        jax.jit(causal_vae.Encoder(NETWORK, jnp.float32, remat).apply)(
            {"params": params["encoder"]}, video
        )
        for remat in (False, True)
    )
    np.testing.assert_allclose(plain, again, atol=1e-6)


def test_the_error_for_a_run_names_the_function_that_reads_it():
    with pytest.raises(ValueError, match="read_autoencoder"):
        autoencoders.make_autoencoder("workdir", "runs/vae")
