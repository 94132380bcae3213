"""Shared code of the comparisons with PyTorch: models of the same size, workers that take turns, and the table.

Each side runs in a separate worker process of the same script, so that threads and memory are not shared; this process
starts no JAX backend, whose memory would be the workers'. One after the other, so that nothing disturbs what compilers
measure, the workers build, compile and run one warm-up round; then they take turns, one running while the others wait.
A side that ends early, for lack of memory or of time, is named with its last words, and the others go on.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

SIDES = ("ours", "eager", "compiled")
PRESETS = {
    "tiny": {"width": 32, "depth": 2, "heads": 2, "frames": 4, "size": 8, "batch": 1},
    "s": {"width": 384, "depth": 12, "heads": 6, "frames": 8, "size": 32, "batch": 1},
    "xl": {"width": 1152, "depth": 28, "heads": 16, "frames": 16, "size": 32, "batch": 2},
}
TEXT_TOKENS, TEXT_WIDTH = 77, 768  # of CLIP's text encoder
CHANNELS = 4  # latent channels

MATMUL_SIZE = 2048
LAST_TURNS = 10  # seconds before the end at which no further round begins
TURNS_SHARE = 0.2  # of the time, which no side may spend on getting ready


class Work(NamedTuple):
    """The model and batch that both sides compute."""

    width: int
    depth: int  # number of blocks, spatial and temporal ones together
    heads: int
    frames: int
    size: int  # height and width in latents
    patch: int
    batch: int  # number of clips
    precision: str
    remat: str  # none, or block: every block is computed again in the backward pass

    @property
    def tokens(self) -> int:
        """Video tokens of a batch."""
        return self.batch * self.frames * (self.size // self.patch) ** 2

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of a clip."""
        return (self.frames, self.size, self.size, CHANNELS)


# ------------------------------------------------------------------------------------------ flags


