"""Scenes for tests: windows that slide over random textures, so that cuts and motion are known."""

import numpy as np
from PIL import Image

SIZE = 64, 96


def make_texture(seed, height=SIZE[0], width=SIZE[1], block=8):
    """(height, width, 3) uint8: smooth, of other shapes for each seed, and of another mean colour for each below 8."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 128, (height // block, width // block, 3), dtype=np.uint8)
    blocks += 127 * np.uint8([seed & 1, seed >> 1 & 1, seed >> 2 & 1])
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC))


def make_scene(seed, frames, speed=1):
    """(frames, 64, 96, 3) uint8: the texture moves left by `speed` pixels a frame."""
    wide = make_texture(seed, width=5 * SIZE[1])
    starts = [int(k * speed) % (4 * SIZE[1]) for k in range(frames)]
    return np.stack([wide[:, start : start + SIZE[1]] for start in starts])
