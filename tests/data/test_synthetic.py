import itertools
import json
import math

import numpy as np
import pytest

from videogen_jax.data import synthetic
from videogen_jax.data.synthetic import (
    COLOURS,
    COMBINATIONS,
    DIRECTIONS,
    SHAPES,
    draw_bounces,
    make_caption,
    make_clip,
    parse_caption,
    render_clip,
    write_shapes,
)
from videogen_jax.data.video_io import read_video
from videogen_jax.evaluation.moving_shapes import judge


def coverage(video, colour):
    """Returns the coverage (T, H, W) in [0, 1] of each pixel by the shape, on black."""
    channel = int(np.argmax(COLOURS[colour]))
    return video[..., channel] / 255.0


def centroids(cover):
    """Returns the centroids (T, 2) as (x, y); the centre of the first pixel is (0.5, 0.5)."""
    y, x = np.mgrid[: cover.shape[1], : cover.shape[2]] + 0.5
    mass = cover.sum((1, 2))
    return np.stack([(cover * x).sum((1, 2)) / mass, (cover * y).sum((1, 2)) / mass], axis=1)


def test_all_144_captions_are_parsed_back():
    assert len(set(COMBINATIONS)) == 144
    for colour, shape, direction in COMBINATIONS:
        assert parse_caption(make_caption(colour, shape, direction)) == (colour, shape, direction)
    assert parse_caption("  A Red  circle MOVING up left ") == ("red", "circle", "up left")


@pytest.mark.parametrize(
    "caption",
    ["", "a cat", "a red circle moving", "a red circle moving north", "a pink circle moving up"],
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="like .a red circle moving up left.*magenta.*triangle"):
        parse_caption(caption)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_centroid_moves_by_direction_times_speed(shape, direction):
    video = render_clip(
        "cyan", shape, direction, frames=6, size=96, radius=15.3, speed=2.7, centre=(47.2, 49.6)
    )
    found = centroids(coverage(video, "cyan"))
    step = np.array(DIRECTIONS[direction])
    assert math.isclose(np.hypot(*step), 1.0)
    expected = np.array([47.2, 49.6]) + 2.7 * step * np.arange(6)[:, None]
    np.testing.assert_allclose(found, expected, atol=0.1)


@pytest.mark.parametrize(
    ("shape", "area"),
    [("circle", math.pi), ("square", math.pi), ("triangle", math.sqrt(3) * 1.25**2)],
)
def test_areas_match_the_documentation(shape, area):
    video = render_clip(
        "red", shape, "up", frames=1, size=128, radius=24.0, speed=0.0, centre=(64.3, 63.8)
    )
    assert coverage(video, "red").sum() == pytest.approx(area * 24.0**2, rel=0.01)


def test_shapes_have_the_right_outline():
    settings = dict(frames=1, size=64, radius=16.0, speed=0.0, centre=(32.0, 32.0))
    masks = {shape: coverage(render_clip("red", shape, "up", **settings), "red")[0] > 0.5
             for shape in SHAPES}  # fmt: skip
    rows = {shape: masks[shape].sum(axis=1)[masks[shape].any(axis=1)] for shape in SHAPES}
    assert len(set(rows["square"])) == 1  # rows of equal length
    assert (np.diff(rows["triangle"]) >= 0).all() and rows["triangle"][
        0
    ] <= 2  # point up, base down
    np.testing.assert_array_equal(rows["circle"], rows["circle"][::-1])
    middle = len(rows["circle"]) // 2
    assert (np.diff(rows["circle"][:middle]) >= 0).all()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_clips_keep_the_margin_and_the_documented_displacement(size):
    for index in range(288):
        (colour, shape, direction), video = make_clip(index, 7, size=size, frames=5)
        cover = coverage(video, colour)
        ring = np.concatenate([cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1]], 1)
        assert ring.max() <= 0.55  # half a pixel of margin
        path = centroids(cover)
        length = np.hypot(*(path[-1] - path[0])) / size
        assert 0.29 <= length <= 0.46
        cosine = (path[-1] - path[0]) @ DIRECTIONS[direction] / (length * size)
        assert cosine > 0.99
        share = cover[0].sum() / size**2
        assert 0.8 * math.pi * 0.23**2 < share < 1.03 * math.pi * 0.25**2


