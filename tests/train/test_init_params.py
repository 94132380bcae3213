"""A run that starts from another: its first output is the other's, whatever it is told that the other was not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.packed import random_clips, write_records
from tests.saved_runs import CAPTIONS, image_config, joint_config, long_config, write_run
from tests.tiny import make_run, tiny_config, tiny_vae_config
from videogen_jax.data import pipeline
from videogen_jax.data.vocabulary import Vocabulary
from videogen_jax.generate import run_sampler
from videogen_jax.run import checkpoint, saved_config
from videogen_jax.train import init_params, loop
from videogen_jax.train.run_kinds import DIFFUSION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    clips = random_clips((4, 8, 8), 4)
    return write_records(tmp_path_factory.mktemp("data") / "data", clips, 4, 2, CAPTIONS * 2)


def plain_config(data):
    config = tiny_config()
    config.mesh.fsdp = 1
    return shorten(config, data)


def shorten(config, data):
    config.data.path = str(data)
    config.train.update({"steps": 2, "log_every": 1})
    config.learning_rate.warmup_steps = 1
    config.sample.every = 0
    config.checkpoint.every = 2
    return config


@pytest.fixture(scope="module")
def text_run(data, tmp_path_factory):
    """Text to video, trained for a few steps."""
    folder = tmp_path_factory.mktemp("text") / "run"
    config = plain_config(data)
    # Zeros at the beginning let nothing but the last layer learn at first.
    config.train.steps = config.checkpoint.every = 6
    loop.train(config, folder)
    return folder


def starting(config, data, workdir):
    config.init.update({"path": str(workdir), "layout": "run"})
    return shorten(config, data)


def begin(config, data):
    own_texts = DIFFUSION.open_texts(config, pipeline.open_data(str(data)))
    run = make_run(config)
    return run, init_params.init_params(run.model, own_texts)


def output(run, params, told=()):
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((2, *run.model.video_shape)).astype(np.float32)
    text = np.full((2, run.config.text.length), 4, np.int32)
    condition = run_sampler.make_condition(run.model, text, 100.0) | dict(told)
    return np.asarray(jax.jit(run.model.apply)(params, x_t, jnp.array([300, 700]), condition))


def some_frames(run):
    """Known frames of any content, and a noise on them."""
    rng = np.random.default_rng(1)
    told = {
        "known": rng.standard_normal((2, *run.model.video_shape)),
        "mask": rng.uniform(size=(2, run.model.video_shape[0])),
        "augmentation": np.array([-2.0, 1.0]),
    }
    return {name: array.astype(np.float32) for name, array in told.items()}


def read_average(workdir):
    run = make_run(saved_config.read_config(workdir))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        return run, checkpoint.restore_ema(manager, run.model.abstract_params, run.ema_name)[0]


def test_a_new_detailer_starts_by_adding_nothing(text_run, data):
    other, average = read_average(text_run)
    config = plain_config(data)
    config.model.update({"detailer_width": 6, "detailer_blocks": 1})
    run, params = begin(starting(config, data, text_run), data)
    assert "detailer" in params and "detailer" not in average
    np.testing.assert_allclose(output(run, params), output(other, average), atol=1e-6)


def test_image_to_video_starts_as_the_trained_text_to_video(text_run, data):
    other, average = read_average(text_run)
    expected = output(other, average)
    assert np.abs(expected).max() > 1e-3  # no more zeros
    config = image_config()
    config.model.micro_conditions = ("fps", "motion", "augmentation")
    run, params = begin(starting(config, data, text_run), data)
    for told in ({}, some_frames(run)):
        np.testing.assert_allclose(output(run, params, told), expected, atol=1e-6)

    # And what is new can learn: each of its last layers has a gradient, and so have the known frames' weights.
    def loss(params):
        x_t = jnp.ones((2, *run.model.video_shape))
        text = np.full((2, config.text.length), 4, np.int32)
        condition = run_sampler.make_condition(run.model, text, 100.0) | some_frames(run)
        return jnp.sum(jnp.square(run.model.apply(params, x_t, jnp.array([300, 700]), condition)))

    gradient = jax.jit(jax.grad(loss))(params)
    for name in config.model.micro_conditions:
        assert jnp.abs(gradient[f"{name}_embed"]["out"]["kernel"]).max() > 0
    kernel = gradient["patch_embed"]["kernel"].reshape(-1, 7, config.model.width)
    assert all(jnp.abs(kernel[:, channel]).max() > 0 for channel in range(7))


def test_a_prefix_keeps_its_meaning_where_known_frames_join_it(data, tmp_path):
    workdir = write_run(tmp_path / "prefix", long_config())
    other, average = read_average(workdir)
    run, params = begin(starting(joint_config(), data, workdir), data)
    told = some_frames(run) | {"start": np.array([3, 1], np.int32)}
    expected = output(other, average, {name: told[name] for name in ("mask", "start")})
    np.testing.assert_allclose(output(run, params, told), expected, atol=1e-5)
    # The mask is read, and read as the other run reads it.
    unmasked = told | {"mask": np.zeros_like(told["mask"])}
    assert np.abs(output(run, params, unmasked) - expected).max() > 1e-2


def test_channels_that_are_new_come_behind_the_videos_own():
    kernel = np.arange(2 * 3 * 5, dtype=np.float32).reshape(6, 5)  # 2 places of 3 channels
    wide = np.asarray(init_params.widen(jnp.asarray(kernel), 3, 5, 2)).reshape(2, 5, 5)
    old = kernel.reshape(2, 3, 5)
    np.testing.assert_array_equal(wide[:, :2], old[:, :2])
    np.testing.assert_array_equal(wide[:, 2:4], 0)
    np.testing.assert_array_equal(wide[:, 4], old[:, 2])


def test_the_loop_starts_from_the_run_and_goes_on_from_its_own_checkpoint(text_run, data, tmp_path):
    config = starting(image_config(), data, text_run)
    config.mesh.fsdp = 2  # another mesh than the other run's
    own_texts = DIFFUSION.open_texts(config, pipeline.open_data(str(data)))
    run = make_run(config)
    with checkpoint.open_checkpoints(tmp_path / "new", 1) as manager:
        state = loop.restore_or_init(run, manager, own_texts, None)
    _, average = read_average(text_run)
    assert int(state.step) == 0
    for tree in (state.params, state.ema[run.ema_name]):
        np.testing.assert_array_equal(tree["unembed"]["kernel"], average["unembed"]["kernel"])
    loop.train(config, tmp_path / "run")
    config.init.path = str(tmp_path / "gone")  # it is read once, at the beginning
    with checkpoint.open_checkpoints(tmp_path / "run", read_only=True) as manager:
        assert int(loop.restore_or_init(run, manager, own_texts, None).step) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.width": 24}, r"model\.width is 24, but 12 in init\.path"),
        ({"model.num_heads": 3}, r"model\.num_heads is 3, but 2 in init\.path"),
        ({"model.patch_size": (1, 2, 4)}, r"model\.patch_size is \(1, 2, 4\), but \(1, 4, 4\)"),
    ],
)
def test_another_model_is_refused(text_run, data, changes, sentence):
    config = starting(image_config(), data, text_run)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=sentence):
        begin(config, data)


def test_what_is_no_run_to_start_from_is_refused(text_run, data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no .*config\.json"):
        begin(starting(image_config(), data, tmp_path / "nothing"), data)
    saved_config.write_config(tmp_path, tiny_vae_config())
    with pytest.raises(ValueError, match="is the run of an autoencoder"):
        begin(starting(image_config(), data, tmp_path), data)
    told = write_run(tmp_path / "told", image_config())
    with pytest.raises(
        ValueError, match="conditioning is 'none', but 'frames' .*conditioning=frames"
    ):
        begin(starting(plain_config(data), data, told), data)
    forgetful = starting(image_config(), data, told)
    forgetful.model.micro_conditions = ()
    with pytest.raises(ValueError, match="has augmentation_embed/.*, which this model lacks"):
        begin(forgetful, data)
    config = starting(image_config(), data, text_run)
    config.init.layout = "latent"
    with pytest.raises(ValueError, match="'latent' \\(latte\\?\\): choose one of dit, latte, run"):
        loop.train(config, tmp_path / "other")


def test_common_words_keep_their_embedding_and_new_ones_start_fresh(text_run, tmp_path, caplog):
    """By the word, not by its number: "moving" is the most frequent here, and "a" was there."""
    captions = ["a cat moving moving left"] * 4
    words = write_records(tmp_path / "data", random_clips((4, 8, 8), 4), 4, 2, captions)
    config = starting(plain_config(words), words, text_run)
    config.text.vocabulary_size = 9  # four words, three special ids and two rows of no word
    with caplog.at_level("INFO", logger="absl"):
        _, params = begin(config, words)
    other, average = read_average(text_run)
    before = Vocabulary.from_list(
        DIFFUSION.open_texts(other.config, pipeline.open_data(other.config.data.path)).metadata[
            "vocabulary"
        ]
    )
    after = DIFFUSION.open_texts(config, pipeline.open_data(str(words))).metadata["vocabulary"]
    assert sorted(after) == ["a", "cat", "left", "moving"] and after[0] == "moving"
    table, old = (tree["caption_encoder"]["words"]["embedding"] for tree in (params, average))
    fresh = make_run(config).model.init_params()["caption_encoder"]["words"]["embedding"]
    assert table.shape == (9, config.model.width)
    np.testing.assert_array_equal(table[:3], old[:3])
    for word in ("a", "left", "moving"):
        was = before.encode([word], 1)[0, 0]
        np.testing.assert_array_equal(table[after.index(word) + 3], old[was])
    for row in (after.index("cat") + 3, 7, 8):
        np.testing.assert_array_equal(table[row], fresh[row])
    assert "Of 4 words 3 keep their embedding, 1 are new and start at random ('cat')" in caplog.text
    assert (
        "5 of the other run are not in these captions" in caplog.text
    )  # red blue circle square up


def test_another_question_is_told(text_run, data, caplog):
    config = starting(image_config(), data, text_run)
    config.objective.prediction = "v"
    begin(config, data)
    assert "was trained with objective.prediction=x0, and this run has v" in caplog.text
