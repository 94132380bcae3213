"""Chunks of frames on a mesh: agreement with the whole video, one program, no superfluous computation."""

import itertools

import jax
import numpy as np
import pytest

from tests.models.autoencoders import random_sd, random_taef2
from tests.models.randomise import randomise
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import causal_vae, chunks
from videogen_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow


def latents(autoencoder, *shape):
    rng = np.random.default_rng(0)
    return rng.standard_normal((*shape, autoencoder.channels)).astype(np.float32)


def pixels(video):
    return np.round((np.clip(video, -1, 1) + 1) * 127.5)


def make(tmp_path, name):
    return random_taef2() if name == "taef2" else random_sd(tmp_path)


@pytest.mark.parametrize("name", ["taef2", "sd"])
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "seq": 2}], ids=["one", "four"])
def test_decoding_in_chunks_equals_the_whole_video(tmp_path, name, mesh):
    autoencoder, params = make(tmp_path, name)
    z = latents(autoencoder, 2, 5, 3, 4)
    whole = np.asarray(jax.jit(autoencoder.decode)(params, z)).reshape(10, 24, 32, 3)
    decoder = chunks.make_decoder(autoencoder, make_mesh(**mesh), 4, (3, 4))
    parts = list(chunks.decode_chunks(decoder, params, z))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert all(part.dtype == np.uint8 for part in parts)
    # A value between two levels may be rounded either way.
    assert np.abs(np.concatenate(parts) - pixels(whole)).max() <= 1
    assert np.mean(np.concatenate(parts) != pixels(whole)) < 1e-3


@pytest.mark.parametrize("name", ["taef2", "sd"])
@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2, "tensor": 2}], ids=["one", "four"])
def test_encoding_in_chunks_equals_the_whole_video(tmp_path, name, mesh):
    autoencoder, params = make(tmp_path, name)
    frames = np.random.default_rng(0).integers(0, 256, (1, 6, 24, 32, 3), np.uint8)
    whole = jax.jit(autoencoder.encode)(params, frames / np.float32(127.5) - 1)
    encoder = chunks.make_encoder(autoencoder, make_mesh(**mesh), 4, (24, 32))
    parts = list(chunks.encode_chunks(encoder, params, frames))
    assert [len(part) for part in parts] == [4, 2]
    np.testing.assert_allclose(np.concatenate(parts), whole[0], atol=1e-5)


def make_video_autoencoder():
    network = causal_vae.Network(
        channels=3, patch=(2, 2, 2), strides=((2, 2, 2),), widths=(6, 8), blocks=1
    )
    autoencoder = autoencoders.make_video_autoencoder(network, load=dict)
    return autoencoder, randomise(autoencoder.abstract_params, 0.3)


@pytest.mark.parametrize(
    ("name", "portions"), [("taef2", (1, 4, 2)), ("causal", (2, 4, 2)), ("causal", (1, 3, 4))]
)
@pytest.mark.parametrize("mesh", [{}, {"data": 2}], ids=["one", "two"])
def test_streams_decode_latents_as_they_arrive(name, portions, mesh):
    """Portions of three videos, in multiples of a chunk, give each video decoded at once."""
    autoencoder, params = random_taef2() if name == "taef2" else make_video_autoencoder()
    z = latents(autoencoder, 3, sum(portions), 3, 4)
    whole = pixels(np.asarray(jax.jit(autoencoder.decode)(params, z)))
    stride = autoencoder.downsample[0]
    chunk = 1 if 1 in portions else 2
    decoder = chunks.make_decoder(autoencoder, make_mesh(**mesh), chunk * stride, (3, 4))
    arriving = np.split(z, np.cumsum(portions)[:-1], axis=1)
    asked = []

    def arrive():
        for number, part in enumerate(arriving):
            asked.append(number)
            yield part

    parts = []
    for frames in chunks.decode_arriving(decoder, params, arrive()):
        parts.append(frames)
        assert asked == list(
            range(len(parts))
        )  # no part is waited for before the last one's frames are there
    begun = np.cumsum((0, *portions))
    expected = np.diff([autoencoder.video_frames(n) if n else 0 for n in begun])
    assert [part.shape[1] for part in parts] == expected.tolist()
    made = np.concatenate(parts, axis=1)
    assert made.shape == whole.shape and made.dtype == np.uint8
    assert np.abs(made - whole).max() <= 1 and np.mean(made != whole) < 1e-3
    assert decoder.program._cache_size() == 1
    # Another call starts anew.
    again = next(chunks.decode_arriving(decoder, params, [z[:1, : portions[0]]]))
    np.testing.assert_array_equal(again[0], parts[0][0])


