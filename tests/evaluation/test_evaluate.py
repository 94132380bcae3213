import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from videogen_jax import evaluate
from videogen_jax.data import synthetic, video_writer
from videogen_jax.evaluation import prompt_accuracy, video_folders

ROOT = Path(__file__).parents[2]


def write_clip(path, index=0, video=None):
    """Writes clip `index`, or another video in its place, and returns its prompt."""
    names, clip = synthetic.make_clip(index, seed=0, size=32, frames=8)
    video_writer.write_video(path, clip if video is None else video, fps=8)
    return synthetic.make_caption(*names)


@pytest.fixture
def folder(tmp_path):
    """Four videos in three formats with name.txt, the last one with the prompt of another clip."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for index, suffix in enumerate((".mp4", ".gif", ".webm", ".mp4")):
        prompt = write_clip(folder / f"{index}{suffix}", index)
        (folder / f"{index}.txt").write_text(prompt + "\n", encoding="utf-8")
    names = [name for name, _ in (synthetic.make_clip(i, 0, size=32, frames=8) for i in range(99))]
    other = next(n for n in names if all(map(str.__ne__, n, names[3])))
    (folder / "3.txt").write_text(synthetic.make_caption(*other))
    return folder


def write_listing(folder, videos, **more):
    (folder / "samples.json").write_text(json.dumps({"videos": videos, **more}))


def run(**options):
    values = flags.FlagValues()
    evaluate.define_flags(values)
    values(["evaluate", *(f"--{name}={value}" for name, value in options.items())])
    evaluate.run(values)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "videogen_jax.evaluate", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_table_and_report_of_a_folder_with_text_files(folder, capsys):
    run(generated=folder)
    report = json.loads((folder / "evaluation.json").read_text())
    for name in ("colour", "direction", "shape", "all"):
        assert report[name]["right"] == 3 and report[name]["rate"] == 0.75
    assert (report["num_videos"], report["unreadable"], report["not_listed"]) == (4, [], [])
    files = [video["file"] for video in report["videos"]]
    assert files == ["0.mp4", "1.gif", "2.webm", "3.mp4"]
    assert [video["right"]["all"] for video in report["videos"]] == [True, True, True, False]
    table = capsys.readouterr().out.splitlines()
    # Wilson interval of 3 of 4, computed by hand: (0.75 + 0.4802 -+ 0.6469) / 1.9604.
    row = ["colour", "75.0%", "3", "4", "30.1%", "-", "95.4%", "16.7%"]
    assert table[1].split() == row
    assert [line.split()[0] for line in table[1:5]] == ["colour", "direction", "shape", "all"]


def test_samples_json_takes_precedence_and_its_seeds_are_reported(folder):
    prompt = (folder / "0.txt").read_text().strip()
    write_listing(
        folder,
        [
            {"file": "0.mp4", "prompt": prompt, "seed": 7},
            {"file": "1.gif", "prompt": prompt, "seed": 8},
        ],
        steps=20,
    )
    report = prompt_accuracy.judge_folder(folder)
    assert [(v["file"], v["seed"], v["caption"]) for v in report["videos"]] == [
        ("0.mp4", 7, prompt),
        ("1.gif", 8, prompt),
    ]
    assert report["all"]["right"] == 1
    assert report["not_listed"] == ["2.webm", "3.mp4"]


def test_unreadable_videos_are_listed_and_count_as_wrong(folder, tmp_path, capsys):
    (folder / "0.mp4").write_bytes((folder / "0.mp4").read_bytes()[:400])
    (folder / "1.gif").write_bytes(b"")
    output = tmp_path / "new" / "report.json"
    run(generated=folder, output=output)
    report = json.loads(output.read_text())
    assert not (folder / "evaluation.json").exists()
    assert (report["num_videos"], report["all"]["right"]) == (4, 1)
    assert [video["file"] for video in report["unreadable"]] == ["0.mp4", "1.gif"]
    assert "empty" in report["unreadable"][1]["reason"]
    assert report["videos"][0]["seen"] == {"colour": None, "shape": None, "direction": None}
    assert "unreadable, counted as wrong: 0.mp4: " in capsys.readouterr().out


def test_a_listed_video_that_is_missing_counts_as_wrong(folder):
    prompt = (folder / "0.txt").read_text().strip()
    write_listing(folder, [{"file": f, "prompt": prompt} for f in ("0.mp4", "gone.mp4")])
    report = prompt_accuracy.judge_folder(folder)
    assert [video["right"]["all"] for video in report["videos"]] == [True, False]
    assert [video["file"] for video in report["unreadable"]] == ["gone.mp4"]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_pauses_in_motion_are_preserved_in_every_format(tmp_path, suffix):
    """A GIF merges equal consecutive frames: without repetitions the motion would appear steady."""
    _, clip = synthetic.make_clip(0, seed=0, size=32, frames=8)
    order = [0] * 12 + [1, 2, 3, 4, 5, 6, 7]
    video_writer.write_video(tmp_path / f"pausing{suffix}", clip[order], fps=8)
    video, fps = video_folders.read_constant_rate(tmp_path / f"pausing{suffix}")
    assert fps == pytest.approx(8, rel=0.05)
    assert len(video) == len(order)
    motion = np.abs(np.diff(video.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert motion[:11].max() < 0.2 * motion[12:].min()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "1.txt").unlink(), r"1\.gif has no prompt: write it to 1\.txt"),
        (lambda f: (f / "1.txt").write_text("a cat"), r"prompt of .*1\.gif, 'a cat', is not like"),
        (lambda f: (f / "1.txt").write_text("x" * 10_000), r"x{70}x*\.\.\.', is not like"),
        (lambda f: (f / "1.txt").write_text(""), r"prompt of .*1\.gif, '', is not like"),
        (
            lambda f: (f / "1.txt").write_bytes(b"\xff\xfe\x00"),
            r"1\.txt is UTF-16 text: save it as UTF-8",
        ),
        (lambda f: (f / "samples.json").write_text("{"), r"samples\.json is not valid JSON"),
        (lambda f: (f / "samples.json").write_text("[]"), r'samples\.json names no "videos"'),
        (lambda f: write_listing(f, []), r'samples\.json names no "videos"'),
        (
            lambda f: write_listing(f, [{"file": "0.mp4"}]),
            r'video 0 of .* lacks "file" or "prompt"',
        ),
        (lambda f: write_listing(f, ["0.mp4"]), r'video 0 of .* lacks "file" or "prompt"'),
        (lambda f: [p.unlink() for p in f.iterdir()], r"holds no videos: name a folder of \.mp4"),
    ],
)
def test_errors_of_folders_are_one_sentence(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        prompt_accuracy.judge_folder(folder)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["color=0.9", "colour", "colour=high", "shape=80", "shape=nan"])
def test_invalid_requirements_are_errors(text):
    with pytest.raises(ValueError, match="--require has an invalid entry '" + text):
        prompt_accuracy.parse_requirements(text)


def test_requirements():
    wanted = {"colour": 0.95, "shape": 0.8, "all": 1.0}
    assert prompt_accuracy.parse_requirements(" colour=0.95, shape =0.80,all=1 ") == wanted
    assert prompt_accuracy.parse_requirements("") == {}


def test_the_exit_code_of_the_command_depends_on_required_rates(folder):
    passed = command(f"--generated={folder}", "--require=colour=0.75,direction=0.75,shape=0.7")
    assert (passed.returncode, passed.stderr) == (0, "")
    (folder / "evaluation.json").unlink()
    failed = command(f"--generated={folder}", "--require=colour=0.95,direction=0.5,shape=0.8")
    assert failed.returncode == 1
    assert failed.stderr.startswith(
        "evaluate: error: below --require: colour 75.0% < 95.0%, shape 75.0% < 80.0%; "
    )
    assert failed.stderr.count("\n") == 1
    assert "direction" in failed.stdout and (folder / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Either --workdir or --generated is needed"),
        (["--generated=/nowhere/at all"], "/nowhere/at all is not a folder"),
        (["--generatd=x"], "generatd"),
        (["videos"], "'videos' is not a flag"),
        (["--generated=.", "--step=3"], "--logdir and --step belong together"),
        (["--generated=.", "--logdir=x", "--step=-3"], "step"),
    ],
)
def test_command_errors_are_one_sentence(arguments, message):
    result = command(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("evaluate: error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


def test_an_unwritable_report_is_an_error(folder):
    (folder / "file").write_text("")
    result = command(f"--generated={folder}", f"--output={folder}/file/report.json")
    assert result.returncode == 1
    assert result.stderr.startswith("evaluate: error: ") and "file" in result.stderr
    assert "Traceback" not in result.stderr


READ_BACK = """
import glob, json, sys
from absl import flags
from videogen_jax import evaluate
evaluate.define_flags()
flags.FLAGS(sys.argv)
assert "tensorflow" not in sys.modules and "clu" not in sys.modules
evaluate.run(flags.FLAGS)
import tensorflow as tf
(path,) = glob.glob(flags.FLAGS.logdir + "/events*")
for event in tf.compat.v1.train.summary_iterator(path):
    for value in event.summary.value:
        print("LOGGED", event.step, value.tag, float(tf.make_ndarray(value.tensor)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs TensorBoard")
def test_rates_are_logged_to_tensorboard_and_tensorflow_is_imported_lazily(folder, tmp_path):
    logdir = tmp_path / "log"
    arguments = [f"--generated={folder}", f"--logdir={logdir}", "--step=120"]
    result = subprocess.run(
        [sys.executable, "-c", READ_BACK, *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    logged = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("LOGGED")]
    assert sorted(logged) == [
        ["120", f"evaluation/{name}", "0.75"]
        for name in ("all_three", "colour", "direction", "shape")
    ]
