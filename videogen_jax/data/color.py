"""Decoded frames to RGB as a player shows them: crop, colours, transparency, pixel aspect, orientation.

- Untagged frames from 720 lines or 1280 columns on are BT.709, smaller ones BT.601, as players take them.
- HDR (PQ and HLG) is tone-mapped to BT.709 by libav's filter `scale`, whose options for that exist since FFmpeg 8.
- Transparent pixels are white.
"""

import fractions
import functools
import threading

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videogen_jax.data import image_io, orientation
from videogen_jax.data.read_limits import Limits

# Numbers of ITU-T H.273, which libav uses.
_BT709, _UNSPECIFIED, _BT2020 = 1, 2, 9
_MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}  # those that swscale computes; 0 and 3 say nothing of YCbCr
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_TONE_MAPPING = "out_transfer=bt709:out_primaries=bt709:intent=perceptual"
_GRAPHS_IN_USE = threading.Lock()


class ConversionError(ValueError):
    """Pixels cannot be shown in RGB; the message is the rest of a sentence that begins with the file."""


class Converter:
    """Makes RGB arrays of the frames of one video."""

    def __init__(
        self,
        crop: tuple[int, int, int, int],
        pixel_aspect: fractions.Fraction | None,
        limits: Limits,
    ):
        """Sets what the container says.

        Args:
          crop: columns left and right and rows at the top and bottom that are not shown.
          pixel_aspect: width of a pixel by its height; None: square.
          limits: how large a frame may be.
        """
        self._crop, self._aspect, self._limits = crop, pixel_aspect or fractions.Fraction(1), limits
        self._to_rgb = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Converts a frame.

        Args:
          frame: as decoded.
        Returns:
          (H, W, 3) uint8 RGB, upright, with square pixels.
        Raises:
          ConversionError: the colours are of a kind that cannot be converted, or there are too many pixels.
        """
        width = self._check_size(frame)
        plain_crop = self._crop == (0, 0, 0, 0)
        try:
            image = self._read_rgb(frame, width if plain_crop else frame.width)
            if not plain_crop:
                left, right, top, bottom = self._crop
                image = image[top : frame.height - bottom, left : frame.width - right]
                if image.shape[1] != width:
                    whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    image = self._to_rgb.reformat(whole, width=width, threads=1).to_ndarray()
        except (av.FFmpegError, ValueError, NotImplementedError) as error:
            if isinstance(error, ConversionError):
                raise
            raise ConversionError(
                f"has pixels that cannot be converted to RGB ({frame.format.name}): re-encode it."
            ) from error
        return np.ascontiguousarray(orientation.apply(image, _frame_orientation(frame)))

    def _check_size(self, frame) -> int:
        """Returns the width of a frame when its pixels are square, if that is not too large."""
        left, right, top, bottom = self._crop
        height, width = frame.height - top - bottom, frame.width - left - right
        if height < 1 or width < 1:
            raise ConversionError(
                f"has a crop of {left + right} columns and {top + bottom} rows, which leaves nothing of its frames of "
                f"{frame.height}x{frame.width}: re-encode it."
            )
        width = max(1, round(width * self._aspect))
        too_many = self._limits.too_many_pixels(
            frame.height, frame.width
        ) or self._limits.too_many_pixels(height, width)
        if too_many:
            raise ConversionError(too_many)
        return width

    def _read_rgb(self, frame, width) -> np.ndarray:
        """Returns (H, width, 3) RGB of all pixels of a frame."""
        hdr = _HDR_TRANSFERS.get(int(frame.color_trc))
        clear, has_matrix = _describe_format(frame.format.name)
        if has_matrix:
            _complete_tags(frame, hdr)
        if hdr:
            frame = _map_tones(frame, hdr, "rgba" if clear else "rgb24")
        kind = "rgba" if clear else "rgb24"
        frame = self._to_rgb.reformat(frame, format=kind, width=width, threads=1)
        image = frame.to_ndarray()
        return image_io.over_white(image) if clear else image


@functools.lru_cache
def _describe_format(name):
    """Returns (whether pixels may be transparent, whether they have a colour matrix) of a pixel format."""
    pixel_format = av.VideoFormat(name)
    clear = pixel_format.has_palette or any(c.is_alpha for c in pixel_format.components)
    return clear, not pixel_format.is_rgb and not pixel_format.has_palette


def _complete_tags(frame, hdr):
    """Sets the colour matrix of a frame whose file leaves it open; refuses those that swscale does not compute."""
    matrix = int(frame.colorspace)
    if matrix not in _MATRICES:
        raise ConversionError(
            f"has colours by a matrix that is not supported (number {matrix} of ITU-T H.273): re-encode it in BT.709."
        )
    if matrix in (0, 2, 3):
        large = frame.height >= 720 or frame.width >= 1280
        frame.colorspace = _BT2020 if hdr else _BT709 if large else _UNSPECIFIED
    if hdr and int(frame.color_primaries) == _UNSPECIFIED:
        frame.color_primaries = _BT2020


def _map_tones(frame, hdr, pixel_format):
    """Returns an HDR frame in the range and the primaries of BT.709."""
    with _GRAPHS_IN_USE:
        try:
            _, source, sink = _tone_mapping_graph(
                frame.width, frame.height, frame.format.name, int(frame.color_trc), pixel_format
            )
            source.push(frame)
            return sink.pull()
        except (av.FFmpegError, ValueError) as error:
            _tone_mapping_graph.cache_clear()
            raise ConversionError(
                f"is HDR ({hdr}), which this build of libav cannot tone-map: convert it to SDR, or install av 17 or "
                "newer."
            ) from error


@functools.lru_cache(maxsize=4)
def _tone_mapping_graph(width, height, source_format, transfer, pixel_format):
    """Returns (graph, source, sink) that maps HDR frames to BT.709.

    Kept from video to video, because its first frame takes seconds: libav tabulates the mapping, for one `transfer`,
    which the frames carry.
    """
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=source_format, time_base=fractions.Fraction(1, 1000)
    )
    steps = [
        graph.add("scale", _TONE_MAPPING),
        graph.add("format", f"pix_fmts={pixel_format}"),
        graph.add("buffersink"),
    ]
    previous = source
    for step in steps:
        previous.link_to(step)
        previous = step
    graph.configure()
    return graph, source, previous


def _frame_orientation(frame):
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return orientation.from_display_matrix(
        None if matrix is None else np.frombuffer(bytes(matrix), np.int32)
    )
