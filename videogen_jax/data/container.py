"""What the container of a video says beside its pictures: which stream, crop, transparency and length."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

import av
import av.logging

# Titles are not read, so their encoding does not matter: PyAV before 19 refuses bytes that are not UTF-8 unless it is
# given this argument, which later ones do not have.
_ANY_METADATA = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
_VPX_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # they read alpha, libav's own do not


class ContainerError(ValueError):
    """The pictures of a file cannot be shown; the message is the rest of a sentence that begins with the file."""


@contextlib.contextmanager
def open_container(path: pathlib.Path, max_pixels: int) -> Iterator[av.container.InputContainer]:
    """Opens a video file; "file:" keeps a name such as 12:30.mp4 from being taken for a protocol.

    Args:
      path: the file.
      max_pixels: of the frames that libav decodes where the container does not tell their size.
    Yields:
      The container.
    Raises:
      av.FFmpegError: it is no video, or damaged.
    """
    # A playlist may not open addresses.
    options = {"protocol_whitelist": "file", "max_pixels": str(max_pixels)}
    with av.open(f"file:{os.fspath(path)}", options=options, **_ANY_METADATA) as container:
        yield container


def choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Returns the video stream that a player shows: the first one marked as default, else the first one.

    The cover of a song and previews are no streams of moving pictures.

    Raises:
      ContainerError: there is none that can be decoded.
    """
    flags = av.stream.Disposition
    still = flags.attached_pic | flags.timed_thumbnails | flags.still_image
    streams = [s for s in container.streams.video if not s.disposition & still]
    if not streams:
        raise ContainerError("has no video stream, only sound or subtitles: remove it.")
    known = [s for s in streams if s.codec_context is not None]
    if not known:
        raise ContainerError(
            "has a video codec that this build of libav does not know: re-encode it."
        )
    return next((s for s in known if s.disposition & flags.default), known[0])


def read_crop(container: av.container.InputContainer, stream: av.VideoStream):
    """Returns the columns left and right and the rows at the top and bottom that the container crops.

    PyAV does not hand this out, but libav prints it.

    Raises:
      ContainerError: the pictures cannot be shown without Dolby Vision.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        text = container.dumps_format()
    finally:
        av.logging.set_level(level)
    lines = re.split(r"^  Stream #0:(\d+)", text, flags=re.MULTILINE)
    described = dict(zip(lines[1::2], lines[2::2], strict=True)).get(str(stream.index), "")
    side_data = described.partition("    Side data:\n")[2]
    if re.search(r"^      DOVI configuration record: .*profile: 5\b", side_data, re.MULTILINE):
        raise ContainerError(
            "is Dolby Vision of profile 5, whose colours need it: convert it to SDR."
        )
    crop = re.search(r"^      Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", side_data, re.MULTILINE)
    return tuple(map(int, crop.groups())) if crop else (0, 0, 0, 0)


def make_decoder(stream: av.VideoStream, packet: av.Packet) -> av.VideoCodecContext:
    """Returns the decoder of a stream; that of libvpx if its pictures have transparency beside them.

    Args:
      stream: the stream, whose own decoder is set up.
      packet: its first packet.
    Raises:
      ContainerError: the transparency cannot be read.
    """
    name = stream.codec_context.name
    if not has_alpha_beside(packet) and stream.metadata.get("alpha_mode", "0") != "1":
        return stream.codec_context
    if name not in _VPX_DECODERS or _VPX_DECODERS[name] not in av.codecs_available:
        raise ContainerError(
            f"has transparency beside its pictures ({name}), which this build of libav cannot read: put it on white, "
            "or save it as ProRes 4444 or PNG in MOV."
        )
    decoder = av.CodecContext.create(_VPX_DECODERS[name], "r")
    decoder.extradata = stream.codec_context.extradata
    return decoder


def has_alpha_beside(packet: av.Packet) -> bool:
    """Says whether a packet has transparency in Matroska's additional block 1."""
    if not packet.has_sidedata("matroska_block_additional"):
        return False
    block = bytes(packet.get_sidedata("matroska_block_additional"))
    return int.from_bytes(block[:8], "big") == 1


def promised_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Returns how long the file says that the video lasts; 0 where it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    said = stream.metadata.get("DURATION", "")  # "00:00:20.000000000", as Matroska has it
    with contextlib.suppress(ValueError):
        hours, minutes, seconds = said.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if len(container.streams) == 1 and container.duration:
        return container.duration / av.time_base
    return 0.0


def count_avi_index(path: pathlib.Path, stream_index: int) -> int:
    """Counts the frames of a stream in the index behind the frames of an AVI, 0 where there is none.

    Frames that were left out when it was recorded are empty: the index counts them, libav passes them over.
    """
    with open(path, "rb") as file:
        file.seek(12)  # behind "RIFF", size, "AVI "
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[4:], "little")
            if header[:4] == b"idx1":
                index = file.read(length)
                names = (b"%02ddc" % stream_index, b"%02ddb" % stream_index)
                return sum(index[i : i + 4] in names for i in range(0, len(index) - 15, 16))
            file.seek(length + length % 2, 1)
    return 0
