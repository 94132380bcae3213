"""Shared code of the comparisons with PyTorch: models of the same size, workers that take turns, and the table.

Each side runs in a separate worker process of the same script, so that threads and memory are not shared. All workers
first build, compile and run one warm-up round; then they take turns, one running while the others wait.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
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

# Peak FLOP/s of dense bfloat16 products with float32 accumulation, from NVIDIA's data sheets. The first name that is
# part of the device's name applies.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
MATMUL_SIZE = 2048


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
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side")
    parser.add_argument("--skip_compile", action="store_true", help="no torch.compile")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # set in workers
    return parser


def read_work(options: argparse.Namespace) -> Work:
    """The preset's sizes overridden by flags; by default float32 on the CPU and bfloat16 elsewhere."""
    from videogen_jax.command import keep_freed_memory

    if options.side == "ours":
        keep_freed_memory()  # as all commands do
    import jax

    sizes = PRESETS[options.preset]
    sizes = {name: getattr(options, name) or value for name, value in sizes.items()}
    precision = options.precision
    precision = precision or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return Work(**sizes, patch=options.patch, precision=precision)


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
    """Diffusers' model, on the GPU if there is one; parameters in float32, as here."""
    import torch
    from diffusers import LatteTransformer3DModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = LatteTransformer3DModel(**latte_config(work)).to(device)
    return torch.compile(module) if compiled else module


def example(work: Work) -> tuple[Any, Any, dict[str, Any]]:
    """Noise, times and text of a batch, as NumPy arrays: (B, T, H, W, C), (B,), tokens (B, L, E) and mask (B, L)."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((work.batch, *work.shape)).astype(np.float32)
    t = rng.integers(0, 1000, work.batch).astype(np.float32)
    tokens = rng.standard_normal((work.batch, TEXT_TOKENS, TEXT_WIDTH)).astype(np.float32)
    return x, t, {"tokens": tokens, "mask": np.ones((work.batch, TEXT_TOKENS), bool)}


def call_latte(module: Any, x: Any, t: Any, tokens: Any) -> Any:
    """Latte's output for an input (B, T, H, W, C), of the same shape."""
    out = module(x.movedim(-1, 1), t, tokens, return_dict=False)[0]
    return out.movedim(1, -1)


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


def serve(run: Callable[[], None]) -> None:
    """In a worker: warms up, then runs once per line on stdin, and prints seconds and peak memory."""
    run()
    print(json.dumps({"ready": True}), flush=True)
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


def compare(script: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Starts a worker for each available side, and lets them take turns.

    Args:
      script: path of the benchmark.
      options: flags of `make_parser`.
    Returns:
      Side -> median seconds of a turn and peak memory in bytes.
    """
    sides = ["ours"]
    if all(map(importlib.util.find_spec, ("torch", "diffusers"))):
        sides += ["eager"] if options.skip_compile else ["eager", "compiled"]
    workers = {side: _start(script, side) for side in sides}
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    try:
        for worker in workers.values():  # one after the other: compiling takes all cores
            _read(worker)
        for _ in range(options.rounds):
            for side, worker in workers.items():
                worker.stdin.write("go\n")
                worker.stdin.flush()
                turns[side].append(_read(worker))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
            worker.stdin.close()
            worker.stdout.close()
    return {
        side: {
            "seconds": statistics.median(turn["seconds"] for turn in results),
            "peak": max(turn["peak"] for turn in results),
        }
        for side, results in turns.items()
    }


def _start(script: str, side: str) -> subprocess.Popen:
    command = [sys.executable, script, *sys.argv[1:], f"--side={side}"]
    # The sides share one GPU, so JAX must not preallocate its memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _read(worker: subprocess.Popen) -> dict[str, float]:
    for line in worker.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"The worker {worker.args[-1]} ended with exit code {worker.wait()}.")


# ------------------------------------------------------------------------------------------- table


def print_table(work: Work, results: dict[str, dict[str, float]], flops: int, tokens: int) -> None:
    """Prints a row for each side.

    Args:
      work: the model and batch.
      results: from `compare`.
      flops: model FLOPs of a turn.
      tokens: video tokens of a turn.
    """
    peak, device = peak_flops(work.precision)
    print(f"{device}; {work}")
    print("| side | seconds | tokens/s | of the peak | memory, GiB | ours is faster by |")
    print("| --- | --- | --- | --- | --- | --- |")
    ours = results["ours"]["seconds"]
    for side in SIDES:
        if side not in results:
            print(f"| {side} | unmeasured | | | | |")
            continue
        seconds, memory = results[side]["seconds"], results[side]["peak"]
        share = f"{flops / seconds / peak:.1%}" if peak else "unknown"
        print(
            f"| {side} | {seconds:.3f} | {tokens / seconds:.0f} | {share} | "
            f"{memory / 2**30:.2f} | {seconds / ours:.2f} |"
        )


def peak_flops(precision: str) -> tuple[float | None, str]:
    """Peak FLOP/s of the device and its name; from the data sheet, or on a CPU measured by a large matrix product."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    if device.platform == "gpu":
        found = [peak for name, peak in PEAKS.items() if name in device.device_kind]
        return (found[0] if found else None), device.device_kind
    a = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), jnp.dtype(precision))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        multiply(a, a).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2 * MATMUL_SIZE**3 / min(times), f"{os.cpu_count()} CPU cores"
