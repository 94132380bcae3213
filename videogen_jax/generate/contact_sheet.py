"""Many small videos at a glance: a PNG of frames, and one animation that plays them side by side."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import einops
import numpy as np
from PIL import Image, ImageDraw

from videogen_jax.data import image_io, video_io

GAP = 4  # pixels between tiles
LINE = 14  # pixels of a caption line
LETTER = 6  # pixels of a letter, about
LINES = 3  # of a caption above a video
COLUMNS = 8  # frames shown of a video
MOST_ROWS = 64  # videos on a sheet of files
MOST_SIDE = 256  # pixels of a frame's longer side on a sheet of files


def write_sheet(path: Path, files: Sequence[Path], prompts: Sequence[str], fps: float) -> None:
    """Writes the contact sheet of video files as a PNG; one video is in memory at a time, reduced.

    Args:
      path: file to write.
      files: videos of one size and length.
      prompts: captions, one of each.
      fps: frames per second.
    Raises:
      VideoError, OSError: a file cannot be read, or the sheet cannot be written.
    """
    rows = [read_thumbnails(file, fps) for file in files]
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            Image.fromarray(contact_sheet(np.stack(rows), list(prompts))).save(file, "PNG")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_thumbnails(path: Path, fps: float) -> np.ndarray:
    """Up to COLUMNS frames of a video file, evenly chosen, at most MOST_SIDE pixels on their longer side.

    Returns:
      (n, h, w, 3) uint8.
    Raises:
      VideoError, OSError: the file cannot be read.
    """
    frames = [downscale(frame[None], MOST_SIDE)[0] for _, frame in video_io.read_frames(path, fps)]
    return np.stack([frames[index] for index in choose_frames(len(frames), COLUMNS)])


def choose_frames(length: int, count: int) -> np.ndarray:
    """Numbers of up to `count` frames, from the first to the last, evenly spaced."""
    return np.unique(np.round(np.linspace(0, length - 1, min(count, length))).astype(int))


def downscale(video: np.ndarray, side: int) -> np.ndarray:
    """Downscales a video, (T, H, W, 3) uint8, so that its longer side has at most `side` pixels."""
    scale = side / max(video.shape[1:3])
    if scale >= 1:
        return video
    size = tuple(max(1, round(length * scale)) for length in video.shape[1:3])
    return np.stack([video_io.fit_frame(frame, size) for frame in video])


def contact_sheet(
    videos: np.ndarray, prompts: list[str], frames: int = COLUMNS, tile: int = 64
) -> np.ndarray:
    """One row per video: its prompt above up to `frames` of its frames, evenly chosen.

    Args:
      videos: (N, T, H, W, 3) uint8.
      prompts: N captions.
      frames: most frames shown per video.
      tile: least height of a frame in pixels; smaller ones are enlarged by whole factors.
    Returns:
      (H, W, 3) uint8 RGB: the picture.
    """
    videos = enlarge(videos, tile)
    count, length, height, width, _ = videos.shape
    chosen = choose_frames(length, frames)
    row = LINE + height + GAP
    sheet = Image.new("RGB", (len(chosen) * (width + GAP) + GAP, count * row + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        top = GAP + i * row
        draw.text((GAP, top), prompt, fill="black")
        for j, frame in enumerate(video[chosen]):
            sheet.paste(Image.fromarray(frame), (GAP + j * (width + GAP), top + LINE))
    return np.asarray(sheet)


def animation(
    videos: np.ndarray,
    fps: float,
    columns: int = 8,
    tile: int = 64,
    prompts: Sequence[str] | None = None,
) -> tuple[bytes, tuple[int, int]]:
    """All videos in one looping GIF, in rows of `columns`, each below its prompt.

    Args:
      videos: (N, T, H, W, 3) uint8.
      fps: frames per second.
      columns: videos in a row.
      tile: as in `contact_sheet`.
      prompts: N captions; by default none are shown.
    Returns:
      (the GIF's bytes, (width, height) in pixels).
    """
    grid = arrange(videos, columns, tile, prompts)
    height, width = grid.shape[1:3]
    return image_io.encode_gif(grid, round(1000 / fps)), (width, height)


def arrange(
    videos: np.ndarray,
    columns: int = 8,
    tile: int = 64,
    prompts: Sequence[str] | None = None,
) -> np.ndarray:
    """All videos in one, in rows of `columns`; arguments as for `animation`.

    Returns:
      (T, H, W, 3) uint8.
    """
    videos = enlarge(videos, tile)
    if prompts is not None:
        videos = np.concatenate([draw_captions(prompts, videos), videos], axis=2)
    columns = min(columns, len(videos))
    missing = -len(videos) % columns
    videos = np.pad(videos, ((0, missing), (0, 0), (0, GAP), (0, GAP), (0, 0)))
    return einops.rearrange(videos, "(y x) t h w c -> t (y h) (x w) c", x=columns)


def draw_captions(prompts: Sequence[str], videos: np.ndarray) -> np.ndarray:
    """Captions as strips to put above videos: as many lines as the longest takes, at most LINES.

    Args:
      prompts: N captions.
      videos: (N, T, H, W, 3).
    Returns:
      (N, T, strip, W, 3) uint8.
    """
    width = videos.shape[3]
    per_line = max(width // LETTER, 1)
    wrapped = [
        textwrap.wrap(prompt, per_line, max_lines=LINES, placeholder="…")[:LINES]
        for prompt in prompts
    ]
    height = LINE * max(map(len, wrapped), default=0)
    strips = []
    for lines in wrapped:
        strip = Image.new("RGB", (width, height), "white")
        if height:
            ImageDraw.Draw(strip).multiline_text((1, 0), "\n".join(lines), fill="black", spacing=2)
        strips.append(np.asarray(strip).reshape(height, width, 3))
    return np.repeat(np.stack(strips)[:, None], videos.shape[1], axis=1)


def enlarge(videos: np.ndarray, tile: int) -> np.ndarray:
    """Repeats pixels by the least whole factor that makes frames at least `tile` high.

    Args:
      videos: (N, T, H, W, 3).
      tile: in pixels.
    Returns:
      (N, T, f H, f W, 3).
    """
    factor = max(1, -(-tile // videos.shape[2]))
    return videos.repeat(factor, axis=2).repeat(factor, axis=3)
