"""Training tasks: their shares, which frames are known, and the conditioning that follows from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.diffusion import tasks as clip_tasks
from videogen_jax.diffusion.schedule import make_schedule

COUNT = 4000


def make_tasks(causal=False, patch_frames=1, cycle=0, lengths=(1, 3), noise_std=0.5, **shares):
    shares = {name: shares.get(name, 0.0) for name in clip_tasks.TASKS}
    return clip_tasks.Tasks(
        shares, patch_frames, causal, -3.0, noise_std, lengths, prefix_noise=0.1, time_cycle=cycle
    )


def draw(tasks, count=COUNT, frames=5, side=1, dropped=None):
    """Clips whose frame i has the value i everywhere, and their tasks, on the host."""
    x0 = np.zeros((count, frames, side, side, 1), np.float32)
    x0 += np.arange(frames, dtype=np.float32)[:, None, None, None]
    draw_task = jax.jit(lambda rng, x0, dropped: clip_tasks.draw_task(rng, tasks, x0, dropped))
    return x0, jax.device_get(draw_task(jax.random.key(0), x0, dropped))


def assert_share(found, share):
    """The mean lies within five standard deviations of the binomial distribution."""
    bound = 5 * np.sqrt(share * (1 - share) / len(found))
    assert abs(found.mean() - share) < bound


def test_tasks_are_drawn_by_their_shares_and_have_their_known_frames():
    tasks = make_tasks(causal=True, cycle=7, text=0.2, image=0.3, prefix=0.5)
    x0, drawn = draw(tasks)
    count = drawn.mask.sum(1)
    clean = drawn.clean.any(1)
    assert_share(count == 0, 0.2)
    assert_share((count > 0) & ~clean, 0.3)
    assert_share(clean, 0.5)
    np.testing.assert_array_equal(
        drawn.mask[(count > 0) & ~clean], [[1, 0, 0, 0, 0]] * sum((count > 0) & ~clean)
    )
    # Prefixes are the first frames, with lengths equally likely; they are in the mask and not in the known channels.
    np.testing.assert_array_equal(drawn.mask[clean], drawn.clean[clean])
    lengths = drawn.clean.sum(1)
    np.testing.assert_array_equal(drawn.clean, np.arange(5) < lengths[:, None])
    assert set(lengths) == {0, 1, 3}
    assert_share(lengths[clean] == 1, 0.5)
    assert np.all(drawn.known[clean | (count == 0)] == 0)
    assert drawn.start.min() == 0 and drawn.start.max() == 6
    assert drawn.mask.dtype == np.float32


def test_several_first_frames_are_known_and_the_last_of_them_conditions_the_rest():
    tasks = make_tasks(image=1.0)._replace(first=2)
    clip_tasks.check_tasks(tasks, 5)
    _, drawn = draw(tasks, count=300, side=24)
    np.testing.assert_array_equal(drawn.mask, [[1, 1, 0, 0, 0]] * 300)
    np.testing.assert_array_equal(drawn.known[:, 1:], drawn.known[:, 1:2].repeat(4, axis=1))
    # The frames are 0 and 1 everywhere, and their noise has a mean of 0.
    means = drawn.known.mean((0, 2, 3, 4))
    np.testing.assert_allclose(means, [0, 1, 1, 1, 1], atol=0.01)
    with pytest.raises(ValueError, match="known.first is 2, but clips have 2 frames"):
        clip_tasks.check_tasks(tasks, 2)


def test_a_known_first_frame_conditions_every_frame_with_its_noise_level():
    tasks = make_tasks(image=1.0)
    _, drawn = draw(tasks, count=300, side=24)
    np.testing.assert_array_equal(drawn.known, drawn.known[:, :1].repeat(5, axis=1))
    assert drawn.start is None
    sigma = np.exp(4 * np.float64(drawn.augmentation))
    noise = np.float64(drawn.known[:, 0])  # frame 0 of the video is 0
    # The sample variance of n normal numbers has the standard deviation sqrt(2 / n).
    variance = np.mean(noise**2, axis=(1, 2, 3)) / sigma**2
    assert np.abs(variance - 1).max() < 5 * np.sqrt(2 / 24**2)
    assert abs(variance.mean() - 1) < 5 * np.sqrt(2 / 24**2 / 300)
    assert abs(np.log(sigma).mean() + 3) < 5 * 0.5 / np.sqrt(300)
    assert abs(np.log(sigma).std() / 0.5 - 1) < 5 / np.sqrt(2 * 300)


def test_every_frame_is_conditioned_on_the_nearest_known_frame():
    x0, drawn = draw(make_tasks(frames=0.5, text=0.5, noise_std=0.0), side=2)
    known = drawn.mask.any(1)
    assert_share(known, 0.5)
    for row in np.flatnonzero(known)[:200]:
        numbers = np.flatnonzero(drawn.mask[row])
        nearest = [numbers[np.argmin(abs(numbers - frame))] for frame in range(5)]
        np.testing.assert_allclose(
            drawn.known[row], x0[row, nearest], atol=6 * np.exp(-3)
        )  # up to the noise


@pytest.mark.parametrize("frames", [2, 3, 7])
def test_every_mask_has_a_known_and_an_unknown_frame(frames):
    masks = np.asarray(clip_tasks.draw_mask(jax.random.key(1), COUNT, frames))
    assert masks.any(1).all() and not masks.all(1).any()
    seen = {tuple(mask) for mask in masks.tolist()}
    frame = np.arange(frames)
    for n in range(1, frames):
        assert tuple(frame < n) in seen  # extension
        assert tuple(frame % (n + 1) == 0) in seen  # interpolation
    assert masks.any(0).all() and not masks.all(0).any()


def test_the_kinds_of_masks_are_equally_likely_and_so_are_their_sizes():
    frames = 7
    frame = np.arange(frames)
    masks = np.asarray(clip_tasks.draw_mask(jax.random.key(1), COUNT, frames))
    for n in range(1, frames):
        for mask in (frame < n, frame % (n + 1) == 0):
            share = 1 / 3 / (frames - 1)  # and a few of the random masks
            assert np.all(masks == mask, axis=1).mean() > share - 5 * np.sqrt(share / COUNT)
    # A random mask is known at a uniform number of frames, 1 to 6: all but one of 7 places, the last one apart.
    all_but_one = (masks.sum(1) == frames - 1) & ~np.all(masks == (frame < frames - 1), axis=1)
    assert_share(all_but_one, 1 / 3 / (frames - 1) * (frames - 1) / frames)


def test_a_causal_model_is_conditioned_on_no_later_frame():
    _, drawn = draw(make_tasks(causal=True, frames=1.0), side=2)
    before = np.cumsum(drawn.mask, axis=1) == 0  # (B, F)
    assert before.any() and np.all(drawn.known[before] == 0)
    assert np.all(drawn.known[~before] != 0)


@pytest.mark.parametrize("causal", [False, True])
def test_nearest_known_takes_the_nearest_frame_and_no_later_one_if_causal(causal):
    rng = np.random.default_rng(0)
    video = rng.standard_normal((8, 6, 2, 2, 1)).astype(np.float32)
    mask = rng.random((8, 6)) < 0.4
    mask[0] = False
    nearest_known = jax.jit(clip_tasks.nearest_known, static_argnums=2)
    got = np.asarray(nearest_known(video, mask, causal))
    for b in range(8):
        for i in range(6):
            best = None
            for j in range(6):
                if mask[b, j] and (j <= i or not causal):
                    if best is None or abs(j - i) < abs(best - i):
                        best = j
            expected = 0 if best is None else video[b, best]
            np.testing.assert_array_equal(got[b, i], np.broadcast_to(expected, (2, 2, 1)))
    if causal:
        video[:, 3:], mask[:, 3:] = 9, ~mask[:, 3:]
        again = np.asarray(nearest_known(video, mask, True))
        np.testing.assert_array_equal(again[:, :3], got[:, :3])


@pytest.mark.parametrize(
    ("name", "clean", "noise"),
    [
        ("flow", 0.001, 0.1),
        ("cosine", 0, 100),  # step 100 of 1000
        (
            "edm",
            0.002,
            (0.002 ** (1 / 7) + 0.0999 / 0.999 * (700 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7,
        ),
    ],
)
def test_prefix_frames_have_slight_noise_and_the_cleanest_time(name, clean, noise):
    schedule = make_schedule(name)
    mask = np.array([[True, True, False, False], [False] * 4])
    t = jnp.array([3, 500]) if name == "cosine" else jnp.array([0.25, 0.5])
    tasks = make_tasks(causal=True, patch_frames=2, prefix=1.0)
    noise_t, model_t = clip_tasks.prefix_times(t, jnp.asarray(mask), tasks, schedule)
    assert noise_t.dtype == model_t.dtype == t.dtype
    np.testing.assert_allclose(noise_t, np.where(mask, noise, t[:, None]), rtol=1e-3)
    np.testing.assert_allclose(model_t, [[clean, t[0]], [t[1], t[1]]], rtol=1e-3)


def test_dropout_removes_known_frames_but_keeps_prefixes():
    tasks = make_tasks(causal=True, image=0.5, frames=0.3, prefix=0.2)
    dropped = np.arange(COUNT) % 2 == 0
    _, drawn = draw(tasks, dropped=dropped)
    prefix = drawn.clean.any(1)
    assert np.all(drawn.mask[dropped & ~prefix] == 0)
    assert np.all(drawn.known[dropped] == 0)
    assert drawn.mask[~dropped].any(1).all()
    assert_share(prefix[dropped], 0.2)


def test_prefixes_are_whole_latent_frames():
    _, drawn = draw(make_tasks(causal=True, patch_frames=2, lengths=(1, 2), prefix=1.0), frames=6)
    assert set(drawn.clean.sum(1)) == {2, 4}


def test_the_tasks_determine_the_conditioning_of_the_model():
    assert make_tasks(text=1.0).conditioning == "none"
    assert make_tasks(text=0.5, prefix=0.5).conditioning == "prefix"
    assert make_tasks(image=0.5, prefix=0.5).conditioning == "frames"
    assert make_tasks(frames=1.0).conditioning == "frames"


def test_a_chunk_continues_prefixes_that_fit_into_a_training_clip():
    assert clip_tasks.allowed_lengths((9, 1, 17, 25), 33, 8) == (1, 9, 17, 25)
    assert clip_tasks.allowed_lengths((1, 9, 17, 25), 33, 16) == (1, 9, 17)
    assert clip_tasks.allowed_lengths((8, 16), 16, 9) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text": 1.5, "image": -0.5},
            r"tasks\.text=1\.5, tasks\.image=-0\.5.* not probabilities",
        ),
        ({"text": 0.5, "image": 0.4}, "their sum 1"),
        ({"text": 1.0, "noise_std": -1.0}, r"known\.noise_std -1\.0"),
        ({"prefix": 1.0}, r"set model\.causal to True, or tasks\.prefix to 0"),
        ({"prefix": 1.0, "causal": True, "lengths": ()}, "latent frames from 1 to 4"),
        ({"prefix": 1.0, "causal": True, "lengths": (0, 2)}, r"lengths are \(0, 2\)"),
        ({"prefix": 1.0, "causal": True, "lengths": (5,)}, r"lengths are \(5,\)"),
    ],
)
def test_invalid_tasks_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        clip_tasks.check_tasks(make_tasks(**changes), 5)


def test_the_noise_on_prefixes_is_a_fraction_of_the_clock():
    tasks = make_tasks(text=1.0)._replace(prefix_noise=1.0)
    with pytest.raises(ValueError, match=r"prefix\.noise is 1\.0"):
        clip_tasks.check_tasks(tasks, 5)
