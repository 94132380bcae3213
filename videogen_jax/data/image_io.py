"""Image files in: one upright RGB frame, whatever the file.

What a file leaves open is decided here, once: the EXIF orientation is applied, transparent pixels are white, 16 bits
become 8, and an animated WebP or PNG is refused, because its caption tells of more than its first frame shows. (A JPEG
of several pictures, as telephones write it for depth or a preview, is its first one.)
"""

import contextlib
import errno
import os
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")
_ANIMATED_FORMATS = ("PNG", "WEBP")
_TURNED = range(5, 9)  # EXIF orientations that swap height and width


class ImageError(ValueError):
    """A file holds no image that can be read to its end; the sentence says why."""


def is_image(name: str | os.PathLike) -> bool:
    """Says by its suffix whether a file is taken for an image."""
    return pathlib.PurePath(name).suffix.lower() in SUFFIXES


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image.

    Args:
      path: an image file.
    Returns:
      (H, W, 3) uint8 RGB, as a viewer shows it on white.
    Raises:
      ImageError: the file is empty, broken off, damaged, animated or no image.
    """
    with _open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 255
            grey = np.asarray(upright).astype(np.int64)
            upright = Image.fromarray(np.uint8(np.clip((grey + 128) // 257, 0, 255)))
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            upright = Image.alpha_composite(white, rgba)
        return np.array(upright.convert("RGB"))


def probe_image(path: str | os.PathLike) -> tuple[int, int]:
    """Reads the size of an image from its header.

    Args:
      path: an image file.
    Returns:
      (height, width) of what `read_image` returns.
    Raises:
      ImageError: as `read_image`, as far as a header tells.
    """
    with _open(path) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _open(path) -> Iterator[Image.Image]:
    """Opens an image and turns Pillow's errors, also those within the block, into ours."""
    path = pathlib.Path(path)
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): copy it again.")
    try:
        with warnings.catch_warnings():
            # Large is not wrong: Pillow warns from 89 megapixels and refuses twice as many.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format in _ANIMATED_FORMATS:
                    raise ImageError(
                        f"{path} is an animation of {frames} frames: save it as GIF or MP4 to train on "
                        "it as a video, or save the frame that its caption describes."
                    )
                yield image
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has too many pixels: scale it down.") from error
    except (OSError, EOFError, SyntaxError, ValueError) as error:
        if (
            isinstance(error, ImageError | PermissionError)
            or getattr(error, "errno", 0) == errno.EIO
        ):
            raise
        raise ImageError(
            f"{path} cannot be read as an image: it is broken off, damaged or of another format; copy it again."
        ) from error
