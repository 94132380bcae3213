"""Contact sheets and animations show the right frames at the right places."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from videogen_jax.generate import contact_sheet
from videogen_jax.generate.contact_sheet import GAP, LINE


def grey_videos(count, frames, height=8, width=8):
    """Video i, frame t is one grey of 20 + 40 i + 5 t."""
    levels = 20 + 40 * np.arange(count)[:, None] + 5 * np.arange(frames)
    return np.broadcast_to(
        levels[:, :, None, None, None], (count, frames, height, width, 3)
    ).astype(np.uint8)


def test_sheet_has_a_row_per_video_and_first_and_last_frames():
    sheet = contact_sheet.contact_sheet(grey_videos(3, 10), ["a", "b", "c"], frames=4, tile=16)
    assert sheet.shape == (GAP + 3 * (LINE + 16 + GAP), GAP + 4 * (16 + GAP), 3)
    for i in range(3):
        top = GAP + i * (LINE + 16 + GAP) + LINE
        for j, frame in enumerate((0, 3, 6, 9)):
            left = GAP + j * (16 + GAP)
            tile = sheet[top : top + 16, left : left + 16]
            assert np.all(tile == 20 + 40 * i + 5 * frame)


def test_sheet_shows_all_frames_of_a_short_video_and_no_frame_twice():
    sheet = contact_sheet.contact_sheet(grey_videos(1, 3, 64, 48), ["a"], frames=8)
    assert sheet.shape == (GAP + LINE + 64 + GAP, GAP + 3 * (48 + GAP), 3)


@pytest.mark.parametrize("prompt", ["x" * 10_000, "ein grüner Kreis", "赤い円が左へ", ""])
def test_sheet_takes_any_prompt(prompt):
    contact_sheet.contact_sheet(grey_videos(1, 3), [prompt])


def test_sheet_wants_a_prompt_for_each_video():
    with pytest.raises(ValueError, match="zip"):
        contact_sheet.contact_sheet(grey_videos(2, 3), ["only one"])


def test_animation_plays_all_videos_side_by_side():
    gif, size = contact_sheet.animation(grey_videos(5, 6), fps=8, columns=3, tile=16)
    assert size == (3 * (16 + GAP), 2 * (16 + GAP))
    with Image.open(io.BytesIO(gif)) as picture:
        assert picture.format == "GIF"
        assert picture.is_animated and picture.n_frames == 6
        assert picture.info["loop"] == 0
        assert picture.size == size
        for t, frame in enumerate(ImageSequence.Iterator(picture)):
            assert frame.info["duration"] == pytest.approx(125, abs=10)  # GIF counts in 10 ms
            pixels = np.asarray(frame.convert("RGB")).astype(int)
            for i in range(5):
                y, x = divmod(i, 3)
                centre = pixels[y * (16 + GAP) + 8, x * (16 + GAP) + 8]
                np.testing.assert_allclose(centre, 20 + 40 * i + 5 * t, atol=6)


def test_animation_of_one_video_is_as_wide_as_it():
    _, size = contact_sheet.animation(grey_videos(1, 2, 64, 64), fps=8)
    assert size == (64 + GAP, 64 + GAP)


@pytest.mark.parametrize(("tile", "factor"), [(1, 1), (8, 1), (9, 2), (64, 8)])
def test_small_frames_grow_by_whole_factors(tile, factor):
    video = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 1, 8, 8, 3)
    grown = contact_sheet.enlarge(video, tile)
    assert grown.shape == (1, 1, 8 * factor, 8 * factor, 3)
    for y, x in ((0, 0), (factor, 2 * factor), (8 * factor - 1, 8 * factor - 1)):
        np.testing.assert_array_equal(grown[0, 0, y, x], video[0, 0, y // factor, x // factor])


def test_captions_stand_above_the_videos_of_an_animation():
    videos = np.full((2, 3, 40, 80, 3), 200, np.uint8)
    prompts = ["a red circle", "a caption of many words that needs more lines than there are above"]
    strips = contact_sheet.draw_captions(prompts, videos)
    assert strips.shape == (2, 3, contact_sheet.LINES * contact_sheet.LINE, 80, 3)
    np.testing.assert_array_equal(strips[:, 0], strips[:, 2])  # in every frame
    dark = (strips[:, 0] < 100).all(axis=-1)  # (N, strip, W)
    assert dark[0, : contact_sheet.LINE].any() and not dark[0, contact_sheet.LINE :].any()
    assert dark[1, 2 * contact_sheet.LINE :].any()  # its third line
    plain, (width, height) = contact_sheet.animation(videos, 8, columns=1, tile=40)
    shown, (shown_width, shown_height) = contact_sheet.animation(videos, 8, 1, 40, prompts)
    assert shown_width == width and plain != shown
    assert shown_height == height + 2 * contact_sheet.LINES * contact_sheet.LINE


def test_videos_without_a_caption_take_no_room_for_one():
    videos = np.zeros((2, 1, 8, 8, 3), np.uint8)
    assert contact_sheet.draw_captions(["", ""], videos).shape == (2, 1, 0, 8, 3)