def test_every_combination_occurs_equally_often():
    picks = [synthetic.pick_combination(index, 3) for index in range(288)]
    assert sorted(picks[:144]) == sorted(COMBINATIONS) == sorted(picks[144:])
    assert picks[:20] != [synthetic.pick_combination(index, 4) for index in range(20)]


def test_clips_are_a_function_of_seed_and_index():
    _, first = make_clip(5, 1, size=32, frames=4)
    _, again = make_clip(5, 1, size=32, frames=4)
    np.testing.assert_array_equal(first, again)
    others = [make_clip(5, 2, size=32, frames=4), make_clip(149, 1, size=32, frames=4)]
    assert others[1][0] == make_clip(5, 1, size=32, frames=4)[0]  # 144 later: the same caption
    assert all((video != first).any() for _, video in others)


def test_files_do_not_depend_on_workers_or_interruptions(tmp_path):
    settings = dict(clips=40, seed=3, size=32, frames=6, fps=8)
    done = []
    write_shapes(tmp_path / "one", "moving_shapes", **settings, workers=1, on_progress=done.append)
    assert sum(done) == 40
    write_shapes(tmp_path / "two", "moving_shapes", **settings, workers=2)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 2 * 40 + 1
    removed = [name for name in names if name[:6] in ("000007", "000033")]
    kept = tmp_path / "two" / names[0]
    before = kept.stat().st_mtime_ns
    for name in removed:
        (tmp_path / "two" / name).unlink()
    write_shapes(
        tmp_path / "two", "moving_shapes", **settings, workers=1
    )  # as after an interruption
    assert kept.stat().st_mtime_ns == before
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_files_match_their_captions(tmp_path):
    write_shapes(tmp_path, "moving_shapes", clips=3, seed=0, size=64, frames=8, fps=8)
    for path in sorted(tmp_path.glob("*.mp4")):
        colour, shape, direction = parse_caption(path.with_suffix(".txt").read_text())
        assert path.stem[7:] == f"{colour}_{shape}_{direction}".replace(" ", "_")
        _, video = make_clip(int(path.stem[:6]), 0, size=64, frames=8)
        error = read_video(path).astype(float) - video
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 24  # 4:2:0 colour blurs the outline


def test_other_files_or_settings_are_refused(tmp_path):
    write_shapes(tmp_path / "a", "moving_shapes", clips=1, seed=0, size=16, frames=2)
    with pytest.raises(ValueError, match="seed 0 instead of 1"):
        write_shapes(tmp_path / "a", "moving_shapes", clips=1, seed=1, size=16, frames=2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "holiday.mp4").touch()
    with pytest.raises(ValueError, match="other files"):
        write_shapes(tmp_path / "b", "moving_shapes", clips=1, seed=0)
    with pytest.raises(ValueError, match="'hopping_shapes'.*moving_shapes or bouncing_shapes"):
        write_shapes(tmp_path / "c", "hopping_shapes", clips=1, seed=0)
    with pytest.raises(ValueError, match="even size"):
        write_shapes(tmp_path / "c", "moving_shapes", clips=1, seed=0, size=33)


