"""Cuts of made videos, whose places are known, and clips that cross none of them."""

import sys

import numpy as np
import pytest

from tests.data.made_videos import write
from tests.packing.made_scenes import make_scene, make_texture
from tests.packing.test_pack import frames_of, read, run
from videogen_jax.packing import scenes
from videogen_jax.packing import settings as pack_settings
from videogen_jax.packing.scenes import CutDetector

needs_scenedetect = pytest.mark.usefixtures("_scenedetect")


@pytest.fixture
def _scenedetect():
    pytest.importorskip("scenedetect", reason="needs PySceneDetect, which finds the cuts")


def find_cuts(*parts, threshold=scenes.THRESHOLD):
    detector = CutDetector(threshold)
    for frame in np.concatenate(parts):
        detector.add(frame)
    detector.finish()
    return detector.cuts


@needs_scenedetect
@pytest.mark.parametrize("lengths", [(20, 15, 30), (1, 15, 9), (2, 12, 2), (9, 14, 1), (9, 3, 12)])
def test_cuts_are_where_scenes_were_joined(lengths):
    parts = [make_scene(seed, length) for seed, length in enumerate(lengths)]
    assert find_cuts(*parts) == np.cumsum(lengths)[:-1].tolist()


@needs_scenedetect
@pytest.mark.parametrize("speed", [0, 2, 5, 8, 12, 24])
def test_motion_is_no_cut_however_fast(speed):
    assert find_cuts(make_scene(4, 30, speed)) == []


@needs_scenedetect
def test_a_fade_and_a_dissolve_are_no_cuts():
    here, there = make_texture(5).astype(float), make_texture(6).astype(float)
    down = np.linspace(1, 0.15, 24)[:, None, None, None]
    fade = np.concatenate([here * down, here * down[::-1]]).astype(np.uint8)
    assert find_cuts(fade) == []
    assert find_cuts((here * down + there * (1 - down)).astype(np.uint8)) == []


@needs_scenedetect
def test_a_higher_threshold_finds_less():
    parts = make_scene(1, 20), make_scene(2, 20)
    assert find_cuts(*parts, threshold=2.1) == [20]
    assert find_cuts(*parts, threshold=200.0) == []


@needs_scenedetect
def test_cuts_equal_those_of_the_program_scenedetect(tmp_path):
    import scenedetect

    parts = [make_scene(seed, 11 + 3 * seed, 1 + seed / 2) for seed in range(4)]
    path = write(tmp_path / "a.mp4", np.concatenate(parts), fps=24)
    detector = scenedetect.AdaptiveDetector(min_scene_len=0)
    found = [scene[0].frame_num for scene in scenedetect.detect(str(path), detector)]
    assert find_cuts(*parts) == found[1:] == np.cumsum([11, 14, 17]).tolist()


