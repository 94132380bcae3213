"""What a config means."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from tests.tiny import tiny_config
from videogen_jax.generate import run_sampler
from videogen_jax.run import model as run_model
from videogen_jax.run import saved_config


def random_run(config):
    run = run_model.make_run(config)
    return run, jax.device_put(randomise(run.abstract.params, 0.3), run.shardings.params)


def test_shift_grows_with_the_root_of_the_tokens():
    config = tiny_config()  # 4 x 2 x 2 tokens
    config.schedule.update({"name": "flow", "zero_terminal_snr": False, "shift": 1.5})
    plain = run_model.make_run_schedule(config)
    config.schedule.reference_tokens = 4
    shifted = run_model.make_run_schedule(config)
    t = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(plain.log_snr(t) - shifted.log_snr(t), 2 * np.log(2.0))


@pytest.mark.parametrize("name", ["fps", "motion"])
def test_micro_conditions_reach_the_model_by_name(name):
    config = tiny_config()
    config.model.micro_conditions = ("fps", "motion")
    run, params = random_run(config)
    text = np.full((2, config.text.length), 4, np.int32)
    condition = run_sampler.make_condition(config, text, motion=100.0)
    assert condition["fps"].tolist() == [config.data.fps] * 2
    assert condition["motion"].tolist() == [100.0] * 2
    x_t = jax.random.normal(jax.random.key(0), (2, *run.video_shape))
    before = run.apply(params, x_t, jnp.array([3, 5]), condition)
    moved = condition | {name: condition[name] + np.float32([0, 7])}
    change = jnp.abs(run.apply(params, x_t, jnp.array([3, 5]), moved) - before).max((1, 2, 3, 4))
    assert change[0] == 0 and change[1] > 1e-4


def test_an_unknown_micro_condition_lists_the_known():
    config = tiny_config()
    config.model.micro_conditions = ("fps", "speed")
    with pytest.raises(ValueError, match="'speed': choose among fps, motion"):
        run_model.make_run(config)


def test_edms_model_sees_scaled_video_and_the_logarithm_of_sigma():
    config = tiny_config()
    run, params = random_run(config)
    config.schedule.update({"name": "edm", "zero_terminal_snr": False, "sigma_data": 0.5})
    edm = run_model.make_run(config)
    x_t = 30 * jax.random.normal(jax.random.key(0), (2, *run.video_shape))
    sigma = jnp.array([0.8, 40.0])
    condition = {"text": np.full((2, config.text.length), 4, np.int32)}
    scale = 1 / jnp.sqrt(sigma**2 + 0.25)
    # On a clock of steps the model sees x_t and t as they are.
    expected = run.apply(
        params, x_t * scale[:, None, None, None, None], jnp.log(sigma) / 4, condition
    )
    got = edm.apply(params, x_t, sigma, condition)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_pictures_train_the_parameters_that_videos_do():
    """One frame passes the temporal blocks by; all else learns from pictures and videos alike."""
    config = tiny_config()
    run, params = random_run(config)
    loss = run_model.make_run_loss(run, drops=False)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (4, *run.video_shape), np.uint8)
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sample.sampler", "plms", "'plms': choose one of ddim, ddpm"),
        ("sample.spacing", "even", "choose one of leading, trailing, linspace"),
        ("sample.guidance_scale", float("nan"), "guidance_scale is nan"),
        ("sample.guidance_rescale", 2.0, "guidance_rescale is 2.0"),
        ("sample.motion", 9999.0, "buckets of the motion score are 0 to 255"),
        ("objective.weighting", "snr", "choose one of uniform, min_snr"),
        ("objective.gamma", -1.0, "objective.gamma is -1.0"),
        ("objective.time_std", -1.0, "objective.time_std is -1.0"),
        ("objective.time_distribution", "log_normal", "choose objective.time_distribution uniform"),
        ("objective.prediction", "eps", "ends in pure noise"),
        ("ema.snapshot_every", 5, "ema.widths names no power average"),
        ("schedule.reference_tokens", -5, "schedule.reference_tokens is -5"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_computed(name, value, message):
    config = tiny_config()
    config.sample.prompts = ()  # also where nothing is sampled on the way
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=message):
        run_sampler.check_choices(run_model.make_run(config))


def test_ddpm_of_a_flow_model_is_refused_before_training():
    config = tiny_config()
    config.schedule.update({"name": "flow", "zero_terminal_snr": False})
    config.objective.prediction, config.sample.sampler = "flow", "ddpm"
    with pytest.raises(ValueError, match="ddpm"):
        run_sampler.check_choices(run_model.make_run(config))


def test_a_run_of_pictures_has_the_parameters_of_videos():
    videos, pictures = tiny_config(), tiny_config()
    pictures.data.frames = 1
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, run_model.make_run(config).abstract.params)
        for config in (videos, pictures)
    ]
    assert shapes[0] == shapes[1]
    # And the step of pictures is one.
    run = run_model.make_run(pictures)
    assert run.video_shape[0] == 1
    run_model.compile_step(run)


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


def test_the_config_of_an_older_version_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"patch_size": [1, 2, 2]}}')
    with pytest.raises(ValueError, match="is of an older videogen_jax"):
        saved_config.read_config(tmp_path)
