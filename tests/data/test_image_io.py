"""Images: one upright RGB frame, whatever the file."""

import numpy as np
import pytest
from PIL import Image

from videogen_jax.data.image_io import ImageError, is_image, probe_image, read_image


def gradient(height=20, width=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * x, 12 * y, 4 * (x + y)], -1).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_pixels_are_those_of_the_file(tmp_path, name):
    lossless = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(gradient()).save(tmp_path / name, quality=98, subsampling=0, **lossless)
    found = read_image(tmp_path / name)
    assert is_image(name) and found.shape == (20, 30, 3) and found.dtype == np.uint8
    exact = not name.lower().startswith("a.jp")
    assert np.abs(found.astype(int) - gradient()).max() <= (0 if exact else 6)
    assert probe_image(tmp_path / name) == (20, 30)


# Where the first row and column of the stored picture are shown, by the EXIF standard (tag 274).
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_orientation_is_applied(tmp_path, orientation, suffix):
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(gradient()).save(path, exif=exif, quality=98, subsampling=0)
    expected = SHOWN[orientation](gradient()).astype(int)
    assert np.abs(read_image(path) - expected).mean() < 4
    assert probe_image(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", SHOWN)
def test_the_orientation_of_grey_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(gradient()[..., 1]).save(tmp_path / "a.png", exif=exif)
    expected = SHOWN[orientation](np.repeat(gradient()[..., 1:2], 3, axis=2))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((4, 3, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, np.uint8([0, 51, 255, 255])[:, None]
    expected = np.round(255 + (rgba[..., :3].astype(float) - 255) * rgba[..., 3:] / 255)
    for suffix in (".png", ".webp"):
        Image.fromarray(rgba).save(tmp_path / f"a{suffix}", lossless=True)
        assert np.abs(read_image(tmp_path / f"a{suffix}") - expected).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").tolist() == [[[255, 255, 255], [200, 100, 0]]]
    Image.new("RGB", (2, 1), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert read_image(tmp_path / "rgb.png").min() == 255


def test_grey_in_16_bits_cmyk_and_bits(tmp_path):
    Image.fromarray(np.uint16([[0, 257 * 100, 65535]])).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 100, 255]
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "print.jpg")[4, 4].astype(int) - (255, 0, 0)).max() < 5
    Image.fromarray(np.eye(3) > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[..., 1], 255 * np.eye(3))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animations_are_refused(tmp_path, suffix):
    pages = [Image.fromarray(np.roll(gradient(), 5 * i, 1)) for i in range(3)]
    path = tmp_path / f"a{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=100)
    for read in (read_image, probe_image):
        with pytest.raises(ImageError, match="animation of 3 frames: save it as GIF or MP4"):
            read(path)


def test_the_pictures_behind_a_telephones_jpeg_are_left_alone(tmp_path):
    pages = [Image.fromarray(gradient()), Image.fromarray(gradient()[::-1])]
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:], quality=98)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - gradient()).mean() < 3


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # Pillow warns from here, as it may
    assert read_image(tmp_path / "a.png").shape == (20, 30, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # and refuses twice as many
    for read in (read_image, probe_image):
        with pytest.raises(ImageError, match=r"a\.png has too many pixels: scale it down"):
            read(tmp_path / "a.png")


def test_what_is_no_image_says_so(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        tmp_path / "whole.jpg"
    )
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.webp").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "gif.png", "GIF")
    with pytest.raises(ImageError, match="is empty"):
        read_image(tmp_path / "empty.png")
    for name in ("half.jpg", "text.webp", "gif.png"):
        with pytest.raises(ImageError, match=f"{name} cannot be read as an image"):
            read_image(tmp_path / name)
