"""What a run shows beside its loss: groups of tags, the config, memory, noise levels, a profile, and all on W&B."""

import collections
import gzip
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from tests.data.packed import random_clips, write_records
from tests.tiny import tiny_config
from videogen_jax.generate import contact_sheet
from videogen_jax.parallel import device_specs
from videogen_jax.train import device_use, diffusion_run, loop, metrics, profile
from videogen_jax.train.wandb_writer import WandbWriter

pytestmark = pytest.mark.slow

GROUPS = {"loss", "loss_by_noise_level", "optimisation", "speed", "memory", "config"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of 6 steps that is validated at 3 and 6, and traced at 4 and 5."""
    folder = tmp_path_factory.mktemp("dashboards")
    write_records(folder / "data", random_clips((4, 8, 8), 8), 4)
    config = tiny_config()
    config.data.path = str(folder / "data")
    config.mesh.fsdp = 1
    config.train.steps = 6
    config.checkpoint.every = 3
    config.sample.every = 0
    config.profile.update({"first_step": 4, "steps": 2})
    loop.train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def events(workdir):
    found = EventAccumulator(str(workdir / "tensorboard"), {"tensors": 0})
    return found.Reload()


def values(events, tag):
    return {one.step: tensor_util.make_ndarray(one.tensor_proto) for one in events.Tensors(tag)}


def test_every_tag_is_in_a_group(events):
    tags = set(events.Tags()["tensors"]) - {"_hparams_/session_start_info"}
    assert {tag.split("/")[0] for tag in tags} == GROUPS
    assert {
        *("loss/train", "loss/validation", "memory/host_gib"),
        *("optimisation/gradient_norm", "optimisation/learning_rate"),
        *("speed/clips_per_second", "speed/step_seconds", "speed/input_wait"),
        "speed/model_tflops_per_second",
    } <= tags
    assert set(values(events, "loss/train")) == {2, 4, 6}
    assert set(values(events, "loss/validation")) == {3, 6}


def test_the_config_is_there_as_text_and_as_hyper_parameters(events, workdir):
    text = values(events, "config/resolved")[0].item().decode()
    assert json.loads(text.removeprefix("```json").removesuffix("```")) == json.loads(
        (workdir / "config.json").read_text()
    )
    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    shown = start.session_start_info.hparams
    assert shown["model.width"].number_value == 12
    assert shown["model.patch_size"].string_value == "(1, 4, 4)"
    assert shown["optimizer.name"].string_value == "adamw"
    assert shown["data.flip"].bool_value is False


def test_the_config_is_shown_once_and_again_when_it_has_changed(tmp_path):
    shown = []
    writer = SimpleNamespace(
        write_hparams=lambda flat: shown.append(flat["train.steps"]),
        write_texts=lambda step, texts: None,
        flush=lambda: None,
    )
    (tmp_path / "tensorboard").mkdir()
    config = tiny_config()
    for steps in (10, 10, 20, 20):
        config.train.steps = steps
        metrics.show_config(writer, 0, tmp_path, config.to_dict())
    assert shown == [10, 20]


def test_the_histogram_stands_on_the_noise_levels_and_is_as_high_as_their_loss(events):
    bars = values(events, "loss_by_noise_level/histogram")
    assert set(bars) == {3, 6}
    tags = sorted(tag for tag in events.Tags()["tensors"] if re.match(r"loss_by.*/\d", tag))
    edges = [[float(edge) for edge in tag.split("/")[1].split("-")] for tag in tags]
    assert len(tags) == diffusion_run.NOISE_LEVELS
    for step, table in bars.items():
        np.testing.assert_allclose(table[:, :2], edges)
        heights = [values(events, tag)[step] for tag in tags]
        np.testing.assert_allclose(table[:, 2], heights, rtol=1e-6)
        assert np.isfinite(heights).all() and min(heights) > 0
    plugin = events.SummaryMetadata("loss_by_noise_level/histogram").plugin_data.plugin_name
    assert plugin == "histograms"


def test_the_profile_holds_the_steps_that_were_asked_for(workdir):
    trace = read_trace(workdir)
    marked = [one["args"]["step_num"] for one in trace if one.get("name") == "train"]
    assert sorted(map(int, marked)) == [4, 5]
    assert count_runs(trace) == 2


def test_traced_steps_are_whole_though_the_devices_run_behind_the_loop(tmp_path):
    @jax.jit
    def step(x):
        for _ in range(10):
            x = jax.numpy.tanh(x @ x)
        return x

    x = step(jax.numpy.ones((500, 500))).block_until_ready()
    with profile.open_profile(tmp_path, first_step=5, steps=3) as before_step:
        for number in range(1, 12):
            before_step(number, x)
            x = step(x)
    trace = read_trace(tmp_path)
    assert count_runs(trace) == 3
    ran = [one["args"]["hlo_op"] for one in trace if of_step(one)]
    assert set(collections.Counter(ran).values()) == {3}


def read_trace(workdir):
    (folder,) = (workdir / "tensorboard" / "plugins" / "profile").iterdir()
    assert list(folder.glob("*.xplane.pb"))  # for TensorBoard
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        return json.load(file)["traceEvents"]


def of_step(event):
    return event.get("args", {}).get("hlo_module") == "jit_step"


def count_runs(trace):
    return len({event["args"]["run_id"] for event in trace if of_step(event)})


def test_a_profile_ends_with_the_run_and_is_never_begun_in_the_middle(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))

    def run(numbers, **options):
        calls.clear()
        with profile.open_profile(tmp_path, **options) as before_step:
            for step in numbers:
                before_step(step, ())
                calls.append(step)
        return list(calls)

    assert run([1, 2, 3], first_step=2, steps=5) == [1, "start", 2, 3, "stop"]
    assert run([1, 2, 3], first_step=1, steps=1) == ["start", 1, "stop", 2, 3]
    assert run([3, 4, 5], first_step=2, steps=2) == [3, 4, 5]
    assert run([1, 2, 3], first_step=0, steps=3) == [1, 2, 3]


def test_memory_is_the_processs_own_and_that_of_the_fullest_device(monkeypatch):
    status = Path("/proc/self/status")
    measured = device_use.measure_memory()
    if status.exists():
        kib = int(re.search(r"VmRSS:\s*(\d+) kB", status.read_text())[1])
        assert measured["memory/host_gib"] == pytest.approx(kib / 2**20, rel=0.05)
    assert set(measured) == {"memory/host_gib"}  # CPUs tell nothing of theirs

    def device(used, peak):
        stats = {"bytes_in_use": used * 2**30, "peak_bytes_in_use": peak * 2**30}
        return SimpleNamespace(memory_stats=lambda: stats)

    monkeypatch.setattr(jax, "local_devices", lambda: [device(3, 5), device(4, 4)])
    measured = device_use.measure_memory()
    assert measured["memory/device_gib"] == 4 and measured["memory/device_peak_gib"] == 5
    assert "memory/device_limit_gib" not in measured


def test_the_best_of_the_devices_is_known_for_known_cards_alone():
    def mesh(*kinds):
        return SimpleNamespace(devices=np.array([SimpleNamespace(device_kind=k) for k in kinds]))

    known, other = "NVIDIA GeForce RTX 3090", "NVIDIA GeForce GTX 1080"
    assert device_use.find_peak_flops(mesh(known, known)) == 142e12
    assert device_use.find_peak_flops(mesh(known, other)) is None
    assert device_use.find_peak_flops(mesh("cpu")) is None
    assert device_specs.find_card("NVIDIA H100 80GB HBM3").name == "h100"


def read_whole(path):
    """The bytes of a log of W&B, whose own process may write it a little after the run is finished."""
    deadline = time.monotonic() + 30
    size = -1
    while time.monotonic() < deadline and (size < 1000 or path.stat().st_size > size):
        size = path.stat().st_size
        time.sleep(0.2)
    return path.read_bytes()


def test_wandb_has_what_the_other_writers_have_and_goes_on_with_the_run(tmp_path):
    pytest.importorskip("wandb", reason="needs pip install wandb")
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    gif, size = contact_sheet.animation(clips, fps=8)
    for step in (1, 2):
        writer = metrics.make_writer(tmp_path, project="tests", mode="offline")
        writer.write_scalars(step, {"loss/train": np.float32(step + 0.25)})
        metrics.write_animation(writer, step, "samples/prompts", gif, size)
        metrics.write_bars(writer, step, "loss_by_noise_level/histogram", np.array([0.5, 0.125]))
        writer.write_images(step, {"samples/first": clips[:, 0]})
        writer.write_histograms(step, {"samples/pixels": clips})
        metrics.show_config(writer, step, tmp_path, tiny_config().to_dict())
        writer.close()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    name = (tmp_path / "wandb_run_id.txt").read_text().split()[0]
    for step, folder in enumerate(runs, start=1):
        log = read_whole(folder / f"run-{name}.wandb")
        assert re.search(rb"loss/train.{0,8}%d\.25" % step, log, re.DOTALL)
        assert re.search(rb"values.{0,8}\[0\.5,\s?0\.125\]", log, re.DOTALL)
        assert (b"model.patch_size" in log) == (step == 1)
        media = folder / "files" / "media"
        assert [path.read_bytes() for path in media.rglob("*.gif")] == [gif]
        assert len(list(media.rglob("*.png"))) == 2
        pages = [page.read_text() for page in media.rglob("*.html")]
        assert len(pages) == (step == 1) and all("patch_size" in page for page in pages)
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("loss/train")


def test_wandb_that_is_missing_or_misspelt_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"wandb\.mode 'of': choose one of online, offline"):
        WandbWriter(tmp_path, "tests", "of")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="not installed: pip install 'wandb"):
        WandbWriter(tmp_path, "tests", "offline")
    metrics.make_writer(tmp_path, mode="offline").close()  # without a project nobody asks for it
