"""What a config means."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.generate import run_sampler
from videogen_jax.models import layers
from videogen_jax.run import model as run_model
from videogen_jax.run import saved_config
from videogen_jax.train import diffusion_run, training_run

pytestmark = pytest.mark.slow


def random_run(config):
    run = make_run(config)
    return run, jax.device_put(randomise(run.abstract.params, 0.3), run.shardings.params)


def test_shift_grows_with_the_root_of_the_tokens():
    config = tiny_config()  # 4 x 2 x 2 tokens
    config.schedule.update({"name": "flow", "zero_terminal_snr": False, "shift": 1.5})
    plain = run_model.make_model(config).schedule
    config.schedule.reference_tokens = 4
    shifted = run_model.make_model(config).schedule
    t = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(plain.log_snr(t) - shifted.log_snr(t), 2 * np.log(2.0))


@pytest.mark.parametrize("frames", [1, 2])
def test_pictures_beside_videos_have_as_much_noise_as_the_reference(frames):
    """Not less, as by the root of their share of the reference's tokens."""
    config = tiny_config()
    config.schedule.update({"name": "flow", "zero_terminal_snr": False, "shift": 1.5})
    config.schedule.reference_tokens = 16  # those of the 4 frames
    config.data.frames = frames
    schedule = run_model.make_model(config).schedule
    t = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(schedule.sigma(t), 1.5 * t / (1 + 0.5 * t))


@pytest.mark.parametrize(
    ("precision", "residual", "kinds"),
    [
        ("bfloat16", "compute", {"bfloat16"}),
        ("bfloat16", "float32", {"float32"}),
        ("float32", "compute", {"float32"}),
    ],
)
def test_the_residual_stream_has_its_type(precision, residual, kinds, monkeypatch):
    config = tiny_config()
    config.train.precision = precision
    config.model.update({"residual_dtype": residual, "positions": "latte"})
    config.model.cross_attention = "gated"
    seen, products, attend = set(), set(), layers.Attention.__call__
    monkeypatch.setattr(
        layers, "layer_norm", lambda x, norm=layers.layer_norm: seen.add(str(x.dtype)) or norm(x)
    )

    def note(self, x, *args, **options):
        products.add(str(jnp.dtype(self.dtype)))
        return attend(self, x, *args, **options)

    monkeypatch.setattr(layers.Attention, "__call__", note)
    model = run_model.make_model(config)
    condition = {"text": np.zeros((2, config.text.length), np.int32)}
    shape = (2, *model.video_shape)
    out = jax.eval_shape(
        model.apply, model.abstract_params, jnp.zeros(shape), jnp.zeros(2), condition
    )
    assert out.dtype == jnp.float32 and seen == kinds
    assert products == {precision}


@pytest.mark.parametrize("name", ["fps", "motion"])
def test_micro_conditions_reach_the_model_by_name(name):
    config = tiny_config()
    config.model.micro_conditions = ("fps", "motion")
    run, params = random_run(config)
    text = np.full((2, config.text.length), 4, np.int32)
    condition = run_sampler.make_condition(run.model, text, motion=100.0)
    assert condition["fps"].tolist() == [config.data.fps] * 2
    assert condition["motion"].tolist() == [100.0] * 2
    x_t = jax.random.normal(jax.random.key(0), (2, *run.model.video_shape))
    apply = jax.jit(run.model.apply)
    before = apply(params, x_t, jnp.array([3, 5]), condition)
    moved = condition | {name: condition[name] + np.float32([0, 7])}
    change = jnp.abs(apply(params, x_t, jnp.array([3, 5]), moved) - before).max((1, 2, 3, 4))
    assert change[0] == 0 and change[1] > 1e-4


def test_edms_model_sees_scaled_video_and_the_logarithm_of_sigma():
    config = tiny_config()
    run, params = random_run(config)
    config.schedule.update({"name": "edm", "zero_terminal_snr": False, "sigma_data": 0.5})
    edm = make_run(config)
    x_t = 30 * jax.random.normal(jax.random.key(0), (2, *run.model.video_shape))
    sigma = jnp.array([0.8, 40.0])
    condition = {"text": np.full((2, config.text.length), 4, np.int32)}
    scale = 1 / jnp.sqrt(sigma**2 + 0.25)
    # On a clock of steps the model sees x_t and t as they are.
    expected = jax.jit(run.model.apply)(
        params, x_t * scale[:, None, None, None, None], jnp.log(sigma) / 4, condition
    )
    got = jax.jit(edm.model.apply)(params, x_t, sigma, condition)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_pictures_train_the_parameters_that_videos_do():
    """One frame passes the temporal blocks by; all else learns from pictures and videos alike."""
    config = tiny_config()
    run, params = random_run(config)
    loss = diffusion_run.make_run_loss(run.model, dropout=False)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (4, *run.model.video_shape), np.uint8)
    text = np.full((4, config.text.length), 4, np.int32)
    gradient = jax.jit(jax.grad(loss))
    moved = {}
    for name, frames in (("video", 4), ("picture", 1)):
        grads = gradient(params, {"video": video[:, :frames], "text": text}, jax.random.key(0))
        moved[name] = jax.tree.map(lambda g: float(jnp.abs(g).max()), grads)
    assert all(size > 0 for size in jax.tree.leaves(moved["video"]["blocks"]))
    assert all(size > 0 for size in jax.tree.leaves(moved["picture"]["blocks"]["spatial"]))
    assert all(size == 0 for size in jax.tree.leaves(moved["picture"]["blocks"]["temporal"]))
    assert moved["picture"]["unembed"]["kernel"] > 0


def test_a_run_of_pictures_has_the_parameters_of_videos():
    videos, pictures = tiny_config(), tiny_config()
    pictures.data.frames = 1
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, make_run(config).abstract.params)
        for config in (videos, pictures)
    ]
    assert shapes[0] == shapes[1]
    # And the step of pictures is one.
    run = make_run(pictures)
    assert run.model.video_shape[0] == 1
    training_run.compile_step(run)


def test_a_run_from_before_known_frames_is_one_of_text_alone(tmp_path):
    config = tiny_config()
    saved_config.write_config(tmp_path, config)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    for name in ("tasks", "known", "prefix"):
        del older[name]
    del older["model"]["conditioning"], older["model"]["time_cycle"]
    del older["sample"]["known_guidance_scale"]
    path.write_text(json.dumps(older))
    found = saved_config.read_config(tmp_path)
    assert found.tasks.to_dict() == {"text": 1.0, "image": 0.0, "frames": 0.0, "prefix": 0.0}
    assert (found.model.conditioning, found.model.time_cycle) == ("none", 0)
    assert found.sample.known_guidance_scale is None
    models = [json.loads(one.model.to_json()) for one in (found, config)]
    assert models[0] == models[1]


def test_an_option_that_no_longer_exists_is_named_with_the_way_out(tmp_path):
    config = tiny_config()
    saved_config.write_config(tmp_path, config)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    older["model"]["squeeze"] = 3
    path.write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"option 'model\.squeeze', which .* remove the line if"):
        saved_config.read_config(tmp_path)


@pytest.mark.parametrize("name", ["taef2", "wan"])
def test_several_known_frames_need_latents_of_one_frame_each(name):
    config = tiny_config()
    config.vae.name, config.sample.clip_x0 = name, False
    config.known.first = 2
    config.data.update({"frames": 9, "height": 16, "width": 16})
    config.model.patch_size = (1, 1, 1)
    if name == "taef2":
        run_model.make_model(config)
        return
    with pytest.raises(ValueError, match="latents of vae.name='wan' are of 4 frames each: set it"):
        run_model.make_model(config)
