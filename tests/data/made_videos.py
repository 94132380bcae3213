"""Videos made for tests with PyAV: frames whose quarters tell the orientation and whose centre tells their number."""

import fractions
import struct

import av
import numpy as np

RED, GREEN, BLUE, WHITE = (200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 230, 230)
SIZE = 48, 64
_OPTIONS = {  # alternative references do not go with transparency
    "libx264": {"crf": "4"},
    "libvpx": {"auto-alt-ref": "0"},
}


def make_frames(count=8, size=SIZE):
    """Frames (T, H, W, 3) uint8: quarters red, green / blue, white; in the centre a square of 8 x number."""
    height, width = size
    frames = np.zeros((count, height, width, 3), np.uint8)
    top, left = slice(0, height // 2), slice(0, width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    frames[:, top, left], frames[:, top, right] = RED, GREEN
    frames[:, bottom, left], frames[:, bottom, right] = BLUE, WHITE
    rows, columns = (slice(side // 2 - side // 8, side // 2 + side // 8) for side in size)
    for number, frame in enumerate(frames):
        frame[rows, columns] = 8 * number
    return frames


def write(
    path,
    frames,
    codec="libx264",
    pixel_format="yuv420p",
    *,
    times=None,
    fps=8,
    options=None,
    **tags,
):
    """Writes frames, at `times` in seconds or at a constant rate; tags: attributes of the encoder or frames."""
    base = fractions.Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=fps, options=_OPTIONS.get(codec, {}) | (options or {})
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.bit_rate = 4_000_000
        if times is not None:
            stream.codec_context.time_base = base
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, image in enumerate(frames):
            kind = "rgba" if image.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=kind)
            matrix = tags.get("colorspace")
            frame = frame.reformat(format=pixel_format, dst_colorspace=matrix)
            for name, value in tags.items():
                if hasattr(frame, name):
                    setattr(frame, name, value)
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[number]), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source, target, change=lambda packet: packet):
    """Copies the packets of a video; `change` may alter a packet or return None to leave it out."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.size and (packet := change(packet)) is not None:
                packet.stream = stream
                written.mux(packet)
    return target


def set_display_matrix(path, a, b, c, d):
    """Writes a display matrix (ISO/IEC 14496-12, 16.16) of numbers -1, 0 and 1 into the track header of an MP4."""
    data = path.read_bytes()
    header = data.index(b"tkhd")
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(identity, header)
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + matrix + data[place + 36 :])


def write_cropped_matroska(path, frames, crop, display):
    """Writes VP8 in Matroska whose container crops (left, right, top, bottom) and displays (height, width)."""

    def element(name, *content):
        payload = b"".join(content)
        return bytes.fromhex(name) + bytes([1]) + len(payload).to_bytes(7, "big") + payload

    def number(name, value):
        return element(name, value.to_bytes(4, "big"))

    height, width = frames.shape[1:3]
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
    encoder.time_base, encoder.bit_rate = fractions.Fraction(1, 8), 2_000_000
    packets = []
    for image in frames:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        packets += encoder.encode(frame)
    packets += encoder.encode()
    names = ("54cc", "54dd", "54bb", "54aa")  # PixelCropLeft, -Right, -Top, -Bottom
    video = [number("b0", width), number("ba", height)]
    video += [number(name, value) for name, value in zip(names, crop, strict=True)]
    video += [number("54b0", display[1]), number("54ba", display[0])]
    names = ("d7", "73c5", "83")  # TrackNumber, TrackUID, TrackType
    fields = [number(name, 1) for name in names]
    track = element("ae", *fields, element("86", b"V_VP8"), element("e0", *video))
    blocks = [
        element(
            "a3", b"\x81", struct.pack(">hB", 125 * i, 0x80 * packet.is_keyframe), bytes(packet)
        )
        for i, packet in enumerate(packets)
    ]
    path.write_bytes(
        element("1a45dfa3", element("4282", b"matroska"))
        + element(
            "18538067",
            element("1549a966", number("2ad7b1", 1_000_000)),
            element("1654ae6b", track),
            element("1f43b675", number("e7", 0), *blocks),
        )
    )
    return path


def quarters(frame):
    """The colours in the middle of the four quarters' outer halves: top left, top right, bottom left, bottom right."""
    height, width = frame.shape[:2]
    rows, columns = (height // 8, height - 1 - height // 8), (width // 8, width - 1 - width // 8)
    return [frame[row, column].astype(int) for row in rows for column in columns]


def numbers(frames):
    """The numbers of frames by their centres."""
    centres = [frame[frame.shape[0] // 2, frame.shape[1] // 2].mean() for frame in frames]
    return [int(centre / 8 + 0.5) for centre in centres]
