"""Known frames from the user's pictures to what the model is told, in pixels and in latents."""

import jax
import numpy as np
import pytest

from tests.models.autoencoders import random_taef2
from tests.models.randomise import randomise
from tests.saved_runs import image_config, joint_config, long_config
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate import known_frames
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import causal_vae
from videogen_jax.models.weights import hash_params
from videogen_jax.run.latent_space import LatentSpace
from videogen_jax.run.model import make_model

NETWORK = causal_vae.Network(
    channels=3, patch=(2, 4, 4), strides=((2, 2, 2),), widths=(6, 8), blocks=1
)


def frame(seed, height=16, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def use(monkeypatch, autoencoder):
    """Makes it that of all configs; returns what a data set of its latents notes."""
    monkeypatch.setattr(LatentSpace, "describe", lambda self, fetch=False: autoencoder)
    channels = np.arange(autoencoder.channels)
    return LatentInfo(
        autoencoder.name,
        hash_params(autoencoder.load()),
        *("float16", [2, 2, autoencoder.channels], False),
        mean=(0.1 * channels).tolist(),
        deviation=(1 + 0.2 * channels).tolist(),
    )


def never_shown():
    config = image_config()
    config.tasks.update({"text": 1.0, "image": 0.0})
    return config


def two_frames():
    config = image_config()
    config.known.first = 2
    return config


def latent_config(frames):
    config = joint_config()
    config.vae.name = "taef2"
    config.data.update({"frames": frames, "height": 16, "width": 16})
    config.model.time_cycle = frames
    config.model.patch_size = (1, 1, 1)
    return config


def test_known_frames_come_in_order_with_their_places():
    first, last = frame(0, 8, 8), frame(1, 8, 8)
    video, mask = known_frames.fit_known({4: last, 1: first}, 6, (8, 8))
    assert mask.tolist() == [False, True, False, False, True, False]
    np.testing.assert_array_equal(video, np.stack([first, last]))


def test_a_picture_is_made_to_cover_and_cut_in_the_middle(caplog):
    caplog.set_level("INFO")
    halves = np.zeros((24, 16, 3), np.uint8)
    halves[:4], halves[4:20], halves[20:] = 255, 100, 255  # the white edges stick out
    video, _ = known_frames.fit_known({0: halves}, 4, (8, 8))
    assert "Frame 0 of 24x16 pixels has another aspect" in caplog.text
    # Bicubic reaches over the cut by two pixels.
    assert video.shape == (1, 8, 8, 3) and np.all(video[:, 2:-2] == 100)
    caplog.clear()
    known_frames.fit_known({0: frame(0, 32, 32)}, 4, (8, 8))
    assert not caplog.text  # of the same aspect nothing is cut


@pytest.mark.parametrize(
    ("config", "numbers", "sentence"),
    [
        (image_config(), [4], "Frame 4 is said to be known, but .* frames 0 to 3"),
        (image_config(), [0, 2], r"Frames 0, 2 are .* \(tasks\.frames=0\): give frame 0"),
        (image_config(), [1], r"Frames 1 are .*first frame alone"),
        (two_frames(), [0], r"Frames 0 are .* the first 2 frames alone .*: give frames 0 to 1"),
        (long_config(), [0], "model.conditioning='prefix' and knows no frames"),
        (never_shown(), [0], r"never shown known frames \(tasks\.image=0, tasks\.frames=0\)"),
    ],
)
def test_frames_that_the_model_cannot_be_told_of_are_refused(config, numbers, sentence):
    videos = [{}, dict.fromkeys(numbers, frame(0))]
    with pytest.raises(ValueError, match=sentence):
        known_frames.check_known(make_model(config), videos)


def test_frames_that_the_model_can_be_told_of_are_accepted():
    known_frames.check_known(make_model(image_config()), [{0: frame(0)}])
    model = make_model(two_frames())
    known_frames.check_known(model, [{1: frame(0), 0: frame(1)}])
    assert model.conditioning.tasks.first == 2  # what training draws
    known_frames.check_known(make_model(joint_config()), [{3: frame(0), 1: frame(1)}])
    known_frames.check_known(make_model(long_config()), [{}])


def test_the_noise_is_of_the_videos_own_seed_and_told():
    config = image_config()
    config.known.sampling_noise = 0.5
    video = np.random.default_rng(0).uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
    mask = np.zeros((2, 4), bool)
    mask[0, 0] = mask[1, 2] = True
    told = known_frames.condition_on_frames(make_model(config), video, mask, [7, 9])
    assert set(told) == {"known", "mask", "augmentation"}
    np.testing.assert_array_equal(told["mask"], mask)
    np.testing.assert_allclose(told["augmentation"], [np.log(0.5) / 4] * 2, rtol=1e-6)
    for row, seed, place in ((0, 7, 0), (1, 9, 2)):
        noise = np.random.default_rng([seed, 0]).standard_normal((4, 8, 8, 3))
        expected = video[row, place] + 0.5 * noise[place]
        np.testing.assert_allclose(told["known"][row], np.stack([expected] * 4), atol=1e-6)
        alone = known_frames.condition_on_frames(
            make_model(config), video[row : row + 1], mask[row : row + 1], [seed]
        )
        np.testing.assert_array_equal(alone["known"][0], told["known"][row])


def test_a_causal_model_is_told_nothing_ahead_of_the_first_known_frame():
    config = joint_config()
    video = np.ones((1, 4, 8, 8, 3), np.float32)
    told = known_frames.condition_on_frames(
        make_model(config), video, np.array([[False, False, True, False]]), [0]
    )
    assert not told["known"][0, :2].any() and told["known"][0, 2:].all()


def test_known_frames_become_latents_of_single_frames(monkeypatch):
    autoencoder, params = random_taef2()
    autoencoder = autoencoder._replace(load=lambda: params)
    info = use(monkeypatch, autoencoder)
    videos = [{0: frame(0), 3: frame(1)}, {2: frame(2, 32, 32)}]
    latents, mask = known_frames.encode_known(make_model(latent_config(5)), info, videos)
    assert mask.tolist() == [
        [True, False, False, True, False],
        [False, False, True, False, False],
    ]
    shown = np.stack([frame(0), frame(1)]) / np.float32(127.5) - 1
    raw = jax.jit(autoencoder.encode)(params, shown[None])[0]
    expected = (raw - np.float32(info.mean)) / np.float32(info.deviation)
    assert latents.shape == (2, 5, 2, 2, 32) and latents.dtype == np.float32
    np.testing.assert_allclose(latents[0, [0, 3]], expected, atol=1e-4)


def test_known_frames_become_latents_of_a_causal_autoencoder(monkeypatch):
    autoencoder = autoencoders.make_video_autoencoder(NETWORK, load=lambda: params)
    params = randomise(autoencoder.abstract_params, 0.3)
    info = use(monkeypatch, autoencoder)
    clip = [frame(seed) for seed in range(5)]
    videos = [dict(enumerate(clip)), {0: clip[0]}]
    latents, mask = known_frames.encode_known(make_model(latent_config(9)), info, videos)
    assert mask.tolist() == [[True, True, False], [True, False, False]]
    shown = np.stack(clip) / np.float32(127.5) - 1
    raw = jax.jit(autoencoder.encode)(params, shown[None])[0]  # (2, h, w, C)
    expected = (raw - np.float32(info.mean)) / np.float32(info.deviation)
    np.testing.assert_allclose(latents[0, :2], expected, atol=1e-4)
    # What comes later does not change the first latent, which is of the first frame alone.
    np.testing.assert_allclose(latents[1, 0], expected[0], atol=1e-4)
    with pytest.raises(ValueError, match="must be the first 1, 5, 9 and so on"):
        known_frames.encode_known(make_model(latent_config(9)), info, [{0: clip[0], 1: clip[1]}])
    with pytest.raises(ValueError, match="are not those that encoded the data set"):
        other = info._replace(weights="0" * 64)
        known_frames.encode_known(make_model(latent_config(9)), other, videos)


@pytest.mark.parametrize(
    ("known", "stride", "expected"),
    [
        ("1 0000 0000", 4, "100"),
        ("1 1111 0000", 4, "110"),
        ("1 1111 1111", 4, "111"),
        ("1 1110 0000", 4, None),  # a part of a latent
        ("0 1111 0000", 4, None),  # the first frame is missing
        ("1 0000 1111", 4, None),
        ("1 1 0 0", 1, "1100"),
        ("1 0 1 0", 1, None),
    ],
)
def test_latents_are_known_whole_and_from_the_first_on(known, stride, expected):
    mask = np.array([digit == "1" for digit in known.replace(" ", "")])
    if expected is None:
        following = f"first 1, {1 + stride}, {1 + 2 * stride} and so on"
        with pytest.raises(ValueError, match=following):
            known_frames.latent_mask(mask, stride)
    else:
        got = known_frames.latent_mask(mask, stride)
        assert "".join(str(int(one)) for one in got) == expected
