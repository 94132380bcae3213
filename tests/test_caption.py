"""The verb `caption`: from a folder of videos to one that pack takes, and what it says where it cannot."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tests.packing import tiny_captioners as tiny
from videogen_jax import caption, cli, pack
from videogen_jax.data.video_writer import write_video
from videogen_jax.packing import sources

ROOT = Path(__file__).parent.parent


def run(verb=caption, **options):
    """Runs a command in this process."""
    values = flags.FlagValues()
    verb.define_flags(values)
    values([verb.__name__, *(f"--{name}={value}" for name, value in options.items())])
    return verb.run(values)


def write_videos(folder, count=4, frames=8):
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        colors = random.integers(0, 256, (frames, 1, 1, 3), np.uint8)
        video = np.broadcast_to(colors, (frames, 24, 24, 3)).copy()
        write_video(folder / f"{number:03d}.mp4", video, 8)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("torch", reason="captions need PyTorch")
    pytest.importorskip("transformers", reason="captions need transformers")
    return tiny.save(tmp_path_factory.mktemp("model") / "git", *tiny.make_git(frames=4))


def test_pack_takes_the_folder_that_was_captioned(model, tmp_path):
    clips = write_videos(tmp_path / "clips")
    options = {"input": clips, "model": model, "device": "cpu", "max_new_tokens": 6}
    report = run(**options, batch_size=3)
    assert report["written"] == 4 and not report["skipped"]
    captions = {path.stem: path.read_text().strip() for path in clips.glob("*.txt")}
    assert len(captions) == 4 and len(set(captions.values())) > 1
    made_by = json.loads((clips / "caption_log.jsonl").read_text().splitlines()[0])["made_by"]
    assert made_by["model"] == str(model) and made_by["max_new_tokens"] == 6
    assert run(**options)["present"] == 4
    packed = run(pack, input=clips, output=tmp_path / "packed", size=16, frames=8, workers=1)
    assert sum(packed["clips"].values()) == 4 and not packed["skipped"]
    found, _ = sources.list_sources(clips)
    assert {Path(source.name).stem: source.texts[0] for source in found} == captions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--input is missing: set --input=FOLDER."),
        ({"input": "x"}, "--model is missing: set --model to the folder of a model, or to its"),
        ({"input": "clips", "model": "nowhere"}, "There is no folder 'nowhere': give one with co"),
        ({"input": "clips", "model": "clips"}, "clips has no config.json: give the folder that"),
        ({"input": "missing", "model": "any"}, "there is no folder missing: set --input"),
    ],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path / "clips", 1)
    with pytest.raises((ValueError, OSError), match=message):
        run(**options)
    assert not list(tmp_path.rglob("*.txt"))


def test_the_summary_names_what_was_skipped():
    skipped = [{"file": f"{number}.mp4", "reason": "is empty"} for number in range(12)]
    report = {"written": 3, "present": 2, "cut": 1, "skipped": skipped, "seconds": 4.5}
    lines = caption.summarize(report, "clips").splitlines()
    assert lines[0] == "wrote 3 captions into clips in 4.5 s; 2 files had one before"
    assert lines[1].startswith("  1 captions reached --max_new_tokens")
    assert lines[2] == "  skipped 0.mp4: is empty"
    assert lines[-1] == "  skipped 2 more: see caption_log.jsonl" and len(lines) == 13


def test_the_verb_is_listed():
    assert "caption" in cli.VERBS


@pytest.mark.slow
def test_ctrl_c_ends_with_a_sentence_and_the_same_call_resumes(model, tmp_path):
    clips = write_videos(tmp_path / "clips", 20)
    # Tests that run in the background inherit that Ctrl-C is ignored.
    body = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    body = f"import runpy, signal; {body}; runpy.run_module('videogen_jax.caption', run_name='__main__')"
    words = [sys.executable, "-c", body, f"--input={clips}", f"--model={model}"]
    words += ["--device=cpu", "--batch_size=1", "--max_new_tokens=200"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, text=True, **options)
    deadline = time.monotonic() + 300
    while not list(clips.glob("*.txt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out.endswith(
        "caption: stopped: call the same command again to resume behind the captions.\n"
    )
    assert "Traceback" not in err
    written = len(list(clips.glob("*.txt")))
    assert 0 < written < 20
    assert not [path for path in clips.iterdir() if path.suffix == ".unfinished"]
    done = subprocess.run(words, text=True, check=True, **options)
    counts = re.match(r"wrote (\d+) captions .* s; (\d+) files had one before", done.stdout)
    # The model, whose weights are random, may write nothing of some.
    assert int(counts[1]) + done.stdout.count("skipped") == 20 - written == 20 - int(counts[2])