def make_parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The flags of both benchmarks; sizes that are not given come from the preset."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="s")
    for name in PRESETS["s"]:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    text = "what the backward pass computes again, on all sides"
    parser.add_argument("--remat", choices=("none", "block"), default="none", help=text)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side")
    parser.add_argument("--skip_compile", action="store_true", help="no torch.compile")
    parser.add_argument(
        "--seconds", type=float, help="by which to end; what is done by then counts"
    )
    parser.add_argument("--json", type=Path, help="file for the results too, after each round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # set in workers
    return parser


def read_work(options: argparse.Namespace) -> Work:
    """In a worker: the preset's sizes overridden by flags; by default float32 on the CPU, else bfloat16."""
    from videogen_jax.command import keep_freed_memory

    if options.side == "ours":
        keep_freed_memory()  # as all commands do
        import jax

        cpu = jax.default_backend() == "cpu"
    else:
        import torch

        cpu = not torch.cuda.is_available()
    sizes = PRESETS[options.preset]
    sizes = {name: getattr(options, name) or value for name, value in sizes.items()}
    precision = options.precision or ("float32" if cpu else "bfloat16")
    return Work(**sizes, patch=options.patch, precision=precision, remat=options.remat)


# ------------------------------------------------------------------------------------------ models


def latte_config(work: Work) -> dict[str, Any]:
    """The config of diffusers' `LatteTransformer3DModel`."""
    return {
        "num_attention_heads": work.heads,
        "attention_head_dim": work.width // work.heads,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": work.depth // 2,
        "cross_attention_dim": work.width,
        "attention_bias": True,
        "sample_size": work.size,
        "patch_size": work.patch,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": TEXT_WIDTH,
        "video_length": work.frames,
    }


def make_ours(work: Work) -> tuple[Any, Any]:
    """This project's model with Latte's fields, and its parameters."""
    import jax
    import jax.numpy as jnp

    from videogen_jax.models.attention import choose_kernel
    from videogen_jax.models.dit import VideoDiT
    from videogen_jax.models.weight_layouts import latte_fields

    model = VideoDiT(
        **latte_fields(latte_config(work)),
        dtype=jnp.dtype(work.precision),
        kernel=choose_kernel("auto", jax.devices()[:1]),
        remat=work.remat,
        unroll=work.depth // 2,  # as a loop, the scan stacks what is saved for the backward pass
    )
    x, t, text = example(work)
    params = jax.jit(model.init)(jax.random.key(0), x[:1], t[:1], first_row(text))["params"]
    return model, params


def first_row(tree: Any) -> Any:
    """The first row of a batch, as a batch of one."""
    import jax

    return jax.tree.map(lambda leaf: leaf[:1], tree)


def make_latte(work: Work, compiled: bool) -> Any:
    """Latte in PyTorch, on the GPU if there is one; parameters in float32, as here."""
    import torch
    from torch_latte import Latte

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = Latte(
        width=work.width,
        depth=work.depth,
        heads=work.heads,
        frames=work.frames,
        size=work.size,
        patch=work.patch,
        channels=CHANNELS,
        text_width=TEXT_WIDTH,
        remat=work.remat == "block",
    ).to(device)
    if compiled:
        module.compile_blocks()
    return module


def example(work: Work) -> tuple[Any, Any, dict[str, Any]]:
    """Noise, times and text of a batch, as NumPy arrays: (B, T, H, W, C), (B,), tokens (B, L, E) and mask (B, L)."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((work.batch, *work.shape)).astype(np.float32)
    t = rng.integers(0, 1000, work.batch).astype(np.float32)
    tokens = rng.standard_normal((work.batch, TEXT_TOKENS, TEXT_WIDTH)).astype(np.float32)
    return x, t, {"tokens": tokens, "mask": np.ones((work.batch, TEXT_TOKENS), bool)}


def forward_flops(work: Work) -> int:
    """FLOPs of the model's forward pass over one clip."""
    from videogen_jax.models.flops import count_flops

    side = work.size // work.patch
    return count_flops(
        (work.frames, side, side),
        width=work.width,
        depth=work.depth,
        mlp_ratio=4,
        attention="factorized",
        causal=False,
        cross_attention="pixart",
        patch_in=CHANNELS * work.patch**2,
        patch_out=CHANNELS * work.patch**2,
        text_tokens=TEXT_TOKENS,
        text_width=TEXT_WIDTH,
    )


# ----------------------------------------------------------------------------------------- workers


def serve(run: Callable[[], None], work: Work) -> None:
    """In a worker: warms up, then runs once per line on stdin, and prints seconds and peak memory."""
    described = {"work": work._asdict()}
    if "torch" not in sys.modules:
        peak, device = peak_flops(work.precision)
        described |= {"device": device, "peak_flops": peak}
    run()
    print(json.dumps(described), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "peak": peak_bytes()}), flush=True)


