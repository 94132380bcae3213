"""Image files in and out, through imageio: one upright RGB frame, whatever the file.

What a file leaves open is decided here, once: the EXIF orientation is applied, transparent pixels are white, 16 bits
become 8, and an animated WebP or PNG is refused, because its caption tells of more than its first frame shows. (A JPEG
of several pictures, as telephones write it for depth or a preview, is its first one.)
"""

import contextlib
import errno
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence

import imageio.v3 as iio
import numpy as np
from imageio.plugins.pillow import PillowPlugin
from PIL import Image

from videogen_jax.data import orientation, read_limits
from videogen_jax.data.read_limits import Limits

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_JPEG = b"\xff\xd8\xff"
_SIGNATURES = (_JPEG, b"\x89PNG\r\n", b"RIFF")  # the last is WebP's, once Pillow has opened it

_ROWS = 256  # composited over white at once


class ImageError(ValueError):
    """A file holds no image that can be read to its end; the sentence says why."""


def is_image(name: str | os.PathLike) -> bool:
    """Says by its suffix whether a file is taken for an image."""
    return pathlib.PurePath(name).suffix.lower() in SUFFIXES


def read_image(path: str | os.PathLike, limits: Limits = read_limits.DEFAULTS) -> np.ndarray:
    """Reads an image.

    Args:
      path: an image file.
      limits: bounds for its size.
    Returns:
      (H, W, 3) uint8 RGB, as a viewer shows it on white.
    Raises:
      ImageError: the file is empty, broken off, damaged, animated, too large or no image.
    """
    with _open(path, limits) as file:
        metadata = file.metadata(index=0, exclude_applied=False)
        mode = metadata["mode"]
        if mode.startswith("I"):  # 16 bits of grey, which a mode of 8 bits would clip at 255
            grey = (file.read(index=0).astype(np.int64) + 128) // 257
            image = np.repeat(np.uint8(np.clip(grey, 0, 255))[..., None], 3, axis=2)
        elif mode in ("1", "L", "RGB", "CMYK") and "transparency" not in metadata:
            image = file.read(index=0, mode="RGB", writeable_output=False)
        else:
            image = over_white(file.read(index=0, mode="RGBA", writeable_output=False))
    # Not imageio's `rotate`, which mirrors the channels of grey images instead of their columns.
    image = orientation.apply(image, orientation.from_exif(metadata.get("Orientation")))
    return np.array(image, order="C")


def probe_image(path: str | os.PathLike, limits: Limits = read_limits.DEFAULTS) -> tuple[int, int]:
    """Reads the size of an image from its header.

    Args:
      path: an image file.
      limits: bounds for its size.
    Returns:
      (height, width) of what `read_image` returns.
    Raises:
      ImageError: as `read_image`, as far as a header tells.
    """
    with _open(path, limits) as file:
        height, width = file.properties(index=0).shape[:2]
        exif = file.metadata(index=0, exclude_applied=False).get("Orientation")
    transposed = orientation.from_exif(exif)[0]
    return (width, height) if transposed else (height, width)


@contextlib.contextmanager
def _open(path, limits) -> Iterator[PillowPlugin]:
    """Opens an image and turns Pillow's errors, also those within the block, into ours."""
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise ImageError(f"{path} is no regular file: remove it.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): copy it again.")
    try:
        with warnings.catch_warnings():
            # Large is not wrong: Pillow warns from 89 megapixels and refuses twice as many.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_pictures(path, _SIGNATURES) as (signature, file):
                height, width = file.properties(index=0).shape[:2]
                if too_many := limits.too_many_pixels(height, width):
                    raise ImageError(f"{path} {too_many}")
                frames = file.properties(index=...).n_images
                if frames > 1 and signature != _JPEG:
                    raise ImageError(
                        f"{path} is an animation of {frames} frames: save it as GIF or MP4 to train on "
                        "it as a video, or save the frame that its caption describes."
                    )
                yield file
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has too many pixels: scale it down.") from error
    except (ImageError, PermissionError, GeneratorExit):
        raise
    except Exception as error:  # Pillow's readers raise whatever comes
        if getattr(error, "errno", 0) == errno.EIO:
            raise
        raise ImageError(
            f"{path} cannot be read as an image: it is broken off, damaged or of another format; copy it again."
        ) from error


@contextlib.contextmanager
def open_pictures(
    path: str | os.PathLike, signatures: Sequence[bytes]
) -> Iterator[tuple[bytes, PillowPlugin]]:
    """Opens a file of one or several pictures with imageio's pillow plugin.

    Args:
      path: the file.
      signatures: the first bytes of the formats allowed; imageio itself opens any that Pillow knows.
    Yields:
      (signature, file): the one that the file begins with, and what `imageio.v3.imopen` returns.
    Raises:
      OSError: the file is of another format, damaged, or cannot be read.
      PIL.Image.DecompressionBombError: it has too many pixels.
    """
    with open(path, "rb") as stream:
        start = stream.read(max(map(len, signatures)))
        signature = next(filter(start.startswith, signatures), None)
        if signature is None:
            raise OSError(f"{path} is of another format.")
        stream.seek(0)
        try:
            file = iio.imopen(stream, "r", plugin="pillow")
        except OSError as error:
            cause = error.__cause__  # Pillow's error, which imageio wraps in one without a number
            if isinstance(cause, OSError | Image.DecompressionBombError):
                raise cause from None
            raise
        with file:
            yield signature, file


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Composites an image over white.

    Args:
      rgba: (H, W, 4) uint8, alpha not premultiplied.
    Returns:
      (H, W, 3) uint8.
    """
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    for top in range(0, len(rgba), _ROWS):  # in parts, because each needs its memory several times
        image = Image.fromarray(np.ascontiguousarray(rgba[top : top + _ROWS]))
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        rgb[top : top + _ROWS] = Image.alpha_composite(white, image).convert("RGB")
    return rgb


def encode_gif(video: np.ndarray, durations: int | list[int]) -> bytes:
    """Encodes a GIF that loops forever, with 256 colours per frame.

    Args:
      video: (T, H, W, 3) uint8 RGB, T >= 1. Equal neighbouring frames become one longer one.
      durations: milliseconds of each frame, or of every frame; a GIF counts in tens of them.
    Returns:
      The file's bytes.
    """
    return iio.imwrite(
        "<bytes>",
        video,
        plugin="pillow",
        extension=".gif",
        is_batch=True,
        save_all=True,  # a list of durations needs it also for a single frame
        duration=durations,
        loop=0,
    )