@needs_scenedetect
def test_frames_are_held_back_until_their_cut_is_known():
    parts = np.concatenate([make_scene(1, 10), make_scene(2, 10), make_scene(3, 10)])
    detector = CutDetector(3.0)

    def choose():
        """Every fourth frame, as at a lower frame rate."""
        for index, frame in enumerate(parts):
            detector.add(frame)
            if index % 4 == 0:
                yield index, frame

    marks = [(index, cut) for index, _, cut in scenes.mark_scenes(choose(), detector)]
    assert marks == [(k, k in (12, 20)) for k in range(0, 30, 4)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """At 24 frames a second, three of an output frame: a video of 3 scenes, one of a single scene, an image beside."""
    folder = tmp_path_factory.mktemp("scenes")
    cut = [make_scene(1, 54), make_scene(2, 30), make_scene(3, 9)]
    for name, parts in {"cut": cut, "whole": [make_scene(4, 51, 4)]}.items():
        write(folder / f"{name}.mp4", np.concatenate(parts), fps=24)
        (folder / f"{name}.txt").write_text("a texture")
    return folder


OPTIONS = dict(fps=8, validation_fraction=0, workers=1)


def scene_of(frame):
    """The seed of the texture whose mean colour is nearest."""
    means = {seed: make_scene(seed, 54).mean((0, 1, 2)) for seed in (1, 2, 3, 4)}
    return min(means, key=lambda seed: np.abs(frame.mean((0, 1)) - means[seed]).sum())


def clips(folder):
    """(source, seed of the scene, frames) of each clip; fails if a clip has frames of two scenes."""
    found = []
    for item in read(folder, "train"):
        (seed,) = {scene_of(frame) for frame in frames_of(item)}
        found.append((item["source"].decode(), seed, int(item["num_frames"])))
    return sorted(found)


@needs_scenedetect
def test_no_clip_crosses_a_cut(videos, tmp_path):
    options = dict(**OPTIONS, input=videos, size="64x96", frames=8, min_frames=4)
    report = run(**options, output=tmp_path / "data", split_scenes=True)
    # Scenes of 18, 10 and 3 output frames, and one of 17.
    assert clips(tmp_path / "data") == [
        ("cut.mp4", 1, 8), ("cut.mp4", 1, 8), ("cut.mp4", 2, 8), ("whole.mp4", 4, 8), ("whole.mp4", 4, 8)
    ]  # fmt: skip
    assert report["frames_cut_off"] == {"cut.mp4": 2 + 2 + 3, "whole.mp4": 1}
    assert report["scene_cuts"] == 2 and report["filtered"] == {"short_scenes": 1}
    assert report["skipped"] == []
    with pytest.raises(ValueError, match="split_scenes was True and is now False"):
        run(**options, output=tmp_path / "data")
    with pytest.raises(ValueError, match="scene_threshold was 3.0 and is now 4.0"):
        run(**options, output=tmp_path / "data", split_scenes=True, scene_threshold=4)


@needs_scenedetect
def test_buckets_get_whole_scenes_too(videos, tmp_path):
    options = dict(**OPTIONS, input=videos, buckets="8x64x96,2x64x96", split_scenes=True)
    report = run(**options, output=tmp_path / "data")
    assert clips(tmp_path / "data" / "8x64x96") == [
        ("cut.mp4", 1, 8), ("cut.mp4", 1, 8), ("cut.mp4", 2, 8), ("whole.mp4", 4, 8), ("whole.mp4", 4, 8)
    ]  # fmt: skip
    assert clips(tmp_path / "data" / "2x64x96") == [("cut.mp4", s, 2) for s in (1, 2, 3)]
    assert report["scene_cuts"] == 2 and "filtered" not in report
    assert report["frames_cut_off"] == {"cut.mp4": 1, "whole.mp4": 1}
    report = run(**options | {"buckets": "16x64x96", "max_seconds": 2.2}, output=tmp_path / "long")
    assert report["filtered"] == {"max_seconds": 1, "short_scenes": 2}
    assert report["clips"]["train"] == 1


@needs_scenedetect
def test_the_length_of_a_scene_is_compared_not_that_of_the_video(videos, tmp_path):
    options = dict(**OPTIONS, input=videos, size="64x96", frames=4, split_scenes=True)
    report = run(**options, output=tmp_path / "data", min_seconds=1, max_seconds=2.2)
    assert clips(tmp_path / "data") == [("cut.mp4", 2, 4)] * 2 + [("whole.mp4", 4, 4)] * 4
    assert report["filtered"] == {"min_seconds": 1, "max_seconds": 1}
    assert report["frames_cut_off"] == {"cut.mp4": 2, "whole.mp4": 1}


@needs_scenedetect
def test_a_video_of_short_scenes_alone_is_skipped_with_the_reason(videos, tmp_path):
    for shape in (dict(size=32, frames=20), dict(buckets="20x64x96")):
        output = tmp_path / str(len(shape))
        (tmp_path / "v").mkdir(exist_ok=True)
        write(tmp_path / "v" / "b.mp4", make_scene(9, 60), fps=24)
        write(
            tmp_path / "v" / "c.mp4", np.concatenate([make_scene(1, 54), make_scene(2, 30)]), fps=24
        )
        for name in "bc":
            (tmp_path / "v" / f"{name}.txt").write_text("a texture")
        report = run(**OPTIONS, **shape, input=tmp_path / "v", output=output, split_scenes=True)
        (skip,) = report["skipped"]
        assert skip["file"] == "c.mp4" and skip["reason"].startswith("too short: ")
        assert "18" in skip["reason"] and "filtered" not in report


def test_scene_options_need_each_other_and_the_package(videos, tmp_path, monkeypatch):
    options = dict(**OPTIONS, input=videos, output=tmp_path / "data")
    with pytest.raises(ValueError, match="--scene_threshold has no effect without --split_scenes"):
        run(**options, scene_threshold=4)
    with pytest.raises(ValueError, match="invalid --scene_threshold=2: set it above 2"):
        pytest.importorskip("scenedetect", reason="needs PySceneDetect, which is looked for first")
        run(**options, split_scenes=True, scene_threshold=2)
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    monkeypatch.setitem(sys.modules, "scenedetect.detectors", None)
    with pytest.raises(ValueError, match="--split_scenes needs PySceneDetect.*pip install"):
        run(**options, split_scenes=True)


def test_sets_without_any_of_it_are_saved_as_before():
    values = {
        "fps": 8.0,
        "frames": 8,
        "min_frames": 8,
        "validation_fraction": 0,
        "clips_per_shard": 4,
    }
    settings = pack_settings.Settings(size=(8, 8), **values)
    saved = pack_settings.settings_to_json(settings, None)
    assert saved == values | {"size": "8x8", "synthetic": None}
    pack_settings.check_same_settings("data", saved, saved)
