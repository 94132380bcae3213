"""Damaged videos and pictures: a clip that is packed must be right, any other must be skipped with a reason.

Formats without checksums hide some damage from every decoder. FFmpeg's own command is the judge of that: where it
reports nothing either, a wrong picture counts as "no decoder notices" and not as silently wrong.
"""

import json
import random
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

from tests.campaign import commands, small_run
from tests.campaign.damage import MEDIA_DAMAGES
from tests.campaign.tallies import Tally

FRAMES, HEIGHT, WIDTH, FPS = 32, 48, 64, 8
TOLERANCE = 24.0  # largest mean absolute difference of a frame from the true one, of 255
ENCODERS = {
    "mp4": ("libx264", "yuv420p", {"crf": "12", "g": "8"}),
    "mkv": ("mpeg4", "yuv420p", {"qscale": "3"}),
    "webm": ("libvpx-vp9", "yuv420p", {"crf": "20", "b": "0", "cpu-used": "8"}),
    "avi": ("mjpeg", "yuvj420p", {"qscale": "3"}),
    "mov": ("png", "rgb24", {}),
    "gif": ("gif", "rgb8", {}),
}


def draw(seed: int) -> np.ndarray:
    """A clip of colours that change slowly, with a square that moves: (32, 48, 64, 3) uint8."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (4, 3))
    frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    frames[:, : HEIGHT // 2, : WIDTH // 2] = colors[0]
    frames[:, : HEIGHT // 2, WIDTH // 2 :] = colors[1]
    frames[:, HEIGHT // 2 :, : WIDTH // 2] = colors[2]
    frames[:, HEIGHT // 2 :, WIDTH // 2 :] = colors[3]
    for i in range(FRAMES):
        frames[i, 16:32, i : i + 16] = 8 * i
    return frames


def write_clip(path: Path, video: np.ndarray) -> None:
    """Writes a clip by PyAV alone, in the format of its suffix, with a caption beside it."""
    codec, pixels, options = ENCODERS[path.suffix[1:]]
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, FPS, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        for image in video:
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text(f"clip {path.stem}", encoding="utf-8")


def write_videos(folder: Path, count: int) -> None:
    """Writes clips in all formats, in turn."""
    folder.mkdir(parents=True)
    suffixes = list(ENCODERS)
    for i in range(count):
        write_clip(folder / f"{i:04d}.{suffixes[i % len(suffixes)]}", draw(i))


def damage(place: Path, count: int, seed: int, log: Path) -> list[Tally]:
    """Packs `count` damaged files in one call.

    Args:
      place: empty folder to work in.
      count: number of files.
      seed: of the damage.
      log: file for bad trials.
    Returns:
      One tally; a trial is a file.
    """
    rng = random.Random(seed)
    tally = Tally("damaged video", log)
    whole, videos = place / "whole", place / "damaged"
    write_videos(whole, 12)
    small_run.succeed(small_run.pack(whole, place / "truth", limit=600))
    truth = {Path(name).stem: clips for name, clips in _read(place / "truth").items()}
    videos.mkdir()
    origins, kinds = {}, {}
    for i in range(count):
        source = sorted(path for path in whole.iterdir() if path.suffix != ".txt")[i % 12]
        path = videos / f"{i:04d}{source.suffix}"
        function = MEDIA_DAMAGES[rng.randrange(len(MEDIA_DAMAGES))]
        path.write_bytes(function(source.read_bytes(), rng))
        path.with_suffix(".txt").write_text("a clip", encoding="utf-8")
        origins[path.name], kinds[path.name] = source.stem, function.__name__
    ended = small_run.pack(videos, place / "data", "--min_frames=1", limit=1800)
    if ended.fault or ended.code:
        for name in origins:
            tally.add(ended.fault or "lost", name, ended.output)
        return [tally]
    report = json.loads((place / "data" / "pack_report.json").read_text(encoding="utf-8"))
    reasons = {entry["file"]: entry["reason"] for entry in report["skipped"]}
    packed = _read(place / "data")
    for name, origin in origins.items():
        if name not in packed:
            tally.add("skipped with a reason" if reasons.get(name) else "lost", name)
            continue
        if _same(packed[name], truth[origin]):
            tally.add("packed right", name)
        elif _ffmpeg_notices(videos / name):
            tally.add("silently wrong", f"{videos / name}, {kinds[name]}, of {origin}")
        else:
            tally.add("wrong where no decoder notices", name)
    return [tally]


def _same(clips: list[np.ndarray], truth: list[np.ndarray]) -> bool:
    """Whether every frame is a true one, in the order of the truth."""
    found = np.concatenate(clips).astype(np.float32)
    true = np.concatenate(truth).astype(np.float32)
    place = 0
    for frame in found:
        distances = np.abs(true[place:] - frame).mean((1, 2, 3))
        if not len(distances) or distances.min() > TOLERANCE:
            return False
        place += int(distances.argmin())
    return True


def _read(data: Path) -> dict[str, list[np.ndarray]]:
    """The clips of a data set by their source, in order."""
    return commands.call(_read_records, data)


def _read_records(data: Path) -> dict[str, list[np.ndarray]]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(data)
    clips: dict[str, list[np.ndarray]] = {}
    for split in builder.info.splits:
        for record in builder.as_dataset(split=split, shuffle_files=False):
            shape = (-1, int(record["height"]), int(record["width"]), 3)
            strips = [strip.numpy().reshape(shape) for strip in record["strips"]]
            video = np.concatenate(strips)[: int(record["num_frames"])]
            clips.setdefault(record["source"].numpy().decode(), []).append(video)
    return clips


def _ffmpeg_notices(path: Path) -> bool:
    """Whether FFmpeg's command reports an error when it decodes the file."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        f"file:{path}",
        "-f",
        "null",
        "-",
    ]
    ended = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    return bool(ended.returncode or ended.stderr)
