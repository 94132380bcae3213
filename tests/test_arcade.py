"""The arcade example: what captions say, what the emulator records, and who is seen to move."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ARCADE = Path(__file__).parents[1] / "examples" / "arcade"


@pytest.fixture(autouse=True)
def arcade_modules(monkeypatch):
    """The scripts import `games` from their own folder."""
    monkeypatch.syspath_prepend(str(ARCADE))


@pytest.fixture
def make_clips():
    import make_clips

    return make_clips


@pytest.fixture
def action_accuracy():
    import action_accuracy

    return action_accuracy


# ------------------------------------------------------------------------------------ captions


def test_caption_follows_the_position(make_clips):
    game = make_clips.GAMES["freeway"]
    path = [10] * 8 + [10 + 4 * i for i in range(1, 11)] + [50] * 8
    # Two frames on either side are compared: movement is seen two frames early, and for two frames more.
    assert make_clips.describe_path(game, path) == [
        [0, "the chicken stands still"],
        [6, "the chicken moves up"],
        [19, "the chicken stands still"],
    ]


def test_caption_of_a_reversed_axis(make_clips):
    falling = [200 - 6 * i for i in range(16)]
    caption = make_clips.describe_path(make_clips.GAMES["pong"], falling)
    assert caption == [[0, "the right paddle moves up"]]


def test_caption_ignores_a_jump(make_clips):
    game = make_clips.GAMES["freeway"]
    path = [100 + 4 * i for i in range(10)] + [4 * i for i in range(10)]  # put back to the kerb
    assert make_clips.describe_path(game, path) == [[0, "the chicken moves up"]]
    path = [200] * 8 + [120] * 4 + [40] * 8  # two jumps, of which each is seen for four frames
    assert make_clips.describe_path(game, path) == [[0, "the chicken stands still"]]


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ("a" * 10, [[0, "a"]]),
        ("a" * 10 + "b" * 5, [[0, "a"], [10, "b"]]),
        ("a" * 10 + "b" * 4 + "c" * 6, [[0, "a"], [14, "c"]]),  # a short entry joins the one before
        ("a" * 10 + "b" * 2 + "a" * 8, [[0, "a"]]),
        ("b" * 3 + "a" * 10, [[0, "a"]]),  # a short beginning belongs to what follows
    ],
)
def test_short_entries_are_merged(make_clips, texts, wanted):
    assert make_clips.merge_equal([[i, text] for i, text in enumerate(texts)]) == wanted


# ------------------------------------------------------------------------------------ recording


def test_sixteen_games():
    import games

    assert len(games.GAMES) == 16
    for game in games.GAMES.values():
        assert game.increases is None or game.increases in game.moves
        assert (game.position is None) == (game.increases is None)


def test_recording_is_a_function_of_the_seed(make_clips):
    pytest.importorskip("ale_py", reason="the games come with ale-py")
    first, again, other = (
        make_clips.record_episode("pong", 3, clips=2, frames=6, seed=seed) for seed in (0, 0, 1)
    )
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["video"], two["video"])
        assert one["video"].shape == (6, 210, 160, 3)
        assert one["caption"] == two["caption"] and one["action"] == two["action"]
    assert any((a["video"] != b["video"]).any() for a, b in zip(first, other, strict=True))


def test_held_actions_move_players_as_captions_say(make_clips, action_accuracy):
    """The emulator, the caption from its memory and the judge of pixels agree, which are made independently."""
    pytest.importorskip("ale_py", reason="the games come with ale-py")
    for name, action, text in [
        ("pong", "RIGHT", "moves up"),
        ("pong", "LEFT", "moves down"),
        ("freeway", "UP", "moves up"),
        ("space invaders", "LEFT", "moves left"),
        ("space invaders", "RIGHT", "moves right"),
    ]:
        console = make_clips.Console(name, seed=5)
        game = make_clips.GAMES[name]
        opposite = next(move for move in game.moves if move != action)
        for move in ["NOOP"] * 30 + [opposite] * 12:
            console.step(move)
        video, positions = [], []
        for _ in range(10):
            video.append(console.step(action))
            positions.append(console.memory(game.position))
        said = make_clips.describe_path(game, positions)
        assert said == [[0, f"{game.player} {text}"]], name
        small = make_clips.squeeze(np.stack(video), 64)
        rates = action_accuracy.judge([(small, f"{name}, {game.player} {text}")])
        assert (rates["all"].right, rates["all"].total) == (1, 1), name
        rates = action_accuracy.judge([(small[::-1], f"{name}, {game.player} {text}")])
        assert rates["all"].right == 0, name


def test_written_clips_have_a_sidecar(make_clips, tmp_path):
    pytest.importorskip("ale_py", reason="the games come with ale-py")
    make_clips.write_episode(str(tmp_path), "ms pacman", 2, clips=1, frames=8, size=32, seed=0)
    from videogen_jax.data import video_io

    frames = [frame for _, frame in video_io.read_frames(tmp_path / "ms_pacman" / "0002_0.mp4")]
    assert np.stack(frames).shape == (8, 32, 32, 3)
    sidecar = json.loads((tmp_path / "ms_pacman" / "0002_0.json").read_text())
    assert sidecar["episode"] == "ms pacman/2"
    assert len(sidecar["numbers"]["action"]) == 8
    assert sidecar["captions"][0][0][1].startswith("ms pacman, ")


def test_missing_emulator_names_the_install_line(make_clips, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(SystemExit):
        make_clips.main([f"--output={tmp_path}"])
    assert "pip install 'videogen-jax[arcade]'" in capsys.readouterr().err


def test_missing_game_names_the_install_line(make_clips, monkeypatch):
    roms = pytest.importorskip("ale_py.roms", reason="the games come with ale-py")
    monkeypatch.setattr(roms, "get_rom_path", lambda name: None)
    with pytest.raises(ValueError, match="has no game 'pong': pip install"):
        make_clips.Console("pong", 0)


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--games=pong,chess", "'chess': choose from asterix"), ("--episodes=0", "at least 1")],
)
def test_wrong_flags(make_clips, capsys, tmp_path, flag, said):
    with pytest.raises(SystemExit):
        make_clips.main([f"--output={tmp_path}", flag])
    assert said in capsys.readouterr().err


# --------------------------------------------------------------------------------------- judge


def draw(colour, places, axis):
    """A 4x4 square of a colour at places (row or column) of a 64x64 screen of another colour."""
    video = np.full((len(places), 64, 64, 3), 30, np.uint8)
    for image, place in zip(video, places, strict=True):
        rows, columns = (
            (slice(place, place + 4), slice(55, 59))
            if axis == 0
            else (slice(56, 60), slice(place, place + 4))
        )
        image[rows, columns] = colour
    return video


def test_path_is_the_centre_of_the_colour(action_accuracy):
    player = action_accuracy.Player((92, 186, 92), (0.0, 1.0, 0.8, 1.0), 0, {})
    places = [10, 14, 18, 30]
    path = action_accuracy.find_path(draw((92, 186, 92), places, 0), player)
    np.testing.assert_allclose(path, [(place + 1.5) / 64 for place in places], rtol=1e-12)


def test_other_colours_are_not_seen(action_accuracy):
    player = action_accuracy.Player((92, 186, 92), (0.0, 1.0, 0.0, 1.0), 0, {})
    assert np.isnan(action_accuracy.find_path(draw((200, 70, 70), [10, 20], 0), player)).all()


def test_a_wide_area_of_a_near_colour_does_not_move_the_centre(action_accuracy):
    player = action_accuracy.Player((92, 186, 92), (0.0, 1.0, 0.8, 1.0), 0, {})
    video = draw((92, 186, 92), [10, 14], 0)
    video[(video == 30).all(axis=-1)] = (92, 186, 92 + action_accuracy.SPREAD + 5)
    path = action_accuracy.find_path(video, player)
    np.testing.assert_allclose(path, [11.5 / 64, 15.5 / 64], rtol=1e-12)


def test_jumps_do_not_count(action_accuracy):
    player = action_accuracy.Player((92, 186, 92), (0.0, 1.0, 0.8, 1.0), 0, {})
    moved = action_accuracy.measure_movement(draw((92, 186, 92), [10, 14, 50, 54], 0), player)
    np.testing.assert_allclose(moved, 8 / 64, rtol=1e-12)


@pytest.mark.parametrize(
    ("places", "right"), [([30, 26, 22], 1), ([22, 26, 30], 0), ([30, 30, 30], 0)]
)
def test_judges_the_direction_of_the_caption(action_accuracy, places, right):
    video = draw((92, 186, 92), places, 0)
    rates = action_accuracy.judge(
        [(video, "pong, the right paddle moves up"), (video, "pong, random play")]
    )
    assert (rates["pong"].right, rates["pong"].total) == (right, 1)
    assert (rates["all"].right, rates["all"].total) == (right, 1)


@pytest.mark.parametrize(
    "caption",
    ["pong, random play", "pong, the right paddle stands still", "enduro, the car steers left", ""],
)
def test_captions_without_a_movement_to_find_are_not_judged(action_accuracy, caption):
    assert action_accuracy.judge([(draw((92, 186, 92), [10, 14], 0), caption)]) == {}


def test_a_standing_frame_is_never_right_and_a_shuffled_one_by_its_order(action_accuracy):
    clips = [(draw((92, 186, 92), [44, 40, 36, 32], 0), "pong, the right paddle moves up")] * 40
    rates = action_accuracy.judge_with_baselines(clips)
    assert rates["videos"]["pong"].right == 40 and rates["still"]["pong"].right == 0
    # The steps of an order add up to its last place minus its first: upwards in half of all orders.
    assert 10 <= rates["shuffled"]["pong"].right <= 30
