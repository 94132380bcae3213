import math

import numpy as np
import pytest

from videogen_jax.data import synthetic, video_io, video_writer
from videogen_jax.evaluation import moving_shapes, rates
from videogen_jax.evaluation.moving_shapes import NOTHING, Verdict, caption_rates, judge

SIZE, FRAMES = 32, 8


@pytest.fixture(scope="module")
def clips():
    """All 144 combinations once, as (Verdict of the caption, video)."""
    made = [synthetic.make_clip(i, seed=3, size=SIZE, frames=FRAMES) for i in range(144)]
    assert len({names for names, _ in made}) == 144
    return [(Verdict(*names), video) for names, video in made]


def clip_of(clips, colour="red", shape="circle", direction="left"):
    return dict(clips)[Verdict(colour, shape, direction)]


def to_uint8(video):
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def blurred(video, sigma=1.0):
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    video = video.astype(float)
    for axis in (1, 2):
        video = np.apply_along_axis(np.convolve, axis, video, kernel / kernel.sum(), mode="same")
    return to_uint8(video)


def noisy(video, sigma=8.0):
    return to_uint8(video + np.random.default_rng(0).normal(0.0, sigma, video.shape))


def compressed(video, folder):
    video_writer.write_video(folder / "clip.mp4", video, fps=8)
    return video_io.read_video(folder / "clip.mp4")


def tinted(video):
    """Half brightness, an eighth of each channel added to the others, on a dark grey background."""
    leak = np.full((3, 3), 0.125) + 0.875 * np.eye(3)
    return to_uint8(20 + 0.5 * video @ leak)