def peak_bytes() -> int:
    """Peak memory of this process: of the GPU, or of the host without one."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    else:
        import jax

        if stats := jax.devices()[0].memory_stats():
            return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(precision: str) -> tuple[float, str]:
    """Peak FLOP/s of the device and its name; of a card that is not known, or in float32, of a large product."""
    import jax
    import jax.numpy as jnp

    from videogen_jax.parallel import device_specs

    device = jax.devices()[0]
    name = f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
    card = device_specs.find_card(device.device_kind)
    if card and card.flops and precision == "bfloat16":
        return card.flops, name
    a = jax.random.normal(jax.random.key(0), (MATMUL_SIZE, MATMUL_SIZE), jnp.dtype(precision))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        multiply(a, a).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2 * MATMUL_SIZE**3 / min(times), name


class Worker:
    """A process that serves a side."""

    def __init__(self, script: str, side: str):
        self.side = side
        command = [sys.executable, script, *sys.argv[1:], f"--side={side}"]
        # The sides share one GPU, so JAX must not preallocate its memory.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def read(self, seconds: float | None) -> dict[str, Any]:
        """The next answer.

        Raises:
          WorkerError: the process ended, or did not answer in that many seconds and was killed.
        """
        timer = threading.Timer(seconds or 0, self.process.kill)
        if seconds is not None:
            timer.start()
        try:
            for line in self.process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        finally:
            timer.cancel()
        code = self.process.wait()
        if seconds is not None and code == -9:
            raise WorkerError(f"no answer within {seconds:.0f} s")
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        raise WorkerError(
            f"ended with exit code {code}: {lines[-1][:200] if lines else 'no message'}"
        )

    def take_turn(self, seconds: float | None) -> dict[str, float]:
        """Seconds and peak memory in bytes of one turn; raises as `read`."""
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` says why
        return self.read(seconds)

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class WorkerError(RuntimeError):
    """A side that cannot be measured; the message says why."""


def compare(script: str, options: argparse.Namespace, flops: Callable[[Work], int]) -> None:
    """Starts a worker for each side, one after the other, lets them take turns, and prints the table.

    Args:
      script: path of the benchmark.
      options: flags of `make_parser`.
      flops: FLOPs of the model in a turn.
    Raises:
      SystemExit: this project's side failed.
    """
    begun = time.monotonic()

    def left() -> float | None:
        return options.seconds and max(1.0, options.seconds - (time.monotonic() - begun))

    workers: dict[str, Worker] = {}
    results: dict[str, Any] = {"sides": {}}
    turns: dict[str, list[dict[str, float]]] = {}
    sides = dict.fromkeys(SIDES[:2] if options.skip_compile else SIDES)
    if importlib.util.find_spec("torch") is None:
        sides = {"ours": None}
    try:
        for side in sides:
            started = time.monotonic()
            workers[side] = Worker(script, side)
            try:
                limit = options.seconds and max(1.0, left() - TURNS_SHARE * options.seconds)
                described = workers[side].read(limit)
            except WorkerError as error:
                results["sides"][side] = {"failed": str(error)}
                workers.pop(side).stop()
                continue
            finally:
                _write(options, results)
            results |= {name: value for name, value in described.items() if side == "ours"}
            turns[side] = []
            results["sides"][side] = {"ready": time.monotonic() - started}
        if "ours" not in workers:
            sys.exit(f"This project's side {results['sides']['ours']['failed']}")
        results["flops"] = flops(Work(**results["work"]))
        for _ in range(options.rounds):
            if options.seconds and all(turns.values()) and left() < LAST_TURNS:
                break
            for side in list(workers):
                try:
                    turns[side].append(workers[side].take_turn(left()))
                except WorkerError as error:
                    results["sides"][side]["failed"] = str(error)
                    workers.pop(side).stop()
                    continue
                results["sides"][side] |= summarize(turns[side])
            _write(options, results)
    finally:
        for worker in workers.values():
            worker.stop()
    print_table(results)


def summarize(turns: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of the turns, the fastest and the slowest, their number, and the peak memory in bytes."""
    seconds = [turn["seconds"] for turn in turns]
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "turns": len(turns),
        "peak": max(turn["peak"] for turn in turns),
    }


def _write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


# ------------------------------------------------------------------------------------------- table


def print_table(results: dict[str, Any]) -> None:
    """Prints the device, the work, and a row for each side."""
    print(f"{results['device']}; {Work(**results['work'])}")
    print("\n".join(table_lines(results)))


def table_lines(results: dict[str, Any]) -> list[str]:
    """The rows of a comparison as `compare` writes it, with their heads.

    Tokens are those of the video; a turn of the sampler has fifty times those of a batch and more with guidance.
    """
    lines = [
        "| side | seconds | fastest to slowest | model TFLOP/s | of the peak | memory, GiB | ours is faster by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours = results["sides"]["ours"].get("seconds")
    for side in SIDES:
        measured = results["sides"].get(side, {})
        if "seconds" not in measured:
            reason = f", {measured['failed']}" if "failed" in measured else ""
            lines.append(f"| {side} | unmeasured{reason} | | | | | |")
            continue
        rate = results["flops"] / measured["seconds"]
        lines.append(
            f"| {side} | {measured['seconds']:.3f} | {measured['fastest']:.3f} to {measured['slowest']:.3f} | "
            f"{rate / 1e12:.4g} | {rate / results['peak_flops']:.1%} | {measured['peak'] / 2**30:.2f} | "
            f"{measured['seconds'] / ours:.2f} |"
        )
    return lines
