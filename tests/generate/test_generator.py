"""Videos are the same in any company: batch sizes, padding and devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.diffusion.schedule import make_schedule
from videogen_jax.generate import run_sampler
from videogen_jax.generate.generator import make_generator, make_programs
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.models.chunks import to_pixels
from videogen_jax.parallel.mesh import make_mesh

SHAPE = (2, 4, 4, 3)
TEXT = np.array([[3, 4], [5, 6], [7, 8], [9, 10], [11, 12]], np.int32)
SEEDS = [7, 8, 9, 10, 11]


def mixing_model(params, x_t, t, condition):
    """Cheap to compile; each video depends on all its own pixels, its time and its caption."""
    context = jnp.mean(x_t, axis=(1, 2, 3, 4), keepdims=True)
    caption = jnp.sin(condition["text"].sum(1) * params)[:, None, None, None, None]
    return jnp.tanh(x_t + context + caption) * jnp.cos(t / 300.0)[:, None, None, None, None]


def generate(batch_size, devices=1, count=5, **options):
    mesh = make_mesh(data=devices)
    whole = NamedSharding(mesh, PartitionSpec())
    programs = make_programs(
        mixing_model,
        make_schedule("cosine", zero_terminal_snr=True),
        np.array([2, 0], np.int32),
        mesh,
        whole,
        SamplerSettings(
            batch_size=batch_size,
            guidance_scale=2.0,
            sampler="ddpm",
            clip_x0=True,
            num_inference_steps=4,
            **options,
        ),
        shape=SHAPE,
        prediction="x0",
    )
    run = make_generator(programs)
    return run(jax.device_put(jnp.float32(0.7), whole), {"text": TEXT[:count]}, SEEDS[:count])


def assert_same_pixels(got, expected):
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got.astype(int), expected.astype(int), atol=1)


@pytest.fixture(scope="module")
def one_at_a_time():
    videos = generate(1)
    assert videos.shape == (5, *SHAPE)
    for i in range(4):  # seeds and captions matter
        assert np.abs(videos[i].astype(int) - videos[i + 1].astype(int)).max() > 30
    return videos


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_a_video_is_the_same_in_any_batch(batch_size, one_at_a_time):
    assert_same_pixels(generate(batch_size), one_at_a_time)


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 2), (5, 4)])
def test_a_video_is_the_same_on_any_number_of_devices(batch_size, devices, one_at_a_time):
    assert_same_pixels(generate(batch_size, devices), one_at_a_time)


def test_a_single_video_fills_its_batch_up(one_at_a_time):
    videos = generate(5, devices=4, count=1)
    assert videos.shape == (1, *SHAPE)
    assert_same_pixels(videos, one_at_a_time[:1])


def test_the_transformer_makes_the_same_videos_on_two_devices():
    """With parameters sharded over `fsdp`, as the train loop hands them in."""
    config = tiny_config()
    videos = []
    for mesh, batch_size in ((make_mesh(), 1), (make_mesh(fsdp=2), 2)):
        run = make_run(config, mesh)
        shapes, places = run.abstract.params, run.shardings.params
        params = jax.device_put(randomise(shapes, 0.3), places)
        settings = SamplerSettings(
            batch_size=batch_size,
            guidance_scale=2.0,
            num_inference_steps=2,
            sampler="ddim",
            clip_x0=True,
        )
        make = make_generator(run_sampler.make_run_programs(run.model, settings))
        text = np.full((3, config.text.length), 4, np.int32)
        videos.append(make(params, run_sampler.make_condition(run.model, text, 0.0), SEEDS[:3]))
    assert videos[0].std() > 10
    assert_same_pixels(videos[1], videos[0])


def test_pixels_are_rounded_and_clamped():
    video = jnp.array([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 3.0, 127 / 127.5 - 1])
    np.testing.assert_array_equal(to_pixels(video), [0, 0, 0, 128, 191, 255, 255, 127])
    every = np.arange(256)
    np.testing.assert_array_equal(to_pixels(jnp.asarray(every / 127.5 - 1)), every)