CORRUPTIONS = {
    "clean": lambda video, folder: video,
    "noise": lambda video, folder: noisy(video),
    "blur": lambda video, folder: blurred(video),
    "h264": compressed,
    "ghost": lambda video, folder: to_uint8(0.9 * video + 0.2 * video[::-1, ::-1, ::-1]),
    "tint": lambda video, folder: tinted(video),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_at_least_99_percent_of_all_combinations_are_right(clips, corruption, tmp_path):
    wrong = {name: [] for name in Verdict._fields}
    for expected, video in clips:
        seen = judge(CORRUPTIONS[corruption](video, tmp_path))
        for name, a, b in zip(Verdict._fields, expected, seen, strict=True):
            if a != b:
                wrong[name].append((expected, seen))
    assert all(len(cases) <= 1 for cases in wrong.values()), wrong


def test_compressed_clips_of_16_frames_and_64_pixels(tmp_path):
    for index in range(0, 144, 12):
        names, video = synthetic.make_clip(index, seed=4, size=64, frames=16)
        assert judge(compressed(video, tmp_path)) == names


def test_frames_above_the_working_size(clips):
    for expected, video in clips[::9]:
        assert judge(video.repeat(5, axis=1).repeat(5, axis=2)[:, :-3, :-1]) == expected


def corner_points(shape):
    """Outlines from geometry, independent of our renderer."""
    if shape == "square":
        return [(-7, -7), (7, -7), (7, 7), (-7, 7)]
    if shape == "triangle":  # apex up (y down), centroid at the origin
        return [(9 * math.sin(a), -9 * math.cos(a)) for a in np.radians([0, 120, 240])]
    return [(8 * math.cos(a), 8 * math.sin(a)) for a in np.radians(range(0, 360, 10))]


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_shapes_drawn_by_pillow(shape):
    from PIL import Image, ImageDraw

    frames = []
    for step in range(6):
        image = Image.new("RGB", (320, 320))
        place = np.array([100 + 18 * step, 200 - 18 * step])
        outline = [tuple(place + 10 * np.array(point)) for point in corner_points(shape)]
        ImageDraw.Draw(image).polygon(outline, fill=(0, 250, 240))
        frames.append(np.asarray(image.resize((32, 32), Image.Resampling.BOX)))
    assert judge(np.stack(frames)) == ("cyan", shape, "up right")


@pytest.mark.parametrize(
    "kind", ["uniform", "gaussian", "red noise", "black", "white", "tiny", "no frames"]
)
def test_noise_and_constant_videos_show_nothing(kind):
    rng = np.random.default_rng(1)
    shape = (FRAMES, SIZE, SIZE, 3)
    video = {
        "uniform": rng.integers(0, 256, shape),
        "gaussian": to_uint8(rng.normal(0, 60, shape)),
        "red noise": to_uint8(rng.normal(0, 60, shape) * [1, 0.1, 0.1]),
        "black": np.zeros(shape),
        "white": np.full(shape, 255),
        "tiny": rng.integers(0, 256, (FRAMES, 4, 4, 3)),
        "no frames": np.zeros((0, SIZE, SIZE, 3)),
    }[kind]
    assert judge(video.astype(np.uint8)) == NOTHING


def test_a_single_frame_has_no_direction(clips):
    assert judge(clip_of(clips)[:1]) == ("red", "circle", None)


def test_an_object_in_half_of_the_frames_does_not_count(clips):
    video = clip_of(clips).copy()
    video[4:] = 0
    assert judge(video) == NOTHING


ORDERS = {
    "static": [0] * 8,
    "jump": [0] * 4 + [7] * 4,
    "forward and back": [0, 2, 4, 6, 6, 4, 2, 0],
    "further forward than back": [0, 2, 4, 6, 7, 6, 5, 4],
    "two steps forward, one back": [0, 1, 0, 2, 3, 2, 4, 5, 4, 6, 7],
    "shuffled": [3, 7, 0, 5, 1, 6, 2, 4],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("spoil", [lambda video: video, noisy], ids=["clean", "noise"])
def test_no_direction_without_steady_motion(clips, order, spoil):
    for expected, video in clips[::6]:
        assert judge(spoil(video[ORDERS[order]])) == expected._replace(direction=None)


def test_displacements_below_a_twentieth_of_the_frame_have_no_direction():
    def moving(share):
        return synthetic.render_clip(
            "blue",
            "square",
            "down",
            frames=8,
            size=64,
            radius=14.0,
            speed=share * 64 / 7,
            centre=(32.0, 25.0),
        )

    assert judge(moving(0.04)).direction is None
    assert judge(moving(0.06)).direction == "down"


def test_curved_motion_has_no_direction():
    still = {"frames": 1, "size": 64, "radius": 12.0, "speed": 0.0}
    angles = np.linspace(0, 1.5 * np.pi, 8)  # three quarters of a circle
    centres = [(32 + 15 * math.cos(a), 32 + 15 * math.sin(a)) for a in angles]
    frames = [synthetic.render_clip("red", "circle", "up", centre=p, **still) for p in centres]
    assert judge(np.concatenate(frames)) == ("red", "circle", None)


def test_mirrored_reversed_and_rotated_videos_change_direction(clips):
    video = clip_of(clips, "green", "square", "up left")
    assert judge(video[:, :, ::-1]).direction == "up right"
    assert judge(video[:, ::-1]).direction == "down left"
    assert judge(video[::-1]).direction == "down right"
    assert judge(video.transpose(0, 2, 1, 3)[:, :, ::-1]).direction == "up right"


def test_grey_mixed_and_pale_colours_are_none(clips):
    video = clip_of(clips, "red", "triangle", "down")
    grey = video.max(axis=-1, keepdims=True).repeat(3, axis=-1)
    assert judge(grey) == (None, "triangle", "down")
    orange = to_uint8(
        video * [1, 0, 0] + video[..., :1] * [0, 0.5, 0]
    )  # hue 30, between red and yellow
    assert judge(orange) == (None, "triangle", "down")
    pale = to_uint8(video + 0.7 * video[..., :1] * [0, 1, 1])
    assert judge(pale) == (None, "triangle", "down")


def test_other_outlines_have_no_shape(clips):
    triangle = clip_of(clips, "yellow", "triangle", "left")
    assert judge(triangle[:, ::-1]).shape is None  # pointing down
    y, x = np.mgrid[:64, :64]
    bar = (np.abs(x - 32) < 24) & (np.abs(y - 32) < 7)
    cross = (np.abs(x - 32) < 4) & (np.abs(y - 32) < 24) | (np.abs(y - 32) < 4) & (
        np.abs(x - 32) < 24
    )
    for outline in (bar, cross):
        video = np.repeat(outline[None, :, :, None] * np.uint8([255, 255, 0]), 8, axis=0)
        assert judge(video) == ("yellow", None, None)


def test_an_object_smeared_over_its_path_has_no_shape(clips):
    classified = 0
    for expected, video in clips:
        smear = np.repeat(video.max(axis=0, keepdims=True), 8, axis=0)
        seen = judge(smear)
        assert (seen.colour, seen.direction) == (expected.colour, None)
        classified += seen.shape is not None
    assert classified <= 0.1 * len(clips)  # short paths of large triangles look like triangles


def test_the_larger_of_two_objects_is_judged_but_equal_ones_are_not():
    path = {"frames": 8, "size": 64, "speed": 3.0}
    large = synthetic.render_clip(
        "red", "square", "right", radius=13.0, centre=(14.0, 16.0), **path
    )
    small = synthetic.render_clip("blue", "circle", "left", radius=6.0, centre=(50.0, 50.0), **path)
    equal = synthetic.render_clip(
        "blue", "circle", "left", radius=13.0, centre=(50.0, 48.0), **path
    )
    assert judge(np.maximum(large, small)) == ("red", "square", "right")
    assert judge(np.maximum(large, equal)) == NOTHING


def test_clean_shapes_match_their_template():
    for shape in synthetic.SHAPES:
        video = synthetic.render_clip(
            "green",
            shape,
            "right",
            frames=5,
            size=64,
            radius=14.3,
            speed=3.7,
            centre=(20.3, 31.8),
        )
        cover = video[..., 1] / np.float32(255)
        overlaps = moving_shapes.shape_overlaps(cover, moving_shapes.blob_centroids(cover))
        assert overlaps.pop(shape) > 0.97 and max(overlaps.values()) < 0.88


def test_downscaling_averages_blocks():
    video = np.random.default_rng(0).integers(0, 256, (2, 193, 130, 3), np.uint8)
    small = moving_shapes.downscale(video)
    assert small.shape == (2, 96, 65, 3)
    np.testing.assert_allclose(small[1, 95, 64], video[1, 190:192, 128:130].mean(axis=(0, 1)))
    np.testing.assert_array_equal(moving_shapes.downscale(video[:, :127]), video[:, :127])


@pytest.mark.parametrize(
    "video",
    [np.zeros((8, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8)],
    ids=["float", "one frame without a time axis"],
)
def test_other_arrays_are_an_error(video):
    with pytest.raises(ValueError, match=r"shape \(T, H, W, 3\) and dtype uint8, not"):
        judge(video)


def test_swapped_captions_lower_the_rates(clips):
    pairs = [clips[i] for i in range(40)]
    videos = [video for _, video in pairs]
    captions = [synthetic.make_caption(*expected) for expected, _ in pairs]
    rates = caption_rates(iter(videos), captions)
    assert rates["num_videos"] == 40
    for name in ("colour", "direction", "shape", "all"):
        assert (rates[name]["rate"], rates[name]["right"], rates[name]["high"]) == (1.0, 40, 1.0)
    assert rates["videos"][0]["seen"] == pairs[0][0]._asdict()

    first = next(i for i in range(1, 40) if all(map(str.__ne__, pairs[i][0], pairs[0][0])))
    captions[0], captions[first] = captions[first], captions[0]
    rates = caption_rates(videos, captions)
    for name in ("colour", "direction", "shape", "all"):
        assert rates[name]["right"] == 38 and rates[name]["rate"] == 0.95
    wrong = [i for i, record in enumerate(rates["videos"]) if not record["right"]["all"]]
    assert wrong == [0, first]


def test_all_counts_videos_with_all_three_attributes_right(clips):
    video = clip_of(clips, "red", "circle", "left")
    captions = ["a blue circle moving left", "a red square moving left", "a red circle moving left"]
    rates = caption_rates([video] * 3, captions)
    right = {name: rates[name]["right"] for name in ("colour", "direction", "shape", "all")}
    assert right == {"colour": 2, "direction": 3, "shape": 2, "all": 1}


def test_shuffled_captions_have_chance_rates(clips):
    order = np.random.default_rng(0).permutation(144)
    captions = [synthetic.make_caption(*clips[i][0]) for i in order]
    rates = caption_rates([video for _, video in clips], captions)
    for name, chance in (
        ("colour", 1 / 6),
        ("direction", 1 / 8),
        ("shape", 1 / 3),
        ("all", 1 / 144),
    ):
        assert rates[name]["chance"] == pytest.approx(chance)
        assert abs(rates[name]["rate"] - chance) < 3 * math.sqrt(chance * (1 - chance) / 144)


def test_unreadable_and_empty_videos_count_as_wrong(clips):
    video = clip_of(clips)
    rates = caption_rates([video, None, 0 * video], ["a red circle moving left"] * 3)
    for name in ("colour", "direction", "shape", "all"):
        assert (rates[name]["right"], rates["num_videos"]) == (1, 3)
    assert rates["videos"][1]["seen"] == NOTHING._asdict()


@pytest.mark.parametrize("videos", [1, 3])
def test_different_numbers_of_captions_and_videos_are_an_error(clips, videos):
    with pytest.raises(ValueError, match="caption"):
        caption_rates([clip_of(clips)] * videos, ["a red circle moving left"] * 2)


def test_captions_of_another_grammar_are_an_error(clips):
    with pytest.raises(ValueError, match="a cat"):
        caption_rates([clip_of(clips)], ["a cat"])


@pytest.mark.parametrize(("right", "total"), [(0, 10), (50, 100), (61, 64), (64, 64), (1, 1)])
def test_wilson_bounds_invert_the_normal_test(right, total):
    """Each bound p inside (0, 1) solves |right/total - p| = z sqrt(p (1 - p) / total)."""
    low, high = rates.wilson_interval(right, total)
    assert 0.0 <= low <= right / total <= high <= 1.0
    for bound in {low, high} - {0.0, 1.0}:
        deviation = abs(right / total - bound)
        assert deviation == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / total), 1e-5)


def test_wilson_interval_of_a_published_example_and_of_no_trials():
    low, high = rates.wilson_interval(81, 263)  # Newcombe 1998, table I: 0.2553, 0.3662
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert rates.wilson_interval(0, 0) == (0.0, 1.0)
    for total in range(1, 100):  # exactly, without the rounding of a root
        assert rates.wilson_interval(0, total)[0] == 0
        assert rates.wilson_interval(total, total)[1] == 1
