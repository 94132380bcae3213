"""Many small videos at a glance: a PNG of frames, and one animation that plays them side by side."""

import einops
import numpy as np
from PIL import Image, ImageDraw

from videogen_jax.data import image_io

GAP = 4  # pixels between tiles
LINE = 14  # pixels of a caption line


def contact_sheet(
    videos: np.ndarray, prompts: list[str], frames: int = 8, tile: int = 64
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
    chosen = np.unique(np.round(np.linspace(0, length - 1, min(frames, length))).astype(int))
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
    videos: np.ndarray, fps: float, columns: int = 8, tile: int = 64
) -> tuple[bytes, tuple[int, int]]:
    """All videos in one looping GIF, in rows of `columns`.

    Args:
      videos: (N, T, H, W, 3) uint8.
      fps: frames per second.
      columns: videos in a row.
      tile: as in `contact_sheet`.
    Returns:
      (the GIF's bytes, (width, height) in pixels).
    """
    videos = enlarge(videos, tile)
    columns = min(columns, len(videos))
    missing = -len(videos) % columns
    videos = np.pad(videos, ((0, missing), (0, 0), (0, GAP), (0, GAP), (0, 0)))
    grid = einops.rearrange(videos, "(y x) t h w c -> t (y h) (x w) c", x=columns)
    height, width = grid.shape[1:3]
    return image_io.encode_gif(grid, round(1000 / fps)), (width, height)


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