def test_a_stream_requires_multiples_of_a_chunk():
    autoencoder, params = make_video_autoencoder()
    decoder = chunks.make_decoder(autoencoder, make_mesh(), 8, (3, 4))
    with pytest.raises(
        ValueError, match="3 latent frames are not a multiple of the decoder's chunk of 2"
    ):
        next(chunks.decode_arriving(decoder, params, [latents(autoencoder, 1, 3, 3, 4)]))


def test_tiles_in_chunks(tmp_path):
    autoencoder, params = random_taef2()
    z = latents(autoencoder, 3, 30, 8)
    mesh = make_mesh(data=2)
    whole, tiled = (
        np.concatenate(
            list(
                chunks.decode_chunks(
                    chunks.make_decoder(autoencoder, mesh, 2, (30, 8), tile), params, z
                )
            )
        )
        for tile in (0, 22)
    )
    assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_frames_are_sharded_without_communication():
    autoencoder, _ = random_taef2()
    mesh = make_mesh(data=2, fsdp=2, seq=2)
    decoder = chunks.make_decoder(autoencoder, mesh, 3, (22, 8), 21)
    assert decoder.frames == 8  # rounded up
    params, _, z = decoder.abstract_args
    assert z.sharding.shard_shape(z.shape) == (1, 22, 8, 32)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    compiled = decoder.program.trace(*decoder.abstract_args).lower().compile()
    text = compiled.as_text()
    for collective in ("all-reduce", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in text, collective
    # The only collective gathers the uint8 pixels at the end.
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    assert gathers and all("u8[8,176,64,3]" in line for line in gathers), gathers


def test_memory_does_not_grow_with_the_video_and_chunks_are_computed_on_demand():
    autoencoder = autoencoders.make_autoencoder("identity")
    decoder = chunks.make_decoder(autoencoder, make_mesh(data=2), 4, (6, 5))
    program, calls = decoder.program, []

    def count(params, state, z):
        calls.append(z.shape)
        return program(params, state, z)

    z = latents(autoencoder, 103, 6, 5)
    parts = chunks.decode_chunks(decoder._replace(program=count), {}, z)
    first = list(itertools.islice(parts, 2))
    assert calls == [(4, 6, 5, 3)] * 3  # one ahead
    rest = np.concatenate([*first, *parts])
    assert len(calls) == 26 and set(calls) == {(4, 6, 5, 3)}
    np.testing.assert_array_equal(rest, pixels(z))
    assert program._cache_size() == 1


def test_less_than_a_chunk_can_be_computed():
    autoencoder = autoencoders.make_autoencoder("identity")
    encoder = chunks.make_encoder(autoencoder, make_mesh(), 4, (6, 5))
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), np.uint8)
    np.testing.assert_allclose(encoder({}, frames), frames / 127.5 - 1, atol=1e-6)
    decoder = chunks.make_decoder(autoencoder, make_mesh(), 4, (6, 5))
    np.testing.assert_array_equal(decoder({}, encoder({}, frames)), frames)
    for wrong in (frames[:0], frames[:, :5], np.concatenate([frames, frames])):
        with pytest.raises(ValueError, match=r"do not fit this program for \(4, 6, 5, 3\)"):
            encoder({}, wrong)


def test_there_are_no_implicit_transfers():
    autoencoder, params = random_taef2()
    decoder = chunks.make_decoder(autoencoder, make_mesh(data=2), 2, (2, 2))
    params = decoder.put_params(params)
    z = latents(autoencoder, 5, 2, 2)
    with jax.transfer_guard("disallow"):
        assert sum(len(part) for part in chunks.decode_chunks(decoder, params, z)) == 5
    assert decoder.program._cache_size() == 1
