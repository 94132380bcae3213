"""PSNR and SSIM against closed forms, the definition and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen_jax.evaluation import psnr_ssim

LUMA = np.array([0.299, 0.587, 0.114])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def blend(video, seed=1):
    """The video with noise, lower brightness and lower contrast."""
    return (0.7 * video + 0.2 * draw(*video.shape, seed=seed)).astype(np.uint8)


def test_psnr_of_a_constant_error():
    """It is 10 log10(255^2 / d^2); equal videos have 120 dB."""
    video = draw(4, 3, 5, 6, 3) // 2
    offsets = np.array([0, 1, 10, 100], np.uint8)
    made = video + offsets[:, None, None, None, None]
    values = psnr_ssim.psnr(video.astype(np.float64), made, 255)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [120, *(20 * np.log10(255 / offsets[1:]))], rtol=1e-12)


def test_psnr_agrees_for_jax_and_numpy():
    video = draw(2, 3, 4, 4, 3)
    made = blend(video)
    x, y = (array / np.float32(127.5) - 1 for array in (video, made))
    values = jax.jit(lambda x, y: psnr_ssim.psnr(x, y, span=2))(x, y)
    assert isinstance(values, jax.Array) and values.dtype == jnp.float32
    error = ((video.astype(float) - made) ** 2).reshape(2, -1).mean(axis=1)
    np.testing.assert_allclose(values, 10 * np.log10(255**2 / error), rtol=1e-5)


def test_ssim_equals_its_definition():
    """Computed at each position of a small frame with the two-dimensional window."""
    frame = draw(13, 12, 3)
    made = blend(frame)
    x, y = frame @ LUMA, made @ LUMA
    grid = np.arange(-5, 6)
    window = np.exp(-(grid[:, None] ** 2 + grid**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(3):
        for left in range(2):
            a, b = (array[top : top + 11, left : left + 11] for array in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            vab = (window * (a - ma) * (b - mb)).sum()
            means = (2 * ma * mb + 2.55**2) / (ma**2 + mb**2 + 2.55**2)
            values.append(means * (2 * vab + 7.65**2) / (va + vb + 7.65**2))
    assert 0.1 < np.mean(values) < 0.99
    assert psnr_ssim.ssim(frame, made) == pytest.approx(np.mean(values), rel=1e-6)


def test_ssim_of_flat_frames():
    """Without any contrast only the means count."""
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (100, 150)]
    expected = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)
    assert psnr_ssim.ssim(*frames) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [(11, 11), (40, 57)])
def test_scores_equal_scikit_images(size):
    """Per video: frames of a smooth picture that moves, and of noise."""
    metrics = pytest.importorskip("skimage.metrics")
    y, x = np.arange(size[0])[:, None, None], np.arange(size[1])[:, None]
    waves = [np.sin((x + t) / 6 + y / np.array([4.0, 7.0, 9.0])) for t in range(3)]
    smooth = (127 + 120 * np.stack(waves)).astype(np.uint8)
    videos = [smooth, draw(2, *size, 3)]
    pairs = [(video, blend(video)) for video in videos]
    scores = psnr_ssim.score_reconstructions(iter(pairs))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for i, (video, made) in enumerate(pairs):
        ssims = [
            metrics.structural_similarity(a @ LUMA, b @ LUMA, data_range=255, **options)
            for a, b in zip(video, made, strict=True)
        ]
        assert scores.ssim[i] == pytest.approx(np.mean(ssims), abs=1e-6)
        expected = metrics.peak_signal_noise_ratio(video, made, data_range=255)
        assert scores.psnr[i] == pytest.approx(expected, rel=1e-9)
    assert scores.ssim.shape == scores.psnr.shape == (2,)


def test_equal_videos_and_no_videos():
    video = draw(2, 11, 12, 3)
    scores = psnr_ssim.score_reconstructions([(video, video)])
    assert (scores.psnr[0], scores.ssim[0]) == (120, pytest.approx(1, abs=1e-9))
    assert psnr_ssim.score_reconstructions([]).ssim.shape == (0,)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((2, 16, 16, 3), (3, 16, 16, 3)),
            r"Pair 1 has shapes \(2, 16, 16, 3\) and \(3, 16, 16, 3\)",
        ),
        (((2, 16, 10, 3), (2, 16, 10, 3)), "Pair 1 has frames of 16x10 pixels: SSIM needs sides"),
        (
            ((2, 16, 16), (2, 16, 16)),
            r"has shape \(T, H, W, 3\) and dtype uint8, not \(2, 16, 16\)",
        ),
        (((0, 16, 16, 3), (0, 16, 16, 3)), r"not \(0, 16, 16, 3\) uint8: convert it first"),
    ],
)
def test_unequal_shapes_small_frames_and_other_arrays_are_errors(shapes, message):
    pairs = [(draw(1, 11, 11, 3),) * 2, tuple(draw(*shape) for shape in shapes)]
    with pytest.raises(ValueError, match=message):
        psnr_ssim.score_reconstructions(pairs)
    with pytest.raises(ValueError, match="dtype uint8, not .* float64"):
        psnr_ssim.score_reconstructions([(np.zeros((1, 11, 11, 3)),) * 2])