def test_a_folder_of_the_other_kind_is_refused_even_with_an_old_manifest(tmp_path):
    settings = dict(clips=1, seed=0, size=16, frames=2)
    write_shapes(tmp_path / "a", "moving_shapes", **settings)
    manifest = tmp_path / "a" / synthetic.MANIFEST
    settings_of_old = json.loads(manifest.read_text())
    assert settings_of_old.pop("kind") == "moving_shapes"
    for _ in range(2):  # the current manifest, then one from before there were two kinds
        with pytest.raises(ValueError, match="kind moving_shapes instead of bouncing_shapes"):
            write_shapes(tmp_path / "a", "bouncing_shapes", **settings)
        write_shapes(tmp_path / "a", "moving_shapes", **settings)
        manifest.write_text(json.dumps(settings_of_old))
    write_shapes(tmp_path / "b", "bouncing_shapes", **settings)
    with pytest.raises(ValueError, match="kind bouncing_shapes instead of moving_shapes"):
        write_shapes(tmp_path / "b", "moving_shapes", **settings)


def bounce(position, velocity, room, frames):
    """Simulates a ball between walls, event by event."""
    positions = [position]
    for _ in range(frames - 1):
        left = 1.0
        while velocity and position + left * velocity != np.clip(
            position + left * velocity, 0, room
        ):
            wall = room if velocity > 0 else 0.0
            left -= (wall - position) / velocity
            position, velocity = wall, -velocity
        position += left * velocity
        positions.append(position)
    return positions


@pytest.mark.parametrize("speed", [0.0, 0.37, -1.1, 5.3, -17.0])  # up to several bounces per frame
def test_reflection_matches_a_simulated_ball(speed):
    room, start = 4.7, 1.9
    folded = synthetic.reflect(start + speed * np.arange(60), room)
    np.testing.assert_allclose(folded, bounce(start, speed, room, 60), atol=1e-10)
    assert folded.min() >= 0.0 and folded.max() <= room


def test_bouncing_paths_stay_inside_at_constant_speed_in_the_captioned_direction():
    turns = walls = 0
    for index, (shape, direction) in enumerate(list(itertools.product(SHAPES, DIRECTIONS)) * 8):
        rng = np.random.default_rng(index)
        path = draw_bounces(shape, direction, rng, frames=400, size=24)
        assert 0.23 * 24 <= path["radius"] <= 0.25 * 24
        left, right, up, down = synthetic.shape_extents(shape, path["radius"])
        low, high = np.array([left, up]) + 0.5, 24 - 0.5 - np.array([right, down])
        centres = path["centres"]
        assert (centres >= low - 1e-9).all() and (centres <= high + 1e-9).all()
        steps = np.diff(centres, axis=0)  # (399, 2)
        along = np.abs(DIRECTIONS[direction])
        speed = np.abs(steps).max() / along.max()
        assert 0.03 * 24 <= speed <= 0.045 * 24
        # A step equals the velocity, except where a wall is met.
        meets = np.abs(np.abs(steps) - speed * along) > 1e-9
        near = (centres - low < speed) | (high - centres < speed)
        assert (near[:-1] | ~meets).all() and (near[1:] | ~meets).all()
        assert (meets[1:] | meets[:-1] | (np.abs(np.diff(steps, axis=0)) < 1e-9)).all()
        turns += meets.sum()
        # The first step has the captioned direction, unless a wall is met in it.
        begun = ~meets[0]
        expected = speed * np.array(DIRECTIONS[direction])
        np.testing.assert_allclose(steps[0, begun], expected[begun], atol=1e-9)
        walls += meets[0].any()
    assert turns > 1000 and walls < 0.25 * 192


def test_bouncing_paths_do_not_depend_on_the_number_of_frames():
    short, long = (
        draw_bounces("square", "up left", np.random.default_rng(3), frames=frames, size=32)
        for frames in (16, 480)
    )
    np.testing.assert_array_equal(short["centres"], long["centres"][:16])


def test_colour_and_shape_are_recognized_in_all_windows_of_a_bouncing_clip():
    for index in range(0, 144, 3):
        names, video = make_clip(index, 5, size=24, frames=48, kind="bouncing_shapes")
        assert (
            not video[:, [0, -1]].max() > 0.55 * 255 and not video[:, :, [0, -1]].max() > 0.55 * 255
        )
        for first in (0, 16, 32):
            assert judge(video[first : first + 16])[:2] == names[:2]
