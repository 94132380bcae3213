"""The HTML report and TensorBoard of a run, rendered in headless Chromium, with animated samples."""

import contextlib
import io
import json
import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.browser import CHROMIUM, DEADLINE, open_page
from tests.data.packed import write_records
from tests.tiny import tiny_config
from videogen_jax.train import loop, run_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

CAPTIONS = ["a red circle moving left", "a blue square moving up"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a few steps on clips with a moving bright bar."""
    folder = tmp_path_factory.mktemp("watched")
    clips = np.full((8, 4, 8, 8, 3), 30, np.uint8)
    for i, clip in enumerate(clips):
        for t in range(4):
            clip[t, 2 * t : 2 * t + 2, :, i % 3] = 220
    config = tiny_config()
    config.data.path = str(write_records(folder / "data", list(clips), 4, 2, CAPTIONS * 4))
    config.mesh.fsdp = 1
    config.train.update({"steps": 6, "log_every": 1})
    config.learning_rate.peak = 3e-2
    config.checkpoint.every = config.sample.every = 3
    config.sample.prompts = tuple(CAPTIONS)
    loop.train(config, folder / "run")
    scores = [{"name": "<score>", "value": 12.5, "low": 11.0, "high": 14.0, "note": "a < b"}]
    evaluation = {"scores": scores, "protocol": {"clips": 2}}
    (folder / "run" / "evaluation.json").write_text(json.dumps(evaluation))
    return folder / "run"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


@contextlib.contextmanager
def serve_tensorboard(logdir, log):
    """Serves a folder by TensorBoard and yields its address."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--port=0"]
    command += ["--host=127.0.0.1", "--load_fast=false"]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + DEADLINE
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def box_of(page, expression):
    """The bounding box of an element on the screen, [left, top, right, bottom] in whole pixels."""
    page.wait(f"Boolean({expression})")
    box = page.evaluate(
        f"(() => {{ const b = {expression}.getBoundingClientRect();"
        " return [Math.floor(b.left), Math.floor(b.top), Math.ceil(b.right), Math.ceil(b.bottom)] })()"
    )
    left, top, right, bottom = box
    assert 0 <= left < right <= 1000 and 0 <= top < bottom <= 1400, box
    return box


def differs_outside(differs, boxes):
    """Whether any pixel outside all boxes differs."""
    differs = differs.copy()
    for left, top, right, bottom in boxes:
        differs[top:bottom, left:right] = False
    return differs.any()


def test_the_report_of_training_plays_its_samples(workdir, page):
    assert (
        workdir / "report.html"
    ).is_file()  # written by the loop; write it again with the scores
    page.open(run_report.write_run_report(workdir).as_uri())
    assert page.evaluate("document.querySelector('td.value').textContent") == "12.5"
    assert page.evaluate("document.querySelector('tbody th').textContent") == "<score>"
    videos = "document.querySelectorAll('video')"
    page.wait(f"[...{videos}].every(video => video.readyState >= 2 && video.videoWidth)")
    count = page.evaluate(f"{videos}.length")
    assert count == 2  # of steps 3 and 6
    boxes = [box_of(page, f"{videos}[{i}]") for i in range(count)]
    _, _, differs = page.watch(boxes[0])
    left, top, right, bottom = boxes[0]
    assert differs[top:bottom, left:right].any(), "the samples do not move"
    assert not differs_outside(differs, boxes)
    loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in loaded)


def test_a_curve_shows_the_point_under_the_pointer(workdir, page):
    page.open((workdir / "report.html").as_uri())
    steps, values = next(
        curve
        for tag, curve in sorted(run_report.read_curves(workdir / "tensorboard").items())
        if "loss" in tag and len(curve[0]) == 6
    )
    curve = "[...document.querySelectorAll('figure[data-curve]')].find(f => JSON.parse(f.dataset.curve).length == 6"
    curve += " && f.querySelector('svg').ariaLabel.includes('loss'))"
    page.evaluate(f"{curve}.scrollIntoView({{block: 'center'}})")
    left, _, right, _ = box_of(page, f"{curve}.querySelector('polyline')")
    _, top, _, bottom = box_of(page, f"{curve}.querySelector('svg')")
    output = f"{curve}.querySelector('output').textContent"
    last = page.evaluate(output)
    third = left + (right - left) * 2 // 5
    for x in (third - 3, third + 3):
        position = {"x": x, "y": (top + bottom) // 2}
        page.call("Input.dispatchMouseEvent", type="mouseMoved", **position)
        number, _, step = page.wait(f"{output} !== {json.dumps(last)} && {output}").split()
        assert int(step) == steps[2]
        np.testing.assert_allclose(float(number), values[2], rtol=1e-3)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    page.wait(f"{output} === {json.dumps(last)}")


def test_tensorboard_plays_the_samples(workdir, page, tmp_path):
    """The search descends into shadow roots, which TensorBoard's pages consist of."""
    find = """(function find(root) {
      return [...root.querySelectorAll('*')].flatMap(element => element.shadowRoot ? find(element.shadowRoot) :
        element.tagName === 'IMG' && element.complete && element.getBoundingClientRect().width > 30 ? [element] : []);
    })(document)"""
    with serve_tensorboard(workdir / "tensorboard", tmp_path / "tensorboard.log") as address:
        page.open(f"{address}/#images")
        deadline = time.monotonic() + DEADLINE
        moving = None
        while moving is None:
            assert time.monotonic() < deadline, "TensorBoard shows no animation"
            time.sleep(0.2)
            sources = page.evaluate(f"{find}.map(image => image.src)")
            moving = next((source for source in sources if count_frames(source) > 1), None)
        image = f"{find}.find(image => image.src === {json.dumps(moving)})"
        box, settled = box_of(page, image), False
        while not settled:  # the layout shifts while the page loads
            _, _, differs = page.watch(box)
            last, box = box, box_of(page, image)
            settled = box == last
    left, top, right, bottom = box
    assert differs[top:bottom, left:right].any(), "the samples do not move"


def count_frames(source):
    """Counts the frames of an image served by this machine; 0 for other addresses."""
    if not source.startswith("http://127.0.0.1"):
        return 0
    with urllib.request.urlopen(source, timeout=DEADLINE) as answer:
        return Image.open(io.BytesIO(answer.read())).n_frames
