"""The protocols of docs/protocols on generated data with the folders, names and records of the downloads."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from examples import predict_frames, protocols
from tests.data import made_videos
from videogen_jax import config as configs
from videogen_jax.data import pipeline, video_io, video_writer
from videogen_jax.packing import encode_latents, pack_folder
from videogen_jax.packing.settings import Settings
from videogen_jax.train import loop

NAMES = ("ucf101_128", "ucf101_256", "faceforensics_256", "taichi_256", "bair_64")
WORDS = {"faceforensics_256": ("face",), "taichi_256": ("taichi",), "bair_64": ()}


def brightening(count, height=24, width=32):
    """A video (T, H, W, 3) uint8 of at most 52 frames, whose frame i is 5 i everywhere."""
    values = 5 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, 3)).copy()


def numbers(video):
    """Which frames of `brightening` these are."""
    return np.round(np.stack(video).astype(float).mean((1, 2, 3)) / 5).astype(int).tolist()


def arrange(name, folder, output, *options):
    arguments = [name, f"--input={folder}", f"--output={output}", "--workers=1", *options]
    assert protocols.main(arguments) == 0
    return {path.stem: path.with_suffix(".txt").read_text() for path in output.glob("*.mp4")}


def pack(folder, output, side, frames, min_frames=16):
    settings = Settings((side, side), 8.0, frames, min_frames, 0.0, 256)
    return pack_folder.pack(folder, output, settings, workers=1, progress=False)


def encode(folder, output):
    """Latents of 8x8 pixels, as sd's in their shape: means of colours, and of all three."""

    def run(video):
        rows, columns = (side // 8 for side in video.shape[1:3])
        cells = video.astype(np.float32).reshape(len(video), rows, 8, columns, 8, 3)
        colours = cells.mean((2, 4)) / 127.5 - 1
        return np.concatenate([colours, colours.mean(-1, keepdims=True)], -1)

    encoder = encode_latents.Encoder(run, "sd", "abc", (2, 2, 4), "float32", "float16", True)
    return encode_latents.encode(folder, output, encoder, progress=False)


def read_packed(folder):
    """(caption, frame numbers) of each clip."""
    data = pipeline.open_data(folder)
    clips = [clip for path in data.files["train"] for clip in pipeline.read_clips(path, data)]
    return sorted((clip["caption"].decode(), numbers(clip["video"])) for clip in clips)


def shrink(name, data, **changes):
    """The config of a protocol with a tiny model, for one step."""
    small = {
        "batch_size": 2,
        "data.path": str(data),
        "data.shuffle_window": 16,
        "data.threads": 1,
        "model.width": 24,
        "model.depth": 2,
        "model.num_heads": 2,
        "train.steps": 1,
        "train.precision": "float32",
        "learning_rate.warmup_steps": 0,
        "sample.every": 0,
        "sample.num_inference_steps": 2,
    }
    config = configs.load_config(name).to_dict()
    return configs.validate(configs.nest(dict(configs.flatten(config)) | small | changes))


@pytest.mark.parametrize("name", NAMES)
def test_captions_and_prompts_are_words_that_the_config_has_room_for(name):
    config = configs.validate(configs.load_config(name))
    special, classes = 3, 1 if name in WORDS else 101
    assert config.text.vocabulary_size == special + classes and config.text.length == 1
    assert config.train.validation_batches == 0  # published runs train on all clips
    if name in WORDS:  # the one caption is never dropped, so guidance would have no other branch
        assert config.text.dropout == 0 and config.sample.guidance_scale == 1
        assert config.sample.prompts == WORDS[name]
    else:
        assert config.text.dropout == 0.1


def test_ucf101_is_arranged_packed_and_trained_by_class(tmp_path, capsys):
    for group, count in ((1, 50), (2, 52), (3, 47)):  # 47 frames are no 16 groups of 3
        for label in ("ApplyEyeMakeup", "YoYo"):
            folder = tmp_path / "UCF-101" / label
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"v_{label}_g0{group}_c01.avi"
            made_videos.write(path, brightening(count), fps=25)
    videos, listed = tmp_path / "videos", tmp_path / "trainlist01.txt"
    listed.write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi 1\n")
    found = arrange("ucf101", tmp_path / "UCF-101", tmp_path / "some", f"--list={listed}")
    assert found == {"v_ApplyEyeMakeup_g02_c01": "ApplyEyeMakeup\n"}

    damaged = tmp_path / "UCF-101" / "YoYo" / "v_YoYo_g04_c01.avi"
    damaged.write_bytes(b"no video")
    found = arrange("ucf101", tmp_path / "UCF-101", videos)
    said = capsys.readouterr()
    assert "left out v_YoYo_g04_c01: " in said.err and "6 videos in" in said.out
    assert said.out.endswith(", 1 left out\n")
    damaged.unlink()
    assert len(found) == 6 and found["v_YoYo_g01_c01"] == "YoYo\n"
    before = {path: path.stat().st_mtime_ns for path in videos.iterdir()}
    assert arrange("ucf101", tmp_path / "UCF-101", videos) == found
    assert {path: path.stat().st_mtime_ns for path in videos.iterdir()} == before

    reference = arrange("ucf101", tmp_path / "UCF-101", tmp_path / "reference", "--clip=16")
    assert len(reference) == 4  # those of fewer than 48 frames have no clip
    pack(tmp_path / "reference", tmp_path / "reference_clips", 16, 16)
    assert [len(frames) for _, frames in read_packed(tmp_path / "reference_clips")] == [16] * 4

    report = pack(videos, tmp_path / "clips", 16, 600)
    assert report["clips"] == {"train": 4, "validation": 0} and len(report["skipped"]) == 2
    expected = [list(range(0, 48, 3)), list(range(0, 51, 3))]
    packed = read_packed(tmp_path / "clips")
    assert packed == [
        (label, frames) for label in ("ApplyEyeMakeup", "YoYo") for frames in expected
    ]

    encoded = encode(tmp_path / "clips", tmp_path / "latents")
    assert encoded["finished"] and encoded["clips"]["train"] == 4
    changes = {"data.height": 16, "data.width": 16, "text.vocabulary_size": 5}
    config = shrink("ucf101_128", tmp_path / "latents", **changes)
    loop.train(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert found["text"]["vocabulary_size"] == 5 and (tmp_path / "run" / "checkpoints").is_dir()


def test_a_clip_of_the_reference_begins_anywhere_that_it_fits():
    """StyleGAN-V: an offset of 0 to count - 48 + 2, and a video of fewer than 48 frames is left out."""
    selection = protocols.Selection(every=3, clip=16)
    taken = [selection.take(f"video {i}", np.arange(60)) for i in range(600)]
    assert all(np.array_equal(np.diff(frames), [3] * 15) for frames in taken)
    starts = [int(frames[0]) for frames in taken]
    counts = np.bincount(starts, minlength=15)
    assert set(starts) == set(range(15)) and counts.min() > 15  # 40 expected, deviation of 6
    np.testing.assert_array_equal(taken[0], selection.take("video 0", np.arange(60)))
    others = [selection._replace(seed=1).take(f"video {i}", np.arange(60)) for i in range(9)]
    assert any(int(frames[0]) != start for frames, start in zip(others, starts, strict=False))
    first = selection._replace(start="first").take("", np.arange(60))
    np.testing.assert_array_equal(first, np.arange(0, 48, 3))
    with pytest.raises(ValueError, match="it has 47 frames, but 48 are needed"):
        selection.take("", np.arange(47))
    with pytest.raises(ValueError, match="it has 2 frames, but 3 are needed"):
        protocols.Selection(3).take("", np.arange(2))


def test_faces_are_arranged_and_packed_under_one_caption(tmp_path):
    (tmp_path / "videos").mkdir()
    made_videos.write(tmp_path / "videos" / "000_a.avi", brightening(49, 32), fps=30)
    found = arrange("faceforensics", tmp_path / "videos", tmp_path / "arranged")
    assert found == {"000_a": "face\n"}
    pack(tmp_path / "arranged", tmp_path / "clips", 16, 2000)
    assert read_packed(tmp_path / "clips") == [("face", list(range(0, 48, 3)))]


def test_pictures_of_taichi_follow_their_numbers(tmp_path):
    folder = tmp_path / "train" / "abc#00100#00197"
    folder.mkdir(parents=True)
    for number, frame in enumerate(brightening(50, 32)):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")  # frame_10 is behind frame_9
    (folder / "notes.txt").touch()
    found = arrange("taichi", tmp_path / "train", tmp_path / "arranged", "--every=3")
    assert found == {"abc#00100#00197": "taichi\n"}
    pack(tmp_path / "arranged", tmp_path / "clips", 16, 2000)
    assert read_packed(tmp_path / "clips") == [("taichi", list(range(0, 48, 3)))]
    selection = protocols.Selection(protocols.DEFAULT_EVERY["taichi"])
    assert selection.take("", np.arange(100)).tolist() == list(range(0, 96, 6))


def write_trajectories(path, videos, frames=30):
    """A TFRecord file as BAIR's: bytes of both cameras, actions and positions under numbered names."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for video in videos:
            example = tf.train.Example()
            for i in range(frames):
                pixels = {"image_aux1": video[i], "image_main": 255 - video[i]}
                for camera, frame in pixels.items():
                    feature = example.features.feature[f"{i}/{camera}/encoded"]
                    feature.bytes_list.value.append(frame.tobytes())
                example.features.feature[f"{i}/action"].float_list.value.extend([0.0] * 4)
                example.features.feature[f"{i}/endeffector_pos"].float_list.value.extend([0.0] * 3)
            writer.write(example.SerializeToString())


def test_bair_is_arranged_trained_and_continued_from_two_frames(tmp_path):
    source = tmp_path / "softmotion30_44k" / "test"
    source.mkdir(parents=True)
    clips = np.random.default_rng(0).integers(0, 256, (3, 30, 64, 64, 3), np.uint8)
    write_trajectories(source / "traj_0_to_255.tfrecords", clips)
    videos = tmp_path / "videos"
    found = arrange("bair", source, videos)
    assert found == {f"traj_0_to_255_{i:03d}": "robot\n" for i in range(3)}
    for name, clip in zip(sorted(found), clips, strict=True):  # every byte of the right camera
        frames = [frame for _, frame in video_io.read_frames(videos / f"{name}.mp4")]
        np.testing.assert_array_equal(frames, clip)

    pack(videos, tmp_path / "clips", 64, 30, min_frames=30)
    run, output = tmp_path / "run", tmp_path / "predicted"
    changes = {"data.frames": 4, "model.patch_size": (1, 32, 32)}
    loop.train(shrink("bair_64", tmp_path / "clips", **changes), run)
    options = (f"--workdir={run}", f"--input={videos}", f"--output={output}", "--frames=3")
    assert predict_frames.main([*options, "--trajectories=2", "--batch_size=3"]) == 0
    scores = json.loads((output / "predictions.json").read_text())
    assert {name: scores[name] for name in ("clips", "trajectories", "known", "predicted")} == {
        "clips": 3,
        "trajectories": 2,
        "known": 2,
        "predicted": 1,
    }
    made = [
        [list(video_io.read_frames(output / folder / f"{name}.mp4")) for name in sorted(found)]
        for folder in ("000", "001", "reference")
    ]
    frames = np.array([[[frame for _, frame in video] for video in folder] for folder in made])
    np.testing.assert_array_equal(frames[2], clips[:, :3])
    np.testing.assert_array_equal(frames[:2, :, :2], np.stack([clips[:, :2]] * 2))  # the known ones
    assert not np.array_equal(frames[0, :, 2], frames[1, :, 2])  # of other seeds


def test_a_record_of_other_data_is_refused(tmp_path):
    path = tmp_path / "traj_0_to_255.tfrecords"
    write_trajectories(path, np.zeros((1, 30, 64, 64, 3), np.uint8), frames=20)
    with pytest.raises(ValueError, match="has a record without 20/image_aux1/encoded of 64x64"):
        list(protocols.read_trajectories(path))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ucf101", "--input=nowhere"), "there is no folder nowhere: give --input the folder"),
        (("bair", "--input=.", "--list=a.txt"), "--list is of ucf101: leave it out"),
        (("taichi", "--input=.", "--every=0"), "--every is 0: give 1 or more"),
        (("ucf101", "--input=."), "holds no video of ucf101: see the table"),
    ],
)
def test_wrong_flags_end_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        protocols.main([*arguments, "--output=out", "--workers=1"])
    assert sentence in capsys.readouterr().err


def test_the_best_trajectory_of_each_clip_counts_by_the_mean_over_frames(tmp_path):
    true = np.full((4, 16, 16, 3), 100, np.uint8)
    errors = {"000": ((10, 20), (40, 40)), "001": ((30, 30), (5, 5))}  # of frames 2 and 3
    clips = {"a": ("robot", true), "b": ("robot", true)}
    for folder, both in errors.items():
        (tmp_path / folder).mkdir()
        for name, (third, fourth) in zip(clips, both, strict=True):
            video = true.copy()
            video[2], video[3] = 100 + third, 100 + fourth
            video_writer.write_lossless(tmp_path / folder / f"{name}.mp4", video, 8)
    scores = predict_frames.evaluate(clips, 2, [tmp_path / "000", tmp_path / "001"])
    decibels = {error: 20 * np.log10(255 / error) for error in (5, 10, 20)}
    expected = ((decibels[10] + decibels[20]) / 2 + decibels[5]) / 2
    assert scores["best"]["psnr"] == pytest.approx(expected)
    assert scores["standing still"] == {"psnr": 120.0, "ssim": pytest.approx(1.0)}


def test_held_out_clips_of_a_data_set_are_continued_too(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        video_writer.write_video(videos / f"{number}.mp4", brightening(20, 32, 32), 8)
        # Most of 16 frames are of the first text, and most of all 20 of the second.
        timeline = [[0, f"clip {number} begins"], [9, f"clip {number} ends"]]
        (videos / f"{number}.json").write_text(json.dumps({"captions": [timeline]}))
    settings = Settings((32, 32), 8.0, 20, 20, 0.5, 256)
    pack_folder.pack(videos, tmp_path / "data", settings, workers=1)
    data = pipeline.open_data(tmp_path / "data")
    held_out = list(pipeline.read_clips(data.files["validation"][0], data))[:2]
    found = predict_frames.read_data(tmp_path / "data", (16, 32, 32), 8.0, 2)
    whole = [clip["caption"].decode() for clip in held_out]
    begins = [caption.replace("ends", "begins") for caption in whole]
    assert [caption for caption, _ in found.values()] == begins != whole
    for (_, video), clip in zip(found.values(), held_out, strict=True):
        np.testing.assert_array_equal(video, clip["video"][:16])
    with pytest.raises(ValueError, match="has clips of 20x32x32, and 24x32x32 are needed: lower"):
        predict_frames.read_data(tmp_path / "data", (24, 32, 32), 8.0, 2)
    with pytest.raises(ValueError, match="clips of 8 frames/s, but the model makes 15"):
        predict_frames.read_data(tmp_path / "data", (16, 32, 32), 15.0, 2)
    with pytest.raises(ValueError, match="lower --num_clips of 9"):
        predict_frames.read_data(tmp_path / "data", (16, 32, 32), 8.0, 9)
